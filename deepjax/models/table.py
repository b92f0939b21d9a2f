"""The table of networks: build function, exact size, paper and table, known weights."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

from flax import linen as nn

from deepjax.models.googlenet import TORCHVISION, GoogLeNet
from deepjax.models.inception_v3 import InceptionV3
from deepjax.models.layers.norms import Norm
from deepjax.models.nf_resnet import NFResNet
from deepjax.models.normfree import NormFreeResNet
from deepjax.models.preact import PreActResNet, preact_stages, wide_stages
from deepjax.models.resnet import STAGES, ResNet, cifar_stages
from deepjax.models.vgg import VGG, Configuration
from deepjax.models.weights_table import PUBLIC_WEIGHTS

VGG_PAPER = "Simonyan and Zisserman 2014, arXiv:1409.1556"
GOOGLENET = "Szegedy et al. 2014, arXiv:1409.4842"
BN_INCEPTION = "Ioffe and Szegedy 2015, arXiv:1502.03167"
INCEPTION_V3 = "Szegedy et al. 2015, arXiv:1512.00567"
RESNET = "He et al. 2015, arXiv:1512.03385"
PREACT = "He et al. 2016, arXiv:1603.05027"
WRN = "Zagoruyko and Komodakis 2016, arXiv:1605.07146"
RESNEXT = "Xie et al. 2016, arXiv:1611.05431"
RESNET_D = "He et al. 2018, arXiv:1812.01187"
FIXUP = "Zhang et al. 2019, arXiv:1901.09321"
SKIPINIT = "De and Smith 2020, arXiv:2002.10444"
REZERO = "Bachlechner et al. 2020, arXiv:2003.04887"
NF = "Brock et al. 2021, arXiv:2101.08692"
GROUP_NORM = "Wu and He 2018, arXiv:1803.08494"

IMAGENET = (224, 224, 3)
CIFAR = (32, 32, 3)


@dataclasses.dataclass(frozen=True)
class ModelInfo:
    """A network: exact parameters and multiply-adds, input shape, paper and table.

    `macs`: multiply-adds of convolutions and linear layers at `input_shape`, in evaluation.
    `weights`: known public weights and their top-1 accuracy on ImageNet in per cent, as their
    source states it.
    """

    name: str
    params: int
    macs: int
    input_shape: tuple[int, int, int]
    paper: str
    table: str
    build: Callable[..., nn.Module] = dataclasses.field(repr=False)
    weights: tuple[tuple[str, float], ...] = ()


def _row(
    name: str, params: int, macs: int, paper: str, table: str, build: Callable[..., nn.Module]
) -> ModelInfo:
    weights = tuple((source, row.top1) for source, row in PUBLIC_WEIGHTS.get(name, {}).items())
    return ModelInfo(name, params, macs, IMAGENET, paper, table, build, weights)


def _cifar(
    name: str, params: int, macs: int, paper: str, table: str, build: Callable[..., nn.Module]
) -> ModelInfo:
    return ModelInfo(name, params, macs, CIFAR, paper, table, build)


def _vgg(configuration: Configuration, norm: Norm = "none") -> Callable[..., nn.Module]:
    return partial(VGG, configuration=configuration, norm=norm)


def _resnet(depth: int, **fields: Any) -> Callable[..., nn.Module]:
    return partial(
        ResNet, stages=STAGES[depth], block="basic" if depth < 50 else "bottleneck", **fields
    )


def _resnetv2(depth: int, **fields: Any) -> Callable[..., nn.Module]:
    return partial(
        PreActResNet, stages=STAGES[depth], block="basic" if depth < 50 else "bottleneck", **fields
    )


def _plain_or_residual(depth: int, residual: bool) -> Callable[..., nn.Module]:
    return partial(_SMALL, stages=cifar_stages(depth), residual=residual)


def _basic_preact(depth: int) -> Callable[..., nn.Module]:
    return partial(_SMALL_PREACT, stages=cifar_stages(depth), block="basic", shortcut="A")


def _preact(depth: int) -> Callable[..., nn.Module]:
    return partial(_SMALL_PREACT, stages=preact_stages(depth), stride_in="1x1")


def _normfree(scheme: str, depth: int, **fields: Any) -> Callable[..., nn.Module]:
    return partial(NormFreeResNet, scheme=scheme, stages=cifar_stages(depth), **_CIFAR, **fields)


def _nf(depth: int) -> Callable[..., nn.Module]:
    return partial(NFResNet, stages=cifar_stages(depth), shortcut="B", **_CIFAR)


def _wide(depth: int, widening: int) -> Callable[..., nn.Module]:
    return partial(_SMALL_PREACT, stages=wide_stages(depth), block="basic", width=16 * widening)


def _resnext29(cardinality: int) -> Callable[..., nn.Module]:
    return partial(ResNet, stages=(3, 3, 3), num_classes=10, groups=cardinality, stem="cifar")


_CIFAR = {"block": "basic", "num_classes": 10, "width": 16, "stem": "cifar"}
_SMALL = partial(ResNet, **_CIFAR, shortcut="A")
_SMALL_PREACT = partial(PreActResNet, num_classes=10, width=16, stem_width=16, stem="cifar")
_DEEP = {"stem": "deep", "shortcut": "D"}

ROWS = (
    # VGG
    _row("vgg11", 132_863_336, 7_609_090_048, VGG_PAPER, "Table 1, A", _vgg("A")),
    _row("vgg11_bn", 132_868_840, 7_609_090_048, VGG_PAPER, "Table 1, A", _vgg("A", "batch")),
    _row("vgg11_lrn", 132_863_336, 7_609_090_048, VGG_PAPER, "Table 1, A-LRN", _vgg("A-LRN")),
    _row(
        "vgg11_lrn_bn", 132_868_840, 7_609_090_048, VGG_PAPER, "Table 1, A-LRN",
        _vgg("A-LRN", "batch"),
    ),
    _row("vgg13", 133_047_848, 11_308_466_176, VGG_PAPER, "Table 1, B", _vgg("B")),
    _row("vgg13_bn", 133_053_736, 11_308_466_176, VGG_PAPER, "Table 1, B", _vgg("B", "batch")),
    _row("vgg16_c", 133_638_952, 11_770_888_192, VGG_PAPER, "Table 1, C", _vgg("C")),
    _row("vgg16_c_bn", 133_647_400, 11_770_888_192, VGG_PAPER, "Table 1, C", _vgg("C", "batch")),
    _row("vgg16", 138_357_544, 15_470_264_320, VGG_PAPER, "Table 1, D", _vgg("D")),
    _row("vgg16_bn", 138_365_992, 15_470_264_320, VGG_PAPER, "Table 1, D", _vgg("D", "batch")),
    _row("vgg19", 143_667_240, 19_632_062_464, VGG_PAPER, "Table 1, E", _vgg("E")),
    _row("vgg19_bn", 143_678_248, 19_632_062_464, VGG_PAPER, "Table 1, E", _vgg("E", "batch")),
    # GoogLeNet and Inception, their auxiliary heads included
    _row("googlenet", 13_378_280, 1_582_671_872, GOOGLENET, "Table 1", partial(GoogLeNet)),
    _row(
        "googlenet_bn", 13_385_816, 1_582_671_872, BN_INCEPTION, "section 4.2",
        partial(GoogLeNet, norm="batch"),
    ),
    _row(
        "googlenet_tv", 13_004_888, 1_498_376_192, GOOGLENET, "torchvision",
        partial(GoogLeNet, **TORCHVISION),
    ),
    _row(
        "googlenet_naive", 104_270_216, 12_555_216_000, GOOGLENET, "Figure 2a",
        partial(GoogLeNet, reduce=False),
    ),
    dataclasses.replace(
        _row(
            "inception_v3", 27_161_264, 5_713_216_096, INCEPTION_V3, "Table 1",
            partial(InceptionV3),
        ),
        input_shape=(299, 299, 3),
    ),
    # ResNet, Table 1
    _row("resnet18", 11_689_512, 1_814_073_344, RESNET, "Table 1", _resnet(18)),
    _row("resnet34", 21_797_672, 3_663_761_408, RESNET, "Table 1", _resnet(34)),
    _row("resnet50", 25_557_032, 4_089_184_256, RESNET, "Table 1", _resnet(50)),
    _row("resnet101", 44_549_160, 7_801_405_440, RESNET, "Table 1", _resnet(101)),
    _row("resnet152", 60_192_808, 11_513_626_624, RESNET, "Table 1", _resnet(152)),
    _row("resnet200", 64_673_832, 15_007_481_856, PREACT, "Table 5", _resnet(200)),
    _row("resnet50_v1", 25_557_032, 3_857_973_248, RESNET, "Table 1", _resnet(50, stride_in="1x1")),
    _row(
        "resnet101_v1", 44_549_160, 7_570_194_432, RESNET, "Table 1",
        _resnet(101, stride_in="1x1"),
    ),
    _row(
        "resnet152_v1", 60_192_808, 11_282_415_616, RESNET, "Table 1",
        _resnet(152, stride_in="1x1"),
    ),
    _row("plain18", 11_515_688, 1_794_805_760, RESNET, "Table 2", _resnet(18, residual=False)),
    _row("plain34", 21_623_848, 3_644_493_824, RESNET, "Table 2", _resnet(34, residual=False)),
    _row("resnet18_a", 11_515_688, 1_794_805_760, RESNET, "Table 2", _resnet(18, shortcut="A")),
    _row("resnet34_a", 21_623_848, 3_644_493_824, RESNET, "Table 3, A", _resnet(34, shortcut="A")),
    # Wide ResNet, ResNeXt, ResNet-D, group normalisation
    _row(
        "wide_resnet50_2", 68_883_240, 11_398_021_120, WRN, "ImageNet",
        _resnet(50, group_width=128),
    ),
    _row(
        "wide_resnet101_2", 126_886_696, 22_753_050_624, WRN, "ImageNet",
        _resnet(101, group_width=128),
    ),
    _row(
        "resnext50_32x4d", 25_028_904, 4_230_479_872, RESNEXT, "Table 1",
        _resnet(50, groups=32, group_width=4),
    ),
    _row(
        "resnext101_32x4d", 44_177_704, 7_969_996_800, RESNEXT, "section 5.1",
        _resnet(101, groups=32, group_width=4),
    ),
    _row(
        "resnext101_32x8d", 88_791_336, 16_414_015_488, RESNEXT, "section 5.1",
        _resnet(101, groups=32, group_width=8),
    ),
    _row(
        "resnext101_64x4d", 83_455_272, 15_460_270_080, RESNEXT, "section 5.1",
        _resnet(101, groups=64, group_width=4),
    ),
    _row("resnet18d", 11_708_744, 2_053_713_920, RESNET_D, "Figure 2", _resnet(18, **_DEEP)),
    _row("resnet34d", 21_816_904, 3_903_401_984, RESNET_D, "Figure 2", _resnet(34, **_DEEP)),
    _row("resnet50d", 25_576_264, 4_328_824_832, RESNET_D, "Figure 2", _resnet(50, **_DEEP)),
    _row("resnet101d", 44_568_392, 8_041_046_016, RESNET_D, "Figure 2", _resnet(101, **_DEEP)),
    _row("resnet152d", 60_212_040, 11_753_267_200, RESNET_D, "Figure 2", _resnet(152, **_DEEP)),
    _row("resnet200d", 64_693_064, 15_247_122_432, RESNET_D, "Figure 2", _resnet(200, **_DEEP)),
    _row(
        "resnet50_gn", 25_557_032, 4_089_184_256, GROUP_NORM, "Table 1", _resnet(50, norm="group"),
    ),
    # Pre-activation
    _row("resnetv2_18", 11_687_720, 1_814_073_344, PREACT, "Figure 4e", _resnetv2(18)),
    _row("resnetv2_34", 21_795_880, 3_663_761_408, PREACT, "Figure 4e", _resnetv2(34)),
    _row("resnetv2_50", 25_549_352, 4_089_184_256, PREACT, "Figure 4e", _resnetv2(50)),
    _row("resnetv2_101", 44_541_480, 7_801_405_440, PREACT, "Figure 4e", _resnetv2(101)),
    _row("resnetv2_152", 60_185_128, 11_513_626_624, PREACT, "Table 5", _resnetv2(152)),
    _row("resnetv2_200", 64_666_152, 15_007_481_856, PREACT, "Table 5", _resnetv2(200)),
    _row("resnetv2_18d", 11_706_952, 2_053_713_920, RESNET_D, "Figure 2", _resnetv2(18, **_DEEP)),
    _row("resnetv2_34d", 21_815_112, 3_903_401_984, RESNET_D, "Figure 2", _resnetv2(34, **_DEEP)),
    _row("resnetv2_50d", 25_568_584, 4_328_824_832, RESNET_D, "Figure 2", _resnetv2(50, **_DEEP)),
    _row("resnetv2_101d", 44_560_712, 8_041_046_016, RESNET_D, "Figure 2", _resnetv2(101, **_DEEP)),
    _row(
        "resnetv2_152d", 60_204_360, 11_753_267_200, RESNET_D, "Figure 2", _resnetv2(152, **_DEEP),
    ),
    # Without normalisation
    _row(
        "nf_resnet50", 25_557_032, 4_089_184_256, NF, "section 5",
        partial(NFResNet, stages=STAGES[50]),
    ),
    _row(
        "nf_resnet101", 44_549_160, 7_801_405_440, NF, "section 5",
        partial(NFResNet, stages=STAGES[101]),
    ),
    _row(
        "fixup_resnet50", 25_504_026, 4_089_184_256, FIXUP, "section 4.2",
        partial(NormFreeResNet, scheme="fixup"),
    ),
    # CIFAR
    _cifar("cifar_resnet20", 269_722, 40_551_040, RESNET, "Table 6", _plain_or_residual(20, True)),
    _cifar("cifar_resnet32", 464_154, 68_862_592, RESNET, "Table 6", _plain_or_residual(32, True)),
    _cifar("cifar_resnet44", 658_586, 97_174_144, RESNET, "Table 6", _plain_or_residual(44, True)),
    _cifar("cifar_resnet56", 853_018, 125_485_696, RESNET, "Table 6", _plain_or_residual(56, True)),
    _cifar(
        "cifar_resnet110", 1_727_962, 252_887_680, RESNET, "Table 6",
        _plain_or_residual(110, True),
    ),
    _cifar(
        "cifar_resnet1202", 19_421_274, 2_829_238_912, RESNET, "Table 6",
        _plain_or_residual(1202, True),
    ),
    _cifar(
        "cifar_plain20", 269_722, 40_551_040, RESNET, "Figure 6 (left)",
        _plain_or_residual(20, False),
    ),
    _cifar(
        "cifar_plain32", 464_154, 68_862_592, RESNET, "Figure 6 (left)",
        _plain_or_residual(32, False),
    ),
    _cifar(
        "cifar_plain44", 658_586, 97_174_144, RESNET, "Figure 6 (left)",
        _plain_or_residual(44, False),
    ),
    _cifar(
        "cifar_plain56", 853_018, 125_485_696, RESNET, "Figure 6 (left)",
        _plain_or_residual(56, False),
    ),
    _cifar(
        "cifar_plain110", 1_727_962, 252_887_680, RESNET, "Figure 6 (left)",
        _plain_or_residual(110, False),
    ),
    _cifar(
        "cifar_plain1202", 19_421_274, 2_829_238_912, RESNET, "Figure 6 (left)",
        _plain_or_residual(1202, False),
    ),
    _cifar("cifar_preact110", 1_727_962, 252_887_680, PREACT, "Table 3", _basic_preact(110)),
    _cifar("cifar_preact164", 1_703_258, 244_500_992, PREACT, "Table 4", _preact(164)),
    _cifar("cifar_preact1001", 10_327_706, 1_487_849_984, PREACT, "Table 4", _preact(1001)),
    _cifar(
        "cifar_fixup20", 268_393, 40_551_040, FIXUP, "section 4.1",
        _normfree("fixup", 20, shortcut="A"),
    ),
    _cifar(
        "cifar_fixup56", 849_091, 125_485_696, FIXUP, "section 4.1",
        _normfree("fixup", 56, shortcut="A"),
    ),
    _cifar(
        "cifar_fixup110", 1_720_138, 252_887_680, FIXUP, "section 4.1",
        _normfree("fixup", 110, shortcut="A"),
    ),
    _cifar(
        "cifar_skipinit20", 271_683, 40_813_184, SKIPINIT, "section 3", _normfree("skipinit", 20),
    ),
    _cifar(
        "cifar_skipinit56", 853_653, 125_747_840, SKIPINIT, "section 3", _normfree("skipinit", 56),
    ),
    _cifar(
        "cifar_skipinit110", 1_726_608, 253_149_824, SKIPINIT, "section 3",
        _normfree("skipinit", 110),
    ),
    _cifar(
        "cifar_rezero20", 269_731, 40_551_040, REZERO, "section 5",
        _normfree("rezero", 20, shortcut="A", norm="batch"),
    ),
    _cifar(
        "cifar_rezero56", 853_045, 125_485_696, REZERO, "section 5",
        _normfree("rezero", 56, shortcut="A", norm="batch"),
    ),
    _cifar(
        "cifar_rezero110", 1_728_016, 252_887_680, REZERO, "section 5",
        _normfree("rezero", 110, shortcut="A", norm="batch"),
    ),
    _cifar("cifar_nf20", 272_474, 40_813_184, NF, "section 4", _nf(20)),
    _cifar("cifar_nf56", 855_770, 125_747_840, NF, "section 4", _nf(56)),
    _cifar("cifar_nf110", 1_730_714, 253_149_824, NF, "section 4", _nf(110)),
    _cifar("cifar_wrn16_1", 175_066, 26_657_408, WRN, "Table 1", _wide(16, 1)),
    _cifar("cifar_wrn16_2", 691_674, 101_106_944, WRN, "Table 1", _wide(16, 2)),
    _cifar("cifar_wrn16_4", 2_748_890, 392_612_352, WRN, "Table 1", _wide(16, 4)),
    _cifar("cifar_wrn16_8", 10_961_370, 1_548_145_664, WRN, "Table 1", _wide(16, 8)),
    _cifar("cifar_wrn22_8", 17_158_106, 2_454_115_328, WRN, "Table 1", _wide(22, 8)),
    _cifar("cifar_wrn28_1", 369_498, 54_968_960, WRN, "Table 1", _wide(28, 1)),
    _cifar("cifar_wrn28_2", 1_467_610, 214_353_152, WRN, "Table 1", _wide(28, 2)),
    _cifar("cifar_wrn28_10", 36_479_194, 5_243_328_768, WRN, "Table 1", _wide(28, 10)),
    _cifar("cifar_wrn28_12", 52_517_850, 7_543_905_792, WRN, "Table 1", _wide(28, 12)),
    _cifar("cifar_wrn40_1", 563_930, 83_280_512, WRN, "Table 1", _wide(40, 1)),
    _cifar("cifar_wrn40_2", 2_243_546, 327_599_360, WRN, "Table 1", _wide(40, 2)),
    _cifar("cifar_wrn40_4", 8_949_210, 1_298_582_016, WRN, "Table 1", _wide(40, 4)),
    _cifar("cifar_wrn40_8", 35_748_314, 5_172_024_320, WRN, "Table 1", _wide(40, 8)),
    _cifar("cifar_wrn40_10", 55_841_754, 8_074_483_968, WRN, "Table 1", _wide(40, 10)),
    _cifar("cifar_resnext29_1x64d", 4_914_250, 748_365_824, RESNEXT, "section 5.3", _resnext29(1)),
    _cifar(
        "cifar_resnext29_8x64d", 34_426_698, 5_387_266_048, RESNEXT, "section 5.3", _resnext29(8),
    ),
    _cifar(
        "cifar_resnext29_16x64d", 68_155_210, 10_688_866_304, RESNEXT, "section 5.3",
        _resnext29(16),
    ),
)  # fmt: skip
