"""Any folder of photos: the classes, the photos of each, and the split for validation."""

import os
import random
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from simplestack.serving.errors import StackError
from simplestack.training import sample

SUFFIXES = {
    *(".jpg", ".jpeg", ".jfif", ".png", ".webp", ".avif", ".heic", ".heif", ".bmp", ".tif"),
    *(".tiff", ".ppm", ".pgm"),
}
IGNORED = {"__macosx", "thumbs.db", "desktop.ini"}  # of systems, as is all that is hidden
SPLITS = ("train", "val")
FOLDERS = {"train": ("train", "training"), "val": ("val", "valid", "validation", "test")}
VAL_SHARE = 0.2  # of each class, held out if there is no val/
MAX_NAMED = 10  # files in one warning
REMEDY = (
    "run `sh get_data.sh` first, or name another folder with --data-dir (with one folder per"
    " class in it, or train/ and val/ with one folder per class in each)"
)

Names = dict[str, list[str]]
"""The photos of "train" and "val", as paths below the data folder with "/" in them."""


def unexpected_files(data_dir: Path) -> list[str]:
    """Return the files in the class folders that are not named like photos, or lead nowhere."""
    roots = [class_folders(root) for root in root_folders(data_dir)]
    files = [f for folders in roots for paths in folders.values() for f in files_in(paths)]
    return [
        str(path) if path.exists() else f"{path}, a link that leads nowhere"
        for path in files
        if not is_photo(path)
    ]


def find_photos(data_dir: Path, classes: list[str], seed: int) -> Names:
    """Find the training and validation photos. Raises StackError if a class has too few.

    If data_dir has no folders for the two, a fifth of each class, chosen by `seed`, is held out for
    validation.
    """
    names: Names = {split: [] for split in SPLITS}
    rng = random.Random(seed)  # noqa: S311  (nothing secret about it)
    roots = [class_folders(root) for root in root_folders(data_dir)]
    for class_name in classes:
        folders = [root[class_name] for root in roots]
        parts = [photos_in(paths) for paths in folders]
        for paths, photos in zip(folders, parts, strict=True):
            if not photos:
                raise StackError(
                    f"{paths[0]} has no photos in it{_others(paths)}: put some there"
                    f" ({', '.join(sorted(SUFFIXES))}), or remove the class from every split"
                )
        if len(parts) == 1:
            parts = hold_out(parts[0], rng)
        for split, photos in zip(SPLITS, parts, strict=True):
            names[split] += [path.relative_to(data_dir).as_posix() for path in photos]
    return names


def _others(folders: list[Path]) -> str:
    """Return what is in folders without photos, by suffix."""
    suffixes = Counter(path.suffix or path.name for path in files_in(folders))
    found = ", ".join(f"{count} {suffix}" for suffix, count in suffixes.most_common(MAX_NAMED))
    return f", only {found}" if found else ""


def class_of(name: str, classes: list[str]) -> str:
    """Return the class of a photo, given its path below the data folder; "" if it has none.

    Folders below that of the class don't matter.
    """
    folders = [_normalised(folder) for folder in Path(name).parts[:2]]
    return next((folder for folder in folders if folder in classes), "")


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


def photos_in(folders: Iterable[Path]) -> list[Path]:
    """Return the photos of one class, sorted by name so that a seed means the same everywhere."""
    return sorted(path for path in files_in(folders) if is_photo(path))


def is_photo(path: Path) -> bool:
    """Return whether a file is named like a photo, and is there."""
    return path.suffix.lower() in SUFFIXES and path.is_file()


def files_in(folders: Iterable[Path]) -> Iterator[Path]:
    """Yield the files in folders and in those below, without those that systems put there."""
    for top in folders:
        for folder, below, names in os.walk(top):
            below[:] = sorted(name for name in below if not _is_ignored(name))
            yield from (Path(folder, name) for name in sorted(names) if not _is_ignored(name))


def _is_ignored(name: str) -> bool:
    return name[0] == "." or name.lower() in IGNORED


def _normalised(name: str) -> str:
    """Return a name as most systems write it; macOS may take letters and their accents apart."""
    return unicodedata.normalize("NFC", name)


def check_recorded(data_dir: Path, names: Names) -> None:
    """Raise StackError if data_dir lacks a photo that a checkpoint names."""
    for name in (*names["train"], *names["val"]):
        if not (data_dir / name).is_file():
            raise StackError(
                f"{data_dir} lacks {name}, which the checkpoint was made with: name the folder it"
                " was trained on with --data-dir"
            )


def root_folders(data_dir: Path) -> list[Path]:
    """Return where the class folders are: in those for training and validation, or in data_dir.

    A folder with one of their names that has photos in it, and no folders, is a class itself.
    """
    found = {path.name.lower(): path for path in _subfolders(data_dir)}
    roots = {
        split: next((found[name] for name in names if name in found), data_dir / split)
        for split, names in FOLDERS.items()
    }
    there = [root for root in roots.values() if root.is_dir()]
    if all(not _subfolders(root) and photos_in([root]) for root in there):
        return [data_dir]
    return [roots[split] for split in SPLITS]


def find_classes(data_dir: Path) -> list[str]:
    """Return the names of the class folders, sorted. Raises StackError if they can't be used."""
    roots = root_folders(data_dir)
    found = [list(class_folders(root)) for root in roots]
    if found[0] != found[-1]:
        raise StackError(
            f"{roots[0]} and {roots[-1]} must have the same class folders:"
            f" {', '.join(sorted(set(found[0]) ^ set(found[-1])))} is in one of them only"
        )
    if len(roots) > 1 and (ambiguous := {root.name for root in roots} & set(found[0])):
        raise StackError(f"a class can't be called {ambiguous.pop()} there: rename its folders")
    return found[0]


def class_folders(root: Path) -> dict[str, list[Path]]:
    """Return the folders of each class, sorted. Raises StackError if they can't be used."""
    if not root.is_dir():
        raise StackError(f"there are no photos in {root}: {REMEDY}")
    classes: dict[str, list[Path]] = {}
    for path in _subfolders(root):
        classes.setdefault(_normalised(path.name), []).append(path)
    for name in classes:
        if name.encode(errors="replace").decode() != name:
            raise StackError(f"{root} has the class folder {name!r}, not UTF-8: rename that folder")
    if len(classes) < 2:  # noqa: PLR2004
        found = ", ".join(classes) or "none"
        raise StackError(f"{root} needs at least two class folders, has {found}: {REMEDY}")
    return dict(sorted(classes.items()))


def _subfolders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.is_dir() and not _is_ignored(p.name))


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
