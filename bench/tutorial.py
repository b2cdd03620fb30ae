"""The loop of PyTorch's transfer learning tutorial, as published, for bench/train.py to race.

    python -m bench.tutorial --epochs 25

https://pytorch.org/tutorials/beginner/transfer_learning_tutorial.html: batches of 4, float32, and 4
processes that decode the photos again in every epoch.
"""

import argparse
import copy
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from simplestack.training import model

TO_TENSOR = (v2.ToImage(), v2.ToDtype(torch.float32, scale=True))
NORMALISE = v2.Normalize(list(model.MEAN), list(model.STD))
TRANSFORMS = {
    "train": v2.Compose(
        [v2.RandomResizedCrop(224), v2.RandomHorizontalFlip(), *TO_TENSOR, NORMALISE]
    ),
    "val": v2.Compose([v2.Resize(256), v2.CenterCrop(224), *TO_TENSOR, NORMALISE]),
}


def readable(path: str) -> bool:
    """Skip imageNotFound.gif, as train.py does."""
    return not path.endswith(".gif")


def main() -> None:
    """Train; print the validation accuracy of each epoch."""
    parser = argparse.ArgumentParser(description="Train as in PyTorch's tutorial.")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="(default: data)")
    parser.add_argument("--epochs", type=int, default=25, help="(default: 25)")
    args = parser.parse_args()
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    loaders = {
        split: DataLoader(
            ImageFolder(str(args.data_dir / split), transform, is_valid_file=readable),
            batch_size=4,
            shuffle=True,
            num_workers=4,
        )
        for split, transform in TRANSFORMS.items()
    }
    network = model.pretrained(2).resnet.to(device)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.001, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=7, gamma=0.1)
    best, weights = 0.0, network.state_dict()
    for epoch in range(args.epochs):
        network.train()
        for photos, labels in loaders["train"]:
            optimizer.zero_grad()
            logits = network(photos.to(device))
            nn.functional.cross_entropy(logits, labels.to(device)).backward()
            optimizer.step()
        scheduler.step()
        network.eval()
        correct = total = 0
        with torch.no_grad():
            for photos, labels in loaders["val"]:
                correct += int((network(photos.to(device)).argmax(1).cpu() == labels).sum())
                total += len(labels)
        if correct / total > best:
            best, weights = correct / total, copy.deepcopy(network.state_dict())
        print(f"epoch {epoch + 1:2}  accuracy {correct / total:.4f}", flush=True)
    network.load_state_dict(weights)


if __name__ == "__main__":
    main()
