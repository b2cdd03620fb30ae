"""Compare the answers of the page that needs no server with those of the service.

    python -m bench.page data/val

Run it where publish.py wrote public/ from the model that was packed last. Fails if a label differs,
or a JPEG's probability by more than 0.02. It needs Chromium.
"""

import argparse
import base64
import functools
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median
from typing import Any

from playwright.sync_api import sync_playwright

from simplestack.packing import bentos, local_server

TOLERANCE = 0.02  # of a JPEG's probabilities
JPEG = {".jpg", ".jpeg"}
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
ASK = """async (base64) => {
  const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  const start = performance.now();
  const answer = await ask(new File([bytes], "")).catch((error) => ({ error: error.message }));
  return { ...answer, ms: performance.now() - start };
}"""

Answers = tuple[Path, dict[str, Any], dict[str, Any]]
"""A photo, the page's answer and the service's."""


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Log nothing."""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder under its name with Python's plain web server; yield the URL."""
    handler = functools.partial(_Quiet, directory=str(folder.absolute().parent))
    with ThreadingHTTPServer((local_server.HOST, 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            yield f"http://{local_server.HOST}:{server.server_port}/{folder.name}/"
        finally:
            server.shutdown()


def ask_both(folder: Path, photos: list[Path]) -> list[Answers]:
    """Ask the page in a folder, in Chromium, and the Bento that was packed last."""
    with (
        sync_playwright() as playwright,
        served(folder) as page_url,
        local_server.serve(str(bentos.latest().tag), API_TOKEN="") as service_url,
        local_server.session() as client,
        playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"]) as browser,
    ):
        page = browser.new_page()
        page.goto(page_url)
        page.evaluate("async () => (await classifier).load()")
        answers = []
        for photo in photos:
            data = photo.read_bytes()
            answer = page.evaluate(ASK, base64.b64encode(data).decode())
            answers.append((photo, answer, client.post(f"{service_url}/predict", data).json()))
        return answers


def report(answers: list[Answers]) -> None:
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
        f"page and service: the same label for {same} of {len(rows)} photos that both can read (of"
        f" {len(answers)}), and unlike for {unlike}; probabilities differ by at most"
        f" {max(moved.values()):.4f}, similarities by {similar:.4f};"
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
    report(ask_both(Path("public"), photos))


if __name__ == "__main__":
    main()
