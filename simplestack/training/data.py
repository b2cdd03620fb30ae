"""Any folder of photos as PyTorch data sets: found, split, read once, cached."""

import hashlib
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
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
MIN_SIDE, MAX_SIDE = 16, 16_000  # pixels; what is smaller or larger is no photo
KEPT_SIDE = 2 * images.RESIZE  # pixels, at most the shorter side of a photo kept for random crops
UNEQUAL = 3  # times more photos than the smallest class has: worth a warning
MOST_NAMED = 10  # files in one warning

middle = v2.Compose([v2.Resize(images.RESIZE), v2.CenterCrop(images.CROP)])
"""A training photo without augmentation."""

Names = dict[str, list[str]]
"""For "train" and "val" the photos, as paths below the data folder with "/" in them."""
View = tuple[int, int | None]
"""Which photo, and the seed of its augmentation; None for the photo as it is."""


@dataclass
class Reading:
    """What reading all photos of a split once has shown."""

    broken: list[str] = field(default_factory=list)  # which photos can't be used, and why
    digests: dict[Path, str] = field(default_factory=dict)  # SHA-256 of the files that can
    nbytes: int = 0  # of all photos, decoded


class Photos(Dataset[tuple[Tensor, int]]):
    """Photos and their labels: N×N×3 uint8 tensors, and indices into `classes`.

    N is 224, or what the augmentation makes it.
    """

    def __init__(
        self,
        data_dir: Path,
        names: list[str],
        classes: list[str],
        augment: v2.Transform | None = None,
    ) -> None:
        """Take the photos `names` below data_dir; the folder that each lies in is its class.

        Training photos have an augmentation: random views of what is in a photo.
        """
        self.data_dir = data_dir
        self.paths = [data_dir / name for name in names]
        self.labels = [classes.index(path.parent.name) for path in self.paths]
        self.augment = augment
        self.decoded: dict[Path, Tensor] = {}

    def __len__(self) -> int:
        """Count the photos."""
        return len(self.paths)

    def __getitem__(self, view: View) -> tuple[Tensor, int]:
        """Return one view of a photo: the same for the same seed, in whichever process."""
        index, seed = view
        path = self.paths[index]
        picture = self.decoded[path] if path in self.decoded else self.read(path)
        if self.augment:
            picture = picture.permute(2, 0, 1)
            picture = middle(picture) if seed is None else _seeded(self.augment, picture, seed)
            picture = picture.permute(1, 2, 0)
        return picture, self.labels[index]

    @property
    def names(self) -> list[str]:
        """Name the photos, as paths below the data folder."""
        return [path.relative_to(self.data_dir).as_posix() for path in self.paths]

    @property
    def cached(self) -> bool:
        """Tell whether all photos are in memory."""
        return len(self.decoded) == len(self.paths)

    def read(self, path: Path) -> Tensor:
        """Decode a photo, H×W×3 uint8; a validation photo as the network sees it, 224×224×3.

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

    def load(self, budget: float, device: torch.device, bar: "tqdm[Any]") -> Reading:
        """Read every photo once, in threads, and keep on `device` what `budget` bytes can hold.

        Photos that can't be used are dropped.
        """
        seen = Reading()
        with ThreadPoolExecutor() as pool:
            for path, (picture, note) in zip(
                self.paths, pool.map(self._try, self.paths), strict=True
            ):
                bar.update()
                if picture is None:
                    seen.broken.append(note)
                    continue
                seen.digests[path] = note
                seen.nbytes += picture.nbytes
                if seen.nbytes <= budget:
                    self.decoded[path] = picture.to(device)
        if not self.cached:  # processes beside this one will read the rest, and share no GPU memory
            self.decoded = {path: picture.cpu() for path, picture in self.decoded.items()}
        usable = [i for i, path in enumerate(self.paths) if path in seen.digests]
        self.paths, self.labels = (
            [self.paths[i] for i in usable],
            [self.labels[i] for i in usable],
        )
        return seen

    def _try(self, path: Path) -> tuple[Tensor | None, str]:
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


def _seeded(augment: v2.Transform, picture: Tensor, seed: int) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed % 2**64)
        return cast(Tensor, augment(picture))


def find_photos(data_dir: Path, classes: list[str], seed: int) -> Names:
    """List the training and the validation photos.

    Where data_dir has no train/ and val/, a fifth of each class, chosen by `seed`, is held out
    for validation. Raises StackError if a class has too few.
    """
    names: Names = {split: [] for split in SPLITS}
    rng = random.Random(seed)  # noqa: S311  (nothing secret about it)
    for name in classes:
        if is_split(data_dir):
            parts = [photos_in(data_dir / split / name) for split in SPLITS]
        else:
            photos = photos_in(data_dir / name)
            if len(photos) == 1:
                raise StackError(
                    f"{photos[0]} is the only photo of its class: one more is needed, one"
                    " for training and one for validation"
                )
            chosen = set(
                rng.sample(photos, min(len(photos), max(1, round(VAL_SHARE * len(photos)))))
            )
            parts = [[p for p in photos if p not in chosen], sorted(chosen)]
        for split, paths in zip(SPLITS, parts, strict=True):
            if not paths:
                where = data_dir / split / name if is_split(data_dir) else data_dir / name
                raise StackError(
                    f"{where} has no photos in it for {split}: put some there"
                    f" ({', '.join(sorted(SUFFIXES))}), or remove the class from every split"
                )
            names[split] += [path.relative_to(data_dir).as_posix() for path in paths]
    return names


def check_recorded(data_dir: Path, names: Names) -> None:
    """Raise StackError where data_dir lacks a photo that a checkpoint names."""
    for name in (*names["train"], *names["val"]):
        if not (data_dir / name).is_file():
            raise StackError(
                f"{data_dir} lacks {name}, with which the checkpoint was made: name the folder it"
                " was trained on with --data-dir"
            )


def open_photos(
    data_dir: Path,
    names: Names,
    classes: list[str],
    *,
    augment: v2.Transform,
    budget: float,
    device: torch.device,
) -> tuple[Photos, Photos, list[str]]:
    """Read all photos once; return those for training, those for validation, and warnings.

    At most `budget` bytes of decoded photos are kept on `device`. Raises StackError if none of
    a class can be used.
    """
    train = Photos(data_dir, names["train"], classes, augment)
    val = Photos(data_dir, names["val"], classes)
    total = len(train) + len(val)
    with tqdm(total=total, desc="reading", unit="photo", leave=False, disable=None) as bar:
        of_val = val.load(budget, device, bar)
        of_train = train.load(budget - of_val.nbytes, device, bar)
    broken = [*of_train.broken, *of_val.broken]
    for photos in (train, val):
        missing = [name for label, name in enumerate(classes) if label not in photos.labels]
        if missing:
            raise StackError(
                f"none of the photos of {missing[0]} can be used to"
                f" {'train on' if photos is train else 'validate with'}: {_some(broken)}"
            )
    learnt = set(of_train.digests.values())
    both = [str(path) for path, digest in of_val.digests.items() if digest in learnt]
    return train, val, unexpected_files(data_dir, classes) + warnings(classes, train, broken, both)


def warnings(classes: list[str], train: Photos, broken: list[str], both: list[str]) -> list[str]:
    """Say what people should know of their photos before they trust the result."""
    found = []
    if broken:
        found.append(f"{len(broken)} photos skipped: {_some(broken)}")
    if both:
        found.append(
            f"{len(both)} validation photos are training photos too, which flatters the accuracy:"
            f" {_some(both)}"
        )
    counts = {name: train.labels.count(label) for label, name in enumerate(classes)}
    if max(counts.values()) >= UNEQUAL * min(counts.values()):
        sizes = ", ".join(f"{count} {name}" for name, count in counts.items())
        found.append(f"classes of very unequal size ({sizes}): look at the recall of each")
    return found


def unexpected_files(data_dir: Path, classes: list[str]) -> list[str]:
    """Warn of files in the class folders that are not named like photos."""
    roots = [data_dir / split for split in SPLITS] if is_split(data_dir) else [data_dir]
    files = [p for root in roots for name in classes for p in sorted((root / name).iterdir())]
    odd = [str(p) for p in files if p.suffix.lower() not in SUFFIXES and p.name[0] != "."]
    return [f"{len(odd)} files skipped, not named like photos: {_some(odd)}"] if odd else []


def _some(items: list[str]) -> str:
    more = len(items) - MOST_NAMED
    return "; ".join(items[:MOST_NAMED]) + (f"; and {more} more" if more > 0 else "")


def photos_in(folder: Path) -> list[Path]:
    """List the photos of one class, sorted by name so that a seed means the same everywhere."""
    if not folder.is_dir():
        return []
    return sorted(
        p
        for p in folder.iterdir()
        if p.suffix.lower() in SUFFIXES and p.name[0] != "." and p.is_file()
    )


def is_split(data_dir: Path) -> bool:
    """Tell data_dir/{train,val}/CLASS from data_dir/CLASS."""
    return any((data_dir / split).is_dir() for split in SPLITS)


def find_classes(data_dir: Path) -> list[str]:
    """Name the classes: the folders in data_dir, or in its train/, sorted. Raises StackError."""
    if not is_split(data_dir):
        return _class_folders(data_dir)
    for split in SPLITS:
        if not (data_dir / split).is_dir():
            raise StackError(f"there are no photos in {data_dir / split}: {_REMEDY}")
    classes, val = (_class_folders(data_dir / split) for split in SPLITS)
    if classes != val:
        raise StackError(
            f"{data_dir}/train and {data_dir}/val must have the same class folders:"
            f" {', '.join(sorted(set(classes) ^ set(val)))} is in one of them only"
        )
    return classes


_REMEDY = (
    "run `sh get_data.sh` first, or name another folder with --data-dir (with one folder per"
    " class in it, or train/ and val/ with one folder per class in each)"
)


def _class_folders(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise StackError(f"there are no photos in {folder}: {_REMEDY}")
    classes = sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name[0] != ".")
    if odd := [name for name in classes if name.encode(errors="replace").decode() != name]:
        raise StackError(f"{folder} has the class folder {odd[0]!r}, not UTF-8: rename that folder")
    if len(classes) < 2:  # noqa: PLR2004
        raise StackError(
            f"{folder} needs at least two class folders, has {', '.join(classes) or 'none'}:"
            f" {_REMEDY}"
        )
    return classes


def is_sample(data_dir: Path) -> bool:
    """Tell generated pictures (`sh get_data.sh --sample`) from photos."""
    return (data_dir / sample.NOTE).exists()


def notice(data_dir: Path, from_scratch: bool) -> str:
    """Say what people must know of a model before they trust it; "" if nothing."""
    start = "from random weights" if from_scratch else "from ImageNet weights"
    if is_sample(data_dir):
        return f"A demonstration: trained {start} on drawn pictures, knows nothing of real photos."
    if from_scratch:
        return f"Trained {start} instead of ImageNet's: expect many mistakes."
    return ""
