"""Networks by name: list, look up, create."""

import fnmatch
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from deepjax.errors import InputError, describe_error, unknown_name_error
from deepjax.models.layers.basic import check_fields
from deepjax.models.maker import make_linen, required_fields
from deepjax.models.table import ROWS, ModelInfo

_TABLE = {row.name: row for row in ROWS}
CLASSES = 1000  # of a registered network without a default


def register_model(
    name: str,
    build: Callable[..., Any],
    input_shape: tuple[int, int, int] = (224, 224, 3),
    paper: str = "registered",
) -> ModelInfo:
    """Make a network of your own known under a name, to `create_model`, configurations and reports.

    build: a class of linen or NNX, or a function of its fields, `num_classes` and, for another
    precision than float32, `dtype` among them; a linen module is called as (images, train), one of
    NNX as (images). All other fields need defaults. Its parameters are counted at `input_shape`,
    its multiply-adds are not (0). The same one again is accepted. Raises InputError for a name that
    is taken, and for what makes no such module or cannot take the images.
    """
    known = _TABLE.get(name)
    if known is not None and known.build != build:
        raise InputError(f"model {name!r} is another network already; register it as another name")
    model = _made(name, build, {})
    images = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
    try:
        variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
    except InputError:
        raise
    except Exception as error:  # whatever the user's module raises
        raise InputError(
            f"{name} cannot be called with images of {input_shape} and train=False "
            f"({describe_error(error)})"
        ) from error
    params = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    _TABLE[name] = ModelInfo(name, params, 0, input_shape, paper, "", build)
    return _TABLE[name]


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

    A registered network without a field `dtype` takes dtype=float32 alone, and one without a
    default of `num_classes` has 1000. Raises InputError for an unknown name or field, and for a
    value that is not allowed.

    >>> create_model("cifar_plain56", num_classes=100, width=32).stages
    (9, 9, 9)
    """
    model = _made(name, model_info(name).build, overrides)
    check_fields(model)
    return model


def _made(name: str, build: Callable[..., Any], fields: dict[str, Any]) -> nn.Module:
    if "num_classes" in required_fields(build):
        fields = {"num_classes": CLASSES} | fields
    return make_linen(name, build, fields)
