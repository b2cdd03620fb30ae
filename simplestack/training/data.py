"""Any folder of photos as PyTorch datasets: found, split, read once, cached."""

import hashlib
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2
from tqdm import tqdm

from simplestack.serving import images
from simplestack.serving.errors import StackError
from simplestack.training import sample

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".avif", ".bmp", ".tif", ".tiff"}
SPLITS = ("train", "val")
VAL_SHARE = 0.2  # of each class, held out if there is no val/
MIN_SIDE, MAX_SIDE = 16, 16_000  # pixels; anything smaller or larger is no photo
KEPT_SIDE = 2 * images.RESIZE  # pixels, at most, of the shorter side kept for random crops
IMBALANCED = 3  # times more photos than the smallest class has: worth a warning
MAX_NAMED = 10  # files in one warning
REMEDY = (
    "run `sh get_data.sh` first, or name another folder with --data-dir (with one folder per"
    " class in it, or train/ and val/ with one folder per class in each)"
)

Names = dict[str, list[str]]
"""The photos of "train" and "val", as paths below the data folder with "/" in them."""
View = tuple[int, int | None]
"""The index of a photo, and the seed of its augmentation; None for the photo as it is."""

center_crop = v2.Compose([v2.Resize(images.RESIZE), v2.CenterCrop(images.CROP)])


class Photos(Dataset[tuple[Tensor, int]]):
    """Photos, N×N×3 uint8, and their labels, indices into `classes`.

    N is 224, or the size that the augmentation crops to. Each photo lies in the folder of its
    class. Only training photos have an augmentation.
    """

    def __init__(
        self,
        data_dir: Path,
        names: list[str],
        classes: list[str],
        augment: v2.Transform | None = None,
    ) -> None:
        self.data_dir = data_dir
        self.classes = classes
        self.augment = augment
        self.decoded: dict[Path, Tensor] = {}
        self.digests: dict[Path, str] = {}  # SHA-256 of the files
        self.broken: list[str] = []  # error messages
        self.nbytes = 0  # of all photos, decoded
        self._set_paths([data_dir / name for name in names])

    def _set_paths(self, paths: list[Path]) -> None:
        self.paths = paths
        self.labels = [self.classes.index(path.parent.name) for path in paths]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, view: View) -> tuple[Tensor, int]:
        """Return a view of a photo; the same seed gives the same view in any process."""
        index, seed = view
        path = self.paths[index]
        photo = self.decoded[path] if path in self.decoded else self.read(path)
        if self.augment:
            photo = photo.permute(2, 0, 1)
            photo = center_crop(photo) if seed is None else _seeded(self.augment, photo, seed)
            photo = photo.permute(1, 2, 0)
        return photo, self.labels[index]

    @property
    def names(self) -> list[str]:
        """The photos as paths below the data folder."""
        return [path.relative_to(self.data_dir).as_posix() for path in self.paths]

    @property
    def cached(self) -> bool:
        """Whether all photos are in memory."""
        return len(self.decoded) == len(self.paths)

    def read(self, path: Path) -> Tensor:
        """Decode a training photo, H×W×3 uint8, or a validation photo as served, 224×224×3.

        Raises StackError if it can't be used.
        """
        try:
            image = images.identify(path.read_bytes())
            if min(image.size) < MIN_SIDE or max(image.size) > MAX_SIDE:
                raise StackError(
                    f"its {image.width}×{image.height} pixels are not {MIN_SIDE} to {MAX_SIDE}"
                    " a side"
                )
            if not self.augment:
                return torch.from_numpy(np.array(images.to_array(image)))
            return torch.from_numpy(np.array(_shrink(images.decode(image, KEPT_SIDE))))
        except (StackError, OSError) as error:
            raise StackError(f"{path}: {error}") from error

    def load(self, budget: float, device: torch.device, bar: "tqdm[Any]") -> None:
        """Read every photo once, in threads, and cache up to `budget` bytes of them on `device`.

        Broken photos are dropped.
        """
        with ThreadPoolExecutor() as pool:
            results = pool.map(self._read_and_hash, self.paths)
            for path, (photo, digest_or_error) in zip(self.paths, results, strict=True):
                bar.update()
                if photo is None:
                    self.broken.append(digest_or_error)
                    continue
                self.digests[path] = digest_or_error
                self.nbytes += photo.nbytes
                if self.nbytes <= budget:
                    self.decoded[path] = photo.to(device)
        self._set_paths([path for path in self.paths if path in self.digests])
        if not self.cached:  # worker processes will read the rest, and share no GPU memory
            self.decoded = {path: photo.cpu() for path, photo in self.decoded.items()}

    def _read_and_hash(self, path: Path) -> tuple[Tensor | None, str]:
        try:
            return self.read(path), hashlib.sha256(path.read_bytes()).hexdigest()
        except StackError as error:
            return None, str(error)


def _shrink(image: Image.Image) -> Image.Image:
    scale = KEPT_SIDE / min(image.size)
    if scale >= 1:
        return image
    width, height = (round(scale * side) for side in image.size)
    return image.resize((width, height), Image.Resampling.BILINEAR)


def _seeded(augment: v2.Transform, photo: Tensor, seed: int) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed % 2**64)
        return cast(Tensor, augment(photo))


def open_photos(
    data_dir: Path,
    names: Names,
    classes: list[str],
    *,
    augment: v2.Transform,
    budget: float,
    device: torch.device,
) -> tuple[Photos, Photos, list[str]]:
    """Read all photos once; return the training photos, the validation photos, and warnings.

    At most `budget` bytes of decoded photos are cached on `device`. Raises StackError if no photo
    of a class can be used.
    """
    train = Photos(data_dir, names["train"], classes, augment)
    val = Photos(data_dir, names["val"], classes)
    total = len(train) + len(val)
    with tqdm(total=total, desc="reading", unit="photo", leave=False, disable=None) as bar:
        val.load(budget, device, bar)
        train.load(budget - val.nbytes, device, bar)
    for photos, purpose in ((train, "train on"), (val, "validate with")):
        for label, class_name in enumerate(classes):
            if label not in photos.labels:
                raise StackError(
                    f"none of the photos of {class_name} can be used to {purpose}:"
                    f" {_some(train.broken + val.broken)}"
                )
    return train, val, warnings(train, val)


def warnings(train: Photos, val: Photos) -> list[str]:
    """Return what to know about the photos before trusting the result."""
    found = []
    if unexpected := unexpected_files(train.data_dir, train.classes):
        count = _count(unexpected, "unexpected file")
        found.append(f"{count} skipped, not named like photos: {_some(unexpected)}")
    if broken := train.broken + val.broken:
        found.append(f"{_count(broken, 'photo')} skipped: {_some(broken)}")
    in_train = set(train.digests.values())
    if duplicates := [str(path) for path, digest in val.digests.items() if digest in in_train]:
        found.append(
            f"{_count(duplicates, 'validation photo')} duplicated among the training photos, which"
            f" flatters the accuracy: {_some(duplicates)}"
        )
    counts = {name: train.labels.count(label) for label, name in enumerate(train.classes)}
    if max(counts.values()) >= IMBALANCED * min(counts.values()):
        sizes = ", ".join(f"{count} {name}" for name, count in counts.items())
        found.append(f"imbalanced classes ({sizes}): look at the recall of each")
    return found


def unexpected_files(data_dir: Path, classes: list[str]) -> list[str]:
    """Return the files in the class folders that are not named like photos."""
    folders = [root / name for root in root_folders(data_dir) for name in classes]
    files = [p for folder in folders for p in sorted(folder.iterdir())]
    return [str(p) for p in files if p.suffix.lower() not in SUFFIXES and p.name[0] != "."]


def _count(items: list[str], noun: str) -> str:
    return f"{len(items)} {noun}" if len(items) == 1 else f"{len(items)} {noun}s"


def _some(items: list[str]) -> str:
    more = len(items) - MAX_NAMED
    return "; ".join(items[:MAX_NAMED]) + (f"; and {more} more" if more > 0 else "")


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
