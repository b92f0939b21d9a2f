"""The network of a configuration, its variables' shapes, and the rates of its parameters."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from deepjax.analysis.network.module import init_variables
from deepjax.errors import InputError, require
from deepjax.models import create_model
from deepjax.models.classifier import classifier_paths
from deepjax.models.stochastic_depth import StochasticDepth
from deepjax.training.config import (
    CUSTOM_NETWORK_PREFIX,
    TrainConfig,
    is_custom,
    is_import_path,
    parse_fields,
)
from deepjax.training.custom_network import errors_of_own_network, make_network
from deepjax.training.step.patterns import rate_factors
from deepjax.training.transfer.frozen_batch_norm import freeze_batch_norms
from deepjax.training.transfer.starting_weights import StartingWeights, read_weights

ModelFactory = Callable[..., nn.Module]


def model_from(
    config: TrainConfig, make: ModelFactory | None = None, num_classes: int = 0
) -> nn.Module:
    """The network of a configuration; `num_classes`: 0 for those of its data set.

    Raises InputError if it has no batch norm and bn_scope is given, and for a missing `make`.
    """
    if is_import_path(config.model) and make is None:
        raise InputError(
            f"the network is {config.model!r}, which is not imported unless it is named again; "
            f"give --model {config.model}, or make=import_network({config.model!r}) in Python"
        )
    require(
        is_custom(config.model) == (make is not None),
        "model",
        config.model,
        f"a name of the registry, or {CUSTOM_NETWORK_PREFIX}... together with its maker",
    )
    make = make or functools.partial(create_model, config.model)
    fields = network_fields(config) | {"dtype": jnp.dtype(config.precision)}
    if num_classes:
        fields["num_classes"] = num_classes
    if config.bn_scope != "global":
        without = {name: value for name, value in fields.items() if name != "bn_scope"}
        has_scope = hasattr(make_network(make, without), "bn_scope")
        require(
            has_scope,
            "bn_scope",
            config.bn_scope,
            f"'global' for {config.model}, which has no batch norm",
        )
    network = make_network(make, fields)
    if config.drop_path:  # inside, as it reads the network's stages
        network = StochasticDepth(network, 1 - config.drop_path, "example")
    return freeze_batch_norms(network) if config.transfer.freeze_batch_norm else network


def network_fields(config: TrainConfig) -> dict[str, Any]:
    """The fields that a configuration sets in its network, besides its precision."""
    fields: dict[str, Any] = {"num_classes": config.num_classes}
    fields |= parse_fields(config.model_args)
    if config.width:
        fields["width"] = config.width
    if config.bn_scope != "global":
        fields["bn_scope"] = config.bn_scope
    return fields


def starting_weights(config: TrainConfig, make: ModelFactory | None = None) -> StartingWeights:
    """The weights of `config.transfer.weights`, read and compared with the network's variables.

    Compiles nothing. Raises InputError for weights that cannot be read or are of another network.
    """
    model = model_from(config, make)
    with errors_of_own_network(config.model, config.input_shape):
        shapes, classifier = variable_shapes(config, model), _classifier(config, make)
    return read_weights(config, shapes, classifier)


def factors_of(config: TrainConfig, make: ModelFactory | None = None) -> dict[str, float] | None:
    """Factor of the learning rate by path of a parameter, 0: frozen; None if no option sets one.

    Raises InputError for a pattern that matches no parameter.
    """
    transfer = config.transfer
    if not transfer.freeze and not transfer.rate_factors:
        return None
    params = variable_shapes(config, model_from(config, make))["params"]
    paths = frozenset("/".join(map(str, path)) for path in _classifier(config, make))
    return rate_factors(params, transfer, paths)


def variable_shapes(config: TrainConfig, model: nn.Module) -> dict[str, Any]:
    """Shapes of "params" and "batch_stats", without computing them."""
    shape = (1, *config.input_shape)
    shapes = jax.eval_shape(lambda: init_variables(model, jax.random.key(0), shape))
    return {"batch_stats": {}} | shapes


def _classifier(config: TrainConfig, make: ModelFactory | None) -> frozenset[tuple[str, ...]]:
    return classifier_paths(
        lambda classes: model_from(config, make, classes), config.num_classes, config.input_shape
    )
