"""Build a Bento around a packed model: which files it holds, and which versions they need."""

import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import Any

import bentoml

from simplestack.packing import dockerfile
from simplestack.serving.errors import StackError
from simplestack.serving.inference import checksum

NAME = "ant_or_bee_classifier"  # as in service.py, which spells both names out
MODEL = "ant_or_bee_resnet18"
PROJECT = Path(__file__).parent.parent.parent
SCRIPTS = ("service.py", "gunicorn.conf.py")
REQUIREMENTS = "requirements-serve.txt"


def build_bento(file: Path, metadata: dict[str, Any], labels: dict[str, str]) -> bentoml.Bento:
    """Save the model in BentoML's store and build a Bento around it: both or neither."""
    classes = " and ".join(metadata["classes"])
    checked = {"sha256": checksum(file, metadata)}
    with bentoml.models.create(MODEL, labels=labels | checked, metadata=metadata) as stored:
        shutil.copy(file, stored.path_of("model.onnx"))
        if metadata.get("examples"):
            shutil.copytree(file.parent / "examples", stored.path_of("examples"))
    bento = None
    try:
        # From a folder that holds what is served and nothing else.
        with tempfile.TemporaryDirectory() as folder:
            copy_served(Path(folder))
            packages = (PROJECT / REQUIREMENTS).read_text().splitlines()
            bento = bentoml.build(
                "service:AntOrBeeClassifier",
                build_ctx=folder,
                labels=labels,
                description=f"Tells {classes} apart. {metadata['notice']}",
                python={"packages": packages, "lock_packages": False},
            )
        # With its own copy of the model, the saved path is all that serving or an image needs.
        bentoml.models.BentoModel(stored.tag).resolve(bento.path_of("models"))
        dockerfile.prepare(Path(bento.path))
    except BaseException:
        if bento:
            bentoml.delete(bento.tag)
        bentoml.models.delete(stored.tag)
        raise
    return bento


def copy_served(folder: Path) -> None:
    """Copy what is served to a folder."""
    shutil.copytree(PROJECT / "simplestack/serving", folder / "simplestack/serving")
    shutil.copy(PROJECT / "simplestack/__init__.py", folder / "simplestack")
    for name in SCRIPTS:
        shutil.copy(PROJECT / name, folder)


def latest() -> bentoml.Bento:
    """Return the Bento that was packed last. Raises StackError if there is none."""
    try:
        return bentoml.get(f"{NAME}:latest")
    except bentoml.exceptions.NotFound as error:
        raise StackError("nothing is packed yet: make run, or python saveToBento.py") from error


def find_packed(labels: dict[str, str]) -> bentoml.Bento | None:
    """Return the latest Bento if it was packed, whole, from this checkpoint by this code."""
    try:
        bento = latest()
        bentoml.models.get(bento.info.all_models[0].tag)
    except (StackError, bentoml.exceptions.NotFound):
        return None
    whole = Path(bento.path, "Dockerfile").exists()
    return bento if whole and bento.info.labels == labels else None


def hash_code() -> str:
    """Return the SHA-256 of everything but the checkpoint that shapes a Bento."""
    files = (path for path in (PROJECT / "simplestack").rglob("*") if path.is_file())
    package = sorted(path for path in files if path.suffix != ".pyc")
    return hash_files(*package, *(PROJECT / x for x in (*SCRIPTS, "saveToBento.py", REQUIREMENTS)))


def hash_files(*paths: Path) -> str:
    """Return the SHA-256 of the contents of some files."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()
