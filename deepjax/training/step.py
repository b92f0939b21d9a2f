"""The pure train and eval step: (state, batch) -> (state, metrics), without Python state or I/O."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import Array

from deepjax.analysis import kernel_norms
from deepjax.data.augment import augment, normalize, resize
from deepjax.data.catalog import Dataset
from deepjax.training.guard import all_finite, keep_if
from deepjax.training.losses import cross_entropy, wrong
from deepjax.training.state import TrainState

Batch = dict[str, Array]
Metrics = dict[str, Any]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
EvalStep = Callable[[Any, Any, Batch], Metrics]

DROPOUT = 0x64726F70  # "drop": the key of dropout is folded from the step's with this, far from the numbers that a split uses


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    dataset: Dataset,
    augmented: bool = True,
    image_size: int = 0,
    auxiliary_weight: float = 0.3,
) -> TrainStep:
    """A train step for batches {"image": (batch, height, width, channels) uint8, "label": (batch,) int32}.

    `image_size`: pixels a side to which images are resized, 0 for as they are. `auxiliary_weight`: what the loss of each auxiliary
    head adds to the classifier's (GoogLeNet, section 5); with 0 the heads are not computed. The metric "loss" is the classifier's.
    When loss, gradients or batch statistics are not finite the state stays as it was, `halted` holds the step's number,
    and every later step does nothing: the caller finds out when it next looks, with the last good state in hand.
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        images = batch["image"]
        if augmented:
            images = augment(jax.random.fold_in(state.key, state.step), images, dataset)
        images = resize(normalize(images, dataset), image_size)
        mutable = ["batch_stats", *_heads_wanted(auxiliary_weight)]
        rngs = {"dropout": jax.random.fold_in(jax.random.fold_in(state.key, state.step), DROPOUT)}

        def loss_of(params: Any) -> tuple[Array, tuple[Any, Array, Array, dict[str, Metrics]]]:
            variables = {"params": params, "batch_stats": state.batch_stats}
            output: Any = model.apply(variables, images, train=True, mutable=mutable, rngs=rngs)
            logits, updated = output
            loss = jnp.mean(cross_entropy(logits, batch["label"]))
            heads = {name: _of_head(head, batch["label"]) for name, head in updated.get("auxiliary", {}).items()}
            total = loss + auxiliary_weight * sum((head["loss"] for head in heads.values()), jnp.zeros((), jnp.float32))
            return total, (updated.get("batch_stats", {}), logits, loss, heads)

        (total, (batch_stats, logits, loss, heads)), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        rate = state.learning_rate * schedule(state.step)
        params = jax.tree.map(lambda p, u: p - rate.astype(p.dtype) * u, state.params, updates)

        metrics = {
            "loss": loss,
            "errors": jnp.sum(wrong(logits, batch["label"])),
            "images": jnp.asarray(logits.shape[0], jnp.float32),
            "steps": jnp.ones((), jnp.float32),
            "gradient_norms": kernel_norms(gradients),
            "auxiliary": heads,
        }
        finite = all_finite(total, gradients, batch_stats)
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


def make_eval_step(model: nn.Module, dataset: Dataset, image_size: int = 0, auxiliary_weight: float = 0.3) -> EvalStep:
    """An eval step for batches with a "mask": sums of loss, errors and images over the examples whose mask is 1.

    The sums of auxiliary heads are under "auxiliary", by the head's name. The other arguments are those of `make_train_step`.
    """

    def step(params: Any, batch_stats: Any, batch: Batch) -> Metrics:
        images = resize(normalize(batch["image"], dataset), image_size)
        variables = {"params": params, "batch_stats": batch_stats}
        output: Any = model.apply(variables, images, train=False, mutable=_heads_wanted(auxiliary_weight))
        logits, updated = output
        label, mask = batch["label"], batch["mask"]

        def sums(scores: Array) -> Metrics:
            return {"loss": jnp.sum(mask * cross_entropy(scores, label)), "errors": jnp.sum(mask * wrong(scores, label))}

        heads = {name: sums(scores) for name, scores in updated.get("auxiliary", {}).items()}
        return sums(logits) | {"images": jnp.sum(mask), "auxiliary": heads}

    return step


def _heads_wanted(auxiliary_weight: float) -> list[str]:
    """The collection in which a network puts the logits of its auxiliary heads; it computes them only where this is mutable."""
    return ["auxiliary"] if auxiliary_weight > 0 else []


def _of_head(logits: Array, labels: Array) -> Metrics:
    """Mean loss and number of errors of an auxiliary head."""
    return {"loss": jnp.mean(cross_entropy(logits, labels)), "errors": jnp.sum(wrong(logits, labels))}
