"""The networks of torchvision and timm that compute what a network of the registry computes.

Two networks may have the same names and shapes of tensors and yet compute something else, as
`resnet50_v1` and torchvision's resnet50 do. Equal logits of each pair are tested.
"""

import dataclasses
from typing import Literal

from flax import linen as nn

from deepjax.models.registry import create_model
from deepjax.models.vgg import MAP, VGG

# Fields that change neither the logits of given weights nor the layers, but for the classifier's
# size. Auxiliary heads are judged below.
_FREE = {
    *("num_classes", "dtype", "param_dtype", "dropout", "auxiliary_dropout", "bn_scope"),
    *("initialization", "zero_init", "auxiliary", "parent", "name"),
}
_DEEP = ("", "d")  # the stem of ResNet-D
_BOTH = (
    *(f"vgg{depth}{norm}" for depth in (11, 13, 16, 19) for norm in ("", "_bn")),
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "inception_v3"),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
    *("wide_resnet50_2", "wide_resnet101_2"),
)
_TIMM = (
    *("resnet200", "resnext101_32x4d", "resnet50_gn", "nf_resnet50", "nf_resnet101"),
    *(f"resnet{depth}d" for depth in (18, 34, 50, 101, 152, 200)),
    *(f"resnetv2_{depth}{deep}" for depth in (18, 34, 50, 101, 152) for deep in _DEEP),
)
TWINS = {
    "torchvision": {name: name for name in _BOTH} | {"googlenet_tv": "googlenet"},
    "timm": {name: name for name in (*_BOTH, *_TIMM)},
}
"""Name in the library by our name, for the fields of the table."""


def twin(
    name: str, model: nn.Module, library: Literal["torchvision", "timm"], side: int = 0
) -> str:
    """The name in a library of the network that computes what `model` computes; "" if none.

    name: of `model` in the registry, or another name, which has no twin. side: pixels of the longer
    side of its images. Of a network with auxiliary heads timm has none. Its VGG slides the fully
    connected layers over a map larger than 7x7, of 256 pixels or more (timm 1.0, models/vgg.py
    `ConvMlp`), where ours and torchvision's average the map to 7x7.
    """
    theirs = TWINS[library].get(name, "")
    if not theirs or (library == "timm" and getattr(model, "auxiliary", False)):
        return ""
    if library == "timm" and isinstance(model, VGG) and side // 2**5 > MAP:
        return ""
    usual = create_model(name)
    fields = {field.name for field in dataclasses.fields(usual)} - _FREE
    same = all(getattr(model, field) == getattr(usual, field) for field in fields)
    return theirs if same else ""
