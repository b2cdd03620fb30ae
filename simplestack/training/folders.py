"""Any folder of photos: the classes, the photos of each, and the split for validation."""

import random
from pathlib import Path

from simplestack.serving.errors import StackError
from simplestack.training import sample

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".avif", ".bmp", ".tif", ".tiff"}
SPLITS = ("train", "val")
VAL_SHARE = 0.2  # of each class, held out if there is no val/
MAX_NAMED = 10  # files in one warning
REMEDY = (
    "run `sh get_data.sh` first, or name another folder with --data-dir (with one folder per"
    " class in it, or train/ and val/ with one folder per class in each)"
)

Names = dict[str, list[str]]
"""The photos of "train" and "val", as paths below the data folder with "/" in them."""


def unexpected_files(data_dir: Path, classes: list[str]) -> list[str]:
    """Return the files in the class folders that are not named like photos."""
    folders = [root / name for root in root_folders(data_dir) for name in classes]
    files = [p for folder in folders for p in sorted(folder.iterdir())]
    return [str(p) for p in files if p.suffix.lower() not in SUFFIXES and p.name[0] != "."]


def find_photos(data_dir: Path, classes: list[str], seed: int) -> Names:
    """Find the training and validation photos. Raises StackError if a class has too few.

    If data_dir has no train/ and val/, a fifth of each class, chosen by `seed`, is held out for
    validation.
    """
    names: Names = {split: [] for split in SPLITS}
    rng = random.Random(seed)  # noqa: S311  (nothing secret about it)
    for class_name in classes:
        folders = [root / class_name for root in root_folders(data_dir)]
        parts = [photos_in(folder) for folder in folders]
        if len(folders) == 1:
            folders = folders * 2  # both parts are in the same folder
            parts = hold_out(parts[0], rng)
        for split, folder, paths in zip(SPLITS, folders, parts, strict=True):
            if not paths:
                raise StackError(
                    f"{folder} has no photos in it for {split}: put some there"
                    f" ({', '.join(sorted(SUFFIXES))}), or remove the class from every split"
                )
            names[split] += [path.relative_to(data_dir).as_posix() for path in paths]
    return names


def hold_out(photos: list[Path], rng: random.Random) -> list[list[Path]]:
    """Split a class into training and validation photos. Raises StackError if it has only one."""
    if len(photos) == 1:
        raise StackError(
            f"{photos[0]} is the only photo of its class: one more is needed, one for training and"
            " one for validation"
        )
    count = min(len(photos), max(1, round(VAL_SHARE * len(photos))))
    held_out = set(rng.sample(photos, count))
    return [[path for path in photos if path not in held_out], sorted(held_out)]


def photos_in(folder: Path) -> list[Path]:
    """Return the photos of one class, sorted by name so that a seed means the same everywhere."""
    if not folder.is_dir():
        return []
    paths = [path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES]
    return sorted(path for path in paths if path.name[0] != "." and path.is_file())


def check_recorded(data_dir: Path, names: Names) -> None:
    """Raise StackError if data_dir lacks a photo that a checkpoint names."""
    for name in (*names["train"], *names["val"]):
        if not (data_dir / name).is_file():
            raise StackError(
                f"{data_dir} lacks {name}, which the checkpoint was made with: name the folder it"
                " was trained on with --data-dir"
            )


def root_folders(data_dir: Path) -> list[Path]:
    """Return where the class folders are: data_dir/train and data_dir/val, or just data_dir."""
    folders = [data_dir / split for split in SPLITS]
    return folders if any(folder.is_dir() for folder in folders) else [data_dir]


def find_classes(data_dir: Path) -> list[str]:
    """Return the names of the class folders, sorted. Raises StackError if they can't be used."""
    found = [_class_folders(folder) for folder in root_folders(data_dir)]
    if found[0] != found[-1]:
        raise StackError(
            f"{data_dir}/train and {data_dir}/val must have the same class folders:"
            f" {', '.join(sorted(set(found[0]) ^ set(found[-1])))} is in one of them only"
        )
    return found[0]


def _class_folders(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise StackError(f"there are no photos in {folder}: {REMEDY}")
    classes = sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name[0] != ".")
    for name in classes:
        if name.encode(errors="replace").decode() != name:
            raise StackError(
                f"{folder} has the class folder {name!r}, not UTF-8: rename that folder"
            )
    if len(classes) < 2:  # noqa: PLR2004
        found = ", ".join(classes) or "none"
        raise StackError(f"{folder} needs at least two class folders, has {found}: {REMEDY}")
    return classes


def disclaimer(data_dir: Path, from_scratch: bool) -> str:
    """Return what to know before trusting the model; "" if nothing."""
    weights = "from random weights" if from_scratch else "from ImageNet weights"
    if (data_dir / sample.NOTE).exists():
        return (
            f"A demonstration: trained {weights} on drawn pictures, knows nothing of real photos."
        )
    if from_scratch:
        return f"Trained {weights} instead of ImageNet's: expect many mistakes."
    return ""
