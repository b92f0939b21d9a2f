"""Integrated gradients: how much each number of an input contributes to a class score.

Sundararajan, Taly and Yan, "Axiomatic attribution for deep networks", 2017 (arXiv:1703.01365).
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from deepjax.analysis.attribution.montage import MAX_IMAGES, draw_montage, normalised
from deepjax.analysis.attribution.scores import (
    BatchScores,
    Classes,
    class_scores,
    require_scores,
    scores_for,
    sum_of_scores,
)
from deepjax.analysis.core.instrument import instrument
from deepjax.analysis.core.mode import EVAL, Mode
from deepjax.analysis.core.options import Progress
from deepjax.analysis.core.params import widened
from deepjax.analysis.core.result import Result
from deepjax.analysis.network.batch import Batches
from deepjax.analysis.network.function import Function, with_own_names
from deepjax.analysis.network.inputs import floats_of, is_floating, with_floats
from deepjax.analysis.network.module import Model, Network, apply_module, inputs_of, name_of
from deepjax.analysis.network.network import call_parameters, mode_of
from deepjax.analysis.network.task import Task, make_task
from deepjax.backend.conv_layouts import canonicalize_conv_layouts
from deepjax.errors import InputError, require


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class IntegratedGradients(Result):
    """Attributions of the inputs to class scores, and how far they are from complete."""

    attributions: dict[str, np.ndarray]
    """For each input of floats, by its name in the network's call, an array of its shape, with the
    examples of all batches."""
    classes: np.ndarray | None
    """(examples,); None where the outputs have no axis of classes."""
    differences: np.ndarray
    """Score minus that of the baseline: (examples,), or (batches,) where the examples of a batch
    influence each other by batch statistics, or are not along the first axis."""
    sums: np.ndarray
    """Sums of the attributions, of the same shape."""
    inputs: dict[str, np.ndarray]
    """The inputs of floats, by the same names."""
    steps: int
    mode: Mode
    mode_text: str
    data_text: str
    of_examples: bool
    """Whether differences and sums are of single examples, rather than of batches."""

    @property
    def attribution(self) -> np.ndarray:
        """The attributions of the only input of floats; raises InputError where it has several."""
        names = ", ".join(self.attributions)
        if len(self.attributions) != 1:
            raise InputError(f"attribution is of one input; there are {names}: use attributions")
        return self.attributions[names]

    @property
    def gaps(self) -> np.ndarray:
        """Sum of attributions minus difference of scores: 0 for an exact integral."""
        return self.sums - self.differences

    def summary(self) -> dict[str, Any]:
        """The mean difference of scores, and the completeness gap: its maximum, and relative."""
        scale = float(np.abs(self.differences).mean())
        gap = float(np.abs(self.gaps).mean())
        return {
            "mean difference": float(self.differences.mean()),
            "largest gap": float(np.abs(self.gaps).max()),
            "relative gap": gap / scale if scale else math.nan,
            "steps": self.steps,
        }

    def rows(self) -> list[dict[str, Any]]:
        """One dict per example, or per batch: class, difference of scores, sum and gap."""
        parts = zip(self.differences, self.sums, self.gaps, strict=True)
        classes = self.classes if self.of_examples else None
        return [
            {
                "example" if self.of_examples else "batch": index,
                "class": None if classes is None else int(classes[index]),
                "difference": float(difference),
                "sum": float(total),
                "gap": float(gap),
            }
            for index, (difference, total, gap) in enumerate(parts)
        ]

    def plot(self, ax: Any = None, title: str | None = None) -> Any:
        """The first images, and below them their attributions, summed over channels.

        Of inputs that are not images a map examples x positions. Red speaks for the class, blue
        against it; each image has its own scale. Returns the matplotlib Axes.
        """
        from deepjax.analysis.plots import canvas

        at = max(self.inputs, key=lambda name: self.inputs[name].ndim)
        values, images = self.attributions[at], self.inputs[at]
        is_image = values.ndim == 4
        shown = min(len(values), MAX_IMAGES)
        with canvas(ax, 1.5 * shown + 0.6 if is_image else 6.4, 3.6, title) as axes:
            if is_image:
                maps = values[:shown].sum(axis=-1)
                tops = np.quantile(np.abs(maps), 0.99, axis=(1, 2), keepdims=True)
                heat = maps / np.where(tops > 0, tops, 1)
                pictures = normalised(images[:shown])
                colours = {"cmap": "RdBu_r", "vmin": -1, "vmax": 1}
                names = [""] * shown
                if self.classes is not None:
                    names = [f"class {each}" for each in self.classes[:shown]]
                draw_montage(axes, [([pictures], {}), ([heat], colours)], names)
            else:
                _draw_map(axes, values)
            scale = float(np.abs(self.differences).mean())
            gap = 100 * float(np.abs(self.gaps).mean()) / scale if scale else math.nan
            axes.set_title(f"Integrated gradients, gap {gap:.2g} %\n{self.data_text}")
        return axes


@instrument
def integrated_gradients(
    model: Model,
    variables: Any,
    batch: Batches,
    *,
    mode: Mode = EVAL,
    key: Array | None = None,
    chunk: int = 8,
    progress: Progress = None,
    baseline: Any = None,
    classes: Classes = None,
    steps: int = 64,
) -> IntegratedGradients:
    """Attributions (x - b) * mean gradient of the class score on the line from a baseline b to x.

    Of all inputs of floats; the others, such as tokens, are the same along the line. The mean is
    the Gauss-Legendre rule with `steps` points, exact where the score is a polynomial along the
    line of a degree up to 2 steps. The attributions then add up to the score minus that of the
    baseline; how far they do not is the completeness gap in the result. Increase `steps` where it
    is large.
    baseline: None for zeros; a number; or inputs in the form of `batch`, of one example or of as
    many as a batch. classes: one for all, or (examples,); default those that the network predicts
    for the batch. A network with outputs (examples,) has one score. chunk: points computed at once.
    batch: one, or several, whose attributions are joined; also the inputs alone. Random streams are
    the same at all points. In training with batch statistics the examples influence each other:
    attributions are of the sum of a batch's scores.
    Raises InputError for a batch, baseline or classes that do not fit, for inputs without floats,
    and for outputs that are not scores.
    Cost: `steps` forward and backward passes, and two forward passes; memory: `chunk` times the
    activations of a batch. Source: Sundararajan et al. 2017, sections 3 and 5.
    """
    for name, value in (("steps", steps), ("chunk", chunk)):
        fits = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        require(fits, name, value, "an integer from 1 up")
    task = make_task(model, variables, batch, loss=require_scores, mode=mode, key=key, what="score")
    if not floats_of(inputs_of(task.network, task.data.first)):
        raise InputError(
            f"batch has no inputs of floats for {name_of(task.network)}; allowed: images / 255 in "
            "float32, or the embeddings of tokens"
        )
    scores, chosen = class_scores(task, classes)
    rule = _gauss_legendre(steps, min(chunk, steps))
    total, found = len(rule) * len(scores), []
    for index, each in enumerate(scores):
        report = progress and functools.partial(_report, progress, index * len(rule), total)
        found.append(_attributions(task, each, _baselines(task, each, baseline), rule, report))
    single = not (task.has_batch_norm and mode.train) and all(
        jnp.shape(value)[:1] == each.values.shape
        for each in scores
        for value in floats_of(each.inputs)
    )
    inputs = [floats_of(each.inputs) for each in scores]
    names = _names(task, scores[0].inputs)
    return IntegratedGradients(
        _joined(names, [values for values, _ in found]),
        chosen,
        np.concatenate([_sums([each], single) for _, each in found]),
        np.concatenate([_sums(values, single) for values, _ in found]),
        _joined(names, inputs),
        steps,
        mode,
        task.mode_text,
        task.data_text,
        single,
    )


def _report(progress: Callable[[int, int], None], before: int, total: int, done: int) -> None:
    progress(before + done, total)


def _baselines(task: Task, scores: BatchScores, baseline: Any) -> list[Array]:
    """An array for each input of floats, of its shape and dtype."""
    ends = [jnp.asarray(value) for value in floats_of(scores.inputs)]
    if baseline is None:
        return list(map(jnp.zeros_like, ends))
    if isinstance(baseline, int | float) or getattr(baseline, "shape", None) == ():
        return [jnp.full_like(end, baseline) for end in ends]
    given = floats_of(inputs_of(task.network, baseline))
    shapes = [jnp.shape(value) for value in given]
    fits = len(given) == len(ends) and all(
        shape in (end.shape, (1, *end.shape[1:]), end.shape[1:])
        for shape, end in zip(shapes, ends, strict=False)
    )
    allowed = f"None, a number, or floats {[end.shape for end in ends]}, or of one example"
    require(fits, "baseline", f"floats {shapes}", allowed)
    return [
        jnp.broadcast_to(jnp.reshape(value, (-1, *end.shape[1:])), end.shape).astype(end.dtype)
        for value, end in zip(given, ends, strict=True)
    ]


def _gauss_legendre(steps: int, chunk: int) -> list[tuple[Array, Array]]:
    """(points, weights) of the rule on [0, 1] in chunks of one size; the last has weights of 0."""
    points, weights = np.polynomial.legendre.leggauss(steps)
    padded = np.zeros((2, -(-steps // chunk) * chunk))
    padded[:, :steps] = (points + 1) / 2, weights / 2
    parts = padded.reshape(2, -1, chunk)
    return [(jnp.asarray(at), jnp.asarray(by)) for at, by in zip(*parts, strict=True)]


def _attributions(
    task: Task,
    scores: BatchScores,
    start: list[Array],
    rule: list[tuple[Array, Array]],
    report: Callable[[int], None] | None,
) -> tuple[list[Array], Array]:
    """(attributions of each input of floats, scores minus those of the baseline)."""
    ends = [jnp.asarray(value) for value in floats_of(scores.inputs)]
    means = [jnp.zeros_like(widened(end)) for end in ends]
    for done, (points, weights) in enumerate(rule, 1):
        more = _weighted_gradients(
            task.variables,
            scores,
            start,
            points,
            weights,
            model=task.network,
            train=task.mode.train,
        )
        means = [mean + each for mean, each in zip(means, more, strict=True)]
        if report:
            report(done)
    found = [
        (widened(end) - widened(begin)) * mean
        for end, begin, mean in zip(ends, start, means, strict=True)
    ]
    before = scores_for(task, with_floats(scores.inputs, start), scores.classes, scores.key)
    return found, scores.values - before


@functools.partial(jax.jit, static_argnames=("model", "train"))
@canonicalize_conv_layouts
def _weighted_gradients(
    variables: Any,
    scores: BatchScores,
    start: list[Array],
    points: Array,
    weights: Array,
    *,
    model: Network,
    train: bool,
) -> list[Array]:
    """Sum over the points of weight * gradient of the scores, for each input of floats."""
    ends = floats_of(scores.inputs)

    def score(floats: list[Array]) -> Array:
        inputs = with_floats(scores.inputs, floats)
        outputs, _ = apply_module(model, variables, (inputs,), train, scores.key)
        return sum_of_scores(outputs, (inputs, scores.classes))

    def gradient(point: Array) -> list[Array]:
        at = [
            (widened(b) + point.astype(widened(b).dtype) * (widened(x) - widened(b))).astype(
                x.dtype
            )
            for x, b in zip(ends, start, strict=True)
        ]
        return [widened(each) for each in jax.grad(score)(at)]

    return [
        jnp.tensordot(weights.astype(each.dtype), each, 1, precision="highest")
        for each in jax.vmap(gradient)(points)
    ]


def _names(task: Task, inputs: Any) -> list[str]:
    """Names of the inputs of floats: those of the call's arguments, with the place in a tree."""
    others = {*inputs.kwargs, *mode_of(task.network, task.mode.train).kwargs}
    if isinstance(task.network.module, Function):
        others |= {*with_own_names(task.variables)}
    positions = [name for name in call_parameters(task.network) if name not in others]
    leaves, _ = jax.tree_util.tree_flatten_with_path(inputs)
    names = []
    for (_, at, *inside), leaf in leaves:
        if is_floating(leaf):
            name = at.key if hasattr(at, "key") else dict(enumerate(positions)).get(at.idx)
            names.append(f"{name or at.idx}{jax.tree_util.keystr(tuple(inside))}")
    return names


def _joined(names: list[str], batches: Sequence[Sequence[Any]]) -> dict[str, np.ndarray]:
    """The arrays of all batches, along the first axis."""
    arrays = (np.concatenate(list(map(np.atleast_1d, each))) for each in zip(*batches, strict=True))
    return dict(zip(names, arrays, strict=True))


def _sums(values: Sequence[Array], single: bool) -> np.ndarray:
    """(examples,), or (1,): the sum of the arrays."""
    arrays = [np.asarray(value, np.float64) for value in values]
    if single:
        return np.sum([each.reshape(len(each), -1).sum(axis=1) for each in arrays], axis=0)
    return np.array([sum(each.sum() for each in arrays)])


def _draw_map(ax: Any, values: np.ndarray) -> None:
    """Examples x positions, or features of inputs without positions."""
    flat = values.reshape(len(values), -1) if values.ndim < 3 else values.sum(axis=-1)
    flat = flat.reshape(len(flat), -1)
    top = float(np.abs(flat).max()) or 1.0
    image = ax.imshow(
        flat, aspect="auto", cmap="RdBu_r", vmin=-top, vmax=top, interpolation="nearest"
    )
    ax.figure.colorbar(image, ax=ax, label="attribution")
    ax.set(xlabel="feature" if values.ndim < 3 else "position", ylabel="example")
    ax.grid(False)
