"""Published errors on ImageNet's validation set, in per cent, by network and protocol.

From the papers and their authors' releases; networks have the names that they have here. `sides`:
shorter sides of the rescaled image; training at several sides is in the note. Ensembles and
test-set results are in experiments/imagenet_history.py.
"""

import dataclasses

VGG_TABLES = "Simonyan and Zisserman 2014"
RELEASE = "github.com/KaimingHe/deep-residual-networks"
FB = "github.com/facebookarchive/fb.resnet.torch, trained by scale and aspect ratio"
JITTER = "trained at sides of 256 to 512"


@dataclasses.dataclass(frozen=True)
class PaperResult:
    """One published result: top-1 and top-5 error in per cent, None where it is not given."""

    model: str
    protocol: str
    sides: tuple[int, ...]
    top1: float | None
    top5: float | None
    source: str
    note: str = ""
    crop: int = 224


def _vgg() -> tuple[PaperResult, ...]:
    """VGG, Tables 3 to 5: configuration, protocol, test sides, errors, table, training sides."""
    names = {
        "A": "vgg11",
        "A-LRN": "vgg11_lrn",
        "B": "vgg13",
        "C": "vgg16_c",
        "D": "vgg16",
        "E": "vgg19",
    }
    rows = (
        ("A", "dense", (256,), 29.6, 10.4, "Table 3", ""),
        ("A-LRN", "dense", (256,), 29.7, 10.5, "Table 3", ""),
        ("B", "dense", (256,), 28.7, 9.9, "Table 3", ""),
        ("C", "dense", (256,), 28.1, 9.4, "Table 3", ""),
        ("C", "dense", (384,), 28.1, 9.3, "Table 3", ""),
        ("C", "dense", (384,), 27.3, 8.8, "Table 3", JITTER),
        ("D", "dense", (256,), 27.0, 8.8, "Table 3", ""),
        ("D", "dense", (384,), 26.8, 8.7, "Table 3", ""),
        ("D", "dense", (384,), 25.6, 8.1, "Table 3", JITTER),
        ("E", "dense", (256,), 27.3, 9.0, "Table 3", ""),
        ("E", "dense", (384,), 26.9, 8.7, "Table 3", ""),
        ("E", "dense", (384,), 25.5, 8.0, "Table 3", JITTER),
        ("B", "multi-scale", (224, 256, 288), 28.2, 9.6, "Table 4", ""),
        ("C", "multi-scale", (224, 256, 288), 27.7, 9.2, "Table 4", ""),
        ("C", "multi-scale", (352, 384, 416), 27.8, 9.2, "Table 4", ""),
        ("C", "multi-scale", (256, 384, 512), 26.3, 8.2, "Table 4", JITTER),
        ("D", "multi-scale", (224, 256, 288), 26.6, 8.6, "Table 4", ""),
        ("D", "multi-scale", (352, 384, 416), 26.5, 8.6, "Table 4", ""),
        ("D", "multi-scale", (256, 384, 512), 24.8, 7.5, "Table 4", JITTER),
        ("E", "multi-scale", (224, 256, 288), 26.9, 8.7, "Table 4", ""),
        ("E", "multi-scale", (352, 384, 416), 26.7, 8.6, "Table 4", ""),
        ("E", "multi-scale", (256, 384, 512), 24.8, 7.5, "Table 4", JITTER),
        ("D", "multi-crop", (256, 384, 512), 24.6, 7.5, "Table 5", JITTER),
        ("E", "multi-crop", (256, 384, 512), 24.6, 7.4, "Table 5", JITTER),
    )
    return tuple(
        PaperResult(names[row[0]], *row[1:5], f"{VGG_TABLES}, {row[5]}", row[6]) for row in rows
    )


def _resnet() -> tuple[PaperResult, ...]:
    """Tables 2, 3 and 4 of ResNet, by 10 crops and by five scales; single crops of the release."""
    scales = (224, 256, 384, 480, 640)
    rows = (
        ("plain18", "10-crop", (256,), 27.94, None, "Table 2"),
        ("resnet18_a", "10-crop", (256,), 27.88, None, "Table 2"),
        ("vgg16", "10-crop", (256,), 28.07, 9.33, "Table 3"),
        ("plain34", "10-crop", (256,), 28.54, 10.02, "Table 3"),
        ("resnet34_a", "10-crop", (256,), 25.03, 7.76, "Table 3"),
        ("resnet34", "10-crop", (256,), 24.52, 7.46, "Table 3, B"),
        ("resnet50_v1", "10-crop", (256,), 22.85, 6.71, "Table 3"),
        ("resnet101_v1", "10-crop", (256,), 21.75, 6.05, "Table 3"),
        ("resnet152_v1", "10-crop", (256,), 21.43, 5.71, "Table 3"),
        ("resnet34", "multi-scale", scales, 21.84, 5.71, "Table 4, B"),
        ("resnet50_v1", "multi-scale", scales, 20.74, 5.25, "Table 4"),
        ("resnet101_v1", "multi-scale", scales, 19.87, 4.60, "Table 4"),
        ("resnet152_v1", "multi-scale", scales, 19.38, 4.49, "Table 4"),
    )
    return tuple(PaperResult(*row[:5], f"He et al. 2015, {row[5]}") for row in rows)


def _facebook() -> tuple[PaperResult, ...]:
    """The models that Facebook released with fb.resnet.torch: one crop and ten."""
    errors = {
        "resnet18": ((30.43, 10.76), (28.22, 9.42)),
        "resnet34": ((26.73, 8.74), (24.76, 7.35)),
        "resnet50": ((24.01, 7.02), (22.24, 6.08)),
        "resnet101": ((22.44, 6.21), (21.08, 5.35)),
        "resnet152": ((22.16, 6.16), (20.69, 5.21)),
        "resnet200": ((21.66, 5.79), (20.15, 4.93)),
    }
    protocols = ("1-crop", "10-crop-whole")
    return tuple(
        PaperResult(name, protocol, (256,), *pair, FB)
        for name, pairs in errors.items()
        for protocol, pair in zip(protocols, pairs, strict=True)
    )


PAPER_RESULTS: tuple[PaperResult, ...] = (
    *_vgg(),
    PaperResult("googlenet", "1-crop", (256,), None, 10.07, "Szegedy et al. 2014, Table 3"),
    PaperResult("googlenet", "10-crop", (256,), None, 9.15, "Szegedy et al. 2014, Table 3"),
    PaperResult(
        "googlenet", "144-crop", (256, 288, 320, 352), None, 7.89, "Szegedy et al. 2014, Table 3"
    ),
    PaperResult(
        "inception_v3",
        "1-crop",
        (342,),
        21.2,
        5.6,
        "Szegedy et al. 2015",
        "on 48,238 of the images",
        299,
    ),
    *_resnet(),
    PaperResult("vgg16", "1-crop", (256,), 28.5, 9.9, RELEASE),
    PaperResult("resnet50_v1", "1-crop", (256,), 24.7, 7.8, RELEASE),
    PaperResult("resnet101_v1", "1-crop", (256,), 23.6, 7.1, RELEASE),
    PaperResult("resnet152_v1", "1-crop", (256,), 23.0, 6.7, RELEASE),
    *_facebook(),
    PaperResult("resnet152_v1", "1-crop", (320,), 21.3, 5.5, "He et al. 2016, Table 5", crop=320),
    PaperResult("resnet200", "1-crop", (320,), 21.8, 6.0, "He et al. 2016, Table 5", crop=320),
    PaperResult("resnetv2_152", "1-crop", (320,), 21.1, 5.5, "He et al. 2016, Table 5", crop=320),
    PaperResult("resnetv2_200", "1-crop", (320,), 20.7, 5.3, "He et al. 2016, Table 5", crop=320),
    PaperResult(
        "resnetv2_200",
        "1-crop",
        (320,),
        20.1,
        4.8,
        "He et al. 2016, Table 5",
        "trained by scale and aspect ratio",
        320,
    ),
    PaperResult(
        "wide_resnet50_2",
        "1-crop",
        (256,),
        21.9,
        None,
        "github.com/szagoruyko/wide-residual-networks",
    ),
    PaperResult(
        "resnext50_32x4d", "1-crop", (256,), 22.2, None, "github.com/facebookresearch/ResNeXt"
    ),
    PaperResult(
        "resnext101_32x4d", "1-crop", (256,), 21.2, None, "github.com/facebookresearch/ResNeXt"
    ),
    PaperResult(
        "resnext101_64x4d", "1-crop", (256,), 20.4, None, "github.com/facebookresearch/ResNeXt"
    ),
)


def find_paper_results(model: str, protocol: str) -> list[PaperResult]:
    """The results of a network by a protocol, for any sides and crop, in the tables' order."""
    return [row for row in PAPER_RESULTS if (row.model, row.protocol) == (model, protocol)]
