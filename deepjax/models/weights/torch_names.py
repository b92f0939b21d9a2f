"""torchvision's and timm's names of the modules of a network: our path of a module -> theirs.

Paths are joined by "/" and name a convolution, a norm or a linear layer:
"stage1_block1/conv1" -> "layer1.0.conv1".
"""

import dataclasses
import re
from collections.abc import Callable, Mapping

from flax import linen as nn

from deepjax.models.googlenet import TORCHVISION, GoogLeNet
from deepjax.models.inception_v3 import InceptionV3
from deepjax.models.nf_resnet import NFResNet
from deepjax.models.preact import PreActResNet
from deepjax.models.resnet import ResNet
from deepjax.models.vgg import CONFIGURATIONS, MAP, VGG
from deepjax.models.weights.torch_inception import googlenet_names, inception_v3_names

Names = Callable[[str], str]

# Only the network with torchvision's changes computes what torchvision's weights were trained
# for.
_EXCHANGED = ("norm", "largest_kernel", "pool4", "auxiliary_pool")


@dataclasses.dataclass(frozen=True)
class TorchLayout:
    """A PyTorch library's layout of weights: names, and linear layers that are no plain matrix."""

    names: Names
    stem: str  # our first convolution, whose kernel tells how many channels images have
    # linear layers over a flattened map: its side
    maps: Mapping[str, int] = dataclasses.field(default_factory=dict)
    # linear layers kept as a convolution over that map, or 1x1
    as_convolution: frozenset[str] = frozenset()
    heads: tuple[str, ...] = ()  # how the names of the auxiliary heads' tensors begin


def layouts(model: nn.Module) -> dict[str, TorchLayout]:
    """The layouts in which weights of this network are exchanged, the default first; empty if none.

    Residual networks that neither library has (plain, CIFAR, option A) follow the same naming
    rules, so that their weights can be kept as safetensors too. A network that has the shapes of
    another's weights, but computes something else, has no layout: VGG with local response
    normalisation, GoogLeNet other than torchvision's.
    """
    if isinstance(model, VGG) and model.configuration != "A-LRN":
        maps = {"head_fc6": MAP}
        return {
            "torchvision": TorchLayout(vgg_names(model), "stage1_conv1", maps),
            "timm": TorchLayout(
                vgg_names(model, timm=True),
                "stage1_conv1",
                maps,
                frozenset({"head_fc6", "head_fc7"}),
            ),
        }
    if isinstance(model, ResNet):
        deep = model.stem == "deep"
        layout = TorchLayout(resnet_names(deep, pooled=model.shortcut == "D"), _stem(deep))
        return {"torchvision": layout, "timm": layout}
    if isinstance(model, PreActResNet):
        deep = model.stem == "deep"
        return {
            "timm": TorchLayout(preact_names(deep), _stem(deep), as_convolution=frozenset({"head"}))
        }
    if isinstance(model, GoogLeNet) and all(
        getattr(model, field) == TORCHVISION[field] for field in _EXCHANGED
    ):
        maps = {f"auxiliary{name}/hidden": 4 for name in ("4a", "4d")}
        return {
            "torchvision": TorchLayout(
                googlenet_names, "stem_conv1", maps, heads=("aux1.", "aux2.")
            )
        }
    if isinstance(model, InceptionV3):
        layout = TorchLayout(inception_v3_names, "stem_conv1", heads=("AuxLogits.",))
        return {"torchvision": layout, "timm": layout}
    if isinstance(model, NFResNet) and model.stem == "imagenet" and model.shortcut == "D":
        return {"timm": TorchLayout(nf_resnet_names, "stem_conv")}
    return {}


def resnet_names(deep: bool = False, pooled: bool = False) -> Names:
    """Names of torchvision's resnets.

    deep: the stem has three convolutions; pooled: an average pool precedes the projection
    (ResNet-D).
    """
    stem = {"stem_conv": "conv1", "stem_norm": "bn1"}
    if deep:
        order = ("stem_conv1", "stem_norm1", "", "stem_conv2", "stem_norm2", "", "stem_conv")
        stem |= {name: f"conv1.{place}" for place, name in enumerate(order) if name}
    shortcut = {
        "shortcut_conv": f"downsample.{int(pooled)}",
        "shortcut_norm": f"downsample.{int(pooled) + 1}",
    }

    def names(path: str) -> str:
        if path == "head":
            return "fc"
        if path in stem:
            return stem[path]
        stage, block, layer = _block(path)
        return f"layer{stage}.{block - 1}.{shortcut.get(layer, layer.replace('norm', 'bn'))}"

    return names


def preact_names(deep: bool = False) -> Names:
    """Names of timm's resnetv2; deep: the stem has three convolutions."""
    ends = {
        "head": "head.fc",
        "head_norm": "norm",
        "stem_conv": "stem.conv3" if deep else "stem.conv",
    }

    def names(path: str) -> str:
        if path in ends:
            return ends[path]
        if path.startswith("stem_"):
            return path.replace("stem_", "stem.")
        stage, block, layer = _block(path)
        name = "downsample.conv" if layer == "shortcut_conv" else layer
        return f"stages.{stage - 1}.blocks.{block - 1}.{name}"

    return names


def nf_resnet_names(path: str) -> str:
    """The name in timm's nf_resnet50 and nf_resnet101 of a module of an unrolled NFResNet.

    A gain (out,) is timm's (out, 1, 1, 1). Raises ValueError for any other path.

    >>> nf_resnet_names("stage1_block2/conv2"), nf_resnet_names("stage2_block1/shortcut_conv")
    ('stages.0.1.conv2', 'stages.1.0.downsample.conv')
    >>> nf_resnet_names("stem_conv"), nf_resnet_names("head")
    ('stem.conv', 'head.fc')
    """
    if path in ("stem_conv", "head"):
        return {"stem_conv": "stem.conv", "head": "head.fc"}[path]
    found = re.fullmatch(r"stage(\d+)_block(\d+)/(conv\d|shortcut_conv)", path)
    if found is None:
        raise ValueError(f"{path!r} is no module of an unrolled NFResNet")
    stage, block, layer = found.groups()
    name = layer.replace("shortcut_conv", "downsample.conv")
    return f"stages.{int(stage) - 1}.{int(block) - 1}.{name}"


def vgg_names(model: VGG, timm: bool = False) -> Names:
    """Places in torchvision's `features`: convolution, norm if any, ReLU; the stage's pool."""
    step = 2 if model.norm == "none" else 3
    places: dict[str, str] = {}
    place = 0
    for stage, kernels in enumerate(CONFIGURATIONS[model.configuration], start=1):
        for layer in range(1, len(kernels) + 1):
            places[f"stage{stage}_conv{layer}"] = f"features.{place}"
            places[f"stage{stage}_norm{layer}"] = f"features.{place + 1}"
            place += step
        place += 1
    head = (
        ("pre_logits.fc1", "pre_logits.fc2", "head.fc")
        if timm
        else ("classifier.0", "classifier.3", "classifier.6")
    )
    places |= {f"head_fc{layer}": name for layer, name in zip((6, 7, 8), head, strict=True)}
    return places.__getitem__


def _stem(deep: bool) -> str:
    return "stem_conv1" if deep else "stem_conv"


def _block(path: str) -> tuple[int, int, str]:
    """Stage, block (both from 1) and layer of "stage1_block2/conv1"."""
    found = re.fullmatch(r"stage(\d+)_block(\d+)/(\w+)", path)
    if found is None:
        raise ValueError(f"{path!r} is no layer of a block")
    return int(found[1]), int(found[2]), found[3]
