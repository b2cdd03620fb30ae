"""What tells photos of other things from those that the network was trained on, side by side.

    python -m bench.unlike --unlike FOLDER | tee bench/results/unlike.txt

FOLDER has one photo each of ImageNet classes, named n02165105_tiger_beetle.JPEG, none of them of a
class that the checkpoint knows. Every measure is one number per photo: the larger, the more it is
like the training photos. Thresholds come from the training photos alone, each compared with all
others (leave one out). The measures were compared on this FOLDER, which therefore flatters the
best of them a little.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnxruntime import InferenceSession, SessionOptions
from PIL import Image

from bench import machine
from simplestack.packing import onnx_file
from simplestack.packing.similarity import PERCENTILE, ROWS
from simplestack.serving import images
from simplestack.serving.cgroup import cores
from simplestack.serving.images import Photo
from simplestack.serving.inference import softmax
from simplestack.training import augment, checkpoint, folders
from simplestack.training.dataset import EVALUATED, Photos, load_all
from simplestack.training.distributed import World
from simplestack.training.evaluate import BATCH, load_best
from simplestack.training.model import WEIGHTS, Classifier, pretrained
from simplestack.training.recipes import RECIPES

# Insects and their relatives by WordNet synset, as the first word of a file name says: arachnids,
# centipedes, and insects from tiger beetles to lycaenid butterflies. Bees and ants aren't in it.
RELATED = [(1770081, 1784675), (2165105, 2206855), (2226429, 2281787)]
ANTS_AND_BEES = (2206856, 2226428)
PERCENTILES = (1, 2, 3, 4, PERCENTILE, 5, 10)
TPR = 95  # percent of the validation photos, that pass the threshold of the usual comparison
BOOTSTRAPS = 1000
SPLITS = 50  # of training and validation photos, at random
ALIKE = (0.88, 0.85, 0.8)  # cosine similarities, from which two photos may be near-duplicates
FEW = (1, 2, 5, 10, 20, 50)  # training photos of each class
DRAWS = 100  # of so few
SMALLEST_CROP = RECIPES["lp-ft"].smallest_crop
CROPS = 4  # random ones of each training photo
WINDOWS = 82  # of each training photo: a bank of 20,000 rows
Array = NDArray[Any]  # of floating-point numbers
Indices = NDArray[np.int64]
Mask = NDArray[Any]  # of booleans
Choose = Callable[[Array, int], Indices]
Features = Callable[[Photo], Array]


class Three(NamedTuple):
    """The same for the training photos, the validation photos and those of other things."""

    train: Array
    val: Array
    other: Array

    def map(self, function: Callable[[Array], Any]) -> "Three":
        """Apply a function to each."""
        return Three(*map(function, self))


class Pixels(NamedTuple):
    """The same photos, N×224×224×3 uint8."""

    train: Photo
    val: Photo
    other: Photo


class Bench(NamedTuple):
    """What all measures have in common."""

    labels: Indices  # of the training photos
    related: Mask  # of the others, which are insects and their relatives
    classes: Indices  # of the others: ImageNet's


def is_between(synsets: Indices, ranges: Iterable[tuple[int, int]]) -> Mask:
    """Return which synsets are in one of the ranges, ends included."""
    inside = [(low <= synsets) & (synsets <= high) for low, high in ranges]
    return np.asarray(np.any(inside, axis=0))


# --- from photos to features ---


def read(paths: Iterable[Path]) -> Photo:
    """Read photos as they are served, N×224×224×3 uint8."""
    return np.stack([images.read(path.read_bytes()) for path in paths])


@torch.inference_mode()
def layers(model: Classifier, pixels: Photo) -> tuple[Array, Array]:
    """Return the means over positions of layer3, N×256, and layer4, N×512."""
    model.freeze(4)
    outputs = [model.frozen(batch) for batch in torch.from_numpy(pixels).split(BATCH)]
    third = torch.cat([x.mean((2, 3)) for x in outputs])
    return third.numpy(), torch.cat([model.features(x) for x in outputs]).numpy()


def linear(features: Three, weight: Array, bias: Array) -> Three:
    """Apply a head."""
    return features.map(lambda x: x @ weight.T + bias)


def imagenet_head() -> tuple[Array, Array]:
    """Return weight, 1000×512, and bias of the head that was trained on ImageNet."""
    state = WEIGHTS.get_state_dict(check_hash=True, weights_only=True)
    return state["fc.weight"].numpy(), state["fc.bias"].numpy()


def ants_and_bees() -> list[int]:
    """Return which of ImageNet's classes the photos of the tutorial show."""
    return [WEIGHTS.meta["categories"].index(name) for name in ("ant", "bee")]


def packed_features(path: Path) -> Features:
    """Return a function from photos to what the head of an exported model gets, N×512."""
    graph = onnx.load(path)
    head = [node for node in graph.graph.node if node.op_type == "Conv"][-1]
    graph.graph.output.append(onnx.ValueInfoProto(name=head.input[0]))
    options = SessionOptions()
    options.intra_op_num_threads = cores()
    session = InferenceSession(
        graph.SerializeToString(), options, disabled_optimizers=["QDQPropagationTransformer"]
    )

    def features(pixels: Photo) -> Array:
        batches = (pixels[i : i + BATCH] for i in range(0, len(pixels), BATCH))
        outputs = [session.run([head.input[0]], {"photos": batch})[0] for batch in batches]
        return np.concatenate([x.mean((2, 3)) for x in outputs])

    return features


# --- measures: one number per photo ---


def unit(x: Array) -> Array:
    """Divide rows by their norms."""
    return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True))


def nearest(features: Three, k: int = 1) -> Three:
    """Return the mean cosine similarity to the k nearest training photos, other than itself."""
    bank = unit(features.train)
    return in_bank(features.map(unit), bank, np.arange(len(bank)), k)


def in_bank(features: Three, bank: Array, photo: Indices, k: int = 1) -> Three:
    """Return the mean similarity to the k nearest rows of a bank.

    `photo` has the index of the training photo that each row comes from, which isn't compared with
    its own rows.
    """
    similar = features.map(lambda x: x @ bank.T)
    itself = np.arange(len(features.train))[:, None] == photo
    without = similar._replace(train=np.where(itself, -np.inf, similar.train))
    return without.map(lambda x: np.sort(x, axis=1)[:, -k:].mean(1))


def nearest_of_class(features: Three, logits: Three, labels: Indices) -> Three:
    """Return the similarity to the nearest training photo of the class that is predicted."""
    bank = unit(features.train)

    def similar(x: Array, z: Array) -> Array:
        return np.where(z.argmax(1)[:, None] == labels, unit(x) @ bank.T, -np.inf)

    matrices = Three(*map(similar, features, logits))
    np.fill_diagonal(matrices.train, -np.inf)
    return matrices.map(lambda matrix: matrix.max(1))


def whiten(features: Three, *, centre: bool) -> Three:
    """Decorrelate the unit features, by the training photos' covariance, shrunk."""
    x = unit(features.train)
    mean = x.mean(0) if centre else np.zeros(x.shape[1])
    values, vectors = np.linalg.eigh(np.cov(x.T))
    scale = 1 / np.sqrt(values.clip(0) + values.mean())
    return features.map(lambda f: (unit(f) - mean) @ (vectors * scale))


def energy(logits: Array) -> Array:
    """Return the logarithm of the sum of exponentials (Liu et al. 2020)."""
    return np.asarray(np.logaddexp.reduce(logits, axis=1))


def fdbd(features: Three, logits: Three, weight: Array) -> Three:
    """Return the mean distance to the decision boundaries by that to the mean (Liu & Qin 2024)."""
    mean = features.train.mean(0)

    def score(x: Array, z: Array) -> Array:
        label, rows = z.argmax(1), np.arange(len(z))
        gaps = np.abs(z - z[rows, label][:, None])
        lengths = np.linalg.norm(weight[label][:, None] - weight, axis=2)
        lengths[rows, label] = np.inf
        others = z.shape[1] - 1
        distances = (gaps / lengths).sum(1) / others
        return np.asarray(distances / np.linalg.norm(x - mean, axis=1))

    return Three(*map(score, features, logits))


def imagenet(logits: Three, without: list[int], classes: Indices | None = None) -> Three:
    """Return how alike ImageNet's classifier finds a photo and the training photos on average.

    That is the Bhattacharyya coefficient of the probabilities, `without` some of its classes; also
    without the `classes` that the photos of other things show, if they are given.
    """
    hidden = logits.map(np.copy)
    for z in hidden:
        z[:, without] = -np.inf
    if classes is not None:
        hidden.other[np.arange(len(classes)), classes] = -np.inf
    roots = hidden.map(lambda z: np.sqrt(softmax(z)))
    mean = np.sqrt((roots.train**2).mean(0))
    return roots.map(lambda root: root @ mean)


def both(a: Three, b: Three) -> Three:
    """Return the sum of two measures, each in standard deviations of the training photos."""

    def standard(score: Three) -> Three:
        return score.map(lambda x: (x - score.train.mean()) / score.train.std())

    return Three(*(x + y for x, y in zip(standard(a), standard(b), strict=True)))


def product(a: Three, b: Three) -> Three:
    """Return the product of two measures."""
    return Three(*(x * y for x, y in zip(a, b, strict=True)))


# --- how good a measure is ---


def auroc(val: Array, other: Array) -> float:
    """Return the probability that a validation photo is above one of another thing."""
    ordered = np.sort(other)
    below = np.searchsorted(ordered, val, "left") + np.searchsorted(ordered, val, "right")
    return float(below.mean() / 2 / len(other))


def resampled(score: Three, related: Mask) -> Array:
    """Return the AUROC for all others and for the related ones, of BOOTSTRAPS samples, B×2."""
    rng, rows = np.random.default_rng(0), []  # the same samples for each measure
    close = score.other[related]
    for _ in range(BOOTSTRAPS):
        val, other, near = (x[rng.integers(0, len(x), len(x))] for x in (*score[1:], close))
        rows.append((auroc(val, other), auroc(val, near)))
    return np.array(rows)


def passing(score: Three, threshold: float, related: Mask) -> str:
    """Return the percentages that reach a threshold: of validation, other and related photos."""
    parts = (score.val, score.other, score.other[related])
    return "".join(f"{100 * (x >= threshold).mean():6.1f}" for x in parts)


def row(name: str, score: Three, bench: Bench, base: Three) -> str:
    """Return one line of the table."""
    samples, reference = resampled(score, bench.related), resampled(base, bench.related)
    val, other = score.val, score.other
    error, related_error = samples.std(0)
    gain, gain_error = auroc(val, other) - auroc(*base[1:]), (samples - reference).std(0)[0]
    at_tpr = passing(score, np.percentile(val, 100 - TPR), bench.related)[6:]
    loo = passing(score, np.percentile(score.train, PERCENTILE), bench.related)
    related = auroc(val, other[bench.related])
    return (
        f"{name:44}{auroc(val, other):.4f} ± {error:.4f}  {gain:+.4f} ± {gain_error:.4f}"
        f"  {related:.3f} ± {related_error:.3f} |{at_tpr} |{loo}"
    )


HEADER = (
    f"{'':44}{'AUROC':15}  {'to the first':16}  {'related':13} |{'95 % of val.':>12} |"
    f"{'leave one out':>18}\n{'':44}{'':15}  {'':16}  {'':13} |{'other':>6}{'rel.':>6} |"
    f"{'val.':>6}{'other':>6}{'rel.':>6}"
)


def thresholds(score: Three, related: Mask) -> None:
    """Print what passes the thresholds at several percentiles."""
    for percentile in PERCENTILES:
        threshold = np.percentile(score.train, percentile)
        passed = passing(score, threshold, related)
        print(f"percentile {percentile:3g}: {threshold:.3f} {passed}", flush=True)


# --- banks of fewer rows ---


def k_center(x: Array, count: int) -> Indices:
    """Return the rows that a greedy k-center chooses: each is the farthest from those before it."""
    chosen = [int((x @ x.mean(0)).argmax())]
    similar = x @ x[chosen[0]]
    while len(chosen) < min(count, len(x)):
        chosen.append(int(similar.argmin()))
        similar = np.maximum(similar, x @ x[chosen[-1]])
    return np.array(chosen)


def k_medoids(x: Array, count: int) -> Indices:
    """Return the rows nearest to the centres of spherical k-means, after ten iterations."""
    centres = x[at_random(x, count)]
    for _ in range(10):
        cluster = (x @ centres.T).argmax(1)
        sums = np.zeros_like(centres)
        np.add.at(sums, cluster, x)
        used = np.bincount(cluster, minlength=count) > 0
        centres[used] = unit(sums[used])
    return np.unique((centres @ x.T).argmax(1))


def at_random(x: Array, count: int) -> Indices:
    """Return rows that are drawn at random."""
    return np.random.default_rng(0).choice(len(x), count, replace=False)


def reduce_bank(choose: Choose, bank: Array, labels: Indices, count: int) -> Indices:
    """Return at most `count` rows of the bank, as many of each class."""
    classes = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    return np.concatenate([rows[choose(bank[rows], count // len(classes))] for rows in classes])


def smaller_banks(
    features: Three, bank: Array, photo: Indices, bench: Bench, counts: Iterable[int]
) -> None:
    """Print how good a bank is, and what is chosen of it. `photo` is as in `in_bank`."""
    features, bank = features.map(unit), unit(bank)
    full = in_bank(features, bank, photo)
    print(f"{HEADER}\n{row(f'{len(bank)} rows', full, bench, full)}", flush=True)
    for count in counts:
        for choose in (k_center, k_medoids, at_random):
            rows = reduce_bank(choose, bank, bench.labels[photo], count)
            score = in_bank(features, bank[rows], photo[rows])
            name = f"{len(rows)} rows, {choose.__name__.replace('_', ' ')}"
            print(row(name, score, bench, full), flush=True)


# --- the parts of the report ---


def title(text: str) -> None:
    """Print the name of a part."""
    print(f"\n{text}\n", flush=True)


def agreement(a: Three, b: Three) -> str:
    """Return the smallest cosine similarity between two models' features of one photo."""
    return f"{min((unit(x) * unit(y)).sum(1).min() for x, y in zip(a, b, strict=True)):.3f}"


class Outputs(NamedTuple):
    """What the measures are computed from."""

    tuned: Three  # inputs of the head
    raw: Three  # the same before fine-tuning
    third: Three  # means over positions of layer3
    more: list[Array]  # inputs of the head for other views of the training photos, mirrored first
    head: tuple[Array, Array]  # weight and bias

    @property
    def logits(self) -> Three:
        """The logits, N×C."""
        return linear(self.tuned, *self.head)


def neighbours(x: Outputs, bench: Bench) -> dict[str, Three]:
    """Return the measures that compare a photo with the training photos."""
    tuned, photos = x.tuned, np.arange(len(bench.labels))

    def stacked(share: float) -> Three:
        pairs = zip(tuned, x.third, strict=True)
        return nearest(Three(*(np.hstack([unit(a), share * unit(b)]) for a, b in pairs)))

    def with_views(count: int) -> Three:
        bank = unit(np.vstack([tuned.train, *x.more[:count]]))
        return in_bank(tuned.map(unit), bank, np.tile(photos, count + 1))

    return {
        "nearest training photo": nearest(tuned),
        **{f"mean of the {k} nearest": nearest(tuned, k) for k in (3, 5, 10)},
        "nearest of the predicted class": nearest_of_class(tuned, x.logits, bench.labels),
        "nearest, before fine-tuning": nearest(x.raw),
        "5 nearest, before fine-tuning": nearest(x.raw, 5),
        "nearest, layer3": nearest(x.third),
        "nearest, layer4 and half of layer3": stacked(0.5),
        "nearest, layer4 and layer3": stacked(1),
        "nearest, mirrored photos in the bank too": with_views(1),
        f"nearest, mirrored and {CROPS} crops too": with_views(1 + CROPS),
        "nearest, centred": nearest(tuned.map(lambda f: f - tuned.train.mean(0))),
        "nearest, whitened": nearest(whiten(tuned, centre=False)),
        "nearest, centred and whitened": nearest(whiten(tuned, centre=True)),
    }


def combined(x: Outputs, bench: Bench) -> dict[str, Three]:
    """Return the measures that use a head, alone and with the nearest training photo."""
    base, logits = nearest(x.tuned), x.logits
    confidence = logits.map(lambda z: softmax(z).max(1))
    free, distance = logits.map(energy), fdbd(x.tuned, logits, x.head[0])
    world, own = linear(x.tuned, *imagenet_head()), ants_and_bees()
    open_world = imagenet(world, [])
    concealed = imagenet(world, own, bench.classes)
    return {
        "maximum softmax probability": confidence,
        "energy": free,
        "fDBD": distance,
        "nearest + fDBD": both(base, distance),
        "nearest + energy": both(base, free),
        "nearest × softmax probability": product(base, confidence),
        "nearest + nearest before fine-tuning": both(base, nearest(x.raw)),
        "ImageNet's head": open_world,
        "the same, without ants and bees": imagenet(world, own),
        "the same, and without what is shown": concealed,
        "nearest + ImageNet's head": both(base, open_world),
        "nearest + that, without either": both(base, concealed),
    }


def compare(outputs: Outputs, bench: Bench) -> None:
    """Print the table of measures."""
    base = nearest(outputs.tuned)
    print(HEADER)
    for name, score in (neighbours(outputs, bench) | combined(outputs, bench)).items():
        print(row(name, score, bench, base), flush=True)


def random_splits(raw: Three, *labels: Indices) -> None:
    """Print what passes on average over random splits, for features that saw none of the photos.

    Each has as many training photos as the real one. The heads are linear probes.
    """
    photos, targets = np.vstack(raw[:2]), np.concatenate(labels)
    rng, model = np.random.default_rng(0), Classifier(int(targets.max()) + 1)
    head = model.resnet.fc
    rows: dict[str, list[list[float]]] = {"nearest": [], "nearest of the predicted class": []}
    for _ in range(SPLITS):
        order = rng.permutation(len(photos))
        train, val = np.split(order, [len(raw.train)])
        part = Three(photos[train], photos[val], raw.other)
        model.fit_linear_probe(torch.from_numpy(part.train), torch.from_numpy(targets[train]))
        with torch.inference_mode():
            logits = part.map(lambda x: head(torch.from_numpy(x)).numpy())
        scores = (nearest(part), nearest_of_class(part, logits, targets[train]))
        for values, score in zip(rows.values(), scores, strict=True):
            limits = [np.percentile(score.train, p) for p in PERCENTILES]
            shares = [[(x >= t).mean() for t in limits] for x in score[1:]]
            values.append([auroc(*score[1:]), *shares[0], *shares[1]])
    for name, values in rows.items():
        mean, spread = np.mean(values, 0), np.std(values, 0)
        print(f"{name}: AUROC {mean[0]:.4f} ± {spread[0]:.4f}")
        for i, percentile in enumerate(PERCENTILES, 1):
            j = i + len(PERCENTILES)
            print(
                f"percentile {percentile:3g}: {100 * mean[i]:5.1f} ± {100 * spread[i]:.1f} % of the"
                f" validation photos, {100 * mean[j]:4.1f} ± {100 * spread[j]:.1f} % of the others",
                flush=True,
            )


def near_duplicates(tuned: Three, features: Features, pixels: Photo, bench: Bench) -> None:
    """Print how similar altered copies are to their photos, and the figures without such pairs."""
    similar = unit(tuned.val) @ unit(tuned.train).T
    among = unit(tuned.train) @ unit(tuned.train).T
    np.fill_diagonal(among, -1)
    print(f"most similar: {similar.max():.3f} across, {among.max():.3f} among training photos")
    alter: dict[str, Callable[[Image.Image], Image.Image]] = {
        "half as large": lambda x: x.resize((112, 112)).resize((224, 224)),
        "mirrored": lambda x: x.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        "cropped to 81 % of its area": lambda x: x.crop((11, 11, 213, 213)).resize((224, 224)),
    }
    for name, function in alter.items():
        copies = np.stack([np.array(function(Image.fromarray(photo))) for photo in pixels])
        values = (unit(features(copies)) * unit(tuned.train)).sum(1)
        low, middle = np.percentile(values, [5, 50])
        print(f"{name}: {middle:.3f} to its original, 95 % of them above {low:.3f}")
    print(HEADER)
    for limit in ALIKE:
        apart = similar.max(1) < limit
        kept = among.max(1) < limit
        part = Three(tuned.train[kept], tuned.val[apart], tuned.other)
        score = nearest(part)
        name = f"without {(~apart).sum()} val., {(~kept).sum()} train.: {limit} or more"
        print(row(name, score, bench, nearest(tuned)), flush=True)


def edge_cases(tuned: Three, pixels: Pixels, bench: Bench) -> None:
    """Print what the threshold is if there is little to learn from."""
    labels = bench.labels
    first = np.array([np.flatnonzero(labels == label)[0] for label in np.unique(labels)])
    torch.manual_seed(0)
    random = Classifier(len(first)).eval()
    cases = {
        "one training photo of each class": tuned._replace(train=tuned.train[first]),
        "all training photos alike": tuned._replace(train=tuned.train[first[[0] * len(labels)]]),
        "random weights": Three(*(layers(random, x)[1] for x in pixels)),
    }
    for name, features in cases.items():
        score = nearest(features)
        threshold = np.percentile(score.train, PERCENTILE)
        passed = passing(score, threshold, bench.related)
        print(f"{name:34} AUROC {auroc(*score[1:]):.4f}  threshold {threshold:.7f} {passed}")


def few_photos(tuned: Three, labels: Indices) -> None:
    """Print what passes, on average, with a few training photos of each class."""
    rng = np.random.default_rng(0)
    classes = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    for count in FEW:
        rows = []
        for _ in range(DRAWS):
            drawn = np.concatenate([rng.choice(photos, count, replace=False) for photos in classes])
            score = nearest(tuned._replace(train=tuned.train[drawn]))
            threshold = np.percentile(score.train, PERCENTILE)
            rows.append([threshold, *((x >= threshold).mean() for x in score[1:])])
        mean, spread = np.mean(rows, 0), np.std(rows, 0)
        print(
            f"{count:2} of each class: threshold {mean[0]:.3f} ± {spread[0]:.3f}, reached by"
            f" {100 * mean[1]:.0f} ± {100 * spread[1]:.0f} % of the validation photos and"
            f" {100 * mean[2]:.0f} ± {100 * spread[2]:.0f} % of the others"
        )


def find_others(folder: Path, labels: Indices) -> tuple[list[Path], Bench]:
    """Find the photos of other things, without ants and bees."""
    paths = sorted(folder.glob("*.JPEG"))
    synsets = np.array([int(path.stem[1:9]) for path in paths])
    own = is_between(synsets, [ANTS_AND_BEES])
    paths = [path for path, left_out in zip(paths, own, strict=True) if not left_out]
    names = [name.casefold().replace(" ", "_") for name in WEIGHTS.meta["categories"]]
    classes = np.array([names.index(path.stem[10:].casefold()) for path in paths])
    related = is_between(synsets[~own], RELATED)
    print(f"{len(paths)} photos of other things; {own.sum()} of ants or bees left out")
    print(
        "related:", ", ".join(p.stem[10:] for p, is_so in zip(paths, related, strict=True) if is_so)
    )
    return paths, Bench(labels, related, classes)


def embed(photos: Photos, features: Features, count: int) -> tuple[Array, Indices]:
    """Return the features of `count` random crops of the training photos, and whose they are."""
    generator, rows, owners = torch.Generator().manual_seed(0), [], []
    for indices in (torch.arange(count) % len(photos)).split(BATCH):
        crops = augment.random_crops(photos.aspects[indices], SMALLEST_CROP, generator)
        whole = next(iter(photos.batches([indices], torch.device("cpu"))))
        rows.append(features(augment.crop(whole, crops, images.CROP).round().byte().numpy()))
        owners.append(indices.numpy())
    return np.concatenate(rows), np.concatenate(owners)


@torch.inference_mode()
def pooled_windows(model: Classifier, photos: Photos) -> tuple[Array, Indices]:
    """Return the means of layer4 over WINDOWS random windows of each photo, and whose they are.

    They stand for a large data set: 20,000 crops would take half an hour on two cores.
    """
    model.freeze(4)
    plan = list(torch.arange(len(photos)).split(BATCH))
    batches = photos.batches(plan, torch.device("cpu"))
    maps = torch.cat([model.resnet.layer4(model.frozen(batch)) for batch in batches])
    rng, side, rows = np.random.default_rng(0), maps.shape[-1], []
    for _ in range(WINDOWS):
        height, width = rng.integers(side // 2, side + 1, 2)
        top, left = rng.integers(0, side + 1 - np.array([height, width]))
        rows.append(maps[:, :, top : top + height, left : left + width].mean((2, 3)).numpy())
    return np.concatenate(rows), np.tile(np.arange(len(photos)), WINDOWS)


def main() -> None:
    """Compare the measures; then measure the simplest one in detail."""
    parser = argparse.ArgumentParser(description="Compare what tells photos of other things.")
    parser.add_argument("checkpoint", type=Path, nargs="?", help="default: newest in saved_models")
    parser.add_argument("--unlike", type=Path, required=True, help="the photos of other things")
    args = parser.parse_args()
    print(machine.describe())
    path = args.checkpoint or checkpoint.newest(Path("saved_models"))
    state = checkpoint.load(path)
    data_dir = Path(state.arguments["data_dir"])
    train, val = (
        Photos(data_dir, state.photos[split], state.classes, whole=False)
        for split in folders.SPLITS
    )
    paths, bench = find_others(args.unlike, train.labels.numpy())
    pixels = Pixels(*map(read, (train.paths, val.paths, paths)))
    whole = Photos(data_dir, state.photos["train"], state.classes, whole=True)
    load_all(whole, budget=EVALUATED, device=torch.device("cpu"))
    model = load_best(state, World(torch.device("cpu")))

    with tempfile.TemporaryDirectory() as folder:
        onnx_file.export(state, path, data_dir, Path(folder), with_examples=False)
        fp32, int8 = (packed_features(Path(folder, f"{name}.onnx")) for name in ("fp32", "int8"))
    tuned, quantized = Three(*map(fp32, pixels)), Three(*map(int8, pixels))
    third = Three(*(layers(model, x)[0] for x in pixels))
    before = pretrained(len(state.classes)).eval()
    raw = Three(*(layers(before, x)[1] for x in pixels))
    mirrored = fp32(np.ascontiguousarray(pixels.train[:, :, ::-1]))
    crops, _ = embed(whole, fp32, CROPS * len(whole))
    more = [mirrored, *np.split(crops, CROPS)]
    fc = model.resnet.fc
    head = fc.weight.detach().numpy(), fc.bias.detach().numpy()

    title("Measures")
    compare(Outputs(tuned, raw, third, more, head), bench)
    title("The nearest training photo: which share passes the threshold of a percentile, %")
    thresholds(nearest(tuned), bench.related)
    title(f"The same in int8; cosine between both features at least {agreement(tuned, quantized)}")
    print(row("int8", nearest(quantized), bench, nearest(tuned)))
    thresholds(nearest(quantized), bench.related)
    title(f"{SPLITS} random splits, before fine-tuning")
    random_splits(raw, train.labels.numpy(), val.labels.numpy())
    title("Near-duplicates")
    near_duplicates(tuned, fp32, pixels.train, bench)
    title("Edge cases")
    edge_cases(tuned, pixels, bench)
    few_photos(tuned, bench.labels)
    title("Banks of fewer rows")
    smaller_banks(tuned, tuned.train, np.arange(len(train)), bench, [128, 64, 32])
    title(f"{WINDOWS} random windows of each training photo")
    smaller_banks(tuned, *pooled_windows(model, whole), bench, [ROWS, ROWS // 4])


if __name__ == "__main__":
    main()
