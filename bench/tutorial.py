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


def is_readable(path: str) -> bool:
    """Skip imageNotFound.gif, as train.py does."""
    return not path.endswith(".gif")


def main() -> None:
    """Train; print the validation accuracy of each epoch."""
    parser = argparse.ArgumentParser(description="Train as in PyTorch's tutorial.")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="(default: data)")
    parser.add_argument("--epochs", type=int, default=25, help="(default: 25)")
    args = parser.parse_args()
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    loaders = {}
    for split, transform in TRANSFORMS.items():
        folder = str(args.data_dir / split)
        photos = ImageFolder(folder, transform, is_valid_file=is_readable)
        loaders[split] = DataLoader(photos, batch_size=4, shuffle=True, num_workers=4)
    network = model.pretrained(2).resnet.to(device)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.001, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=7, gamma=0.1)
    best, weights = 0.0, network.state_dict()
    for epoch in range(args.epochs):
        for split, loader in loaders.items():
            training, correct = split == "train", 0
            network.train(training)
            for batch, labels in loader:
                optimizer.zero_grad()
                with torch.set_grad_enabled(training):
                    logits = network(batch.to(device))
                    loss = nn.functional.cross_entropy(logits, labels.to(device))
                if training:
                    loss.backward()
                    optimizer.step()
                correct += int((logits.argmax(1).cpu() == labels).sum())
        scheduler.step()
        accuracy = correct / len(photos)  # of the validation photos, the last of the two
        if accuracy > best:
            best, weights = accuracy, copy.deepcopy(network.state_dict())
        print(f"epoch {epoch + 1:2}  accuracy {accuracy:.4f}", flush=True)
    network.load_state_dict(weights)


if __name__ == "__main__":
    main()
