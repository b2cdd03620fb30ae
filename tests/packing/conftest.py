"""The exported network, made once like the checkpoint that it comes from."""

import pytest
from helpers import make_once

from simplestack.packing import onnx_export
from simplestack.training import checkpoint
from simplestack.training.dataset import Photos
from simplestack.training.model import Classifier


@pytest.fixture(scope="session")
def network(trained):
    network = Classifier(2).eval()
    network.load_state_dict(checkpoint.load(trained).best)
    return network


@pytest.fixture(scope="session")
def exported(packed, trained, pictures, network):
    """A folder with it as fp32.onnx and int8.onnx."""

    def export(folder):
        state = checkpoint.load(trained)
        photos = Photos(pictures, state.photos["train"], state.classes, whole=False)
        onnx_export.to_onnx(network, folder / "fp32.onnx")
        onnx_export.quantize(folder / "fp32.onnx", folder / "int8.onnx", photos)

    return make_once(packed / "exported", export)
