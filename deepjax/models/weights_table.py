"""Public ImageNet weights: their accuracy, and the preprocessing of images that they expect.

One row per weight, by network and source. Accuracies are per cent on the validation set, at the
input size of the network's row, as the source states them: torchvision's weight entries; timm's
results-imagenet.csv of August 2026 and its configurations. `timm/...` is a repository of the
Hugging Face hub, which `load_pretrained` reads: its `tv_in1k` and `tv2_in1k` are copies of
torchvision's V1 and V2, measured by timm. Weights that only torchvision has are loaded from a file
saved from its `get_state_dict`.
"""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class PublicWeights:
    """Accuracy in per cent and preprocessing of public weights.

    The shorter side of an image is scaled to `resize` pixels, and the centre is cropped to the
    network's input size (224 or 299).
    """

    top1: float
    top5: float
    resize: int = 256
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    half: bool = False
    """Mean and std are 0.5 in each channel, not ImageNet's.

    torchvision's GoogLeNet and Inception-v3 convert the latter to this in their first operation.
    """
    resize_288: int = 0
    """Shorter side for crops of 288 pixels, where the source tests at that size too; else 0."""


PUBLIC_WEIGHTS: dict[str, dict[str, PublicWeights]] = {
    "vgg11": {
        "torchvision IMAGENET1K_V1": PublicWeights(69.02, 88.628),
        "timm/vgg11.tv_in1k": PublicWeights(69.05, 88.63),
    },
    "vgg11_bn": {
        "torchvision IMAGENET1K_V1": PublicWeights(70.37, 89.81),
        "timm/vgg11_bn.tv_in1k": PublicWeights(70.374, 89.802),
    },
    "vgg13": {
        "torchvision IMAGENET1K_V1": PublicWeights(69.928, 89.246),
        "timm/vgg13.tv_in1k": PublicWeights(69.95, 89.262),
    },
    "vgg13_bn": {
        "torchvision IMAGENET1K_V1": PublicWeights(71.586, 90.374),
        "timm/vgg13_bn.tv_in1k": PublicWeights(71.56, 90.372),
    },
    "vgg16": {
        "torchvision IMAGENET1K_V1": PublicWeights(71.592, 90.382),
        "timm/vgg16.tv_in1k": PublicWeights(71.594, 90.398),
    },
    "vgg16_bn": {
        "torchvision IMAGENET1K_V1": PublicWeights(73.36, 91.516),
        "timm/vgg16_bn.tv_in1k": PublicWeights(73.354, 91.49),
    },
    "vgg19": {
        "torchvision IMAGENET1K_V1": PublicWeights(72.376, 90.876),
        "timm/vgg19.tv_in1k": PublicWeights(72.4, 90.878),
    },
    "vgg19_bn": {
        "torchvision IMAGENET1K_V1": PublicWeights(74.218, 91.842),
        "timm/vgg19_bn.tv_in1k": PublicWeights(74.23, 91.848),
    },
    "googlenet_tv": {
        "torchvision IMAGENET1K_V1": PublicWeights(69.778, 89.53, half=True),
    },
    "resnet18": {
        "torchvision IMAGENET1K_V1": PublicWeights(69.758, 89.078),
        "timm/resnet18.tv_in1k": PublicWeights(69.752, 89.082),
        "timm/resnet18.a1_in1k": PublicWeights(71.504, 90.086, 235, "bicubic", resize_288=288),
    },
    "resnet34": {
        "torchvision IMAGENET1K_V1": PublicWeights(73.314, 91.42),
        "timm/resnet34.tv_in1k": PublicWeights(73.298, 91.422),
        "timm/resnet34.a1_in1k": PublicWeights(76.42, 92.896, 235, "bicubic", resize_288=288),
        "timm/resnet34.ra4_e3600_r224_in1k": PublicWeights(
            77.492, 93.498, 248, "bicubic", half=True, resize_288=288
        ),
    },
    "resnet50": {
        "torchvision IMAGENET1K_V1": PublicWeights(76.13, 92.862),
        "torchvision IMAGENET1K_V2": PublicWeights(80.858, 95.434, 232),
        "timm/resnet50.tv2_in1k": PublicWeights(80.846, 95.43, 232),
        "timm/resnet50.tv_in1k": PublicWeights(76.156, 92.866),
        "timm/resnet50.a1_in1k": PublicWeights(80.382, 94.598, 235, "bicubic", resize_288=288),
        "timm/resnet50.a1h_in1k": PublicWeights(80.654, 95.312, 224, "bicubic"),
    },
    "resnet101": {
        "torchvision IMAGENET1K_V1": PublicWeights(77.374, 93.546),
        "torchvision IMAGENET1K_V2": PublicWeights(81.886, 95.78, 232),
        "timm/resnet101.tv2_in1k": PublicWeights(81.906, 95.768, 232),
        "timm/resnet101.tv_in1k": PublicWeights(77.404, 93.552),
        "timm/resnet101.a1h_in1k": PublicWeights(81.95, 95.76, 235, "bicubic", resize_288=288),
    },
    "resnet152": {
        "torchvision IMAGENET1K_V1": PublicWeights(78.312, 94.046),
        "torchvision IMAGENET1K_V2": PublicWeights(82.284, 96.002, 232),
        "timm/resnet152.tv2_in1k": PublicWeights(82.294, 96.0, 232),
        "timm/resnet152.tv_in1k": PublicWeights(78.33, 94.046),
        "timm/resnet152.a1h_in1k": PublicWeights(82.818, 96.124, 235, "bicubic", resize_288=288),
    },
    "wide_resnet50_2": {
        "torchvision IMAGENET1K_V1": PublicWeights(78.468, 94.086),
        "torchvision IMAGENET1K_V2": PublicWeights(81.602, 95.758, 232),
        "timm/wide_resnet50_2.tv2_in1k": PublicWeights(81.612, 95.766, 232),
        "timm/wide_resnet50_2.tv_in1k": PublicWeights(78.486, 94.084),
        "timm/wide_resnet50_2.racm_in1k": PublicWeights(
            81.466, 95.544, interpolation="bicubic", resize_288=303
        ),
    },
    "wide_resnet101_2": {
        "torchvision IMAGENET1K_V1": PublicWeights(78.848, 94.284),
        "torchvision IMAGENET1K_V2": PublicWeights(82.51, 96.02, 232),
        "timm/wide_resnet101_2.tv2_in1k": PublicWeights(82.514, 96.012, 232),
        "timm/wide_resnet101_2.tv_in1k": PublicWeights(78.862, 94.312),
    },
    "resnext50_32x4d": {
        "torchvision IMAGENET1K_V1": PublicWeights(77.618, 93.698),
        "torchvision IMAGENET1K_V2": PublicWeights(81.198, 95.34, 232),
        "timm/resnext50_32x4d.tv2_in1k": PublicWeights(81.19, 95.344, 232),
        "timm/resnext50_32x4d.tv_in1k": PublicWeights(77.632, 93.674),
        "timm/resnext50_32x4d.a1h_in1k": PublicWeights(
            81.14, 95.32, 235, "bicubic", resize_288=288
        ),
    },
    "resnext101_32x4d": {
        "timm/resnext101_32x4d.gluon_in1k": PublicWeights(80.336, 94.908, interpolation="bicubic"),
    },
    "resnext101_32x8d": {
        "torchvision IMAGENET1K_V1": PublicWeights(79.312, 94.526),
        "torchvision IMAGENET1K_V2": PublicWeights(82.834, 96.228, 232),
        "timm/resnext101_32x8d.tv2_in1k": PublicWeights(82.832, 96.234, 232),
        "timm/resnext101_32x8d.tv_in1k": PublicWeights(79.308, 94.53),
    },
    "resnext101_64x4d": {
        "torchvision IMAGENET1K_V1": PublicWeights(83.246, 96.454, 232),
        "timm/resnext101_64x4d.tv_in1k": PublicWeights(82.978, 96.252),
        "timm/resnext101_64x4d.c1_in1k": PublicWeights(
            82.446, 95.92, 235, "bicubic", resize_288=288
        ),
    },
    "resnet18d": {
        "timm/resnet18d.ra4_e3600_r224_in1k": PublicWeights(
            74.356, 91.826, 248, "bicubic", half=True, resize_288=288
        ),
    },
    "resnet34d": {
        "timm/resnet34d.ra2_in1k": PublicWeights(
            77.108, 93.372, interpolation="bicubic", resize_288=303
        ),
    },
    "resnet50d": {
        "timm/resnet50d.a1_in1k": PublicWeights(80.73, 94.678, 235, "bicubic", resize_288=288),
        "timm/resnet50d.ra4_e3600_r224_in1k": PublicWeights(
            80.956, 95.38, 235, "bicubic", half=True, resize_288=288
        ),
    },
    "resnet101d": {
        "timm/resnet101d.gluon_in1k": PublicWeights(80.466, 95.034, interpolation="bicubic"),
    },
    "resnet152d": {
        "timm/resnet152d.gluon_in1k": PublicWeights(80.476, 95.194, interpolation="bicubic"),
    },
    "resnet50_gn": {
        "timm/resnet50_gn.a1h_in1k": PublicWeights(80.074, 94.958, 238, "bicubic", resize_288=303),
    },
    "resnetv2_18": {
        "timm/resnetv2_18.ra4_e3600_r224_in1k": PublicWeights(
            73.572, 91.356, 248, "bicubic", half=True, resize_288=288
        ),
    },
    "resnetv2_34": {
        "timm/resnetv2_34.ra4_e3600_r224_in1k": PublicWeights(
            77.626, 93.518, 248, "bicubic", half=True, resize_288=288
        ),
    },
    "resnetv2_50": {
        "timm/resnetv2_50.a1h_in1k": PublicWeights(
            80.41, 95.082, 235, "bicubic", half=True, resize_288=288
        ),
    },
    "resnetv2_101": {
        "timm/resnetv2_101.a1h_in1k": PublicWeights(
            82.042, 95.866, 235, "bicubic", half=True, resize_288=288
        ),
    },
    "resnetv2_18d": {
        "timm/resnetv2_18d.ra4_e3600_r224_in1k": PublicWeights(
            74.422, 91.928, 248, "bicubic", half=True, resize_288=288
        ),
    },
    "resnetv2_34d": {
        "timm/resnetv2_34d.ra4_e3600_r224_in1k": PublicWeights(
            78.27, 93.95, 248, "bicubic", half=True, resize_288=288
        ),
    },
    "inception_v3": {
        "torchvision IMAGENET1K_V1": PublicWeights(77.294, 93.45, 342, half=True),
        "timm/inception_v3.tv_in1k": PublicWeights(77.472, 93.468, 341, "bicubic", half=True),
        "timm/inception_v3.gluon_in1k": PublicWeights(78.806, 94.372, 341, "bicubic"),
    },
}
