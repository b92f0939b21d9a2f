"""Twins are the networks whose logits are compared with PyTorch's; other fields have none."""

import pytest

from deepjax.models import create_model
from deepjax.models.weights.twins import TWINS, twin
from tests.models.torch_reference import library, needs_torch
from tests.models.weights import test_torch


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


@needs_torch
@pytest.mark.reference
def test_the_libraries_have_them():
    assert set(TWINS["torchvision"].values()) <= set(library("torchvision").list_models())
    assert set(TWINS["timm"].values()) <= set(library("timm").list_models())
