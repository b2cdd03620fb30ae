"""The network: normalisation, explanation, linear probe, frozen stages and weights."""

import math
import urllib.request

import pytest
import torch
from torchvision.transforms.v2 import functional

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
    preset = functional.normalize(photos.permute(0, 3, 1, 2) / 255, model.MEAN, model.STD)
    assert torch.allclose(network(photos), network.resnet(preset), atol=1e-5)


@torch.inference_mode()
def test_explanation_has_logits_maps_of_their_mean_and_the_heads_normalised_inputs(photos):
    network = model.Classifier(3).eval()
    logits, maps, features = network.explain(photos)
    assert maps.shape == (2, 3, 7, 7)
    assert torch.allclose(maps.mean((2, 3)), network(photos), atol=1e-5)
    assert torch.allclose(logits, network(photos), atol=1e-5)
    inputs = torch.nn.functional.normalize(network.features(network.frozen(photos)))
    assert torch.allclose(features, inputs, atol=1e-6)
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


def test_unreachable_partial_and_damaged_weights_are_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    # Or urllib takes the proxies that were set when it was first used, maybe in another test.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    monkeypatch.setattr(torch.hub, "urlopen", opener.open)
    (tmp_path / model.FILE).write_bytes(bytes(1000))
    with page.served(tmp_path) as web:
        for url, said in (("http://127.0.0.1:9/", "--from-scratch"), (web, "invalid hash value")):
            monkeypatch.setattr(model.WEIGHTS.value, "url", f"{url}{model.FILE}")
            with pytest.raises(model.UnreachableError, match=said):
                model.pretrained(2)
    (tmp_path / model.FILE).rename(tmp_path / "home" / "hub" / "checkpoints" / model.FILE)
    with pytest.raises(StackError, match="are damaged"):
        model.pretrained(2)
