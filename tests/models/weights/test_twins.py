"""Twins are the networks whose logits are compared with PyTorch's; other fields have none."""

import numpy as np
import pytest

from deepjax.models import create_model
from deepjax.models.weights.convert import to_torch
from deepjax.models.weights.twins import TWINS, twin
from tests.models.torch_reference import library, needs_torch
from tests.models.weights import test_torch
from tests.numpy_variables import numpy_variables


def test_each_is_tested_for_equal_logits():
    tested = {"torchvision": test_torch.TORCHVISION, "timm": test_torch.TIMM}
    assert {source: set(names) for source, names in TWINS.items()} == {
        source: set(names) for source, names in tested.items()
    }
    renamed = {
        name: theirs for names in TWINS.values() for name, theirs in names.items() if name != theirs
    }
    assert renamed == test_torch.THEIR_NAMES


@pytest.mark.parametrize(
    ("name", "fields", "torchvision", "timm"),
    [
        ("resnet50", {"num_classes": 3}, "resnet50", "resnet50"),
        ("resnet50_v1", {}, "", ""),  # strides in the 1x1 convolution
        ("resnet50", {"width": 32}, "", ""),
        ("resnet50", {"norm": "group"}, "", ""),
        ("vgg16", {"dropout": 0.1}, "vgg16", "vgg16"),
        ("googlenet_tv", {}, "googlenet", ""),
        ("inception_v3", {}, "inception_v3", ""),
        ("inception_v3", {"auxiliary": False}, "inception_v3", "inception_v3"),
        ("cifar_resnet20", {}, "", ""),
    ],
)
def test_other_functions_have_none(name, fields, torchvision, timm):
    model = create_model(name, **fields)
    assert (twin(name, model, "torchvision"), twin(name, model, "timm")) == (torchvision, timm)
    assert twin("my:Net", model, "timm") == ""


@pytest.mark.parametrize(("side", "theirs"), [(32, "vgg11"), (255, "vgg11"), (256, "")])
def test_timm_has_no_vgg_for_large_images(side, theirs):
    model = create_model("vgg11")
    assert twin("vgg11", model, "timm", side) == theirs
    assert twin("vgg11", model, "torchvision", side) == "vgg11"
    assert twin("resnet18", create_model("resnet18"), "timm", side) == "resnet18"


@needs_torch
@pytest.mark.reference
@pytest.mark.parametrize(("shape", "equal"), [((64, 255), True), ((64, 256), False)])
def test_the_logits_of_timms_vgg_by_the_size_of_the_image(shape, equal):
    """Ours and those of torchvision are equal at every size."""
    torchvision, timm = library("torchvision"), library("timm")
    import torch

    model = create_model("vgg11", num_classes=3)
    images = np.random.default_rng(0).standard_normal((1, *shape, 3)).astype(np.float32)
    variables = numpy_variables(model, (32, 32, 3))
    wanted = np.asarray(model.apply(variables, images))
    for source, network in (
        ("torchvision", torchvision.vgg11(num_classes=3, init_weights=False)),
        ("timm", timm.create_model("vgg11", num_classes=3)),
    ):
        tensors = to_torch("vgg11", variables, source)
        network.load_state_dict({name: torch.from_numpy(tensors[name]) for name in tensors})
        with torch.no_grad():
            found = network.eval()(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
        close = np.abs(found - wanted).max() < 1e-4 * np.abs(wanted).max()
        assert close == (equal or source == "torchvision")


@needs_torch
@pytest.mark.reference
def test_the_libraries_have_them():
    assert set(TWINS["torchvision"].values()) <= set(library("torchvision").list_models())
    assert set(TWINS["timm"].values()) <= set(library("timm").list_models())
