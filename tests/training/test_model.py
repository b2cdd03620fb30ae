"""The network: what it computes, and that the explanation is the prediction."""

import math
import urllib.request

import pytest
import torch

from bench import page
from simplestack.serving.errors import StackError
from simplestack.training import model


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return model.Classifier(3).eval()


@pytest.fixture(scope="module")
def photos():
    return torch.randint(0, 256, (2, 224, 224, 3), dtype=torch.uint8)


@torch.inference_mode()
def test_normalises_as_torchvisions_preset_does(network, photos):
    preset = (photos.permute(0, 3, 1, 2) / 255 - torch.tensor(model.MEAN).view(3, 1, 1)) / (
        torch.tensor(model.STD).view(3, 1, 1)
    )
    assert torch.allclose(network(photos), network.resnet(preset), atol=1e-5)


@torch.inference_mode()
def test_mean_of_the_activation_map_is_the_logit(network, photos):
    logits, maps, _ = network.explain(photos)
    assert maps.shape == (2, 3, 7, 7)
    assert torch.allclose(maps.mean((2, 3)), network(photos), atol=1e-5)
    assert torch.allclose(logits, network(photos), atol=1e-5)


@torch.inference_mode()
def test_features_are_the_heads_inputs_of_length_one_or_zero_where_nothing_is_seen(photos):
    network = model.Classifier(3).eval()
    features = torch.nn.functional.normalize(network.features(network.frozen(photos)))
    assert torch.allclose(network.explain(photos)[2], features, atol=1e-6)
    network.resnet.layer4[1].bn2.bias.fill_(-1e6)
    assert torch.equal(network.explain(photos)[2], torch.zeros(2, 512))


def test_the_linear_probe_is_the_regularised_optimum():
    torch.manual_seed(0)
    features, labels = torch.randn(40, 512), torch.arange(40) % 2
    head = model.fit_head(features, labels, 2)
    head.zero_grad()
    loss = torch.nn.functional.cross_entropy(head(features), labels)
    (loss + model.PROBE_L2 * head.weight.square().sum()).backward()
    assert math.isclose(float(head.weight.grad.abs().max()), 0, abs_tol=1e-3)


@pytest.mark.parametrize("stages", range(6))
@torch.no_grad()
def test_frozen_stages_features_and_head_are_the_whole_network(network, photos, stages):
    whole = network(photos)
    network.frozen_stages = stages
    frozen = network.frozen(photos)
    assert frozen.shape[1] == (3, 64, 64, 128, 256, 512)[stages]
    assert torch.allclose(network.resnet.fc(network.features(frozen)), whole, atol=1e-4)
    network.frozen_stages = 0


@pytest.fixture
def torch_home(tmp_path, monkeypatch):
    """An empty folder for torchvision's weights, and nobody who has them."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    # Or urllib takes the proxies that were set when it was first used, maybe in another test.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    monkeypatch.setattr(torch.hub, "urlopen", opener.open)
    monkeypatch.setattr(model.WEIGHTS.value, "url", f"http://127.0.0.1:9/{model.FILE}")
    return tmp_path


def test_unreachable_or_damaged_weights_are_one_clear_line(torch_home):
    with pytest.raises(model.UnreachableError, match="--from-scratch"):
        model.pretrained(2)
    folder = torch_home / "hub" / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / model.FILE).write_bytes(b"half a file")
    with pytest.raises(StackError, match="are damaged"):
        model.pretrained(2)


def test_weights_that_come_in_part_are_called_unreachable(torch_home, monkeypatch):
    (torch_home / "web").mkdir()
    (torch_home / "web" / model.FILE).write_bytes(bytes(1000))
    with page.served(torch_home / "web") as url:
        monkeypatch.setattr(model.WEIGHTS.value, "url", f"{url}{model.FILE}")
        with pytest.raises(model.UnreachableError, match="invalid hash value"):
            model.pretrained(2)
