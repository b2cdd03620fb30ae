"""How many validation photos are called unlike the training photos, by the number of the latter.

    python -m bench.few_photos data

For each number of photos a class, five random choices of training photos are trained on.
"""

import random
import subprocess
import sys
import tempfile
from pathlib import Path

from simplestack.packing import onnx_export, similarity
from simplestack.report.report import load_best
from simplestack.training import checkpoint
from simplestack.training.dataset import Photos

COUNTS, SEEDS = (10, 20, 30, 50, 100), 5


def share(data: Path, count: int, seed: int) -> float:
    """Train on `count` photos a class; return the share of unlike validation photos."""
    with tempfile.TemporaryDirectory() as name:
        folder, path = Path(name), Path(name, "a.ckpt")
        for class_folder in sorted((data / "train").iterdir()):
            target = folder / "data/train" / class_folder.name
            target.mkdir(parents=True)
            for photo in random.Random(seed).sample(  # noqa: S311
                sorted(class_folder.iterdir()), count
            ):
                (target / photo.name).symlink_to(photo)
        (folder / "data/val").symlink_to(data / "val")
        command = [sys.executable, "train.py", "--data-dir", folder / "data", "--output", path]
        subprocess.run([*command, "--save-to-bento", "no"], check=True, capture_output=True)
        state = checkpoint.load(path)
        sets = [
            Photos(folder / "data", state.photos[x], state.classes, False) for x in ("train", "val")
        ]
        bank, features = (onnx_export.outputs_of([load_best(state)], x)[0][1] for x in sets)
        similarity.MIN_BANK = 0
        return similarity.threshold(bank, features)["validation_photos_unlike"]


if __name__ == "__main__":
    for count in COUNTS:
        shares = sorted(share(Path(sys.argv[1]).resolve(), count, seed) for seed in range(SEEDS))
        print(f"{count:4} photos a class: {', '.join(f'{x:.1%}' for x in shares)}", flush=True)
