"""Any folder of photos: the classes, the photos of each, and the split for validation."""

import hashlib
import itertools
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from simplestack.files import map_in_threads
from simplestack.serving.errors import StackError
from simplestack.serving.formats import SUFFIXES
from simplestack.training import sample

# Left by operating systems, and the placeholder in the tutorial's archive
IGNORED = {"__macosx", "thumbs.db", "desktop.ini", "imagenotfound.gif"}
FOLDERS = {"train": ("train", "training"), "val": ("val", "valid", "validation", "test")}
VAL_SHARE = 0.2  # of the photos of each class, if there is no val/
MAX_IN_WARNING = 10  # files in one warning
REMEDY = (
    "run `sh get_data.sh` first, or name another folder with --data-dir (with one folder per"
    " class in it, or train/ and val/ with one folder per class in each)"
)

Names = dict[str, list[str]]
"""The photos of "train" and "val", as paths below the data folder with "/" in them."""


@dataclass
class Folder:
    """The contents of a data folder. Photos are named by their paths below it."""

    path: Path
    roots: list[Path]  # they contain the class folders: train/ and val/, or only `path`
    photos: list[dict[str, list[str]]]  # for each root, the photos of each class, sorted
    sizes: dict[str, int] = field(default_factory=dict)  # of each photo, in bytes
    unexpected: list[str] = field(default_factory=list)  # "path: reason" of each other file

    def classes(self) -> list[str]:
        """Return the names of the classes, sorted. Raises StackError if they can't be used."""
        for root, classes in zip(self.roots, self.photos, strict=True):
            if len(classes) <= 1:
                has = ", ".join(classes) or "none"
                raise StackError(f"{root} needs at least two class folders, has {has}: {REMEDY}")
        first, last = self.photos[0].keys(), self.photos[-1].keys()
        if first != last:
            raise StackError(
                f"{self.roots[0]} and {self.roots[-1]} must have the same class folders:"
                f" {', '.join(sorted(first ^ last))} is in one of them only"
            )
        if taken := self.taken(first):
            raise StackError(f"a class can't be called {taken.pop()} there: rename its folders")
        return list(first)

    def taken(self, names: Iterable[str]) -> set[str]:
        """Return the names that can't be classes, as folders of splits have them."""
        return {root.name for root in self.roots if len(self.roots) > 1} & {*names}


def scan(data_dir: Path) -> Folder:
    """List all files of a data folder. Raises StackError if the folder or its train/ is missing."""
    data = Folder(data_dir, root_folders(data_dir), [])
    for root in data.roots:
        if not root.is_dir():
            raise StackError(f"there are no photos in {root}: {REMEDY}")
        classes: dict[str, list[str]] = {}
        for folder in tqdm(_subfolders(root), "listing", unit="class", leave=False, disable=None):
            if folder.name.encode(errors="replace").decode() != folder.name:
                raise StackError(
                    f"{root} has the class folder {folder.name!r}, not UTF-8: rename that folder"
                )
            classes[folder.name] = []
            for path in files_in(folder):
                name = path.relative_to(data_dir).as_posix()
                if is_photo(path):
                    classes[folder.name].append(name)
                    data.sizes[name] = path.stat().st_size
                else:
                    reason = "not named like a photo" if path.exists() else "broken link"
                    data.unexpected.append(f"{path}: {reason}")
        data.photos.append({label: sorted(photos) for label, photos in classes.items()})
    return data


def root_folders(data_dir: Path) -> list[Path]:
    """Return the folders for training and validation, or else `data_dir`: they contain the classes.

    A folder called train or val that contains no folders is itself a class.
    """
    there = {path.name.lower(): path for path in _subfolders(data_dir)}
    roots = [
        next((there[name] for name in names if name in there), data_dir / split)
        for split, names in FOLDERS.items()
    ]
    return roots if any(_subfolders(root) for root in roots) else [data_dir]


def split_photos(folder: Folder, seed: int) -> Names:
    """Return the training and validation photos. Raises StackError if a class has too few.

    Without folders for training and validation, `hold_out` chooses the validation photos.
    """
    everywhere = ", also for the other split" if len(folder.roots) > 1 else ""
    for root, classes in zip(folder.roots, folder.photos, strict=True):
        for name, photos in classes.items():
            if not photos:
                raise StackError(
                    f"{root / name} has no photos in it: put some there"
                    f" ({', '.join(sorted(SUFFIXES))}), or remove that folder{everywhere}"
                )
    parts = [list(classes.values()) for classes in folder.photos]
    if len(parts) == 1:
        hashes = hash_photos(folder.path, list(folder.sizes), seed)
        held_out = [hold_out(photos, hashes) for photos in parts[0]]
        parts = [[train for train, _ in held_out], [val for _, val in held_out]]
    return {split: list(itertools.chain(*part)) for split, part in zip(FOLDERS, parts, strict=True)}


def hash_photos(data_dir: Path, names: list[str], seed: int) -> dict[str, float]:
    """Return a hash, 0 to 1, of the seed and each photo's content."""

    def content_hash(name: str) -> float:
        try:
            content = (data_dir / name).read_bytes()
        except OSError:  # loading reports it later
            return 1.0
        digest = hashlib.sha256(str(seed).encode() + content).digest()
        return int.from_bytes(digest[:8]) / 2**64

    bar = tqdm(names, desc="splitting", unit="photo", leave=False, disable=None)
    return dict(zip(bar, map_in_threads(content_hash, names), strict=True))


def hold_out(names: list[str], hashes: dict[str, float]) -> tuple[list[str], list[str]]:
    """Split a class into training and validation photos. Raises StackError if it has only one.

    A fifth, rounded, is for validation, but at least one photo: those with the smallest hashes. So
    a photo that is added or removed moves at most one other. Copies of a photo stay together.
    """
    if len(names) == 1:
        raise StackError(
            f"{names[0]} is the only photo of its class: one more is needed, one for training and"
            " one for validation"
        )
    ordered = sorted(names, key=lambda name: hashes[name])
    count = max(1, round(VAL_SHARE * len(names)))
    while count < len(names) - 1 and hashes[ordered[count]] == hashes[ordered[count - 1]]:
        count += 1
    return sorted(ordered[count:]), sorted(ordered[:count])


def changes(folder: Folder, classes: list[str], sizes: dict[str, int]) -> str:
    """Return how a folder differs from recorded classes and sizes in bytes; "" if not at all.

    Raises StackError if its classes can't be used.
    """
    now, names = folder.classes(), folder.sizes.keys()
    new, gone = names - sizes.keys(), sizes.keys() - names
    edited = [name for name in names & sizes.keys() if folder.sizes[name] != sizes[name]]
    counts = {"new photo" if len(new) == 1 else "new photos": new, "gone": gone, "edited": edited}
    parts = [f"{len(photos)} {change}" for change, photos in counts.items() if photos]
    parts += [f"new class {name}" for name in now if name not in classes]
    parts += [f"class {name} gone" for name in classes if name not in now]
    return ", ".join(parts)


def find_labelled(folder: Folder, classes: list[str]) -> list[str]:
    """Return the test photos for a model of some classes: those for validation, or else all.

    A class may have none. Raises StackError if there are no photos, or folders of other classes.
    """
    root, photos_of = folder.roots[-1], folder.photos[-1]
    if others := sorted(photos_of.keys() - set(classes)):
        raise StackError(
            f"{root} has folders that are no class of the checkpoint ({', '.join(classes)}):"
            f" {', '.join(others[:MAX_IN_WARNING])}. Move them away, or name another folder with"
            " --data-dir"
        )
    if not (photos := list(itertools.chain(*photos_of.values()))):
        raise StackError(f"{root} has no photos in it: name another folder with --data-dir")
    return photos


def class_of(name: str, classes: list[str]) -> str:
    """Return the class in a photo's path, which begins below the data folder; "" if none."""
    return next((folder for folder in Path(name).parts[:2] if folder in classes), "")


def is_photo(path: Path) -> bool:
    """Return whether a path is a file with the suffix of a photo."""
    return path.suffix.lower() in SUFFIXES and path.is_file()


def files_in(folder: Path) -> Iterator[Path]:
    """Yield the files in a folder and below, but neither hidden ones nor those of systems."""
    for parent, below, names in os.walk(folder):
        below[:] = sorted(name for name in below if not is_ignored(name))
        yield from (Path(parent, name) for name in sorted(names) if not is_ignored(name))


def disclaimer(data_dir: Path, from_scratch: bool) -> str:
    """Return a warning for the users of the model; "" if it needs none."""
    weights = "from random weights" if from_scratch else "from ImageNet weights"
    if (data_dir / sample.NOTE).exists():
        return (
            f"A demonstration: trained {weights} on drawn pictures, knows nothing of real photos."
        )
    if from_scratch:
        return f"Trained {weights} instead of ImageNet's: expect many mistakes."
    return ""


def is_ignored(name: str) -> bool:
    """Return whether a file or folder of this name is hidden, or an operating system's."""
    return name[:1] == "." or name.lower() in IGNORED


def _subfolders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.is_dir() and not is_ignored(p.name))
