"""Any folder of photos: the classes, the photos of each, and the split for validation."""

import hashlib
import itertools
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from tqdm import tqdm

from simplestack.files import map_in_threads
from simplestack.serving.errors import StackError
from simplestack.serving.formats import SUFFIXES
from simplestack.training import sample

IGNORED = {"__macosx", "thumbs.db", "desktop.ini"}  # of systems, as is all that is hidden
SPLITS = ("train", "val")
FOLDERS = {"train": ("train", "training"), "val": ("val", "valid", "validation", "test")}
VAL_SHARE = 0.2  # of the photos, about, held out if there is no val/
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
    folders = [paths for classes in roots for paths in classes.values()]
    bar = tqdm(folders, desc="looking for other files", unit="class", leave=False, disable=None)
    return [
        str(path) if path.exists() else f"{path}, a link that leads nowhere"
        for paths in bar
        for path in files_in(paths)
        if not is_photo(path)
    ]


def find_photos(data_dir: Path, classes: list[str], seed: int) -> Names:
    """Find the training and validation photos. Raises StackError if a class has too few.

    If data_dir has no folders for the two, `hold_out` chooses those for validation.
    """
    found = list_photos(data_dir, classes)
    if len(next(iter(found.values()))) == 1:
        alone = {name: parts[0] for name, parts in found.items()}
        hashes = hash_photos(data_dir, [photo for names in alone.values() for photo in names], seed)
        found = {name: hold_out(photos, hashes) for name, photos in alone.items()}
    splits = zip(*found.values(), strict=True)
    return {
        split: list(itertools.chain(*parts)) for split, parts in zip(SPLITS, splits, strict=True)
    }


def list_photos(data_dir: Path, classes: list[str]) -> dict[str, list[list[str]]]:
    """Return the photos of each class, by split if data_dir has folders for the two, else alone.

    Raises StackError if a class has none.
    """
    roots = [class_folders(root) for root in root_folders(data_dir)]
    found: dict[str, list[list[str]]] = {name: [] for name in classes}
    bar = tqdm(classes, desc="listing", unit="class", leave=False, disable=None)
    for class_name, root in ((name, root) for name in bar for root in roots):
        photos = photos_in(root[class_name])
        if not photos:
            raise StackError(
                f"{root[class_name][0]} has no photos in it{_others(root[class_name])}: put some"
                f" there ({', '.join(sorted(SUFFIXES))}), or remove the class from every split"
            )
        found[class_name].append([path.relative_to(data_dir).as_posix() for path in photos])
    return found


def hash_photos(data_dir: Path, names: list[str], seed: int) -> dict[str, float]:
    """Return a hash of each photo's content, 0 to 1, that another seed changes."""

    def content_hash(name: str) -> float:
        try:
            content = (data_dir / name).read_bytes()
        except OSError:  # reading says so later
            return 1.0
        digest = hashlib.sha256(str(seed).encode() + content).digest()
        return int.from_bytes(digest[:8]) / 2**64

    bar = tqdm(names, desc="splitting", unit="photo", leave=False, disable=None)
    return dict(zip(bar, map_in_threads(content_hash, names), strict=True))


def hold_out(names: list[str], hashes: dict[str, float]) -> list[list[str]]:
    """Split a class into training and validation photos. Raises StackError if it has only one.

    Validation photos are those with a hash below a fifth, at least one and not all. So photos that
    are added later move none from training to validation.
    """
    if len(names) == 1:
        raise StackError(
            f"{names[0]} is the only photo of its class: one more is needed, one for training and"
            " one for validation"
        )
    ordered = sorted(names, key=lambda name: hashes[name])
    below = sum(hashes[name] < VAL_SHARE for name in names)
    count = min(max(1, below), len(names) - 1)
    return [sorted(ordered[count:]), sorted(ordered[:count])]


def sizes(data_dir: Path, names: list[str]) -> dict[str, int]:
    """Return the size in bytes of each photo."""
    bar = tqdm(names, desc="comparing", unit="photo", leave=False, disable=None)
    return {name: (data_dir / name).stat().st_size for name in bar}


def changes(data_dir: Path, classes: list[str], recorded: dict[str, int]) -> str:
    """Return what has changed since photos had these classes and sizes; "" if nothing.

    Raises StackError if data_dir has no photos to train on.
    """
    found_classes = find_classes(data_dir)
    parts = itertools.chain(*list_photos(data_dir, found_classes).values())
    found = sizes(data_dir, list(itertools.chain(*parts)))
    new, gone = found.keys() - recorded.keys(), recorded.keys() - found.keys()
    edited = [name for name in found.keys() & recorded.keys() if found[name] != recorded[name]]
    counts = {"new photo" if len(new) == 1 else "new photos": new, "gone": gone, "edited": edited}
    return ", ".join(
        [
            *(f"{len(names)} {what}" for what, names in counts.items() if names),
            *(f"new class {name}" for name in found_classes if name not in classes),
            *(f"class {name} gone" for name in classes if name not in found_classes),
        ]
    )


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
    for root, names in zip(roots, found, strict=True):
        if len(names) < 2:  # noqa: PLR2004
            has = ", ".join(names) or "none"
            raise StackError(f"{root} needs at least two class folders, has {has}: {REMEDY}")
    if found[0] != found[-1]:
        raise StackError(
            f"{roots[0]} and {roots[-1]} must have the same class folders:"
            f" {', '.join(sorted(set(found[0]) ^ set(found[-1])))} is in one of them only"
        )
    if len(roots) > 1 and (ambiguous := {root.name for root in roots} & set(found[0])):
        raise StackError(f"a class can't be called {ambiguous.pop()} there: rename its folders")
    return found[0]


def class_folders(root: Path) -> dict[str, list[Path]]:
    """Return the folders of each class, sorted. Raises StackError if there can't be any."""
    if not root.is_dir():
        raise StackError(f"there are no photos in {root}: {REMEDY}")
    classes: dict[str, list[Path]] = {}
    for path in _subfolders(root):
        classes.setdefault(_normalised(path.name), []).append(path)
    for name in classes:
        if name.encode(errors="replace").decode() != name:
            raise StackError(f"{root} has the class folder {name!r}, not UTF-8: rename that folder")
    return dict(sorted(classes.items()))


def find_labelled(data_dir: Path, classes: list[str]) -> list[str]:
    """Find photos to evaluate a model of some classes on: those for validation, if set apart.

    A class may have none. Raises StackError if there are no photos, or of other classes.
    """
    root = root_folders(data_dir)[-1]
    found = class_folders(root)
    if others := sorted(found.keys() - set(classes)):
        raise StackError(
            f"{root} has folders that are no class of the checkpoint ({', '.join(classes)}):"
            f" {', '.join(others[:MAX_NAMED])}. Move them away, or name another folder with"
            " --data-dir"
        )
    photos = [photo for paths in found.values() for photo in photos_in(paths)]
    if not photos:
        raise StackError(f"{root} has no photos in it: name another folder with --data-dir")
    return [photo.relative_to(data_dir).as_posix() for photo in photos]


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
