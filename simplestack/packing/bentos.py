"""The Bento around an ONNX file: its name, the files in it, and whether it is up to date."""

import hashlib
import re
import shutil
import tempfile
import unicodedata
from pathlib import Path

import bentoml

from simplestack.packing import dockerfile
from simplestack.serving.errors import StackError
from simplestack.serving.inference import OnnxModel

ARCHITECTURE = "resnet18"  # also the name of the model in BentoML's store: see service.py
NAME = re.compile("[a-z][a-z0-9_]{0,62}")  # of a Bento, as BentoML and Docker allow it
NAME_RULE = "a letter and up to 62 letters, digits and underscores, all in lower case"
TUTORIALS_CLASSES, TUTORIALS_NAME = ["ants", "bees"], "ant_or_bee_classifier"
PROJECT = Path(__file__).parent.parent.parent
SCRIPTS = ("service.py", "gunicorn.conf.py", "simplestack/__init__.py")
REQUIREMENTS = "requirements-serve.txt"


def default_name(classes: list[str]) -> str:
    """Return the name of a Bento: after its classes if they are two or three, and fit."""
    if classes == TUTORIALS_CLASSES:
        return TUTORIALS_NAME
    words = [_ascii(name) for name in classes]
    name = f"{'_or_'.join(words)}_classifier"
    fits = len(words) <= 3 and all(words) and NAME.fullmatch(name)  # noqa: PLR2004
    return name if fits else "photo_classifier"


def _ascii(text: str) -> str:
    """Return a text in lower case, without accents, with underscores for all but a-z and 0-9."""
    plain = unicodedata.normalize("NFKD", text.casefold()).encode("ascii", "ignore").decode()
    return re.sub("[^a-z0-9]+", "_", plain).strip("_")


def build_bento(name: str, file: Path, labels: dict[str, str]) -> bentoml.Bento:
    """Save an ONNX file in BentoML's store and build a Bento around it: both or neither."""
    metadata = OnnxModel(file).metadata
    classes = " and ".join(metadata["classes"])
    with bentoml.models.create(ARCHITECTURE) as bento_model:
        shutil.copy(file, bento_model.path_of("model.onnx"))
    bento = None
    try:
        # The build folder has only the files that are deployed.
        with tempfile.TemporaryDirectory() as folder:
            shutil.copytree(PROJECT / "simplestack/serving", Path(folder, "simplestack/serving"))
            for script in SCRIPTS:
                shutil.copy(PROJECT / script, Path(folder, script))
            packages = (PROJECT / REQUIREMENTS).read_text().splitlines()
            bento = bentoml.build(
                "service:PhotoClassifier",
                name=name,
                build_ctx=folder,
                labels=labels,
                description=f"Tells {classes} apart. {metadata['notice']}",
                python={"packages": packages, "lock_packages": False},
            )
        # With its own copy of the model, the saved path is all that serving or an image needs.
        bentoml.models.BentoModel(bento_model.tag).resolve(bento.path_of("models"))
        dockerfile.prepare(Path(bento.path))
    except BaseException:
        if bento:
            bentoml.delete(bento.tag)
        bentoml.models.delete(bento_model.tag)
        raise
    return bento


def latest(name: str = "", checkpoint: str = "") -> bentoml.Bento:
    """Return the newest Bento; if they are given, with a name or tag, or a checkpoint's SHA-256.

    Raises StackError if there is none.
    """
    name = name.removesuffix(":latest")
    bentos = [
        bento
        for bento in bentoml.list()
        if (source := bento.info.labels.get("checkpoint"))
        and checkpoint in {"", source}
        and name in {"", bento.tag.name, str(bento.tag)}
    ]
    if not bentos:
        called = f" called {name}" if name else ""
        raise StackError(f"nothing{called} is packed yet: make run, or python saveToBento.py")
    return max(bentos, key=lambda bento: bento.info.creation_time)


def find_packed(name: str, file: Path, labels: dict[str, str]) -> bentoml.Bento | None:
    """Return the latest Bento of a name if it is complete and has these labels and ONNX file."""
    try:
        bento = latest(name)
    except StackError:
        return None
    models = Path(bento.path).glob("models/*/*/model.onnx")
    same = file.exists() and [hash_files(path) for path in models] == [hash_files(file)]
    complete = Path(bento.path, "Dockerfile").exists()
    return bento if same and complete and bento.info.labels == labels else None


def hash_code() -> str:
    """Return the SHA-256 of the code and requirements that a Bento depends on."""
    files = (path for path in (PROJECT / "simplestack").rglob("*") if path.is_file())
    package = sorted(path for path in files if path.suffix != ".pyc")
    return hash_files(*package, *(PROJECT / x for x in (*SCRIPTS, "saveToBento.py", REQUIREMENTS)))


def hash_files(*paths: Path) -> str:
    """Return the SHA-256 of the contents of some files."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()
