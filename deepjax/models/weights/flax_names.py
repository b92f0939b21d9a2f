"""Variables of flax's ImageNet example (examples/imagenet/models.py) as ours.

docs/flax_resnet.md compares the definitions.
"""

import re
from collections.abc import Mapping
from typing import Any

from flax.traverse_util import flatten_dict, unflatten_dict

from deepjax.errors import InputError
from deepjax.models.registry import create_model
from deepjax.models.resnet import ResNet

_BLOCK = re.compile(r"(?:Bottleneck)?ResNetBlock_(\d+)")
_TOP = {"conv_init": "stem_conv", "bn_init": "stem_norm", "Dense_0": "head"}
_PARTS = {"Conv": "conv", "BatchNorm": "norm"}
_SHORTCUT = {"conv_proj": "shortcut_conv", "norm_proj": "shortcut_norm"}


def from_flax(name: str, variables: Mapping[str, Any]) -> dict[str, Any]:
    """{"params", "batch_stats"} of flax's example ResNet -> variables of `create_model(name)`.

    name: of a ResNet with as many blocks, such as "resnet50". The logits are equal with
    `create_model(name, strided_padding="SAME")`. Arrays are neither copied nor converted.
    Raises InputError for a network of another family, and for names or numbers of blocks that do
    not fit.
    """
    model = create_model(name)
    if not isinstance(model, ResNet):
        raise InputError(f"name is {name!r}; allowed: a ResNet, such as 'resnet50'")
    blocks = [
        f"stage{stage}_block{block}"
        for stage, count in enumerate(model.stages, 1)
        for block in range(1, count + 1)
    ]
    found = {
        collection: unflatten_dict(
            {_renamed(path, blocks): leaf for path, leaf in flatten_dict(dict(tree)).items()}
        )
        for collection, tree in variables.items()
        if collection in ("params", "batch_stats")
    }
    missing = [block for block in blocks if block not in found.get("params", {})]
    if missing:
        raise InputError(
            f"variables have {len(blocks) - len(missing)} blocks; {name} has {len(blocks)}"
        )
    return found


def _renamed(path: tuple[str, ...], blocks: list[str]) -> tuple[str, ...]:
    """The path of a leaf in our network."""
    if path[0] in _TOP:
        return (_TOP[path[0]], *path[1:])
    number = _BLOCK.fullmatch(path[0])
    if number is None or int(number[1]) >= len(blocks):
        raise InputError(
            f"variables have {path[0]!r}; allowed: {', '.join(_TOP)}, and blocks such as "
            f"'BottleneckResNetBlock_0' up to number {len(blocks) - 1}"
        )
    kind, _, index = path[1].partition("_")
    if path[1] not in _SHORTCUT and (kind not in _PARTS or not index.isdigit()):
        raise InputError(
            f"variables have {path[1]!r} in {path[0]}; allowed: {', '.join(_SHORTCUT)}, and layers "
            f"such as {', '.join(f'{name}_0' for name in _PARTS)}"
        )
    layer = _SHORTCUT.get(path[1]) or f"{_PARTS[kind]}{int(index) + 1}"
    return (blocks[int(number[1])], layer, *path[2:])
