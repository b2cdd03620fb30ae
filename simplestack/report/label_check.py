"""Photos to look at again: those that may have the wrong label, and near-duplicates."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from simplestack.report.figures import Figure
from simplestack.serving import images
from simplestack.training.checkpoint import Checkpoint
from simplestack.training.dataset import Photos
from simplestack.training.model import fit_head

NEIGHBOURS, FOLDS = 5, 5
DUPLICATE_SIMILARITY = 0.88  # cosine; 95 % of mirrored, cropped or smaller copies have more
MAX_LABELS, MAX_PAIRS = 20, 12  # shown in the report
MAX_COMPARED = 20_000  # photos; of more, a random sample is compared
CHUNK = 1000  # photos; has no influence on the result


class Suspects(NamedTuple):
    """Photos to look at again: how many there are, and figures of the first."""

    photos: int
    compared: int  # photos; fewer if there are more than MAX_COMPARED
    wrong: int  # photos with suspicious labels
    wrong_labels: list[Figure]
    near: int  # pairs of near-duplicates
    near_duplicates: list[Figure]


def find(state: Checkpoint, data_dir: Path) -> Suspects:
    """Find suspicious photos by the features in a checkpoint.

    Raises StackError if one of them can't be read.
    """
    classes, names = state.classes, state.photos["train"] + state.photos["val"]
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(0))
    some = order[:MAX_COMPARED].sort()[0]
    photos = Photos(data_dir, [names[i] for i in some], classes, whole=False)
    neighbours, pairs, total = compare(state.features[some])
    probabilities = cross_validate(state.features[some], photos.labels, len(classes))

    def figure(caption: str, *indices: int) -> Figure:
        return Figure(caption, [images.data_url(np.asarray(photos[i])) for i in indices])

    def pair(similarity: float, i: int, j: int) -> Figure:
        one, other = (classes[photos.labels[k]] for k in (i, j))
        labels = f": {one} or {other}?" if one != other else ""
        caption = f"{photos.names[i]} and {photos.names[j]}: similarity {similarity:.2f}{labels}"
        return figure(caption, i, j)

    wrong = wrong_labels(neighbours, photos.labels, probabilities)
    nearest = neighbours[:, 0].tolist()
    return Suspects(
        photos=len(names),
        compared=len(photos),
        wrong=len(wrong),
        wrong_labels=[
            figure(
                f"{photos.names[i]}: {classes[photos.labels[i]]}, looks like"
                f" {classes[probabilities[i].argmax()]}. The most similar photo:"
                f" {photos.names[nearest[i]]}",
                i,
                nearest[i],
            )
            for i in wrong[:MAX_LABELS]
        ],
        near=total,
        near_duplicates=[pair(*values) for values in pairs],
    )


def compare(features: Tensor) -> tuple[Tensor, list[tuple[float, int, int]], int]:
    """Compare N×512 features, each with all others, by the cosine.

    Return N×K indices of the most similar photos, the most similar first; the most similar of the
    near-duplicates, as similarity and two indices; and the number of all near-duplicates.
    """
    features = torch.nn.functional.normalize(features)
    order = torch.arange(len(features))
    neighbours, pairs, total = [], [], 0
    for chunk in tqdm(order.split(CHUNK), desc="comparing photos", leave=False, disable=None):
        cosines = features[chunk] @ features.T
        cosines[order[: len(chunk)], chunk] = -1  # with itself
        neighbours.append(cosines.topk(min(NEIGHBOURS, len(features) - 1)).indices)
        cosines[chunk[:, None] >= order] = -1  # each pair once
        total += int((cosines >= DUPLICATE_SIMILARITY).sum())
        values, places = cosines.flatten().topk(min(MAX_PAIRS, cosines.numel()))
        rows, columns = chunk[places // len(features)], places % len(features)
        closest = zip(values.tolist(), rows.tolist(), columns.tolist(), strict=True)
        pairs += [pair for pair in closest if pair[0] >= DUPLICATE_SIMILARITY]
    return torch.cat(neighbours), sorted(pairs, reverse=True)[:MAX_PAIRS], total


def cross_validate(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return the N×C probabilities of linear probes, each fitted without the photo's fold.

    `features` are N×512, `labels` N indices of classes.
    """
    fold = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)) % FOLDS
    probabilities = torch.zeros(len(labels), classes)
    for k in tqdm(range(FOLDS), desc="looking for wrong labels", leave=False, disable=None):
        inside = fold == k
        head = fit_head(features[~inside], labels[~inside], classes)
        with torch.inference_mode():
            probabilities[inside] = head(features[inside]).softmax(1)
    return probabilities


def wrong_labels(neighbours: Tensor, labels: Tensor, probabilities: Tensor) -> list[int]:
    """Return photos whose label both most neighbours and the cross-validated probe contradict.

    `neighbours` are N×K indices, `probabilities` N×C. Photos with the least probable labels come
    first. Classes with at most NEIGHBOURS photos are not judged: most neighbours are of others.
    """
    of_label = probabilities.gather(1, labels[:, None])[:, 0]
    others = (labels[neighbours] != labels[:, None]).float().mean(1)
    judged = labels.bincount(minlength=probabilities.shape[1])[labels] > NEIGHBOURS
    doubted = judged & (others > 0.5) & (probabilities.argmax(1) != labels)  # noqa: PLR2004
    return sorted(np.flatnonzero(doubted.numpy()).tolist(), key=lambda i: float(of_label[i]))
