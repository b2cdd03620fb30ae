"""Compare the answers of the page that needs no server with those of the service.

    python -m bench.page data/val

Run it where publish.py wrote public/ from the model that was packed last. Each photo is classified
with one thread, and with several, as a host allows that sends the headers in public/_headers. Fails
if a label differs, or a JPEG's probability by more than 0.02. It needs Chromium.
"""

import argparse
import base64
import functools
import re
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median
from typing import Any

from playwright.sync_api import Page, sync_playwright

from simplestack.packing import bentos, local_server

TOLERANCE = 0.02  # of a JPEG's probabilities
JPEG = {".jpg", ".jpeg"}
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
LOAD = """async () => {
  await (await classifier).load();
  return (await import("./onnxruntime.js")).env.wasm.numThreads;
}"""
ASK = """async (base64) => {
  const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  const start = performance.now();
  const answer = await ask(new File([bytes], "")).catch((error) => ({ error: error.message }));
  return { ...answer, ms: performance.now() - start };
}"""

Answers = tuple[Path, dict[str, Any], dict[str, Any]]
"""A photo, the page's answer and the service's."""


class _Handler(SimpleHTTPRequestHandler):
    def __init__(self, *arguments: Any, added: list[tuple[str, str]], **options: Any) -> None:
        self.added = added
        super().__init__(*arguments, **options)

    def end_headers(self) -> None:
        """Add headers to those of Python's plain web server."""
        for name, value in self.added:
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@contextmanager
def served(folder: Path, *, isolated: bool = False) -> Iterator[str]:
    """Serve a folder under its name with Python's plain web server; yield the URL.

    `isolated` adds the headers in the folder's file _headers, which allow threads.
    """
    text = (folder / "_headers").read_text() if isolated else ""
    added = re.findall(r"^  ([\w-]+): (.+)$", text, re.MULTILINE)
    handler = functools.partial(_Handler, directory=str(folder.absolute().parent), added=added)
    with ThreadingHTTPServer((local_server.HOST, 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            yield f"http://{local_server.HOST}:{server.server_port}/{folder.name}/"
        finally:
            server.shutdown()


def ask_both(folder: Path, photos: list[Path]) -> list[tuple[int, list[Answers]]]:
    """Ask the page in a folder, in Chromium, and the Bento that was packed last.

    Returns the page's number of threads, and its answers, without and with isolation.
    """
    with (
        sync_playwright() as playwright,
        served(folder) as plain_url,
        served(folder, isolated=True) as isolated_url,
        local_server.serve(str(bentos.latest().tag), API_TOKEN="") as service_url,
        local_server.session() as client,
        playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"]) as browser,
    ):
        pages: list[Page] = []
        asked: list[tuple[int, list[Answers]]] = []
        for url in (plain_url, isolated_url):
            pages.append(browser.new_page())
            pages[-1].goto(url)
            asked.append((pages[-1].evaluate(LOAD), []))
        for photo in photos:
            data = photo.read_bytes()
            expected = client.post(f"{service_url}/predict", data).json()
            for page, (_, answers) in zip(pages, asked, strict=True):  # by turns, to compare speeds
                answer = page.evaluate(ASK, base64.b64encode(data).decode())
                answers.append((photo, answer, expected))
        return asked


def report(threads: int, answers: list[Answers]) -> None:
    """Print how far the page's and the service's answers differ; exit if too far."""
    rows = [row for row in answers if "label" in row[1] and "label" in row[2]]
    if not rows:
        sys.exit("error: there is no photo that both the page and the service can answer")
    moved = {
        photo: max(abs(page["probabilities"][x] - p) for x, p in service["probabilities"].items())
        for photo, page, service in rows
    }
    similar = max(abs(page["similarity"] - service["similarity"]) for _, page, service in rows)
    same = sum(page["label"] == service["label"] for _, page, service in rows)
    unlike = sum(page["unlike"] == service["unlike"] for _, page, service in rows)
    print(
        f"page ({threads} threads) and service: the same label for {same} of {len(rows)} photos"
        f" that both can read (of {len(answers)}), and unlike for {unlike}; probabilities"
        f" differ by at most {max(moved.values()):.4f}, similarities by {similar:.4f};"
        f" {median(page['ms'] for _, page, _ in rows):.0f} ms a photo"
    )
    differ = [x for x, page, service in answers if page.get("label") != service.get("label")]
    differ += [x for x, by in moved.items() if by > TOLERANCE and x.suffix.lower() in JPEG]
    if differ:
        sys.exit(f"error: page and service differ too much: {', '.join(map(str, differ[:5]))}")


def main() -> None:
    """Compare all photos of a folder."""
    parser = argparse.ArgumentParser(description="Compare public/ with the packed service.")
    parser.add_argument("folder", type=Path, help="of photos")
    args = parser.parse_args()
    photos = sorted(path for path in args.folder.rglob("*") if path.is_file())
    for threads, answers in ask_both(Path("public"), photos):
        report(threads, answers)


if __name__ == "__main__":
    main()
