"""Build a Bento around a packed model: what is in it, and at which versions."""

import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import Any

import bentoml

from simplestack.packing import dockerfile

NAME = "ant_or_bee_classifier"
MODEL = "ant_or_bee_resnet18"
PROJECT = Path(__file__).parent.parent.parent
SERVED = ("service.py", "gunicorn.conf.py", "simplestack/__init__.py", "simplestack/serving")
IGNORED = shutil.ignore_patterns("__pycache__")


def build(file: Path, metadata: dict[str, Any], labels: dict[str, str]) -> bentoml.Bento:
    """Save the model in BentoML's store and build the Bento around it: both, or neither."""
    classes = " and ".join(metadata["classes"])
    requirements = PROJECT / "requirements-serve.txt"
    with bentoml.models.create(MODEL, labels=labels, metadata=metadata) as stored:
        shutil.copy(file, stored.path_of("model.onnx"))
    bento = None
    try:
        # From a folder of its own, so that nothing gets in but what is named here.
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "simplestack").mkdir()
            for name in SERVED:
                if (PROJECT / name).is_dir():
                    shutil.copytree(PROJECT / name, Path(folder, name), ignore=IGNORED)
                else:
                    shutil.copyfile(PROJECT / name, Path(folder, name))
            bento = bentoml.build(
                "service:AntOrBeeClassifier",
                build_ctx=folder,
                labels=labels,
                description=f"Tells {classes} apart. {metadata['notice']}",
                python={"packages": requirements.read_text().splitlines(), "lock_packages": False},
            )
        # The model itself too, so that the saved path is all that serving or an image needs.
        bentoml.models.BentoModel(stored.tag).resolve(bento.path_of("models"))
        dockerfile.prepare(Path(bento.path))
    except BaseException:
        if bento:
            bentoml.delete(bento.tag)
        bentoml.models.delete(stored.tag)
        raise
    return bento


def packed_before(labels: dict[str, str]) -> bentoml.Bento | None:
    """Find out whether the latest Bento already holds this checkpoint and this code."""
    try:
        bento = bentoml.get(f"{NAME}:latest")
        bentoml.models.get(bento.info.all_models[0].tag)
    except bentoml.exceptions.NotFound:
        return None
    return bento if bento.info.labels == labels else None


def code() -> str:
    """Return the SHA-256 of all that shapes a Bento besides the checkpoint."""
    files = (path for path in (PROJECT / "simplestack").rglob("*") if path.is_file())
    package = (path for path in files if path.parent.name != "__pycache__")
    scripts = ("service.py", "gunicorn.conf.py", "saveToBento.py", "requirements-serve.txt")
    return fingerprint(*sorted(package), *(PROJECT / name for name in scripts))


def fingerprint(*paths: Path) -> str:
    """Return the SHA-256 of some files."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()
