"""The table of names: what each network is, its exact size, and the paper and table that it comes from."""

import dataclasses
import fnmatch
from collections.abc import Callable
from functools import partial
from typing import Any

from flax import linen as nn

from deepjax.errors import unknown
from deepjax.models.resnet import CifarResNet

RESNET = "He et al. 2015, arXiv:1512.03385"


@dataclasses.dataclass(frozen=True)
class ModelInfo:
    """A row of the table: exact parameters and multiply-adds of convolutions and linear layers at `input_shape`."""

    name: str
    params: int
    macs: int
    input_shape: tuple[int, int, int]
    paper: str
    table: str
    build: Callable[..., nn.Module] = dataclasses.field(repr=False)


def _cifar(name: str, depth: int, residual: bool, params: int, macs: int) -> ModelInfo:
    table = "Table 6" if residual else "Figure 6 (left)"
    return ModelInfo(name, params, macs, (32, 32, 3), RESNET, table, partial(CifarResNet, depth=depth, residual=residual))


_TABLE = {
    info.name: info
    for info in (
        _cifar("cifar_resnet20", 20, True, 269_722, 40_551_040),
        _cifar("cifar_resnet32", 32, True, 464_154, 68_862_592),
        _cifar("cifar_resnet44", 44, True, 658_586, 97_174_144),
        _cifar("cifar_resnet56", 56, True, 853_018, 125_485_696),
        _cifar("cifar_resnet110", 110, True, 1_727_962, 252_887_680),
        _cifar("cifar_resnet1202", 1202, True, 19_421_274, 2_829_238_912),
        _cifar("cifar_plain20", 20, False, 269_722, 40_551_040),
        _cifar("cifar_plain32", 32, False, 464_154, 68_862_592),
        _cifar("cifar_plain44", 44, False, 658_586, 97_174_144),
        _cifar("cifar_plain56", 56, False, 853_018, 125_485_696),
        _cifar("cifar_plain110", 110, False, 1_727_962, 252_887_680),
        _cifar("cifar_plain1202", 1202, False, 19_421_274, 2_829_238_912),
    )
}


def list_models(pattern: str = "*") -> list[str]:
    """Names that match a shell pattern, in the order of the table.

    >>> list_models("cifar_plain*")[:2]
    ['cifar_plain20', 'cifar_plain32']
    """
    return [name for name in _TABLE if fnmatch.fnmatchcase(name, pattern)]


def model_info(name: str) -> ModelInfo:
    """The row of a network: exact parameters and multiply-adds, input shape, paper and table; InputError for an unknown name.

    >>> model_info("cifar_resnet20").params
    269722
    """
    if name not in _TABLE:
        raise unknown("model", name, _TABLE)
    return _TABLE[name]


def create_model(name: str, **overrides: Any) -> nn.Module:
    """The linen module of that name, with fields overridden; raises InputError for an unknown name or field.

    >>> create_model("cifar_plain56", num_classes=100, width=32).depth
    56
    """
    build = model_info(name).build
    fields = {field.name for field in dataclasses.fields(build())} - {"parent", "name"}
    for field in overrides:
        if field not in fields:
            raise unknown(f"field of {name}", field, fields)
    return build(**overrides)
