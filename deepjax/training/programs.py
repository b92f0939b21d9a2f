"""What a configuration compiles to: model, data and the two steps, ready to run."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from deepjax.analysis import kernel_order
from deepjax.data import Dataset, Split, dataset_info, load_split
from deepjax.errors import require
from deepjax.models import create_model
from deepjax.models.stochastic_depth import StochasticDepth
from deepjax.training.config import OWN, TrainConfig
from deepjax.training.optimizers import make_optimizer, make_schedule
from deepjax.training.options import RunOptions
from deepjax.training.parallel import Spread, make_mesh
from deepjax.training.preflight import StepCost, advice, check_fits, compile_step
from deepjax.training.state import TrainState, auxiliary_heads, init_state
from deepjax.training.step import StepOptions, make_eval_step, make_train_step

Maker = Callable[..., nn.Module]


@dataclasses.dataclass(frozen=True)
class Programs:
    """What a configuration compiles to; the learning rate and the seed are not in it, so runs that differ in them share one."""

    config: TrainConfig
    model: nn.Module
    dataset: Dataset
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    spread: Spread
    layers: tuple[str, ...]
    heads: tuple[str, ...]
    train_step: Callable[..., Any]
    eval_step: Callable[..., Any]
    cost: StepCost
    train: Split
    test: Split

    def fresh_state(self, config: TrainConfig) -> TrainState:
        """The state before the first step, on the devices, with the rate and the seed of a configuration."""
        return self.spread.put_state(_state(config, self.model, self.optimizer, self.heads))


def build(
    config: TrainConfig,
    options: RunOptions = RunOptions(),  # noqa: B008  # frozen
    beat: Callable[[], None] = lambda: None,
    make: Maker | None = None,
) -> Programs:
    """Model, data and the two steps of a configuration, the train step compiled. `beat` is called after each part of this work.

    `make` makes the network in the registry's place: it takes num_classes and dtype, and the other fields that the configuration
    sets. Raises InputError for a batch that the devices cannot share, and for a step that does not fit their memory.
    """
    dataset = dataset_info(config.dataset)
    spread = Spread(make_mesh(), options.strategy, options.fsdp)
    spread.check_batch_size(config.batch_size, config.accumulate)
    model = make_model(config, make)
    optimizer, schedule = make_optimizer(config), make_schedule(config)
    heads = auxiliary_heads(model, config.input_shape) if config.auxiliary_weight else ()
    shapes = jax.eval_shape(lambda: _state(config, model, optimizer, heads))
    state = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), shapes, spread.state_shardings(shapes))
    train_step = make_train_step(model, optimizer, schedule, dataset, step_options(config, spread.axis))
    batch = {
        "image": jax.ShapeDtypeStruct((config.batch_size, *dataset.shape), jnp.uint8),
        "label": jax.ShapeDtypeStruct((config.batch_size,), jnp.int32),
    }
    sizes = (config.batch_size, config.accumulate, config.remat)
    beat()
    with jax.set_mesh(spread.mesh):  # bn_scope="replica" asks it for the number of devices
        compiled, cost = compile_step(spread.compile_train(train_step, state), state, batch, advice=advice(*sizes))
    check_fits(cost, *sizes)
    beat()
    splits = load_split(dataset, "train", options.data_dir), load_split(dataset, "test", options.data_dir)
    beat()
    eval_step = make_eval_step(model, dataset, config.image_size, config.auxiliary_weight)
    return Programs(
        config=config,
        model=model,
        dataset=dataset,
        optimizer=optimizer,
        schedule=schedule,
        spread=spread,
        layers=tuple(kernel_order(model, config.input_shape)),
        heads=heads,
        train_step=compiled,
        eval_step=spread.compile_eval(eval_step, state.params, state.batch_stats),
        cost=cost,
        train=splits[0],
        test=splits[1],
    )


def make_model(config: TrainConfig, make: Maker | None = None) -> nn.Module:
    """The network of a configuration; raises InputError when it lacks batch norm whose scope is given, and for one not given."""
    named_own = config.model.startswith(OWN)
    require(named_own == (make is not None), "model", config.model, f"a name of the registry, or {OWN}... together with its maker")
    make = make or functools.partial(create_model, config.model)
    fields: dict[str, Any] = {"num_classes": dataset_info(config.dataset).num_classes, "dtype": jnp.dtype(config.precision)}
    if config.width:
        fields["width"] = config.width
    if config.bn_scope != "global":
        has_scope = hasattr(make(), "bn_scope")
        require(has_scope, "bn_scope", config.bn_scope, f"'global' for {config.model}, which has no batch norm")
        fields["bn_scope"] = config.bn_scope
    network = make(**fields)
    return StochasticDepth(network, 1 - config.drop_path, "example") if config.drop_path else network


def step_options(config: TrainConfig, axis: str | None = None) -> StepOptions:
    """The part of a configuration that the train step takes."""
    names = {field.name for field in dataclasses.fields(StepOptions)} - {"policy", "axis"}
    return StepOptions(**{name: getattr(config, name) for name in names}, policy=config.policy, axis=axis)


def _state(config: TrainConfig, model: nn.Module, optimizer: optax.GradientTransformation, heads: tuple[str, ...]) -> TrainState:
    return init_state(model, optimizer, config.input_shape, config.learning_rate, config.seed, heads, config.ema > 0)
