"""Photos as a PyTorch dataset: read once, checked, and kept in memory if they fit."""

import hashlib
import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from simplestack.files import map_in_threads
from simplestack.serving import images
from simplestack.serving.errors import StackError
from simplestack.training import augment
from simplestack.training.checkpoint import Checkpoint
from simplestack.training.distributed import World
from simplestack.training.folders import MAX_IN_WARNING, class_of
from simplestack.training.options import Options
from simplestack.training.recipes import RECIPES

TRAINING_SIDE = 320  # pixels: enough for crops of a quarter of the area
MAX_SKIPPED_NAMED = 3  # skipped files in a warning: the report lists all
IMBALANCED = 3  # times the photos of the smallest class, for a warning
MIN_SIDE, MAX_SIDE = 16, 18_000  # pixels; anything smaller or larger is no photo
GB = 1e9  # bytes


class DecodedPhoto(NamedTuple):
    """A decoded photo."""

    pixels: Tensor  # S×S×3 uint8
    aspect: float  # the photo's width by its height
    sha256: str  # of the file


class Photos(Dataset[Tensor]):
    """N photos, S×S×3 uint8, each in the folder of its class.

    A validation photo is preprocessed as in serving: 224×224×3. A training photo is `whole`, but
    stretched to 320×320×3; `augment` restores its proportions when it crops.
    """

    def __init__(self, data_dir: Path, names: list[str], classes: list[str], whole: bool) -> None:
        self.data_dir, self.classes, self.whole = data_dir, classes, whole
        self.side = TRAINING_SIDE if whole else images.CROP
        self.in_memory: Tensor | None = None  # N×S×S×3
        self.broken: list[str] = []  # "path: reason"
        self.aspects = torch.ones(len(names))
        self.sha256: list[str] = []
        self._set_names(names)

    def _set_names(self, names: list[str]) -> None:
        self.names = names  # paths below the data folder
        labels = [self.classes.index(class_of(name, self.classes)) for name in names]
        self.labels = torch.tensor(labels)  # indices into `classes`, N int64

    def class_weights(self) -> Tensor:
        """Return C float32 weights that give all classes the same sum; 1 on average."""
        counts = self.labels.bincount(minlength=len(self.classes))
        return len(self) / (len(counts) * counts)

    @property
    def nbytes(self) -> int:
        """The size of all decoded photos, in bytes."""
        return len(self) * 3 * self.side**2

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Tensor:
        """Read a photo, S×S×3 uint8. Raises StackError if it can't be used."""
        return self.read(self.names[index]).pixels

    def read(self, name: str) -> DecodedPhoto:
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
                array = np.array(upright.resize((self.side,) * 2, Image.Resampling.BILINEAR))
            else:
                array, aspect = np.array(images.to_array(image)), 1.0
        except (StackError, OSError) as error:
            raise StackError(f"{path}: {error}") from error
        return DecodedPhoto(torch.from_numpy(array), aspect, hashlib.sha256(data).hexdigest())

    def load(self, budget: float, device: torch.device) -> None:
        """Read every photo once, in threads, and drop broken ones.

        The others stay in memory, on `device`, if they fit into `budget` bytes.
        """
        shape = (len(self), self.side, self.side, 3)
        pixels = torch.empty(shape, dtype=torch.uint8) if self.nbytes <= budget else None
        names: list[str] = []
        aspects: list[float] = []
        task = f"reading {'training' if self.whole else 'validation'} photos"
        bar = tqdm(self.names, task, unit="photo", leave=False, disable=None)
        for name, photo in zip(bar, map_in_threads(self._try, self.names), strict=True):
            if isinstance(photo, StackError):
                self.broken.append(str(photo))
                continue
            if pixels is not None:
                pixels[len(names)] = photo.pixels
            names.append(name)
            aspects.append(photo.aspect)
            self.sha256.append(photo.sha256)
        self._set_names(names)
        self.aspects = torch.tensor(aspects)
        self.in_memory = None if pixels is None else pixels[: len(names)].to(device)

    def _try(self, name: str) -> DecodedPhoto | StackError:
        try:
            return self.read(name)
        except StackError as error:
            return error

    def batches(self, plan: Sequence[Tensor], device: torch.device) -> Iterator[Tensor]:
        """Yield batches, n×S×S×3 uint8, on the device; `plan` has the indices of each.

        Threads read ahead, unless the photos are in memory. Raises StackError if one can't be used.
        """
        if self.in_memory is not None:
            yield from (self.in_memory[batch] for batch in plan)
            return
        indices = (index for batch in plan for index in batch.tolist())
        photos = map_in_threads(self.__getitem__, indices)
        for batch in plan:
            yield torch.stack(list(itertools.islice(photos, len(batch)))).to(device)


def load_photos(options: Options, state: Checkpoint, world: World) -> tuple[Photos, Photos]:
    """Read all photos once; return the training and the validation photos.

    Photos that can't be used move from the checkpoint's `photos` to `skipped`. The others stay in
    memory, on the device, if their split fits. Raises StackError if a class has none left.
    """
    data_dir, classes, budget = options.data_dir, state.classes, world.memory(options.cache * GB)
    train = Photos(data_dir, state.photos["train"], classes, whole=True)
    val = Photos(data_dir, state.photos["val"], classes, whole=False)
    val.load(budget, world.device)
    train.load(budget - val.nbytes, world.device)
    state.photos = {"train": train.names, "val": val.names}
    state.skipped = train.broken + val.broken + state.skipped
    state.device = str(world)
    for photos, purpose in ((train, "train on"), (val, "validate with")):
        for label, class_name in enumerate(classes):
            if label not in photos.labels:
                raise StackError(
                    f"none of the photos of {class_name} can be used to {purpose}:"
                    f" {_some(train.broken + val.broken)}"
                )
    return train, val


class Batch(NamedTuple):
    """A process's share of a batch."""

    photos: Tensor  # n×S×S×3 float32, cropped; 0 to 255, as the model normalises them
    targets: Tensor  # n class indices
    is_counted: bool  # False for a photo that only keeps the process in step
    global_size: int  # photos of all processes together


def training_batches(photos: Photos, epoch: int, options: Options, world: World) -> Iterator[Batch]:
    """Yield this process's share of each batch of an epoch, in random order and cropped."""
    recipe, generator = RECIPES[options.recipe], augment.generator(options.seed, epoch)
    # The indices are on the device, too: it would wait for indices from the CPU.
    order = torch.randperm(len(photos), generator=generator).to(world.device)
    crops = augment.random_crops(photos.aspects, recipe.smallest_crop, generator).to(world.device)
    targets = photos.labels.to(world.device)
    batches = order.split(options.batch_size)
    shares = [world.share(batch) for batch in batches]
    # A process without a photo in the last batch takes one that isn't counted, so that all step.
    plan = [share if len(share) else order[:1] for share in shares]
    whole = photos.batches(plan, world.device)
    bar = world.progress(whole, f"epoch {epoch}/{options.epochs}", len(plan))
    for pixels, indices, share, batch in zip(bar, plan, shares, batches, strict=True):
        cropped = augment.crop(pixels, crops[indices], recipe.crop)
        yield Batch(cropped, targets[indices], len(share) > 0, len(batch))


def warnings(train: Photos, val: Photos, skipped: list[str], weigh: str) -> list[str]:
    """Return warnings about the photos; `skipped` has a line for each file that isn't used.

    `weigh` is the command that trains again with class weights, or empty if they are in use.
    """
    lines = []
    if skipped:
        lines.append(f"{_count(skipped, 'file')} skipped: {_some(skipped, MAX_SKIPPED_NAMED)}")
    copies: dict[str, dict[str, str]] = defaultdict(dict)  # the first photo of each class
    for name, sha256 in zip(train.names + val.names, train.sha256 + val.sha256, strict=True):
        copies[sha256].setdefault(class_of(name, train.classes), name)
    if ambiguous := [" and ".join(names.values()) for names in copies.values() if len(names) > 1]:
        lines.append(
            f"{_count(ambiguous, 'photo')} in two classes: {_some(ambiguous)}: keep one of each"
        )
    pairs, in_train = zip(val.names, val.sha256, strict=True), set(train.names)
    if duplicates := [
        str(val.data_dir / name)
        for name, sha256 in pairs
        if copies[sha256][class_of(name, val.classes)] in in_train
    ]:
        lines.append(
            f"{_count(duplicates, 'validation photo')} duplicated among the training photos, which"
            f" flatters the accuracy: {_some(duplicates)}"
        )
    counts = train.labels.bincount().tolist()
    if max(counts) >= IMBALANCED * min(counts):
        sizes = ", ".join(f"{n} {name}" for n, name in zip(counts, train.classes, strict=True))
        remedy = f", and weigh all classes alike: {weigh}" if weigh else ""
        lines.append(f"imbalanced classes ({sizes}): look at the recall of each{remedy}")
    return lines


def _count(items: list[str], noun: str) -> str:
    return f"{len(items)} {noun}" if len(items) == 1 else f"{len(items)} {noun}s"


def _some(items: list[str], most: int = MAX_IN_WARNING) -> str:
    more = len(items) - most
    return "; ".join(items[:most]) + (f"; and {more} more" if more > 0 else "")
