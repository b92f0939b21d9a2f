"""Public weights and their top-1 accuracy on ImageNet in percent, at the input size of the table, as their sources state it.

torchvision: the metadata of its weight entries; timm: results-imagenet.csv of August 2026. `timm/...` is a repository of the
Hugging Face hub, which `load_pretrained` reads: its `tv_in1k` and `tv2_in1k` are copies of torchvision's V1 and V2, measured by
timm. Weights that only torchvision has come through a file saved from its `get_state_dict`.
"""

KNOWN_WEIGHTS: dict[str, tuple[tuple[str, float], ...]] = {
    "vgg11": (
        ("torchvision IMAGENET1K_V1", 69.02),
        ("timm/vgg11.tv_in1k", 69.05),
    ),
    "vgg11_bn": (
        ("torchvision IMAGENET1K_V1", 70.37),
        ("timm/vgg11_bn.tv_in1k", 70.374),
    ),
    "vgg13": (
        ("torchvision IMAGENET1K_V1", 69.928),
        ("timm/vgg13.tv_in1k", 69.95),
    ),
    "vgg13_bn": (
        ("torchvision IMAGENET1K_V1", 71.586),
        ("timm/vgg13_bn.tv_in1k", 71.56),
    ),
    "vgg16": (
        ("torchvision IMAGENET1K_V1", 71.592),
        ("timm/vgg16.tv_in1k", 71.594),
    ),
    "vgg16_bn": (
        ("torchvision IMAGENET1K_V1", 73.36),
        ("timm/vgg16_bn.tv_in1k", 73.354),
    ),
    "vgg19": (
        ("torchvision IMAGENET1K_V1", 72.376),
        ("timm/vgg19.tv_in1k", 72.4),
    ),
    "vgg19_bn": (
        ("torchvision IMAGENET1K_V1", 74.218),
        ("timm/vgg19_bn.tv_in1k", 74.23),
    ),
    "googlenet_tv": (("torchvision IMAGENET1K_V1", 69.778),),
    "resnet18": (
        ("torchvision IMAGENET1K_V1", 69.758),
        ("timm/resnet18.tv_in1k", 69.752),
        ("timm/resnet18.a1_in1k", 71.504),
    ),
    "resnet34": (
        ("torchvision IMAGENET1K_V1", 73.314),
        ("timm/resnet34.tv_in1k", 73.298),
        ("timm/resnet34.a1_in1k", 76.42),
        ("timm/resnet34.ra4_e3600_r224_in1k", 77.492),
    ),
    "resnet50": (
        ("torchvision IMAGENET1K_V1", 76.13),
        ("torchvision IMAGENET1K_V2", 80.858),
        ("timm/resnet50.tv2_in1k", 80.846),
        ("timm/resnet50.tv_in1k", 76.156),
        ("timm/resnet50.a1_in1k", 80.382),
        ("timm/resnet50.a1h_in1k", 80.654),
    ),
    "resnet101": (
        ("torchvision IMAGENET1K_V1", 77.374),
        ("torchvision IMAGENET1K_V2", 81.886),
        ("timm/resnet101.tv2_in1k", 81.906),
        ("timm/resnet101.tv_in1k", 77.404),
        ("timm/resnet101.a1h_in1k", 81.95),
    ),
    "resnet152": (
        ("torchvision IMAGENET1K_V1", 78.312),
        ("torchvision IMAGENET1K_V2", 82.284),
        ("timm/resnet152.tv2_in1k", 82.294),
        ("timm/resnet152.tv_in1k", 78.33),
        ("timm/resnet152.a1h_in1k", 82.818),
    ),
    "wide_resnet50_2": (
        ("torchvision IMAGENET1K_V1", 78.468),
        ("torchvision IMAGENET1K_V2", 81.602),
        ("timm/wide_resnet50_2.tv2_in1k", 81.612),
        ("timm/wide_resnet50_2.tv_in1k", 78.486),
        ("timm/wide_resnet50_2.racm_in1k", 81.466),
    ),
    "wide_resnet101_2": (
        ("torchvision IMAGENET1K_V1", 78.848),
        ("torchvision IMAGENET1K_V2", 82.51),
        ("timm/wide_resnet101_2.tv2_in1k", 82.514),
        ("timm/wide_resnet101_2.tv_in1k", 78.862),
    ),
    "resnext50_32x4d": (
        ("torchvision IMAGENET1K_V1", 77.618),
        ("torchvision IMAGENET1K_V2", 81.198),
        ("timm/resnext50_32x4d.tv2_in1k", 81.19),
        ("timm/resnext50_32x4d.tv_in1k", 77.632),
        ("timm/resnext50_32x4d.a1h_in1k", 81.14),
    ),
    "resnext101_32x4d": (("timm/resnext101_32x4d.gluon_in1k", 80.336),),
    "resnext101_32x8d": (
        ("torchvision IMAGENET1K_V1", 79.312),
        ("torchvision IMAGENET1K_V2", 82.834),
        ("timm/resnext101_32x8d.tv2_in1k", 82.832),
        ("timm/resnext101_32x8d.tv_in1k", 79.308),
    ),
    "resnext101_64x4d": (
        ("torchvision IMAGENET1K_V1", 83.246),
        ("timm/resnext101_64x4d.tv_in1k", 82.978),
        ("timm/resnext101_64x4d.c1_in1k", 82.446),
    ),
    "resnet18d": (("timm/resnet18d.ra4_e3600_r224_in1k", 74.356),),
    "resnet34d": (("timm/resnet34d.ra2_in1k", 77.108),),
    "resnet50d": (
        ("timm/resnet50d.a1_in1k", 80.73),
        ("timm/resnet50d.ra4_e3600_r224_in1k", 80.956),
    ),
    "resnet101d": (("timm/resnet101d.gluon_in1k", 80.466),),
    "resnet152d": (("timm/resnet152d.gluon_in1k", 80.476),),
    "resnet50_gn": (("timm/resnet50_gn.a1h_in1k", 80.074),),
    "resnetv2_18": (("timm/resnetv2_18.ra4_e3600_r224_in1k", 73.572),),
    "resnetv2_34": (("timm/resnetv2_34.ra4_e3600_r224_in1k", 77.626),),
    "resnetv2_50": (("timm/resnetv2_50.a1h_in1k", 80.41),),
    "resnetv2_101": (("timm/resnetv2_101.a1h_in1k", 82.042),),
    "resnetv2_18d": (("timm/resnetv2_18d.ra4_e3600_r224_in1k", 74.422),),
    "resnetv2_34d": (("timm/resnetv2_34d.ra4_e3600_r224_in1k", 78.27),),
    "inception_v3": (
        ("torchvision IMAGENET1K_V1", 77.294),
        ("timm/inception_v3.tv_in1k", 77.472),
        ("timm/inception_v3.gluon_in1k", 78.806),
    ),
}
