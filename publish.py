"""Write public/: the page and the packed model for any static host. No photo leaves the browser.

python publish.py                                # the newest ONNX file in saved_models/
python publish.py saved_models/NAME.onnx         # a certain one
"""

import argparse
import json
import re
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from simplestack import cli

if __name__ == "__main__":
    cli.start("onnxruntime")

from PIL import Image, ImageDraw

from simplestack.serving import images, not_images, site
from simplestack.serving.errors import StackError
from simplestack.serving.inference import OnnxModel

PUBLIC = Path("public")
PROJECT = Path(__file__).parent
STATIC = PROJECT / "simplestack/page"
RUNTIME = PROJECT / "onnxruntime-web-1.30.0.tgz"
NOT_FOR_VISITS = {"README.md", "sw.js"}
INSTALLABLE = """
<link rel="manifest" href="manifest.json">
<link rel="apple-touch-icon" href="icon-192.png">"""
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
PARTS = {  # of ONNX Runtime, with suffixes that every server knows
    "onnxruntime.js": "package/dist/ort.wasm.bundle.min.mjs",
    "onnxruntime.wasm": "package/dist/ort-wasm-simd-threaded.wasm",
}


def main(argv: list[str] | None = None) -> None:
    """Write the folder, and print how to put it online."""
    parser = argparse.ArgumentParser(description="Write public/, the page without a server.")
    parser.add_argument("model", type=Path, nargs="?", help="default: newest in saved_models")
    args = parser.parse_args(argv)
    model = OnnxModel(args.model or cli.newest(".onnx"))
    if PUBLIC.exists() and any(PUBLIC.iterdir()) and not (PUBLIC / "rules.json").exists():
        raise StackError(f"{PUBLIC} holds something else: move it away, or go to another folder")
    fetch_runtime()
    with tempfile.TemporaryDirectory(dir=".") as folder:
        write(Path(folder), model)
        shutil.rmtree(PUBLIC / "examples", ignore_errors=True)  # may be private
        shutil.copytree(folder, PUBLIC, dirs_exist_ok=True)
    commands = (PUBLIC / "README.md").read_text().partition("```sh\n")[2].partition("\n```")[0]
    cli.print_next(commands)


def fetch_runtime() -> None:
    """Download ONNX Runtime for browsers, once. Raises StackError if that fails."""
    if not RUNTIME.exists():
        print("fetching ONNX Runtime for browsers (33 MB) …", flush=True)
        command = ["npm", "pack", RUNTIME.stem.replace("-1", "@1")]
        with tempfile.TemporaryDirectory(dir=RUNTIME.parent) as folder:
            try:
                subprocess.run(command, cwd=folder, check=True, capture_output=True)
            except (OSError, subprocess.CalledProcessError) as error:
                raise StackError(
                    f"{' '.join(command)} fails ({error}): install Node.js, or run it"
                    f" on another machine and copy its file into {RUNTIME.parent}"
                ) from error
            Path(folder, RUNTIME.name).rename(RUNTIME)
    if site.integrity(RUNTIME.read_bytes(), "sha512") != f"sha512-{SHA512}":
        raise StackError(f"{RUNTIME} isn't the published file: delete it, and run this again")


def write(folder: Path, model: OnnxModel) -> None:
    """Write the page and a packed model into a folder."""
    metadata = model.metadata
    shutil.copytree(STATIC, folder, dirs_exist_ok=True)
    shutil.copyfile(model.path, folder / "model.onnx")
    for name, photo in site.examples(metadata).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(photo)
    with tarfile.open(RUNTIME) as package:
        for name, part in PARTS.items():
            (folder / name).write_bytes(package.extractfile(part).read())  # type: ignore[union-attr]
    checked = ("model.onnx", "onnxruntime.wasm")
    integrity = {name: site.integrity((folder / name).read_bytes()) for name in checked}
    rules = {
        "resize": images.RESIZE,
        "crop": images.CROP,
        "max_pixels": images.MAX_PIXELS,
        "damaged": not_images.DAMAGED,
        "too_many_pixels": not_images.TOO_MANY_PIXELS,
        "integrity": integrity,
    }
    (folder / "rules.json").write_text(json.dumps(rules))
    (folder / "model.json").write_text(json.dumps(site.model_json(metadata)))
    (folder / "labels.txt").write_text("\n".join((*metadata["classes"], "")))
    title = site.title(metadata["classes"])
    for name in ("README.md", "manifest.json"):
        fill_in(folder / name, "TITLE", title)
    page = (PROJECT / "simplestack/serving/web/index.html").read_text()
    page = re.sub("(?s)<script>.*?(?=</script>)", '<script src="browser.js">', page, count=1)
    policy = site.policy_for(page, "'self' 'wasm-unsafe-eval'")
    policy += "; manifest-src 'self'; worker-src 'self'"
    tag = f'<head>\n<meta http-equiv="Content-Security-Policy" content="{policy}">{INSTALLABLE}'
    (folder / "index.html").write_text(page.replace("<head>", tag, 1))
    for side in (192, 512):
        draw_icon().resize((side, side)).save(folder / f"icon-{side}.png")
    files = files_for_visits(folder)
    version = site.integrity(json.dumps(files).encode())
    fill_in(folder / "sw.js", "VERSION_AND_FILES", [version, files])


def files_for_visits(folder: Path) -> dict[str, str]:
    """Return the hash of each file that a visit needs, by its URL; hosts read the others."""
    paths = sorted(path for path in folder.rglob("[!._]*.*") if path.name not in NOT_FOR_VISITS)
    files = {str(path.relative_to(folder)): site.integrity(path.read_bytes()) for path in paths}
    return {**files, "./": files["index.html"]}


def fill_in(file: Path, name: str, value: object) -> None:
    """Write a value as JSON, which YAML and JavaScript contain, in the place of its name."""
    file.write_text(file.read_text().replace(name, json.dumps(value)))


def draw_icon() -> Image.Image:
    """Draw a photo and the bars of an answer, within the circle that launchers cut out."""
    icon = Image.new("RGB", (1024, 1024), "#8a5a00")
    draw = ImageDraw.Draw(icon)
    draw.rounded_rectangle((232, 232, 792, 792), 60, "white")
    draw.ellipse((422, 292, 602, 472), "#e2a216")
    for top, width, colour in ((550, 440, "#e2a216"), (650, 150, "#b0aca0")):
        draw.rounded_rectangle((292, top, 292 + width, top + 60), 30, colour)
    return icon


if __name__ == "__main__":
    main()
