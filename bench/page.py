"""Compare the answers of the page that needs no server with those of the service."""

import base64
import functools
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median
from typing import Any

from tqdm import tqdm

from simplestack.packing import local_server
from simplestack.serving.errors import StackError

MOVED = 0.02  # of a probability, for a JPEG
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


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing of each request."""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve what is in a folder, under its name, with Python's plain web server; yield the URL."""
    handler = functools.partial(_Quiet, directory=str(folder.absolute().parent))
    with ThreadingHTTPServer((local_server.HOST, 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            yield f"http://{local_server.HOST}:{server.server_port}/{folder.name}/"
        finally:
            server.shutdown()


def compare(folder: Path, bento: str, photos: list[Path]) -> None:
    """Ask the page in a folder, in Chromium, and the service, given by tag, about the same photos.

    Print how far the answers differ. Raises StackError if a label does, or a JPEG's probability by
    more than MOVED.
    """
    try:
        from playwright.sync_api import sync_playwright  # noqa: PLC0415  (not needed otherwise)
    except ImportError as error:
        raise StackError("--check needs Playwright: make lint installs it") from error
    if not CHROMIUM:
        raise StackError("--check needs Chromium: on Debian and Ubuntu, apt install chromium")
    with (
        sync_playwright() as playwright,
        served(folder) as page_url,
        local_server.serve(bento, API_TOKEN="") as service_url,
        local_server.session() as client,
    ):
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(page_url)
        answers = []
        page.evaluate("async () => (await classifier).load()")
        for photo in tqdm(photos, desc="comparing", unit="photo", leave=False, disable=None):
            data = photo.read_bytes()
            said = page.evaluate(ASK, base64.b64encode(data).decode())
            answers.append((photo, said, client.post(f"{service_url}/predict", data).json()))
        browser.close()
    report(answers)


def report(answers: list[tuple[Path, dict[str, Any], dict[str, Any]]]) -> None:
    """Print how far the page's and the service's answers differ. Raises StackError if too far."""
    both = [row for row in answers if "label" in row[1] and "label" in row[2]]
    if not both:
        raise StackError("there is no photo that both the page and the service can answer")
    moved = {photo: largest_difference(page, service) for photo, page, service in both}
    similar = max(abs(page["similarity"] - service["similarity"]) for _, page, service in both)
    same = sum(page["label"] == service["label"] for _, page, service in both)
    unlike = sum(page["unlike"] == service["unlike"] for _, page, service in both)
    differ = [
        photo for photo, page, service in answers if page.get("label") != service.get("label")
    ]
    print(
        f"page and service: the same label for {same} of {len(both)} photos that both can read (of"
        f" {len(answers)}), and unlike for {unlike}; probabilities differ by at most"
        f" {max(moved.values()):.4f}, similarities by {similar:.4f};"
        f" {median(page['ms'] for _, page, _ in both):.0f} ms a photo"
    )
    differ += [x for x, by in moved.items() if by > MOVED and x.suffix.lower() in JPEG]
    if differ:
        raise StackError(f"page and service differ too much: {', '.join(map(str, differ[:5]))}")


def largest_difference(page: dict[str, Any], service: dict[str, Any]) -> float:
    """Return by how much a probability in two answers differs at most."""
    pages, services = page["probabilities"], service["probabilities"]
    return float(max(abs(pages[label] - services[label]) for label in services))
