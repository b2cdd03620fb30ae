"""Evaluate a checkpoint on the validation photos."""

from typing import Any

import torch
from torch import Tensor

from simplestack.training.checkpoint import Checkpoint
from simplestack.training.data import Photos
from simplestack.training.engine import Engine
from simplestack.training.metrics import compute_metrics
from simplestack.training.model import Classifier
from simplestack.training.recipe import RECIPES


def best_model(checkpoint: Checkpoint, engine: Engine) -> Classifier:
    """Return the model with the weights of the best epoch, in evaluation mode."""
    model = Classifier(len(checkpoint.classes))
    model.load_state_dict(checkpoint.best)
    return model.to(memory_format=torch.channels_last).to(engine.device).eval()


def evaluate(
    model: Classifier, checkpoint: Checkpoint, engine: Engine, val: Photos
) -> tuple[dict[str, Any], Tensor]:
    """Return the metrics and the N×C probabilities, with the precision used in training."""
    with engine.autocast(RECIPES[checkpoint.arguments["recipe"]].bfloat16):
        logits = engine.predict(model, val)
    probabilities = torch.softmax(logits, 1)
    return compute_metrics(probabilities, val.labels, checkpoint.classes), probabilities
