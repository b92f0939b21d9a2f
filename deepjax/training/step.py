"""The pure train and eval step: (state, batch) -> (state, metrics), without Python state or I/O."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import Array

from deepjax.analysis import kernel_norms
from deepjax.data.augment import augment, normalize
from deepjax.data.catalog import Dataset
from deepjax.training.guard import all_finite, keep_if
from deepjax.training.losses import cross_entropy, wrong
from deepjax.training.state import TrainState

Batch = dict[str, Array]
Metrics = dict[str, Any]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
EvalStep = Callable[[Any, Any, Batch], Metrics]


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    dataset: Dataset,
    augmented: bool = True,
) -> TrainStep:
    """A train step for batches {"image": (batch, height, width, channels) uint8, "label": (batch,) int32}.

    When loss, gradients or batch statistics are not finite the state stays as it was, `halted` holds the step's number,
    and every later step does nothing: the caller finds out when it next looks, with the last good state in hand.
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        images = batch["image"]
        if augmented:
            images = augment(jax.random.fold_in(state.key, state.step), images, dataset)
        images = normalize(images, dataset)

        def loss_of(params: Any) -> tuple[Array, tuple[Any, Array]]:
            variables = {"params": params, "batch_stats": state.batch_stats}
            output: Any = model.apply(variables, images, train=True, mutable=["batch_stats"])
            logits, updated = output
            loss = jnp.mean(cross_entropy(logits, batch["label"]))
            return loss, (updated.get("batch_stats", {}), logits)

        (loss, (batch_stats, logits)), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        rate = state.learning_rate * schedule(state.step)
        params = jax.tree.map(lambda p, u: p - rate.astype(p.dtype) * u, state.params, updates)

        metrics = {
            "loss": loss,
            "errors": jnp.sum(wrong(logits, batch["label"])),
            "images": jnp.asarray(logits.shape[0], jnp.float32),
            "steps": jnp.ones((), jnp.float32),
            "gradient_norms": kernel_norms(gradients),
        }
        finite = all_finite(loss, gradients, batch_stats)
        new = state.replace(
            step=state.step + 1,
            params=params,
            batch_stats=batch_stats,
            opt_state=opt_state,
            totals=jax.tree.map(jnp.add, state.totals, metrics),
        )
        state_after = keep_if(finite & (state.halted < 0), new, state)
        halted = jnp.where((state.halted < 0) & ~finite, state.step, state.halted)
        return state_after.replace(halted=halted), metrics | {"learning_rate": rate}

    return step


def make_eval_step(model: nn.Module, dataset: Dataset) -> EvalStep:
    """An eval step for batches with a "mask": sums of loss, errors and images over the examples whose mask is 1."""

    def step(params: Any, batch_stats: Any, batch: Batch) -> Metrics:
        images = normalize(batch["image"], dataset)
        logits: Any = model.apply({"params": params, "batch_stats": batch_stats}, images, train=False)
        mask = batch["mask"]
        return {
            "loss": jnp.sum(mask * cross_entropy(logits, batch["label"])),
            "errors": jnp.sum(mask * wrong(logits, batch["label"])),
            "images": jnp.sum(mask),
        }

    return step
