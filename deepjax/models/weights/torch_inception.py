"""torchvision's names of the modules of GoogLeNet and Inception-v3, by ours."""

# Our layer -> torchvision's block, which holds a convolution ("conv") and its normalisation ("bn").
_GOOGLENET_STEM = {
    "conv1": "conv1",
    "norm1": "conv1",
    "reduce2": "conv2",
    "reduce2_norm": "conv2",
    "conv2": "conv3",
    "norm2": "conv3",
}
_GOOGLENET_BRANCHES = {
    "conv1x1": "branch1",
    "norm1x1": "branch1",
    "reduce3x3": "branch2.0",
    "reduce3x3_norm": "branch2.0",
    "conv3x3": "branch2.1",
    "norm3x3": "branch2.1",
    "reduce5x5": "branch3.0",
    "reduce5x5_norm": "branch3.0",
    "conv5x5": "branch3.1",
    "norm5x5": "branch3.1",
    "project": "branch4.1",
    "project_norm": "branch4.1",
}
_GOOGLENET_HEADS = {"auxiliary4a": "aux1", "auxiliary4d": "aux2"}
_GOOGLENET_HEAD = {"conv": "conv.conv", "norm": "conv.bn", "hidden": "fc1", "logits": "fc2"}

_V3_STEM = {
    "1": "Conv2d_1a_3x3",
    "2": "Conv2d_2a_3x3",
    "3": "Conv2d_2b_3x3",
    "4": "Conv2d_3b_1x1",
    "5": "Conv2d_4a_3x3",
}
_V3_HEAD = {
    "conv1": "conv0.conv",
    "norm1": "conv0.bn",
    "conv2": "conv1.conv",
    "norm2": "conv1.bn",
    "logits": "fc",
}


def googlenet_names(path: str) -> str:
    """The name in torchvision's googlenet of one of our modules; KeyError for other paths.

    >>> googlenet_names("inception3a/reduce3x3"), googlenet_names("stem_norm1")
    ('inception3a.branch2.0.conv', 'conv1.bn')
    >>> googlenet_names("auxiliary4d/hidden")
    'aux2.fc1'
    """
    if path == "head":
        return "fc"
    if path.startswith("stem_"):
        name = path.removeprefix("stem_")
        return f"{_GOOGLENET_STEM[name]}.{_part(name)}"
    module, name = path.split("/")
    if module in _GOOGLENET_HEADS:
        return f"{_GOOGLENET_HEADS[module]}.{_GOOGLENET_HEAD[name]}"
    return f"{module}.{_GOOGLENET_BRANCHES[name]}.{_part(name)}"


def inception_v3_names(path: str) -> str:
    """The name in torchvision's inception_v3 of one of our modules; KeyError for other paths.

    >>> inception_v3_names("mixed7b/branch3x3dbl_norm3a")
    'Mixed_7b.branch3x3dbl_3a.bn'
    >>> inception_v3_names("mixed5b/branch_pool_conv")
    'Mixed_5b.branch_pool.conv'
    """
    if path == "head":
        return "fc"
    if path.startswith("stem_"):
        return f"{_V3_STEM[path[-1]]}.{_part(path)}"
    module, name = path.split("/")
    if module == "auxiliary6e":
        return f"AuxLogits.{_V3_HEAD[name]}"
    part = _part(name)
    branch, _, step = name.partition("_conv" if part == "conv" else "_norm")
    return f"{module.replace('mixed', 'Mixed_')}.{branch}{'_' if step else ''}{step}.{part}"


def _part(name: str) -> str:
    return "bn" if "norm" in name else "conv"
