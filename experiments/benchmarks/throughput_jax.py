"""deepjax, and its networks from flax's layers with flax's ImageNet step: for throughput.py."""

import contextlib
import functools
import importlib.metadata
import sys
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import optax
from block_server import Block, serve
from flax import linen as nn
from jax import lax
from throughput_task import DECAY, HEADS, MEAN, MOMENTUM, SMOOTHING, STD, Task, given

from deepjax.analysis import init_variables
from deepjax.data import Dataset, register
from deepjax.data.augment.basic import normalize
from deepjax.models import create_model, googlenet, inception_v3, resnet, vgg
from deepjax.models.layers import basic, norms, pooling
from deepjax.models.weights.convert import to_torch
from deepjax.training.build import step_options
from deepjax.training.config import train_config
from deepjax.training.distributed.sharding import Partitioner, make_mesh
from deepjax.training.memory import compile_step
from deepjax.training.step.optimizers import decay_mask, make_optimizer, make_schedule
from deepjax.training.step.state import TrainState, auxiliary_heads, init_state, split_seed
from deepjax.training.step.step import TrainStep, make_train_step

Step = Callable[[Any], tuple[Any, Any]]  # state -> (state, loss)


def main() -> None:
    """Serve a block of deepjax, of deepjax without a lever, or with --flax of flax's example."""
    task, name, flags = given(), sys.argv[2], sys.argv[3:]
    with changed(*flags):
        block, losses = (flax_steps if "--flax" in flags else own_steps)(task)
        versions = ", ".join(
            f"{package} {importlib.metadata.version(package)}"
            for package in ("jax", "jaxlib", "flax")
        )
        serve({name: block}, versions, losses={name: losses}, device=jax.devices()[0].device_kind)


def own_step(task: Task) -> tuple[nn.Module, optax.GradientTransformation, TrainStep]:
    """The network, its optimizer, and deepjax's train step of both."""
    data, model = dataset(task), network(task)
    fields = {
        "schedule": "constant",
        "warmup_epochs": 0.0,
        "augment": False,
        "label_smoothing": SMOOTHING,
        "auxiliary_weight": HEADS,
    }
    rates: dict[str, Any] = {
        "learning_rate": task.learning_rate,
        "momentum": MOMENTUM,
        "weight_decay": DECAY,
    }
    config = train_config(
        task.model,
        data.name,
        batch_size=task.batch_size,
        precision=task.precision,
        **fields,
        **rates,
    )
    optimizer = make_optimizer(config)
    return (
        model,
        optimizer,
        make_train_step(model, optimizer, make_schedule(config), data, step_options(config)),
    )


def own_state(task: Task, model: nn.Module, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    shape = dataset(task).shape
    return init_state(model, optimizer, shape, task.learning_rate, 0, auxiliary_heads(model, shape))


def own_steps(task: Task) -> tuple[Block, list[float]]:
    """Deepjax's train step as the trainer compiles it, and the network as evaluation applies it."""
    model, optimizer, step = own_step(task)
    state = own_state(task, model, optimizer)
    if not task.has_weights():  # every process of deepjax's draws the same
        task.keep_weights(
            to_torch(task.model, {"params": state.params, "batch_stats": state.batch_stats})
        )
    if task.inference:
        return inference(task, model, state.params, state.batch_stats, placed(task)["image"])
    spread = Partitioner(make_mesh())
    images, labels = task.batch()
    state, batch = spread.put_state(state), spread.put_batch({"image": images, "label": labels})
    compiled, _ = compile_step(spread.compile_train(step, state), state, batch)

    def advance(state: Any) -> tuple[Any, Any]:
        state, metrics = compiled(state, batch)
        return state, metrics["loss"]

    return training(task, advance, state)


def flax_steps(task: Task) -> tuple[Block, list[float]]:
    """The step of flax's ImageNet example: weight penalty in the loss, optax SGD, no donation.

    In its strongest form: jit instead of pmap, images as bytes, bfloat16 without loss scaling,
    symmetric padding.
    """
    model, batch = network(task), placed(task)
    # Initialised as in `init_state`.
    variables = init_variables(model, split_seed(0)[0], (1, task.size, task.size, 3))
    params, statistics = variables["params"], variables["batch_stats"]
    if task.inference:
        return inference(task, model, params, statistics, batch["image"])
    optimizer = optax.sgd(task.learning_rate, MOMENTUM, nesterov=True)
    kernels = decay_mask(params)

    @jax.jit
    def step(state: Any, batch: Any) -> tuple[Any, Any]:
        params, statistics, opt_state = state
        targets = optax.smooth_labels(jax.nn.one_hot(batch["label"], task.classes), SMOOTHING)

        def loss_of(params: Any) -> tuple[Any, Any]:
            variables = {"params": params, "batch_stats": statistics}
            output: Any = model.apply(
                variables,
                normalize(batch["image"], dataset(task)),
                train=True,
                mutable=["batch_stats", "auxiliary"],
            )
            logits, new = output
            losses = [
                jnp.mean(optax.softmax_cross_entropy(x, targets))
                for x in (logits, *new.get("auxiliary", {}).values())
            ]
            chosen = jax.tree.map(
                lambda kernel, leaf: jnp.sum(jnp.square(leaf)) if kernel else 0.0, kernels, params
            )
            penalty = 0.5 * DECAY * sum(jax.tree.leaves(chosen))
            return losses[0] + HEADS * sum(losses[1:]) + penalty, (
                losses[0],
                new["batch_stats"],
                logits,
            )

        (_, (loss, new, logits)), gradients = jax.value_and_grad(loss_of, has_aux=True)(params)
        updates, opt_state = optimizer.update(gradients, opt_state)
        metrics = {"loss": loss, "accuracy": jnp.mean(jnp.argmax(logits, -1) == batch["label"])}
        return (optax.apply_updates(params, updates), new, opt_state), metrics

    def advance(state: Any) -> tuple[Any, Any]:
        state, metrics = step(state, batch)
        return state, metrics["loss"]

    return training(task, advance, (params, statistics, optimizer.init(params)))


def training(task: Task, advance: Step, state: Any) -> tuple[Block, list[float]]:
    """A block of steps from where the last one ended; and the losses of the first steps."""
    losses = []
    for _ in range(task.checked):
        state, loss = advance(state)
        losses.append(float(loss))

    def block() -> int:
        nonlocal state
        for _ in range(task.steps):
            state, _ = advance(state)
        jax.block_until_ready(state)
        return task.steps * task.batch_size

    return block, losses


def inference(
    task: Task, model: nn.Module, params: Any, statistics: Any, images: Any
) -> tuple[Block, list[float]]:
    """A block of applications; "losses" is the mean logit's size."""
    data, variables = dataset(task), {"params": params, "batch_stats": statistics}
    apply: Any = jax.jit(
        lambda variables, images: model.apply(variables, normalize(images, data), train=False)
    )

    def block() -> int:
        for _ in range(task.steps):
            jax.block_until_ready(apply(variables, images))
        return task.steps * task.batch_size

    return block, [float(jnp.mean(jnp.abs(apply(variables, images))))]


def network(task: Task) -> nn.Module:
    """The network without dropout."""
    kinds: dict[str, Any] = {"dropout": 0.0, "auxiliary_dropout": 0.0}
    plain = create_model(task.model, num_classes=task.classes, dtype=jnp.dtype(task.precision))
    return plain.clone(**{name: value for name, value in kinds.items() if hasattr(plain, name)})


@functools.cache
def dataset(task: Task) -> Dataset:
    """What the step needs to know of the images."""
    shape = (task.size, task.size, 3)
    name = f"random_{task.size}_{task.classes}"
    return register(
        Dataset(name, shape, task.classes, 50_000, 10_000, MEAN, STD, False, 0, "random numbers")
    )


def placed(task: Task) -> dict[str, jax.Array]:
    """The batch on the device."""
    images, labels = task.batch()
    return {"image": jax.device_put(images), "label": jax.device_put(labels)}


@contextlib.contextmanager
def changed(*flags: str) -> Iterator[None]:
    """The networks and their step with a replacement for one lever, under the usual names."""
    pools = [
        (module, "max_pool", flax_max_pool) for module in (resnet, googlenet, inception_v3, vgg)
    ]
    norm, convolution = (
        (norms, "BatchNorm", flax_norm),
        (basic, "convolve", lax.conv_general_dilated),
    )
    others: dict[str, list[tuple[Any, str, Any]]] = {
        "--flax": [convolution, norm, *pools],
        "--convolutions": [convolution],
        "--norm": [norm],
        "--pool": pools,
        "--copied": [(jax, "jit", functools.partial(undonated, jax.jit))],
    }
    with contextlib.ExitStack() as stack:
        for flag in flags:
            for module, name, value in others[flag]:
                stack.enter_context(mock.patch.object(module, name, value))
        yield


def undonated(jit: Any, fun: Any, **given: Any) -> Any:
    """jax.jit with every argument kept."""
    return jit(fun, **{name: value for name, value in given.items() if name != "donate_argnums"})


def flax_norm(
    train: bool, bn_scope: str, dtype: Any, param_dtype: Any, epsilon: float, **named: Any
) -> nn.BatchNorm:
    """Flax's batch normalisation with the settings of its example."""
    return nn.BatchNorm(
        not train, momentum=0.9, epsilon=epsilon, dtype=dtype, param_dtype=param_dtype, **named
    )


def flax_max_pool(
    x: jax.Array, window: int, stride: int, padding: int = 0, ceil: bool = False
) -> jax.Array:
    """Flax's max pool, with what a last window that hangs over needs."""
    padded: Any = [
        (padding, pooling._output_extent(size, window, stride, padding, ceil)[1])
        for size in x.shape[1:3]
    ]
    return nn.max_pool(x, (window, window), (stride, stride), padded)


if __name__ == "__main__":
    main()
