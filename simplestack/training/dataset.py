"""Photos as a PyTorch dataset: read once, checked, and kept in memory if they fit."""

import contextlib
import hashlib
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from simplestack.files import map_in_threads
from simplestack.serving import images
from simplestack.serving.cgroup import cores
from simplestack.serving.errors import StackError
from simplestack.training.folders import MAX_NAMED, Names, class_of, unexpected_files

SIDE = 320  # pixels, of a training photo: enough for crops of a quarter of it
MIN_SIDE, MAX_SIDE = 16, 18_000  # pixels; anything smaller or larger is no photo
EXAMPLES = 3  # of what is skipped, in a warning: skipped.txt lists all
IMBALANCED = 3  # times more photos than the smallest class has: worth a warning
MAX_WORKERS = 8  # processes that read photos
EVALUATED = 1e9  # bytes of photos in memory: of more, each is read twice
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Read(NamedTuple):
    """What a file holds."""

    pixels: Tensor  # S×S×3 uint8
    aspect: float  # the photo's width by its height
    sha256: str


class Photos(Dataset[Tensor]):
    """N photos, S×S×3 uint8, each in the folder of its class.

    A validation photo is as it is served, 224×224×3. A training photo is whole, whatever its
    aspect, in 320×320×3, from which `augment` crops it in its true proportions.
    """

    def __init__(self, data_dir: Path, names: list[str], classes: list[str], whole: bool) -> None:
        self.data_dir, self.classes, self.whole = data_dir, classes, whole
        self.side = SIDE if whole else images.CROP
        self.in_memory: Tensor | None = None  # N×S×S×3
        self.broken: list[str] = []  # error messages
        self.aspects = torch.ones(len(names))
        self.sha256: list[str] = []
        self._set_names(names)

    def _set_names(self, names: list[str]) -> None:
        self.names = names  # paths below the data folder
        labels = [self.classes.index(class_of(name, self.classes)) for name in names]
        self.labels = torch.tensor(labels)  # indices into `classes`, N int64

    def class_weights(self) -> Tensor:
        """Return weights, C float32, with which each class counts alike; 1 on average."""
        counts = self.labels.bincount(minlength=len(self.classes))
        return len(self) / (len(counts) * counts)

    @property
    def paths(self) -> list[Path]:
        """The files."""
        return [self.data_dir / name for name in self.names]

    @property
    def nbytes(self) -> int:
        """What all photos take in memory, in bytes."""
        return len(self) * 3 * self.side**2

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Tensor:
        """Read a photo, S×S×3 uint8. Raises StackError if it can't be used."""
        return self.read(self.names[index]).pixels

    def __getitems__(self, indices: list[int]) -> Tensor | StackError:
        """Read a batch, n×S×S×3 uint8, or return an error: PyTorch adds a traceback to others."""
        try:
            return torch.stack([self[index] for index in indices])
        except StackError as error:
            return error

    def read(self, name: str) -> Read:
        """Read a file. Raises StackError if it is no usable photo."""
        path = self.data_dir / name
        try:
            data = path.read_bytes()
            image = images.identify(data)
            if min(image.size) < MIN_SIDE or max(image.size) > MAX_SIDE:
                raise StackError(
                    f"its {image.width}×{image.height} pixels are not {MIN_SIDE} to {MAX_SIDE}"
                    " a side"
                )
            if self.whole:
                upright = images.decode(image, 2 * images.RESIZE)
                aspect = upright.width / upright.height
                array = np.array(upright.resize((SIDE, SIDE), Image.Resampling.BILINEAR))
            else:
                array, aspect = np.array(images.to_array(image)), 1.0
        except (StackError, OSError) as error:
            raise StackError(f"{path}: {error}") from error
        return Read(torch.from_numpy(array), aspect, hashlib.sha256(data).hexdigest())

    def load(self, budget: float, device: torch.device, bar: "tqdm[Any]") -> None:
        """Read every photo once, in threads, and drop broken ones.

        They are kept, on `device`, if all of them take at most `budget` bytes.
        """
        shape = (len(self), self.side, self.side, 3)
        pixels = torch.empty(shape, dtype=torch.uint8) if self.nbytes <= budget else None
        names: list[str] = []
        aspects: list[float] = []
        for name, result in zip(self.names, map_in_threads(self._try, self.names), strict=True):
            bar.update()
            if isinstance(result, StackError):
                self.broken.append(str(result))
                continue
            if pixels is not None:
                pixels[len(names)] = result.pixels
            names.append(name)
            aspects.append(result.aspect)
            self.sha256.append(result.sha256)
        self._set_names(names)
        self.aspects = torch.tensor(aspects)
        self.in_memory = None if pixels is None else pixels[: len(names)].to(device)

    def _try(self, name: str) -> Read | StackError:
        try:
            return self.read(name)
        except StackError as error:
            return error

    def batches(self, plan: Sequence[Tensor], device: torch.device) -> Iterator[Tensor]:
        """Return an iterator over batches, n×S×S×3 uint8, on the device.

        `plan` has the indices of each, on the device. Processes read ahead unless all photos are
        in memory.
        """
        if self.in_memory is not None:
            pixels = self.in_memory
            return (pixels[batch] for batch in plan)
        loader = DataLoader(
            self,
            batch_sampler=[batch.tolist() for batch in plan],
            num_workers=min(MAX_WORKERS, cores()),
            pin_memory=device.type == "cuda",
            collate_fn=_as_it_is,
            worker_init_fn=_leave_group,
        )
        with held_signals():
            batches = iter(loader)
        return (_checked(batch).to(device, non_blocking=True) for batch in batches)


@contextlib.contextmanager
def held_signals() -> Iterator[None]:
    """Hold Ctrl-C and SIGTERM back: while Python forks, it would drop their exception."""
    received: list[int] = []
    handlers = {
        s: signal.signal(s, lambda number, _: received.append(number)) for s in STOP_SIGNALS
    }
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if received:
        signal.raise_signal(received[0])


def _as_it_is(batch: Any) -> Any:
    return batch


def _checked(batch: Tensor | StackError) -> Tensor:
    if isinstance(batch, StackError):
        raise batch
    return batch


def _leave_group(_: int) -> None:
    """Leave Ctrl-C and signals to the group to the main process, which then ends its workers."""
    os.setpgrp()


def open_photos(
    data_dir: Path, names: Names, classes: list[str], *, budget: float, device: torch.device
) -> tuple[Photos, Photos]:
    """Read all photos once; return those for training and those for validation.

    At most `budget` bytes are kept in memory, on `device`. Raises StackError if no photo of a class
    can be used.
    """
    train = Photos(data_dir, names["train"], classes, whole=True)
    val = Photos(data_dir, names["val"], classes, whole=False)
    load_all(val, train, budget=budget, device=device)
    for photos, purpose in ((train, "train on"), (val, "validate with")):
        for label, class_name in enumerate(classes):
            if label not in photos.labels:
                raise StackError(
                    f"none of the photos of {class_name} can be used to {purpose}:"
                    f" {_some(train.broken + val.broken)}"
                )
    return train, val


def open_labelled(
    data_dir: Path, names: list[str], classes: list[str], *, device: torch.device
) -> Photos:
    """Read photos to evaluate a model on, which are seen once. A class may have none."""
    photos = Photos(data_dir, names, classes, whole=False)
    load_all(photos, budget=EVALUATED, device=device)
    if not len(photos):
        raise StackError(f"none of the photos can be used: {_some(photos.broken)}")
    return photos


def load_all(*parts: Photos, budget: float, device: torch.device) -> None:
    """Read photos with a progress bar; at most `budget` bytes of them are kept in memory."""
    total = sum(len(photos) for photos in parts)
    with tqdm(total=total, desc="reading", unit="photo", leave=False, disable=None) as bar:
        for photos in parts:
            photos.load(budget, device, bar)
            budget -= photos.nbytes


def skipped(*parts: Photos) -> list[str]:
    """Return all files of a folder that aren't used, with the reason: "path: reason"."""
    reason = "not named like a photo"
    unexpected = (Path(file) for file in unexpected_files(parts[0].data_dir))
    lines = [f"{path}: {reason}" if path.exists() else str(path) for path in unexpected]
    return lines + [line for photos in parts for line in photos.broken]


def warnings(train: Photos, val: Photos) -> list[str]:
    """Return what to know about the photos before trusting the result."""
    found = []
    if unexpected := unexpected_files(train.data_dir):
        count = _count(unexpected, "unexpected file")
        found.append(f"{count} skipped, not named like photos: {_some(unexpected, EXAMPLES)}")
    if broken := train.broken + val.broken:
        found.append(f"{_count(broken, 'photo')} skipped: {_some(broken, EXAMPLES)}")
    pairs, in_train = zip(val.paths, val.sha256, strict=True), set(train.sha256)
    if duplicates := [str(path) for path, digest in pairs if digest in in_train]:
        found.append(
            f"{_count(duplicates, 'validation photo')} duplicated among the training photos, which"
            f" flatters the accuracy: {_some(duplicates)}"
        )
    counts = train.labels.bincount().tolist()
    if max(counts) >= IMBALANCED * min(counts):
        sizes = ", ".join(f"{n} {name}" for n, name in zip(counts, train.classes, strict=True))
        found.append(
            f"imbalanced classes ({sizes}): look at the recall of each, and try --class-weights"
        )
    return found


def _count(items: list[str], noun: str) -> str:
    return f"{len(items)} {noun}" if len(items) == 1 else f"{len(items)} {noun}s"


def _some(items: list[str], most: int = MAX_NAMED) -> str:
    more = len(items) - most
    return "; ".join(items[:most]) + (f"; and {more} more" if more > 0 else "")
