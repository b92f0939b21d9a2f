"""The pure train and eval step, without Python state or I/O."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import Array, lax

from deepjax.analysis import kernel_norms
from deepjax.backend.conv_layouts import canonicalize_conv_layouts
from deepjax.data.augment.basic import normalize, resize
from deepjax.data.catalog import Dataset
from deepjax.training.step.guard import all_finite, judge, labels_valid
from deepjax.training.step.losses import (
    binary_cross_entropy,
    label_cross_entropy,
    soft_cross_entropy,
    top_k_error,
)
from deepjax.training.step.patterns import stop_frozen
from deepjax.training.step.preprocess import Batch, StepOptions, preprocess_batch
from deepjax.training.step.remat import rematerialized
from deepjax.training.step.state import TrainState

Metrics = dict[str, Any]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
EvalStep = Callable[[Any, Any, Batch], Metrics]
Gradients = tuple[Array, Any, Any, Metrics]  # total loss, gradients, batch statistics, metrics

DROPOUT = 0x64726F70  # "drop": folded into a step's key, far from the numbers that a split uses
TOP5_FROM = 10  # classes from which the top-5 error is measured


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformationExtraArgs,
    schedule: optax.Schedule,
    dataset: Dataset,
    options: StepOptions = StepOptions(),  # noqa: B008  # frozen
) -> TrainStep:
    """A train step for batches {"image", "label"}.

    image: (batch, height, width, channels) uint8; label: (batch,) int32. `optimizer`: its update
    takes `learning_rate`. `auxiliary_weight`: the weight of the loss of each auxiliary head
    (GoogLeNet, section 5); with 0 they are not computed. Metric "loss": the main classifier's.
    `grad_accum_steps`: gradients are the mean over so many parts of the batch; batch norm uses the
    statistics of a part.

    If loss, gradients, batch statistics, labels, new parameters or optimizer state are bad, a step
    leaves parameters, statistics and optimizer unchanged, and `guard` records it (`step.guard`).
    After a halt every further step does nothing, so the last good state is kept until the caller
    reads the guard. Raises AssertionError, while it is traced, for a batch of other shapes.
    """
    gradients_of = _gradients(model, dataset.num_classes, options)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        _check_batch(batch, dataset)
        key = jax.random.fold_in(state.key, state.step)
        labels = batch["label"]
        parts = _parts(preprocess_batch(key, batch, dataset, options), options.grad_accum_steps)
        total, gradients, batch_stats, metrics = gradients_of(
            state.params, state.batch_stats, parts, key
        )
        total, gradients, batch_stats, metrics = _over_devices(
            options.axis, total, gradients, batch_stats, metrics
        )

        rate = state.learning_rate * schedule(state.step)
        updates, opt_state = optimizer.update(
            gradients, state.opt_state, state.params, learning_rate=rate
        )
        params = optax.apply_updates(state.params, updates)
        metrics |= {"steps": jnp.ones((), jnp.float32), "gradient_norms": kernel_norms(gradients)}

        finite = all_finite(total, gradients, batch_stats, params, opt_state)
        good = finite & _all_reduce_and(options.axis, labels_valid(labels, dataset.num_classes))
        totals = _reset_at_epoch_start(state, options.steps_per_epoch)
        counts, guard = judge(
            state.guard, options.policy, state.step, good, metrics["loss"], gradients
        )
        new = state.replace(
            params=params,
            batch_stats=batch_stats,
            opt_state=opt_state,
            ema=_ema_update(
                state.ema, {"params": params, "batch_stats": batch_stats}, options.ema_decay
            ),
            totals=jax.tree.map(jnp.add, totals, metrics),
        )
        kept = state.replace(totals=optax.tree.where(guard.halted < 0, totals, state.totals))
        after = optax.tree.where(counts, new, kept)
        return after.replace(
            step=state.step + (guard.halted < 0).astype(jnp.int32), guard=guard
        ), metrics | {"learning_rate": rate, "gradient_norm": _norm_over(metrics)}

    return canonicalize_conv_layouts(step)


def classifier_loss(
    logits: Array, part: Batch, kind: Literal["softmax", "sigmoid"] = "softmax"
) -> Array:
    """Mean cross-entropy with the targets of a preprocessed batch: labels, or a value per class.

    "sigmoid" needs a value per class.
    """
    target = part["target"]
    if kind == "sigmoid":
        return jnp.mean(binary_cross_entropy(logits, target))
    return jnp.mean(
        label_cross_entropy(logits, target)
        if target.ndim == 1
        else soft_cross_entropy(logits, target)
    )


def make_eval_step(
    model: nn.Module, dataset: Dataset, image_size: int = 0, auxiliary_weight: float = 0.3
) -> EvalStep:
    """An eval step for batches with a "mask": sums of loss, errors and images where the mask is 1.

    From 10 classes on also "top5_errors". The loss is cross-entropy over the classes, whatever the
    training loss. The sums of auxiliary heads are under "auxiliary", by the head's name. The other
    arguments are those of `make_train_step`.
    """

    def step(params: Any, batch_stats: Any, batch: Batch) -> Metrics:
        _check_batch(batch, dataset)
        images = resize(normalize(batch["image"], dataset), image_size)
        variables = {"params": params, "batch_stats": batch_stats}
        output: Any = model.apply(
            variables, images, train=False, mutable=mutable_aux_collection(auxiliary_weight)
        )
        logits, updated = output
        label, mask = batch["label"], batch["mask"]

        def sums(scores: Array) -> Metrics:
            return {
                "loss": jnp.sum(mask * label_cross_entropy(scores, label)),
                "errors": jnp.sum(mask * top_k_error(scores, label)),
            }

        heads = {name: sums(scores) for name, scores in updated.get("auxiliary", {}).items()}
        top5 = (
            {"top5_errors": jnp.sum(mask * top_k_error(logits, label, 5))}
            if dataset.num_classes >= TOP5_FROM
            else {}
        )
        return sums(logits) | top5 | {"images": jnp.sum(mask), "auxiliary": heads}

    return step


def _check_batch(batch: Batch, dataset: Dataset) -> None:
    """Assert ranks and shapes of a batch: errors that broadcasting would hide."""
    import chex  # loaded with the first trace: no other part of the package needs it

    images, labels = batch["image"], batch["label"]
    chex.assert_rank((images, labels), (4, 1))
    chex.assert_equal_shape_prefix((images, labels), 1)
    chex.assert_axis_dimension(images, 3, dataset.shape[2])
    if "mask" in batch:
        chex.assert_equal_shape((batch["mask"], labels))


def _gradients(model: nn.Module, classes: int, options: StepOptions) -> Callable[..., Gradients]:
    """(params, batch_stats, parts, key) -> the mean over the parts, which run in sequence."""
    mutable = ["batch_stats", *mutable_aux_collection(options.auxiliary_weight)]

    def loss_of(
        params: Any, batch_stats: Any, part: Batch, key: Array
    ) -> tuple[Array, tuple[Any, Metrics]]:
        params = stop_frozen(params, options.frozen) if options.frozen else params
        rngs = {"dropout": _per_device_key(options.axis, jax.random.fold_in(key, DROPOUT))}
        variables = {"params": params, "batch_stats": batch_stats}
        output: Any = model.apply(variables, part["image"], train=True, mutable=mutable, rngs=rngs)
        logits, updated = output
        metrics = _head_metrics(logits, part, options.loss)
        heads = {
            name: _head_metrics(head, part, options.loss)
            for name, head in updated.get("auxiliary", {}).items()
        }
        total = metrics["loss"] + options.auxiliary_weight * sum(
            (h["loss"] for h in heads.values()), jnp.zeros((), jnp.float32)
        )
        metrics |= {"images": jnp.asarray(logits.shape[0], jnp.float32), "auxiliary": heads}
        return total, (updated.get("batch_stats", {}), metrics)

    value_and_grad = jax.value_and_grad(rematerialized(loss_of, options.remat), has_aux=True)

    def of_part(params: Any, batch_stats: Any, part: Batch, key: Array) -> Gradients:
        (total, (batch_stats, metrics)), gradients = value_and_grad(params, batch_stats, part, key)
        return total, gradients, batch_stats, metrics

    def over_parts(params: Any, batch_stats: Any, parts: Batch, key: Array) -> Gradients:
        if options.grad_accum_steps == 1:
            return of_part(params, batch_stats, parts, key)

        def body(
            carry: tuple[Any, Any], numbered: tuple[Array, Batch]
        ) -> tuple[tuple[Any, Any], tuple[Array, Metrics]]:
            stats, sums = carry
            number, part = numbered
            total, gradients, stats, metrics = of_part(
                params, stats, part, jax.random.fold_in(key, number)
            )
            return (stats, jax.tree.map(jnp.add, sums, gradients)), (total, metrics)

        start = (batch_stats, jax.tree.map(jnp.zeros_like, params))
        numbered = (jnp.arange(options.grad_accum_steps), parts)
        (batch_stats, sums), (totals, metrics) = lax.scan(body, start, numbered)
        gradients = jax.tree.map(lambda leaf: leaf / options.grad_accum_steps, sums)
        return jnp.mean(totals), gradients, batch_stats, _reduce_metrics(jnp.mean, jnp.sum, metrics)

    return over_parts


def _parts(batch: Batch, count: int) -> Batch:
    """(batch, ...) -> (count, batch / count, ...): each device keeps its images."""
    if count == 1:
        return batch
    return {
        name: jnp.swapaxes(leaf.reshape(-1, count, *leaf.shape[1:]), 0, 1)
        for name, leaf in batch.items()
    }


def _head_metrics(logits: Array, part: Batch, kind: Literal["softmax", "sigmoid"]) -> Metrics:
    """Mean loss and number of errors of a classifier, main or auxiliary."""
    return {
        "loss": classifier_loss(logits, part, kind),
        "errors": jnp.sum(top_k_error(logits, part["label"])),
    }


def _reduce_metrics(
    mean: Callable[[Array], Array], total: Callable[[Array], Array], metrics: Metrics
) -> Metrics:
    """Metrics of several parts as those of one: losses are means, all else are counts."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: (mean if path[-1].key == "loss" else total)(leaf), metrics
    )


def _over_devices(
    axis: str | None, total: Array, gradients: Any, batch_stats: Any, metrics: Metrics
) -> Gradients:
    """Under pmap: the means over its devices."""
    if axis is None:
        return total, gradients, batch_stats, metrics
    total, gradients, batch_stats = lax.pmean((total, gradients, batch_stats), axis)
    return (
        total,
        gradients,
        batch_stats,
        _reduce_metrics(
            lambda leaf: lax.pmean(leaf, axis), lambda leaf: lax.psum(leaf, axis), metrics
        ),
    )


def _norm_over(metrics: Metrics) -> Array:
    """The norm over all kernels, from those of each; no reduction over parameters is added."""
    norms = [*metrics["gradient_norms"].values()]
    return jnp.linalg.norm(jnp.stack(norms)) if norms else jnp.zeros((), jnp.float32)


def _all_reduce_and(axis: str | None, condition: Array) -> Array:
    """Whether a condition holds on every device."""
    return condition if axis is None else lax.pmin(condition.astype(jnp.int32), axis) == 1


def _per_device_key(axis: str | None, key: Array) -> Array:
    """Under pmap: a key of the device's own."""
    return key if axis is None else jax.random.fold_in(key, lax.axis_index(axis))


def _reset_at_epoch_start(state: TrainState, steps_per_epoch: int) -> Any:
    """The epoch's sums so far: zero before its first step."""
    if not steps_per_epoch:
        return state.totals
    zeros = jax.tree.map(jnp.zeros_like, state.totals)
    return optax.tree.where(state.step % steps_per_epoch != 0, state.totals, zeros)


def _ema_update(averages: Any, values: Any, decay: float) -> Any:
    """Exponential averages after one more value; empty if none are kept.

    The average of a value that does not change is that value, without rounding.
    """
    if not averages:
        return averages
    updated = optax.incremental_update(values, averages, 1.0 - decay)
    return jax.tree.map(
        lambda new, old, value: jnp.where(old == value, old, new), updated, averages, values
    )


def mutable_aux_collection(auxiliary_weight: float) -> list[str]:
    """The collection into which a network sows logits of auxiliary heads, if it is mutable."""
    return ["auxiliary"] if auxiliary_weight > 0 else []
