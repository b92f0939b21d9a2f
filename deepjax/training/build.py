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
from deepjax.data import (
    Crops,
    Dataset,
    EncodedSplit,
    Split,
    dataset_info,
    load_split,
    train_batches,
)
from deepjax.data.encoded_split import SplitName
from deepjax.data.loader import Batch, TrainBatches
from deepjax.errors import require
from deepjax.models import create_model
from deepjax.models.stochastic_depth import StochasticDepth
from deepjax.training.config import CUSTOM_NETWORK_PREFIX, TrainConfig, options_of
from deepjax.training.config_warnings import (
    check_batch_norm,
    shape_of_part,
    trace_forward,
    warnings_of,
)
from deepjax.training.custom_network import make_network
from deepjax.training.distributed.sharding import Partitioner, make_mesh
from deepjax.training.memory import StepCost, check_fits, compile_step, memory_hint
from deepjax.training.run_options import RunOptions
from deepjax.training.step.optimizers import make_optimizer, make_schedule
from deepjax.training.step.state import TrainState, auxiliary_heads, init_state
from deepjax.training.step.step import StepOptions, make_eval_step, make_train_step

ModelFactory = Callable[..., nn.Module]


@dataclasses.dataclass(frozen=True)
class CompiledTraining:
    """What a configuration compiles to; the learning rate and the seed are not in it, so runs that differ in them share one."""

    config: TrainConfig
    model: nn.Module
    dataset: Dataset
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    partitioner: Partitioner
    layers: tuple[str, ...]
    heads: tuple[str, ...]
    train_step: Callable[..., Any]
    eval_step: Callable[..., Any]
    cost: StepCost
    train_split: Split | EncodedSplit
    test_split: Split | EncodedSplit
    warnings: tuple[str, ...] = ()  # what is legal and almost certainly a mistake
    train_steps_by_size: dict[int, Callable[..., Any]] = dataclasses.field(
        default_factory=dict
    )  # train steps of other image sizes, by size

    def train_step_at(self, step: int) -> Callable[..., Any]:
        """The train step for the images of training step `step` (from 0)."""
        return self.train_steps_by_size.get(self.config.shape_at(step)[0], self.train_step)

    def batches(self, config: TrainConfig) -> Any:
        """This process's share of the batches of all steps, a few of them on the devices ahead: (batch, what was damaged)."""

        def put(batch: Batch) -> tuple[dict[str, jax.Array], Any]:
            return self.partitioner.put_batch(
                {name: batch[name] for name in ("image", "label")}
            ), batch.get("damaged", ())

        share = (jax.process_index(), jax.process_count())
        of_run = (config.batch_size, config.seed, config.total_steps)
        return train_batches(
            self.train_split,
            *of_run,
            *share,
            crop_policy_from(config),
            functools.partial(_size_at, config),
            put,
        )

    def batch_at(self, config: TrainConfig, step: int) -> Batch:
        """The whole batch of training step `step` (from 0), on the host."""
        of_run = (config.batch_size, config.seed, config.total_steps)
        return TrainBatches(
            self.train_split,
            *of_run,
            crops=crop_policy_from(config),
            size_at=functools.partial(_size_at, config),
        )[step]

    def fresh_state(self, config: TrainConfig) -> TrainState:
        """The state before the first step, on the devices, with the rate and the seed of a configuration."""
        return self.partitioner.put_state(_state(config, self.model, self.optimizer, self.heads))


def compile_training(
    config: TrainConfig,
    options: RunOptions = RunOptions(),  # noqa: B008  # frozen
    beat: Callable[[], None] = lambda: None,
    make: ModelFactory | None = None,
) -> CompiledTraining:
    """Model, data and the two steps of a configuration, the train step compiled. `beat` is called after each part of this work.

    `make` makes the network in the registry's place: it takes num_classes and dtype, and the other fields that the configuration
    sets. Raises InputError for a batch that the devices cannot share, a batch norm over one value a channel, and a step that does
    not fit the devices' memory.
    """
    require_kinds(config, options)
    dataset = dataset_info(config.dataset)
    spread = Partitioner(make_mesh(), options.strategy, options.fsdp)
    spread.check_batch_size(config.batch_size, config.grad_accum_steps)
    model = model_from(config, make)
    optimizer = make_optimizer(config)
    heads = auxiliary_heads(model, config.input_shape) if config.objective.auxiliary_weight else ()
    shapes = jax.eval_shape(lambda: _state(config, model, optimizer, heads))
    state = jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s),
        shapes,
        spread.state_shardings(shapes),
    )
    forward = trace_forward(
        model, state.params, state.batch_stats, shape_of_part(config), spread.mesh.devices.size
    )
    given, logits = (
        getattr(forward.output, "shape", forward.output),
        (shape_of_part(config).shape[0], dataset.num_classes),
    )
    require(given == logits, "the network's output", given, f"logits {logits}")
    check_batch_norm(forward, config)
    beat()
    steps, cost = _train_steps(config, model, dataset, spread, state)
    beat()
    train, test = (_split(config, options, name) for name in ("train", "test"))
    beat()
    labels = train.labels if isinstance(train, Split) else None
    eval_step = make_eval_step(
        model, dataset, config.eval_resize, config.objective.auxiliary_weight
    )
    return CompiledTraining(
        config=config,
        model=model,
        dataset=dataset,
        optimizer=optimizer,
        schedule=make_schedule(config),
        partitioner=spread,
        layers=tuple(kernel_order(model, config.input_shape)),
        heads=heads,
        train_step=steps.pop(config.input_shape[0]),
        eval_step=spread.compile_eval(eval_step, state.params, state.batch_stats),
        cost=cost,
        train_split=train,
        test_split=test,
        warnings=tuple(warnings_of(config, forward, labels, dataset.num_classes)),
        train_steps_by_size=steps,
    )


def require_kinds(config: object, options: object) -> None:
    """Raise InputError for arguments of other classes."""
    for name, given, kind in (("config", config, TrainConfig), ("options", options, RunOptions)):
        require(isinstance(given, kind), name, given, f"a {kind.__name__}")


def model_from(config: TrainConfig, make: ModelFactory | None = None) -> nn.Module:
    """The network of a configuration; raises InputError when it lacks batch norm whose scope is given, and for one not given."""
    named_own = config.model.startswith(CUSTOM_NETWORK_PREFIX)
    require(
        named_own == (make is not None),
        "model",
        config.model,
        f"a name of the registry, or {CUSTOM_NETWORK_PREFIX}... together with its maker",
    )
    make = make or functools.partial(create_model, config.model)
    fields: dict[str, Any] = {
        "num_classes": dataset_info(config.dataset).num_classes,
        "dtype": jnp.dtype(config.precision),
    }
    if config.width:
        fields["width"] = config.width
    if config.bn_scope != "global":
        has_scope = hasattr(make_network(make, fields), "bn_scope")
        require(
            has_scope,
            "bn_scope",
            config.bn_scope,
            f"'global' for {config.model}, which has no batch norm",
        )
        fields["bn_scope"] = config.bn_scope
    network = make_network(make, fields)
    return (
        StochasticDepth(network, 1 - config.drop_path, "example") if config.drop_path else network
    )


def step_options(config: TrainConfig, axis: str | None = None, size: int = 0) -> StepOptions:
    """The part of a configuration that the train step takes. size: that of the step's images, where the training has several."""
    names = {field.name for field in dataclasses.fields(StepOptions)} - {
        "policy",
        "axis",
        "image_size",
    }
    options: dict[str, Any] = {
        **options_of(config),
        "steps_per_epoch": config.steps_per_epoch,
    }
    values = {name: options[name] for name in names}
    return StepOptions(
        **values,
        image_size=size if config.data.progressive_sizes else config.data.image_size,
        policy=config.policy,
        axis=axis,
    )


def crop_policy_from(config: TrainConfig) -> Crops:
    """How photographs are cut for training."""
    return Crops(
        config.data.min_crop_area,
        config.data.resize_shorter_side,
        config.augmentation.augment,
        config.data.eval_crop,
        config.data.repeated_augmentation,
        config.data.resize_backend == "pillow",
    )


def _size_at(config: TrainConfig, step: int) -> int:
    return config.shape_at(step)[0]


def _train_steps(
    config: TrainConfig, model: nn.Module, dataset: Dataset, spread: Partitioner, state: Any
) -> tuple[dict[int, Callable[..., Any]], StepCost]:
    """The compiled train step for each image size of the training, and what the largest of them needs."""
    steps: dict[int, Callable[..., Any]] = {}
    costs = []
    sizes = (config.batch_size, config.grad_accum_steps, config.remat)
    for size in dict.fromkeys(config.data.progressive_sizes or (config.input_shape[0],)):
        options = step_options(config, spread.axis, size)
        step = make_train_step(
            model, make_optimizer(config), make_schedule(config), dataset, options
        )
        shape = (size, size, dataset.shape[2]) if dataset.encoded else dataset.shape
        batch = {
            "image": jax.ShapeDtypeStruct((config.batch_size, *shape), jnp.uint8),
            "label": jax.ShapeDtypeStruct((config.batch_size,), jnp.int32),
        }
        with jax.set_mesh(spread.mesh):  # bn_scope="replica" asks it for the number of devices
            steps[size], cost = compile_step(
                spread.compile_train(step, state), state, batch, advice=memory_hint(*sizes)
            )
        check_fits(cost, *sizes)
        costs.append(cost)
    largest = max(costs, key=lambda cost: cost.bytes_per_device)
    return steps, dataclasses.replace(
        largest, compile_seconds=sum(cost.compile_seconds for cost in costs)
    )


def _split(config: TrainConfig, options: RunOptions, name: SplitName) -> Split | EncodedSplit:
    split = load_split(dataset_info(config.dataset), name, options.data_dir)
    if isinstance(split, Split):
        return split
    policy = {"on_damaged": config.data.on_decode_error, "budget": config.data.max_decode_errors}
    return dataclasses.replace(split, threads=options.decode_threads, **policy)


def _state(
    config: TrainConfig,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    heads: tuple[str, ...],
) -> TrainState:
    return init_state(
        model,
        optimizer,
        config.input_shape,
        config.learning_rate,
        config.seed,
        heads,
        config.ema_decay > 0,
    )
