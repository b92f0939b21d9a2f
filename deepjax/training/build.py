"""Builds model, data and the compiled steps of a configuration."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from deepjax.analysis import kernel_order
from deepjax.data import (
    Crops,
    Dataset,
    EncodedSplit,
    Split,
    load_split,
    train_batches,
)
from deepjax.data.loader import Batch, TrainBatches, batch_index
from deepjax.data.split_spec import SplitName
from deepjax.errors import require
from deepjax.training.config import TrainConfig, options_of
from deepjax.training.config_warnings import (
    Forward,
    check_batch_norm,
    check_frozen,
    shape_of_part,
    trace_forward,
    warnings_of,
)
from deepjax.training.custom_network import errors_of_own_network, require_known_collections
from deepjax.training.distributed.sharding import Partitioner, make_mesh
from deepjax.training.input_pipeline import BatchStream, ReportErrors, device_batch
from deepjax.training.memory import (
    StepCost,
    check_fits,
    compile_step,
    largest_cost,
    memory_hint,
)
from deepjax.training.network import ModelFactory, factors_of, model_from, starting_weights
from deepjax.training.plan import TrainPlan, make_plan
from deepjax.training.resident import ResidentTraining, compile_resident, require_arrays
from deepjax.training.run_options import RunOptions
from deepjax.training.step.optimizers import make_optimizer, make_schedule
from deepjax.training.step.state import (
    TrainState,
    auxiliary_heads,
    init_ema,
    init_state,
)
from deepjax.training.step.step import (
    StepOptions,
    TrainStep,
    make_eval_step,
    make_train_step,
)
from deepjax.training.transfer.expected_images import dataset_of
from deepjax.training.transfer.starting_weights import StartingWeights


@dataclasses.dataclass(frozen=True)
class CompiledTraining:
    """Model, data and compiled steps, shared by runs that differ only in learning rate and seed."""

    config: TrainConfig
    model: nn.Module
    dataset: Dataset
    optimizer: optax.GradientTransformationExtraArgs
    schedule: optax.Schedule
    partitioner: Partitioner
    layers: tuple[str, ...]
    heads: tuple[str, ...]
    train_step: Callable[..., Any]
    eval_step: Callable[..., Any]
    cost: StepCost
    train_split: Split | EncodedSplit
    test_split: Split | EncodedSplit
    warnings: tuple[str, ...] = ()
    """Settings that are valid and almost certainly a mistake."""
    train_steps_by_size: dict[int, Callable[..., Any]] = dataclasses.field(default_factory=dict)
    """The train steps of other image sizes than the last."""
    make: ModelFactory | None = None
    """The maker of a network that is not in the registry."""
    resident: ResidentTraining | None = None
    """With `RunOptions.resident`; then `train_step` is compiled when it is called first."""

    @functools.cached_property
    def plan(self) -> TrainPlan:
        """The steps of a run, computed once."""
        return make_plan(self.config)

    def require_same(self, config: TrainConfig) -> None:
        """Raise ValueError unless a configuration differs in learning rate and seed alone."""
        shared = dataclasses.replace(
            self.config, learning_rate=config.learning_rate, seed=config.seed
        )
        if shared != config:
            raise ValueError("programs were built for another configuration")

    def split(self, name: SplitName) -> Split | EncodedSplit:
        """A split by its name."""
        return self.train_split if name == "train" else self.test_split

    def train_step_at(self, step: int) -> Callable[..., Any]:
        """The train step for the images of training step `step` (from 0)."""
        return self.train_steps_by_size.get(self.plan.image_size(step), self.train_step)

    def batches(
        self, config: TrainConfig, report_errors: ReportErrors = lambda done, errors: None
    ) -> BatchStream:
        """This process's part of the batches of all steps, prefetched to the devices."""
        source = train_batches(
            self.train_split,
            config.batch_size,
            config.seed,
            self.plan.total_steps,
            process=jax.process_index(),
            processes=jax.process_count(),
            crops=crop_policy_from(config),
            size_at=self.plan.image_size,
            put=functools.partial(device_batch, self.partitioner.put_batch),
        )
        return BatchStream(source, report_errors)

    def batch_at(self, config: TrainConfig, step: int) -> Batch:
        """The global batch of training step `step` (from 0), on the host."""
        return TrainBatches(
            self.train_split,
            config.batch_size,
            config.seed,
            self.plan.total_steps,
            crops=crop_policy_from(config),
            size_at=self.plan.image_size,
        )[step]

    def example_ids(self, config: TrainConfig, step: int) -> np.ndarray:
        """The ids of the images of the global batch of training step `step` (from 0)."""
        size = len(self.train_split)
        return batch_index(
            size, config.batch_size, config.seed, step, config.data.repeated_augmentation
        )

    def fresh_state(self, config: TrainConfig) -> TrainState:
        """The state before the first step, on the devices, with a configuration's rate and seed.

        Without the weights that a configuration starts from, see `starting_state`.
        """
        return self.partitioner.put_state(_state(config, self.model, self.optimizer, self.heads))

    def starting_state(
        self, config: TrainConfig, weights: StartingWeights | None = None
    ) -> TrainState:
        """The state before the first step, from the weights of the configuration if it names some.

        weights: as they were read before, by `starting_weights`; default: they are read.
        """
        state = _state(config, self.model, self.optimizer, self.heads)
        if config.transfer.weights:
            weights = weights or starting_weights(config, self.make)
            initial = {"params": state.params, "batch_stats": state.batch_stats}
            found = weights.variables(initial)
            ema = init_ema(found) if config.ema_decay > 0 else {}
            state = state.replace(params=found["params"], batch_stats=found["batch_stats"], ema=ema)
        return self.partitioner.put_state(state)


def compile_training(
    config: TrainConfig,
    options: RunOptions = RunOptions(),  # noqa: B008  # frozen
    heartbeat: Callable[[], None] = lambda: None,
    make: ModelFactory | None = None,
    dataset: Dataset | None = None,
) -> CompiledTraining:
    """Build model, data and steps, and compile the train step. `heartbeat`: called after each part.

    `make`: makes a network that is not in the registry; it takes num_classes, dtype and the other
    fields that the configuration sets. `dataset`: the data set with the mean and std of a run that
    is resumed; default as the weights expect that the configuration starts from. Raises InputError
    for a batch that is not divisible, a batch norm over one value per channel, and a step that
    exceeds the memory of a device.
    """
    require_kinds(config, options)
    dataset = dataset or dataset_of(config)
    partitioner = Partitioner(make_mesh(), options.strategy, options.fsdp)
    partitioner.check_batch_size(config.batch_size, config.grad_accum_steps)
    model = model_from(config, make)
    # Before anything is traced: a data set that is missing is refused within seconds.
    train, test = (open_split(config, options, name) for name in ("train", "test"))
    arrays = require_arrays(config, train) if options.resident else None
    heartbeat()
    with errors_of_own_network(config.model, config.input_shape):
        require_known_collections(config.model, model, config.input_shape)
        factors = factors_of(config, make)
        optimizer, schedule = make_optimizer(config, factors), make_schedule(config)
        heads = _heads(config, model)
        state = _abstract_state(config, model, optimizer, heads, partitioner)
        forward = trace_forward(
            model,
            state.params,
            state.batch_stats,
            shape_of_part(config),
            partitioner.mesh.devices.size,
            config.objective.auxiliary_weight,
            config.transfer.freeze_batch_norm,
        )
    _check_network(config, dataset, forward, state.batch_stats)
    heartbeat()
    frozen = frozenset(path for path, factor in (factors or {}).items() if factor == 0)
    traceable = {
        size: make_train_step(
            model,
            optimizer,
            schedule,
            dataset,
            step_options(config, partitioner.axis, size, frozen),
        )
        for size in dict.fromkeys(config.data.progressive_sizes or (config.input_shape[0],))
    }
    if arrays is not None:
        steps = {size: partitioner.compile_train(step, state) for size, step in traceable.items()}
        resident, cost = compile_resident(config, traceable, arrays, partitioner, state)
    else:
        resident = None
        steps, cost = _compile_steps(config, traceable, dataset, partitioner, state)
    heartbeat()
    labels = train.labels if isinstance(train, Split) else None
    eval_step = make_eval_step(
        model, dataset, config.eval_resize, config.objective.auxiliary_weight
    )
    return CompiledTraining(
        config=config,
        model=model,
        dataset=dataset,
        optimizer=optimizer,
        schedule=schedule,
        partitioner=partitioner,
        layers=tuple(kernel_order(model, config.input_shape)),
        heads=heads,
        train_step=steps.pop(config.input_shape[0]),
        eval_step=partitioner.compile_eval(eval_step, state.params, state.batch_stats),
        cost=cost,
        train_split=train,
        test_split=test,
        warnings=tuple(warnings_of(config, forward, labels, dataset.num_classes)),
        train_steps_by_size=steps,
        make=make,
        resident=resident,
    )


def _heads(config: TrainConfig, model: nn.Module) -> tuple[str, ...]:
    weight = config.objective.auxiliary_weight
    return auxiliary_heads(model, config.input_shape) if weight else ()


def _abstract_state(
    config: TrainConfig,
    model: nn.Module,
    optimizer: optax.GradientTransformationExtraArgs,
    heads: tuple[str, ...],
    partitioner: Partitioner,
) -> Any:
    """The shapes of the training state, with their shardings."""
    shapes = jax.eval_shape(lambda: _state(config, model, optimizer, heads))
    return jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s),
        shapes,
        partitioner.state_shardings(shapes),
    )


def _check_network(
    config: TrainConfig, dataset: Dataset, forward: Forward, batch_stats: Any
) -> None:
    """Raise InputError for an output that is no logits, and for batch norms that cannot train."""
    given = getattr(forward.output, "shape", forward.output)
    logits = (shape_of_part(config).shape[0], dataset.num_classes)
    require(given == logits, "the network's output", given, f"logits {logits}")
    check_batch_norm(forward, config)
    check_frozen(forward, batch_stats, config)


def require_kinds(config: object, options: object) -> None:
    """Raise InputError for arguments of other classes."""
    for name, given, kind in (("config", config, TrainConfig), ("options", options, RunOptions)):
        require(isinstance(given, kind), name, given, f"a {kind.__name__}")


def step_options(
    config: TrainConfig,
    axis: str | None = None,
    size: int = 0,
    frozen: frozenset[str] = frozenset(),
) -> StepOptions:
    """The options of the train step. `size`: of its images, if the training has several sizes."""
    names = {field.name for field in dataclasses.fields(StepOptions)} - {
        "policy",
        "axis",
        "image_size",
        "frozen",
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
        frozen=frozen,
    )


def crop_policy_from(config: TrainConfig) -> Crops:
    """How images of encoded splits are cropped for training."""
    return Crops(
        config.data.min_crop_area,
        config.data.resize_shorter_side,
        config.augmentation.augment,
        config.data.eval_crop,
        config.data.repeated_augmentation,
        config.data.resize_backend == "pillow",
    )


def _compile_steps(
    config: TrainConfig,
    steps: Mapping[int, TrainStep],
    dataset: Dataset,
    partitioner: Partitioner,
    state: Any,
) -> tuple[dict[int, Callable[..., Any]], StepCost]:
    """The compiled train step for each image size of the training, and their cost."""
    compiled: dict[int, Callable[..., Any]] = {}
    costs = []
    advice = memory_hint(config.batch_size, config.grad_accum_steps, config.remat)
    for size, step in steps.items():
        shape = (size, size, dataset.shape[2]) if dataset.encoded else dataset.shape
        batch = {
            "image": jax.ShapeDtypeStruct((config.batch_size, *shape), jnp.uint8),
            "label": jax.ShapeDtypeStruct((config.batch_size,), jnp.int32),
        }
        with jax.set_mesh(partitioner.mesh):  # bn_scope="replica" asks it for the number of devices
            compiled[size], cost = compile_step(
                partitioner.compile_train(step, state), state, batch, advice=advice
            )
        check_fits(cost, advice)
        costs.append(cost)
    return compiled, largest_cost(costs)


def open_split(config: TrainConfig, options: RunOptions, name: SplitName) -> Split | EncodedSplit:
    """A split of a configuration's data set, with its policy for images that cannot be decoded."""
    split = load_split(config.described, name, options.data_dir)
    if isinstance(split, Split):
        return split
    policy = {
        "on_decode_error": config.data.on_decode_error,
        "budget": config.data.max_decode_errors,
    }
    return dataclasses.replace(split, threads=options.decode_threads, **policy)


def _state(
    config: TrainConfig,
    model: nn.Module,
    optimizer: optax.GradientTransformationExtraArgs,
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
