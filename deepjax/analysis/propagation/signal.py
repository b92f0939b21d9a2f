"""Signal propagation plots: mean and variance of a network's activations, block by block.

Brock, De and Smith, "Characterizing signal propagation to close the performance gap in
unnormalized ResNets", 2021 (arXiv:2101.08692), section 3.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from deepjax.analysis.core.calls import Call, all_calls, is_float, is_sum, path_of, visit_calls
from deepjax.analysis.core.module import Model, entry, mode_text, name_of
from deepjax.errors import InputError, unknown_name_error


@dataclasses.dataclass(frozen=True)
class BlockSignal:
    """One call of one block. Channels are the output's last axis; moments are over all others."""

    block: str
    """Path of the module."""
    shape: tuple[int, ...]
    """Shape of its output."""
    squared_mean: float
    """Mean over channels of the squared channel mean."""
    variance: float
    """Mean over channels of the channel variance."""
    branch_variance: float | None
    """The variance of what the block adds to its shortcut in its last sum; None without a sum."""


@dataclasses.dataclass(frozen=True)
class Propagation:
    """Every block in the order in which the forward pass ends it."""

    train: bool
    """Whether batch norm used batch statistics."""
    blocks: tuple[BlockSignal, ...]
    skipped_blocks: tuple[str, ...]
    """Blocks inside nn.scan or nn.remat, whose outputs cannot be read."""
    mode: str = ""
    """How the network was set to that mode, and what it samples and writes in evaluation."""

    @property
    def growth(self) -> float:
        """Growth factor of the variance per block, from a line fitted to its logarithm.

        NaN with fewer than two blocks or a variance that is not above 0.
        """
        variances = np.array([block.variance for block in self.blocks])
        if len(variances) < 2 or not (variances > 0).all():
            return float("nan")
        return float(np.exp(np.polyfit(np.arange(len(variances)), np.log(variances), 1)[0]))

    def rows(self) -> list[dict[str, Any]]:
        """One plain dict per block."""
        return [dataclasses.asdict(block) for block in self.blocks]

    def plot(self, ax: Any = None) -> Any:
        """The three quantities against the block, on a logarithmic axis; returns the Axes."""
        from deepjax.analysis.plots import COLORS, canvas, label_line_ends, plain_log_ticks

        blocks, count = self.blocks, len(self.blocks)
        lines = (
            ("channel variance", "o-", [block.variance for block in blocks]),
            ("squared channel mean", "s--", [block.squared_mean for block in blocks]),
            ("branch variance", "^:", [block.branch_variance or np.nan for block in blocks]),
        )
        first, last = blocks[0].variance, blocks[-1].variance
        title = f"Channel variance {first:.3g}, after {count} blocks {last:.3g}"
        with canvas(ax, 6.0, 4.0) as axes:
            axes.set_yscale("log")
            ends = {}
            for (label, style, values), color in zip(lines, COLORS, strict=False):
                points = [(i, value) for i, value in enumerate(values, 1) if value > 0]
                if points:
                    axes.plot(*zip(*points, strict=True), style, color=color, markersize=4)
                    ends[label] = (points[-1][1], color)
            label_line_ends(axes, ends, count)
            axes.set(title=title, xlabel="block", ylabel="mean over channels")
            plain_log_ticks(axes)
            axes.set_xticks(range(1, count + 1, max(1, count // 10)))
        return axes


def signal_propagation(
    model: Model,
    variables: Any,
    inputs: Array,
    *,
    train: bool = True,
    blocks: Sequence[str] | None = None,
) -> Propagation:
    """Per block: squared channel mean, channel variance, and the variance of the residual branch.

    inputs: the network's input, (batch, height, width, channels) for example, or a tuple of such;
    standard Gaussian in the paper. `blocks`: paths of modules; by default the outermost modules
    with "Block" in the name of their class, or if there are none all modules of the first level. A
    block called several times has a row per call. A residual block shows its branch by a module
    whose call is (shortcut, branch), as for `trace`.
    Raises InputError for an unknown block (naming the nearest), inputs that do not fit, and blocks
    inside nn.scan or nn.remat if they were named or are the only ones; otherwise they are listed in
    `skipped_blocks`.
    Cost: one forward pass, compiled once per network and shape.
    Source: Brock et al. 2021, section 3.
    """
    model, variables = entry(model, variables)
    calls = all_calls(model, variables, inputs, train)
    paths = _default_blocks(calls) if blocks is None else tuple(blocks)
    for path in paths:
        if path not in {call.path for call in calls}:
            raise unknown_name_error("block", path, {call.path for call in calls if call.path})
    own = [call for call in calls if call.path in paths]
    skipped = tuple(dict.fromkeys(call.path for call in own if call.in_transform))
    measured = [call for call in own if not call.in_transform]
    if skipped and (blocks is not None or not measured):
        raise InputError(
            f"blocks {', '.join(skipped)} run inside nn.scan or nn.remat, where their outputs "
            "cannot be read; build the network without it (scan=False), or name blocks outside"
        )
    if not measured:
        raise InputError(
            f"{name_of(model)} calls no modules that return arrays of floats; name its blocks"
        )
    moments = jax.device_get(
        _block_moments(model, variables, inputs, paths=frozenset(paths), train=train)
    )
    rows = tuple(_row(call, *each) for call, each in zip(measured, moments, strict=True))
    return Propagation(train, rows, skipped, mode_text(model, variables, (inputs, None), train))


def _row(call: Call, squared_mean: Any, variance: Any, branch_variance: Any) -> BlockSignal:
    branch = None if branch_variance is None else float(branch_variance)
    return BlockSignal(call.path, call.shape, float(squared_mean), float(variance), branch)


def _default_blocks(calls: Sequence[Call]) -> tuple[str, ...]:
    named = dict.fromkeys(call.path for call in calls if call.path and "Block" in call.kind)
    outermost = [path for path in named if not any(path.startswith(f"{other}/") for other in named)]
    first = dict.fromkeys(call.path for call in calls if call.path and "/" not in call.path)
    inside = dict.fromkeys(call.path for call in calls if call.in_transform)
    return tuple(outermost or first or inside)


@functools.partial(jax.jit, static_argnames=("model", "paths", "train"))
def _block_moments(
    model: Model, variables: Any, inputs: Any, *, paths: frozenset[str], train: bool
) -> list[tuple[Array, Array, Array | None]]:
    """(squared mean, variance, branch variance) of each call of the blocks at these paths."""
    ended: list[tuple[str, bool, tuple[Array, Array]]] = []  # (path, whether a block, moments)

    def record(module: nn.Module, arguments: tuple[Any, ...], output: Array, inside: bool) -> None:
        path = path_of(module)
        if inside:
            return
        if is_sum(module) and is_float(arguments[1]):
            ended.append((path, False, _moments(arguments[1])))
        if path in paths:
            ended.append((path, True, _moments(output)))

    visit_calls(model, variables, inputs, train, record)
    rows: list[tuple[Array, Array, Array | None]] = []
    sums: list[tuple[str, Array]] = []  # path and branch variance of those since the last block
    for path, is_block, (squared_mean, variance) in ended:
        if is_block:
            own = [branch for at, branch in sums if f"{at}/".startswith(f"{path}/")]
            rows.append((squared_mean, variance, own[-1] if own else None))
            sums = []
        else:
            sums.append((path, variance))
    return rows


def _moments(x: Array) -> tuple[Array, Array]:
    """Means over channels of the squared channel mean and of the channel variance, in float32."""
    x, axes = x.astype(jnp.float32), tuple(range(x.ndim - 1))
    return jnp.mean(jnp.square(jnp.mean(x, axis=axes))), jnp.mean(jnp.var(x, axis=axes))
