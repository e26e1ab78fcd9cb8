"""The networks of the benchmarks: sizes, shapes, and what their weights depend on."""

import pytest
import torch

from augsubset import GradientProbe
from benchmarks.datasets import ImageData, load_digits_images
from benchmarks.models import MODELS, build_model


def images(channels, size, classes=10):
    x = torch.randint(0, 256, (4, channels, size, size), dtype=torch.uint8)
    y = torch.arange(4) % classes
    return ImageData("random", x, y, x, torch.full((4,), classes - 1), ([0.5], [0.25]))


SIZES = {  # parameters as published, or counted by hand
    "mlp": (1, 28, 784 * 100 + 100 + 100 * 10 + 10),
    "resnet20": (3, 32, 269_722),
    "resnet32": (3, 32, 464_154),
    "resnet9": (3, 32, 6_573_120 + 10),
    "wrn-28-10": (3, 32, 36_479_194),
    "resnet18": (3, 64, 11_181_642),
    "resnet50": (3, 64, 23_528_522),
}


@pytest.mark.parametrize("name", SIZES)
def test_networks_have_their_published_size(name):
    channels, size, expected = SIZES[name]
    data = images(channels, size)
    model = build_model(name, data, 0)
    assert sum(p.numel() for p in model.parameters()) == expected
    model.eval()
    with torch.no_grad():
        assert model(data.x_train[:2].float() / 255).shape == (2, 10)


@pytest.mark.parametrize("name", ["mlp", "convnet", "resnet20", "resnet32", "resnet9"])
def test_initial_weights_depend_on_the_seed_alone(name):
    data = load_digits_images(20)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    models = [build_model(name, data, seed).state_dict() for seed in (0, 0, 1)]
    assert torch.equal(state, torch.get_rng_state())
    same = [all(torch.equal(models[0][key], m[key]) for key in m) for m in models[1:]]
    assert same == [True, False]


@pytest.mark.parametrize("name", ["mlp", "convnet-wide", "resnet20", "resnet18"])
def test_the_probe_finds_the_last_layer(name):
    data = images(1 if name == "mlp" else 3, 32)
    model = build_model(name, data, 0)
    probe = GradientProbe(model, kind="last_layer")
    x = data.x_train.float() / 255
    gradients = probe.scan(torch.utils.data.TensorDataset(x, data.y_train))
    assert gradients.residual.shape == (4, 10)
    assert probe.layer_name in ("3", "head", "fc")


def test_unknown_networks_and_channels_are_refused():
    with pytest.raises(ValueError, match="model must be one of"):
        build_model("resnet21", images(3, 32), 0)
    with pytest.raises(ValueError, match="3 channels for resnet18, got 1"):
        build_model("resnet18", images(1, 32), 0)


def test_every_network_is_tried():
    assert set(MODELS) == {*SIZES, "convnet", "convnet-wide"}
