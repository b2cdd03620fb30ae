"""Choose the photos that are worth labelling first."""

import numpy as np

from simplestack.serving.inference import Floats

CANDIDATES = 50  # for each photo to choose: Zhdanov's beta
STEPS = 20  # of k-means
TINY = 1e-9  # no weight and no distance is 0, also those of copies


def choose(probabilities: Floats, features: Floats, count: int) -> list[int]:
    """Return the indices of up to `count` photos to label first, the least certain first.

    `probabilities` are N×C, `features` N×512 with the length 1. Uncertainty is 1 minus the margin
    between the two most probable classes. The least certain photos are grouped by k-means,
    weighted by uncertainty, and the photo nearest to the centre of each group is chosen (Zhdanov
    2019, "Diverse mini-batch Active Learning"). The groups are those of cosines.
    """
    best = np.sort(probabilities)
    uncertainty = 1 + TINY - best[:, -1] + best[:, -2]
    order = (-uncertainty).argsort(kind="stable")[: CANDIDATES * count]
    points, weights, random = features[order], uncertainty[order], np.random.default_rng(0)
    centres = points[:1]
    while len(centres) < min(count, len(points)):  # k-means++
        distances = weights * (1 - (points @ centres.T).max(1)).clip(TINY)
        drawn = random.choice(len(points), p=distances / distances.sum())
        centres = np.vstack([centres, points[drawn]])
    for _ in range(STEPS):
        members = np.eye(len(centres))[(points @ centres.T).argmax(1)] * weights[:, None]
        centres = members.T @ points + TINY * centres  # a group without members keeps its centre
        centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    chosen: list[int] = []
    for cosines in (points @ centres.T).T:
        cosines[chosen] = -2  # less than any
        chosen.append(int(cosines.argmax()))
    return [int(order[i]) for i in sorted(chosen)]
