"""What public weights expect of images, and their top-5 accuracy on ImageNet in per cent, by their sources' word.

The names and top-1 are those of `deepjax.models.weights_table`. From an image whose shorter side is scaled to `resize` pixels, the
centre is cut, of the network's own size, 224 or 299. torchvision: its weight entries; timm: results-imagenet.csv of August 2026 and
its configurations. `half`: mean and deviation are 0.5 and 0.5 in each channel (torchvision's GoogLeNet and Inception-v3 turn
ImageNet's into these as they begin).
"""

import dataclasses

from deepjax.evaluation.crops import Interpolation


@dataclasses.dataclass(frozen=True)
class Expected:
    """How images are made ready for public weights."""

    top5: float
    resize: int = 256
    interpolation: Interpolation = "bilinear"
    half: bool = False
    at_288: int = 0
    """The shorter side for crops of 288 pixels, where the source tests at those too."""


PUBLIC: dict[tuple[str, str], Expected] = {
    ("vgg11", "torchvision IMAGENET1K_V1"): Expected(88.628),
    ("vgg11", "timm/vgg11.tv_in1k"): Expected(88.63),
    ("vgg11_bn", "torchvision IMAGENET1K_V1"): Expected(89.81),
    ("vgg11_bn", "timm/vgg11_bn.tv_in1k"): Expected(89.802),
    ("vgg13", "torchvision IMAGENET1K_V1"): Expected(89.246),
    ("vgg13", "timm/vgg13.tv_in1k"): Expected(89.262),
    ("vgg13_bn", "torchvision IMAGENET1K_V1"): Expected(90.374),
    ("vgg13_bn", "timm/vgg13_bn.tv_in1k"): Expected(90.372),
    ("vgg16", "torchvision IMAGENET1K_V1"): Expected(90.382),
    ("vgg16", "timm/vgg16.tv_in1k"): Expected(90.398),
    ("vgg16_bn", "torchvision IMAGENET1K_V1"): Expected(91.516),
    ("vgg16_bn", "timm/vgg16_bn.tv_in1k"): Expected(91.49),
    ("vgg19", "torchvision IMAGENET1K_V1"): Expected(90.876),
    ("vgg19", "timm/vgg19.tv_in1k"): Expected(90.878),
    ("vgg19_bn", "torchvision IMAGENET1K_V1"): Expected(91.842),
    ("vgg19_bn", "timm/vgg19_bn.tv_in1k"): Expected(91.848),
    ("googlenet_tv", "torchvision IMAGENET1K_V1"): Expected(89.53, half=True),
    ("resnet18", "torchvision IMAGENET1K_V1"): Expected(89.078),
    ("resnet18", "timm/resnet18.tv_in1k"): Expected(89.082),
    ("resnet18", "timm/resnet18.a1_in1k"): Expected(90.086, 235, "bicubic", at_288=288),
    ("resnet34", "torchvision IMAGENET1K_V1"): Expected(91.42),
    ("resnet34", "timm/resnet34.tv_in1k"): Expected(91.422),
    ("resnet34", "timm/resnet34.a1_in1k"): Expected(92.896, 235, "bicubic", at_288=288),
    ("resnet34", "timm/resnet34.ra4_e3600_r224_in1k"): Expected(
        93.498, 248, "bicubic", half=True, at_288=288
    ),
    ("resnet50", "torchvision IMAGENET1K_V1"): Expected(92.862),
    ("resnet50", "torchvision IMAGENET1K_V2"): Expected(95.434, 232),
    ("resnet50", "timm/resnet50.tv2_in1k"): Expected(95.43, 232),
    ("resnet50", "timm/resnet50.tv_in1k"): Expected(92.866),
    ("resnet50", "timm/resnet50.a1_in1k"): Expected(94.598, 235, "bicubic", at_288=288),
    ("resnet50", "timm/resnet50.a1h_in1k"): Expected(95.312, 224, "bicubic"),
    ("resnet101", "torchvision IMAGENET1K_V1"): Expected(93.546),
    ("resnet101", "torchvision IMAGENET1K_V2"): Expected(95.78, 232),
    ("resnet101", "timm/resnet101.tv2_in1k"): Expected(95.768, 232),
    ("resnet101", "timm/resnet101.tv_in1k"): Expected(93.552),
    ("resnet101", "timm/resnet101.a1h_in1k"): Expected(95.76, 235, "bicubic", at_288=288),
    ("resnet152", "torchvision IMAGENET1K_V1"): Expected(94.046),
    ("resnet152", "torchvision IMAGENET1K_V2"): Expected(96.002, 232),
    ("resnet152", "timm/resnet152.tv2_in1k"): Expected(96.0, 232),
    ("resnet152", "timm/resnet152.tv_in1k"): Expected(94.046),
    ("resnet152", "timm/resnet152.a1h_in1k"): Expected(96.124, 235, "bicubic", at_288=288),
    ("wide_resnet50_2", "torchvision IMAGENET1K_V1"): Expected(94.086),
    ("wide_resnet50_2", "torchvision IMAGENET1K_V2"): Expected(95.758, 232),
    ("wide_resnet50_2", "timm/wide_resnet50_2.tv2_in1k"): Expected(95.766, 232),
    ("wide_resnet50_2", "timm/wide_resnet50_2.tv_in1k"): Expected(94.084),
    ("wide_resnet50_2", "timm/wide_resnet50_2.racm_in1k"): Expected(
        95.544, interpolation="bicubic", at_288=303
    ),
    ("wide_resnet101_2", "torchvision IMAGENET1K_V1"): Expected(94.284),
    ("wide_resnet101_2", "torchvision IMAGENET1K_V2"): Expected(96.02, 232),
    ("wide_resnet101_2", "timm/wide_resnet101_2.tv2_in1k"): Expected(96.012, 232),
    ("wide_resnet101_2", "timm/wide_resnet101_2.tv_in1k"): Expected(94.312),
    ("resnext50_32x4d", "torchvision IMAGENET1K_V1"): Expected(93.698),
    ("resnext50_32x4d", "torchvision IMAGENET1K_V2"): Expected(95.34, 232),
    ("resnext50_32x4d", "timm/resnext50_32x4d.tv2_in1k"): Expected(95.344, 232),
    ("resnext50_32x4d", "timm/resnext50_32x4d.tv_in1k"): Expected(93.674),
    ("resnext50_32x4d", "timm/resnext50_32x4d.a1h_in1k"): Expected(
        95.32, 235, "bicubic", at_288=288
    ),
    ("resnext101_32x4d", "timm/resnext101_32x4d.gluon_in1k"): Expected(
        94.908, interpolation="bicubic"
    ),
    ("resnext101_32x8d", "torchvision IMAGENET1K_V1"): Expected(94.526),
    ("resnext101_32x8d", "torchvision IMAGENET1K_V2"): Expected(96.228, 232),
    ("resnext101_32x8d", "timm/resnext101_32x8d.tv2_in1k"): Expected(96.234, 232),
    ("resnext101_32x8d", "timm/resnext101_32x8d.tv_in1k"): Expected(94.53),
    ("resnext101_64x4d", "torchvision IMAGENET1K_V1"): Expected(96.454, 232),
    ("resnext101_64x4d", "timm/resnext101_64x4d.tv_in1k"): Expected(96.252),
    ("resnext101_64x4d", "timm/resnext101_64x4d.c1_in1k"): Expected(
        95.92, 235, "bicubic", at_288=288
    ),
    ("resnet18d", "timm/resnet18d.ra4_e3600_r224_in1k"): Expected(
        91.826, 248, "bicubic", half=True, at_288=288
    ),
    ("resnet34d", "timm/resnet34d.ra2_in1k"): Expected(93.372, interpolation="bicubic", at_288=303),
    ("resnet50d", "timm/resnet50d.a1_in1k"): Expected(94.678, 235, "bicubic", at_288=288),
    ("resnet50d", "timm/resnet50d.ra4_e3600_r224_in1k"): Expected(
        95.38, 235, "bicubic", half=True, at_288=288
    ),
    ("resnet101d", "timm/resnet101d.gluon_in1k"): Expected(95.034, interpolation="bicubic"),
    ("resnet152d", "timm/resnet152d.gluon_in1k"): Expected(95.194, interpolation="bicubic"),
    ("resnet50_gn", "timm/resnet50_gn.a1h_in1k"): Expected(94.958, 238, "bicubic", at_288=303),
    ("resnetv2_18", "timm/resnetv2_18.ra4_e3600_r224_in1k"): Expected(
        91.356, 248, "bicubic", half=True, at_288=288
    ),
    ("resnetv2_34", "timm/resnetv2_34.ra4_e3600_r224_in1k"): Expected(
        93.518, 248, "bicubic", half=True, at_288=288
    ),
    ("resnetv2_50", "timm/resnetv2_50.a1h_in1k"): Expected(
        95.082, 235, "bicubic", half=True, at_288=288
    ),
    ("resnetv2_101", "timm/resnetv2_101.a1h_in1k"): Expected(
        95.866, 235, "bicubic", half=True, at_288=288
    ),
    ("resnetv2_18d", "timm/resnetv2_18d.ra4_e3600_r224_in1k"): Expected(
        91.928, 248, "bicubic", half=True, at_288=288
    ),
    ("resnetv2_34d", "timm/resnetv2_34d.ra4_e3600_r224_in1k"): Expected(
        93.95, 248, "bicubic", half=True, at_288=288
    ),
    ("inception_v3", "torchvision IMAGENET1K_V1"): Expected(93.45, 342, half=True),
    ("inception_v3", "timm/inception_v3.tv_in1k"): Expected(93.468, 341, "bicubic", half=True),
    ("inception_v3", "timm/inception_v3.gluon_in1k"): Expected(94.372, 341, "bicubic"),
}
