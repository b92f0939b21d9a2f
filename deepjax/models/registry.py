"""Networks by name: list, look up, create."""

import dataclasses
import fnmatch
from typing import Any

from flax import linen as nn

from deepjax.errors import unknown_name_error
from deepjax.models.layers.basic import check_fields
from deepjax.models.table import ROWS, ModelInfo

_TABLE = {row.name: row for row in ROWS}


def list_models(pattern: str = "*") -> list[str]:
    """Names that match a shell pattern, in the order of the table.

    >>> list_models("cifar_plain*")[:2]
    ['cifar_plain20', 'cifar_plain32']
    """
    return [name for name in _TABLE if fnmatch.fnmatchcase(name, pattern)]


def model_info(name: str) -> ModelInfo:
    """The table's row of a network; raises InputError for an unknown name.

    >>> model_info("cifar_resnet20").params
    269722
    """
    if name not in _TABLE:
        raise unknown_name_error("model", name, _TABLE, listed_by="deepjax models")
    return _TABLE[name]


def create_model(name: str, **overrides: Any) -> nn.Module:
    """The linen module of that name, with fields overridden.

    Raises InputError for an unknown name or field, and for a value that is not allowed.

    >>> create_model("cifar_plain56", num_classes=100, width=32).stages
    (9, 9, 9)
    """
    build = model_info(name).build
    fields = {field.name for field in dataclasses.fields(build())} - {"parent", "name"}
    for field in overrides:
        if field not in fields:
            raise unknown_name_error(f"field of {name}", field, fields)
    model = build(**overrides)
    check_fields(model)
    return model
