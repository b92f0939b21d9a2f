"""Where the weights of our NF-ResNet are in timm's `nf_resnet50` and `nf_resnet101`."""

import re


def nf_resnet_names(path: str) -> str:
    """The module of timm for one of ours; raises ValueError for a path that an unrolled NFResNet does not have.

    A convolution's kernel (rows, columns, in, out) is timm's weight (out, in, rows, columns) and its gain (out,) is (out, 1, 1, 1);
    the head's kernel (in, out) is timm's weight (out, in). Biases are equal. Block numbers of timm begin at 0.

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
    return f"stages.{int(stage) - 1}.{int(block) - 1}.{layer.replace('shortcut_conv', 'downsample.conv')}"
