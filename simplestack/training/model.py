"""The model: torchvision's ResNet-18 with a new head, from uint8 photos to logits."""

import hashlib
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torchvision.models import ResNet18_Weights, resnet18

from simplestack.serving.errors import StackError

WEIGHTS = ResNet18_Weights.IMAGENET1K_V1
FILE = Path(WEIGHTS.url).name  # ends in the first digits of the SHA-256
MEAN = (0.485, 0.456, 0.406)  # of ImageNet's photos, RGB, 0 to 1
STD = (0.229, 0.224, 0.225)
PROBE_STEPS = 200  # of L-BFGS, at most
PROBE_L2 = 1e-2  # times the squared norm of the head's weights


class UnreachableError(StackError):
    """The weights are not on this machine and can't be downloaded."""


class Classifier(nn.Module):
    """ResNet-18 (He et al. 2016) over N×224×224×3 uint8 photos, which it normalises itself."""

    mean: Tensor
    std: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.resnet = resnet18(weights=None, num_classes=classes)
        self.frozen_stages = 0
        self.register_buffer("mean", 255 * torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(STD).view(3, 1, 1), persistent=False)

    def forward(self, photos: Tensor) -> Tensor:
        """Return the logits, N×C float32, of N×S×S×3 photos, 0 to 255: uint8, or float32 crops."""
        return cast(Tensor, self.resnet.fc(self.features(self.frozen(photos))))

    def frozen(self, photos: Tensor) -> Tensor:
        """Return the frozen stages' output for uint8 photos, N×C×H×W float32.

        It is constant during training, so it can be cached.
        """
        x = (photos.permute(0, 3, 1, 2).float() - self.mean) / self.std
        for stage in self._stages()[: self.frozen_stages]:
            x = stage(x)
        return x

    def features(self, frozen: Tensor) -> Tensor:
        """Return the inputs of the head, N×512, for outputs of the frozen stages."""
        return self._body(frozen).mean((2, 3))

    def explain(self, photos: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits, N×C, class activation maps, N×C×7×7, and features of uint8 photos.

        The features, N×512, are the inputs of the head, divided by their length.

        ResNet ends in an average over positions and a linear layer. The two commute, so the head
        applied at every position gives maps whose mean *is* the logit (Zhou et al. 2016,
        "Learning Deep Features for Discriminative Localization").
        """
        fc, positions = self.resnet.fc, self._body(self.frozen(photos))
        maps = nn.functional.conv2d(positions, fc.weight[:, :, None, None], fc.bias)
        features = positions.mean((2, 3))
        length = features.square().sum(1, keepdim=True).sqrt().clamp(min=1e-6)  # never 0 / 0
        return maps.mean((2, 3)), maps, features / length

    def freeze(self, stages: int) -> Self:
        """Exclude the first stages from training: the stem, then layer1 to layer4."""
        self.frozen_stages = stages
        for stage in self._stages()[:stages]:
            stage.requires_grad_(False)
        return self

    def parameter_groups(self, lr: float, head_lr_scale: float) -> list[dict[str, Any]]:
        """Return an optimizer's groups: the body, and the head with a larger lr."""
        head = list(self.resnet.fc.parameters())
        body = [p for name, p in self.resnet.named_parameters() if not name.startswith("fc.")]
        return [{"params": body, "lr": lr}, {"params": head, "lr": lr * head_lr_scale}]

    def _stages(self) -> list[nn.Module]:
        net = self.resnet
        stem = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool)
        return [stem, net.layer1, net.layer2, net.layer3, net.layer4]

    def _body(self, x: Tensor) -> Tensor:
        for stage in self._stages()[self.frozen_stages :]:
            x = stage(x)
        return x


def fit_head(
    features: Tensor, targets: Tensor, classes: int, class_weights: Tensor | None = None
) -> nn.Linear:
    """Return a head fitted to N×512 features and N class indices; `class_weights` are C.

    This is multinomial logistic regression with L2 regularisation, solved to its optimum by
    L-BFGS, without randomness.
    """
    head = nn.Linear(features.shape[1], classes)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.LBFGS(
        head.parameters(), max_iter=PROBE_STEPS, line_search_fn="strong_wolfe"
    )

    def closure() -> float:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(head(features), targets, class_weights)
        loss = loss + PROBE_L2 * head.weight.square().sum()
        loss.backward()
        return loss.item()

    optimizer.step(closure)
    return head


def foreign_weights() -> str:
    """Return a warning if the file with ImageNet's weights isn't the published one; else ""."""
    file = Path(torch.hub.get_dir(), "checkpoints", FILE)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    if digest.startswith(file.stem.rpartition("-")[2]):
        return ""
    return f"{file} isn't the file that is published as {WEIGHTS.url}"


def pretrained(classes: int) -> Classifier:
    """Return a Classifier with ImageNet's weights and a new head.

    torchvision reads the weights from TORCH_HOME, or downloads them once. Raises StackError if it
    can't.
    """
    file = Path(torch.hub.get_dir(), "checkpoints", FILE)
    model = Classifier(classes)
    try:
        state = WEIGHTS.get_state_dict(progress=True, check_hash=True, weights_only=True)
        del state["fc.weight"], state["fc.bias"]
        model.resnet.load_state_dict(state, strict=False)
    except Exception as error:  # torch raises many types on a damaged or foreign file
        if isinstance(error, OSError) or not file.exists():  # or the download was cut off
            raise UnreachableError(
                f"can't download the ImageNet weights from {WEIGHTS.url} ({error}): connect to the"
                f" internet, or download that file elsewhere and put it into {file.parent}, or"
                " train without them: --from-scratch"
            ) from error
        raise StackError(
            f"the ImageNet weights in {file.parent} are damaged ({type(error).__name__}): delete"
            " the file there and start again"
        ) from error
    return model
