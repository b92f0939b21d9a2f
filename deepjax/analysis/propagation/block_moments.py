"""Channel means and variances of the outputs of blocks, also inside nn.remat and nn.jit."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from deepjax.analysis.network.calls import is_float, visit_calls
from deepjax.analysis.network.layer import Layer
from deepjax.analysis.network.module import Batch, Network
from deepjax.analysis.network.taps import Measure, Site, loss_grads_and_measurements
from deepjax.backend.conv_layouts import canonicalize_conv_layouts

Channels = tuple[Any, Any]
"""Mean and variance of each channel, the last axis, over all others; in float32."""
Moments = tuple[Channels, Channels | None]
"""Of a block's output, and of what it adds to its shortcut in its last sum."""


@functools.partial(jax.jit, static_argnames=("model", "paths", "train"))
def moments_of_calls(
    variables: Any,
    batch: Batch,
    key: Array,
    *,
    model: Network,
    paths: frozenset[str],
    train: bool,
) -> list[Moments]:
    """Those of each call of the blocks at these paths, without those inside transforms."""
    ended: list[tuple[str, bool, Channels]] = []  # (path, whether a block, moments)

    def record(layer: Layer, arguments: tuple[Any, ...], output: Array) -> None:
        if layer.in_transform:
            return
        if layer.is_sum and is_float(arguments[1]):
            ended.append((layer.label, False, _channels(arguments[1])))
        if layer.label in paths:
            ended.append((layer.label, True, _channels(output)))

    visit_calls(model, variables, batch, train, record, key)
    return [moments for _, moments in _with_branches(ended)]


@functools.partial(jax.jit, static_argnames=("model", "at", "paths", "train"))
@canonicalize_conv_layouts
def moments_in_transforms(
    variables: Any,
    batch: Batch,
    key: Array,
    *,
    model: Network,
    at: tuple[Site, ...],
    paths: frozenset[str],
    train: bool,
) -> dict[str, tuple[Array, Moments]]:
    """Number of runs, and sums over the runs, of each block at these paths.

    at: blocks and residual sums. The values leave a transform as the gradients of zeros. A block
    from which nothing leads to the network's output has no run.
    """
    measured = loss_grads_and_measurements(
        model, variables, batch, sum_of_floats, train, key, at, _MEASURE
    )[2]
    runs: dict[str, Array] = {}
    ended: list[tuple[str, bool, Channels]] = []
    for site, ((count, output, branch), _) in zip(at, measured, strict=True):
        if branch:
            ended.append((site.layer, False, branch))
        if site.layer in paths:
            ended.append((site.layer, True, output))
            runs[site.layer] = count
    return {path: (runs[path], moments) for path, moments in _with_branches(ended)}


def sum_of_floats(outputs: Any, batch: Batch) -> Array:
    """A number that depends on everything that the network returns."""
    floats = [leaf for leaf in jax.tree.leaves(outputs) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    parts = [jnp.sum(jnp.real(leaf).astype(jnp.float32)) for leaf in floats]
    return functools.reduce(jnp.add, parts, jnp.zeros((), jnp.float32))


def pooled(batches: Sequence[Channels]) -> tuple[float, float]:
    """Means over channels of the squared mean and of the variance, over all examples of batches."""
    means, variances = (np.array(each, np.float64) for each in zip(*batches, strict=True))
    mean = means.mean(axis=0)
    variance = variances.mean(axis=0) + np.square(means - mean).mean(axis=0)
    return float(np.square(mean).mean()), float(variance.mean())


def _with_branches(ended: Sequence[tuple[str, bool, Channels]]) -> list[tuple[str, Moments]]:
    """Blocks in order, each with the last sum inside since the block before."""
    rows: list[tuple[str, Moments]] = []
    sums: list[tuple[str, Channels]] = []
    for path, is_block, channels in ended:
        if is_block:
            own = [branch for at, branch in sums if f"{at}/".startswith(f"{path}/")]
            rows.append((path, (channels, own[-1] if own else None)))
            sums = []
        else:
            sums.append((path, channels))
    return rows


def _channels(x: Array) -> Channels:
    x, axes = jnp.real(x).astype(jnp.float32), tuple(range(x.ndim - 1))
    return jnp.mean(x, axis=axes), jnp.var(x, axis=axes)


def _recorded(arguments: tuple[Any, ...], output: Array) -> Any:
    """(1, moments of the output, those of the branch of what may be a sum)."""
    is_pair = len(arguments) == 2 and all(map(is_float, arguments))
    branch = _channels(arguments[1]) if is_pair else ()
    return jnp.ones((), jnp.float32), _channels(output), branch


def _nothing(cotangent: Array) -> tuple[()]:
    return ()


_MEASURE = Measure(_recorded, _nothing)
