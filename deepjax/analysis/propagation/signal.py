"""Signal propagation plots: mean and variance of a network's activations, block by block.

Brock, De and Smith, "Characterizing signal propagation to close the performance gap in
unnormalized ResNets", 2021 (arXiv:2101.08692), section 3.
"""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax import Array

from deepjax.analysis.core.instrument import instrument
from deepjax.analysis.core.layers import Layers, matching_layers
from deepjax.analysis.core.mode import TRAIN, Mode
from deepjax.analysis.core.result import Result
from deepjax.analysis.network.batch import Batches
from deepjax.analysis.network.calls import Call, all_calls
from deepjax.analysis.network.module import Model, batch_key, name_of, no_loss
from deepjax.analysis.network.taps import Site, require_layers, sites
from deepjax.analysis.network.task import Task, make_task
from deepjax.analysis.propagation.block_moments import (
    Moments,
    moments_in_transforms,
    moments_of_calls,
    pooled,
    sum_of_floats,
)
from deepjax.errors import InputError


@dataclasses.dataclass(frozen=True)
class BlockSignal:
    """One call of one block. Channels are the output's last axis; moments are over all others.

    Of several batches, over the examples of all.
    """

    layer: str
    """Path of the module."""
    shape: tuple[int, ...]
    """Shape of its output."""
    squared_mean: float
    """Mean over channels of the squared channel mean."""
    variance: float
    """Mean over channels of the channel variance."""
    branch_variance: float | None
    """The variance of what the block adds to its shortcut in its last sum; None without a sum."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Propagation(Result):
    """Every block in the order in which the forward pass ends it."""

    blocks: tuple[BlockSignal, ...]
    skipped_blocks: tuple[str, ...]
    """Blocks inside nn.scan, nn.vmap or jax.jvp, whose outputs cannot be read run by run."""
    mode: Mode
    mode_text: str
    """How the network was set to that mode, and what it samples and writes in evaluation."""
    data_text: str
    """Number of examples, and kind of batch statistics."""

    @property
    def growth(self) -> float:
        """Growth factor of the variance per block, from a line fitted to its logarithm.

        NaN with fewer than two blocks or a variance that is not above 0.
        """
        variances = np.array([block.variance for block in self.blocks])
        if len(variances) < 2 or not (variances > 0).all():
            return float("nan")
        return float(np.exp(np.polyfit(np.arange(len(variances)), np.log(variances), 1)[0]))

    def summary(self) -> dict[str, Any]:
        """Number of blocks, variance of the first and the last, and growth per block."""
        return {
            "blocks": len(self.blocks),
            "first variance": self.blocks[0].variance,
            "last variance": self.blocks[-1].variance,
            "growth": self.growth,
        }

    def rows(self) -> list[dict[str, Any]]:
        """One plain dict per block."""
        return [dataclasses.asdict(block) for block in self.blocks]

    def plot(self, ax: Any = None, title: str | None = None) -> Any:
        """The three quantities against the block, on a logarithmic axis; returns the Axes."""
        from deepjax.analysis.plots import COLORS, canvas, label_line_ends, plain_log_ticks

        blocks, count = self.blocks, len(self.blocks)
        lines = (
            ("channel variance", "o-", [block.variance for block in blocks]),
            ("squared channel mean", "s--", [block.squared_mean for block in blocks]),
            ("branch variance", "^:", [block.branch_variance or np.nan for block in blocks]),
        )
        first, last = blocks[0].variance, blocks[-1].variance
        finding = f"Channel variance {first:.3g}, after {count} blocks {last:.3g}"
        with canvas(ax, 6.0, 4.0, title) as axes:
            axes.set_yscale("log")
            ends = {}
            for (label, style, values), color in zip(lines, COLORS, strict=False):
                points = [(i, value) for i, value in enumerate(values, 1) if value > 0]
                if points:
                    axes.plot(*zip(*points, strict=True), style, color=color, markersize=4)
                    ends[label] = (points[-1][1], color)
            label_line_ends(axes, ends, count)
            axes.set_title(f"{finding}\n{self.data_text}")
            axes.set(xlabel="block", ylabel="mean over channels")
            plain_log_ticks(axes)
            axes.set_xticks(range(1, count + 1, max(1, count // 10)))
        return axes


@instrument
def signal_propagation(
    model: Model,
    variables: Any,
    batch: Batches,
    *,
    mode: Mode = TRAIN,
    layers: Layers = None,
    key: Array | None = None,
) -> Propagation:
    """Per block: squared channel mean, channel variance, and the variance of the residual branch.

    batch: also the inputs alone, standard Gaussian in the paper; of several batches the moments are
    those of all examples. layers: paths or patterns of the blocks; by default the outermost modules
    with "Block" in the name of their class, or if there are none all modules of the first level. A
    block called several times has a row per call. A residual block shows its branch by a
    module whose call is (shortcut, branch), as for `trace`.
    Raises InputError for an unknown layer (naming the nearest), inputs that do not fit, a function,
    which has no layers, and blocks inside nn.scan if they were named or are the only ones;
    otherwise they are listed in `skipped_blocks`.
    Cost: one forward pass, compiled once per network and shape; with blocks inside nn.remat, nn.jit
    or the like one or two more.
    Source: Brock et al. 2021, section 3.
    """
    task = make_task(model, variables, batch, loss=no_loss, mode=mode, key=key)
    require_layers(task.network, "signal_propagation")
    calls = all_calls(task.network, task.variables, task.data.first, mode.train)
    paths = _default_blocks(calls) if layers is None else _named_blocks(calls, layers)
    own = [call for call in calls if call.path in paths]
    if not own:
        raise InputError(
            f"{name_of(task.network)} calls no modules that return arrays of floats; name its "
            "blocks by layers="
        )
    rest = {path: iter(each) for path, each in _moments(task, own).items()}
    found = [(call, next(rest.get(call.path, iter(())), None)) for call in own]
    rows = tuple(_row(call, moments) for call, moments in found if moments is not None)
    skipped = tuple(dict.fromkeys(call.path for call, moments in found if moments is None))
    if skipped and (layers is not None or not rows):
        raise InputError(
            f"layers {', '.join(skipped)} run inside nn.scan, nn.vmap, jax.jvp or the like, "
            "where the output of one run cannot be read, or nothing leads from them to the "
            "network's output; build the network without it (scan=False), or name layers outside"
        )
    return Propagation(rows, skipped, mode, task.mode_text, task.data_text)


def _moments(task: Task, own: Sequence[Call]) -> dict[str, list[list[Moments]]]:
    """Moments by path, call and batch, of the blocks whose outputs can be read."""
    variables, data = task.variables, task.data
    options: dict[str, Any] = {"model": task.network, "train": task.mode.train}
    outside = [call.path for call in own if not call.in_transform]
    inside = frozenset(call.path for call in own) - set(outside)
    at = _sites_inside(task, inside) if inside else ()
    found: dict[str, list[list[Moments]]] = defaultdict(list)
    calls: list[list[Moments]] = [[] for _ in outside]
    for path, each in zip(outside, calls, strict=True):
        found[path].append(each)
    for index in range(data.batches):
        one = jax.tree.map(lambda leaf, i=index: leaf[i], data.stacked)
        key = batch_key(task.key, index, data.batches)
        if outside:
            measured = moments_of_calls(variables, one, key, paths=frozenset(outside), **options)
            for each, moments in zip(calls, jax.device_get(measured), strict=True):
                each.append(moments)
        if at:
            try:
                runs = moments_in_transforms(variables, one, key, at=at, paths=inside, **options)
            except (ValueError, NotImplementedError):
                return found  # a loop without backward pass
            for path, (count, moments) in jax.device_get(runs).items():
                if count == 1:
                    found.setdefault(path, [[]])[0].append(moments)
    return found


def _sites_inside(task: Task, inside: frozenset[str]) -> tuple[Site, ...]:
    """The blocks at these paths, of one shape each, and the residual sums inside transforms."""
    first, train = task.data.first, task.mode.train
    every = sites(task.network, task.variables, first, sum_of_floats, train)
    own = [site for site in every if site.in_transform and not site.output]
    shapes = Counter(site.layer for site in own)
    single = {path for path in inside if shapes[path] == 1}
    return tuple(site for site in own if site.is_sum or site.layer in single)


def _row(call: Call, batches: Sequence[Moments]) -> BlockSignal:
    outputs, branches = zip(*batches, strict=True)
    branch = None if branches[0] is None else pooled(branches)[1]
    return BlockSignal(call.path, call.shape, *pooled(outputs), branch)


def _named_blocks(calls: Sequence[Call], layers: Layers) -> tuple[str, ...]:
    return tuple(matching_layers(layers, dict.fromkeys(call.path for call in calls if call.path)))


def _default_blocks(calls: Sequence[Call]) -> tuple[str, ...]:
    named = dict.fromkeys(call.path for call in calls if call.path and "Block" in call.kind)
    outermost = [path for path in named if not any(path.startswith(f"{other}/") for other in named)]
    first = dict.fromkeys(call.path for call in calls if call.path and "/" not in call.path)
    inside = dict.fromkeys(call.path for call in calls if call.in_transform)
    return tuple(outermost or first or inside)
