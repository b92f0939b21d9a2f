"""Backend-specific lowering of convolutions, equal to the plain one up to rounding."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from deepjax.backend.lowering import in_reference_lowering
from deepjax.errors import require
from deepjax.models.layers import valid_region

Padding = Sequence[tuple[int, int]]


def convolve(
    x: Array, kernel: Array, strides: Sequence[int], padding: Padding | str, **options: Any
) -> Array:
    """lax.conv_general_dilated, as a matrix product on CPU or space-to-depth on GPU where faster.

    x: (batch, height, width, in), kernel: (rows, columns, in, out). Raises InputError for the
    padding "SAME" where images are smaller than their array, whose own size it depends on.
    """
    if isinstance(padding, str):
        require(not valid_region.is_active(), "padding", padding, "symmetric for dense evaluation")
        padding = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    if valid_region.is_active():
        return _convolve_valid_region(x, kernel, strides, padding, **options)
    if not in_reference_lowering() and _is_plain(options):
        if _is_faster_as_matmul(x, kernel, strides, padding):
            return _as_matmul(x, kernel, strides, padding, options.get("precision"))
        if is_faster_as_space_to_depth(x, strides):
            return _as_space_to_depth(x, kernel, padding, **options)
    return lax.conv_general_dilated(x, kernel, strides, padding, **options)


def _is_plain(options: dict[str, Any]) -> bool:
    """Whether there are neither groups nor dilation."""
    dilations = (by for name in ("lhs_dilation", "rhs_dilation") for by in options.get(name) or ())
    return options.get("feature_group_count", 1) == 1 and all(by == 1 for by in dilations)


def _is_faster_as_matmul(x: Array, kernel: Array, strides: Sequence[int], padding: Padding) -> bool:
    """Whether a matrix product of the windows is faster on this CPU.

    True for 1x1 convolutions, since XLA:CPU's products use all cores where its convolutions often
    use one: 32x16x16x64 to 256 channels takes 19.8 ms as a convolution with its gradients, 9.0 ms
    as a product, on two cores. And for outputs smaller than the kernel, for which XLA:CPU has no
    fast path: 3x3 at stride 2 from 4x4 maps of 512 channels takes 302 ms and 12 ms.
    """
    if jax.default_backend() != "cpu":
        return False
    sides = kernel.shape[:2]
    result = _output_size(x, kernel, strides, padding)
    return sides == (1, 1) or (
        all(result) and any(extent < side for extent, side in zip(result, sides, strict=True))
    )


def _as_matmul(
    x: Array, kernel: Array, strides: Sequence[int], padding: Padding, precision: Any
) -> Array:
    """Matrix product: every window is a row of one matrix, the kernel is the other."""
    rows, columns, channels, out = kernel.shape
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0))) if any(map(any, padding)) else x
    height, width = _output_size(x, kernel, strides, padding)
    ends = strides[0] * (height - 1) + 1, strides[1] * (width - 1) + 1
    windows = [
        padded[:, i : i + ends[0] : strides[0], j : j + ends[1] : strides[1]]
        for i in range(rows)
        for j in range(columns)
    ]
    patches = jnp.concatenate(windows, axis=-1) if len(windows) > 1 else windows[0]
    matrix = kernel.reshape(rows * columns * channels, out)
    # A product that contracts over the map's axes in place of one takes three times as long for the
    # kernel's gradient.
    return jnp.dot(patches.reshape(-1, patches.shape[-1]), matrix, precision=precision).reshape(
        *patches.shape[:-1], out
    )


def is_faster_as_space_to_depth(x: Array, strides: Sequence[int]) -> bool:
    """Whether this is the first convolution of half-precision images, at stride 2, on a GPU.

    cuDNN has no fast kernel for 3 channels, and XLA pads them to 4 in float16 alone. ResNet's 7x7
    on 256 images of 224 pixels takes 2.96 ms with its gradient on an H200, by space-to-depth 1.22
    ms.
    """
    small = x.dtype.itemsize == 2 and x.shape[-1] in (3, 4)
    return jax.default_backend() == "gpu" and small and tuple(strides) == (2, 2)


def _as_space_to_depth(x: Array, kernel: Array, padding: Padding, **options: Any) -> Array:
    """Space-to-depth: a stride-2 convolution as a stride-1 convolution of 2x2 blocks of pixels.

    4 channels become 16. The kernel starts at a block, after a row and column of zeros where the
    padding is odd. MLPerf's ResNets do so on TPUs.
    """
    batch, *_, channels = x.shape
    pads, fills, blocks, taps = [], [], [], []
    for axis, extent in enumerate(_output_size(x, kernel, (2, 2), padding)):
        before = padding[axis][0] + padding[axis][0] % 2
        reach = kernel.shape[axis] + padding[axis][0] % 2
        taps.append(-(-reach // 2))
        blocks.append(extent + taps[axis] - 1)
        # negative: a pixel that no window reaches
        pads.append((before, 2 * blocks[axis] - before - x.shape[1 + axis], 0))
        fills.append((padding[axis][0] % 2, 2 * taps[axis] - reach, 0))
    zero = jnp.zeros((), x.dtype)
    x = lax.pad(x, zero, [(0, 0, 0), *pads, (0, 4 - channels, 0)])
    kernel = lax.pad(kernel, zero, [*fills, (0, 4 - channels, 0), (0, 0, 0)])
    x = (
        x.reshape(batch, blocks[0], 2, blocks[1], 2, 4)
        .transpose(0, 1, 3, 2, 4, 5)
        .reshape(batch, *blocks, 16)
    )
    kernel = (
        kernel.reshape(taps[0], 2, taps[1], 2, 4, -1)
        .transpose(0, 2, 1, 3, 4, 5)
        .reshape(*taps, 16, -1)
    )
    return lax.conv_general_dilated(x, kernel, (1, 1), ((0, 0), (0, 0)), **options)


def _output_size(
    x: Array, kernel: Array, strides: Sequence[int], padding: Padding
) -> tuple[int, int]:
    """Output height and width."""
    height, width = (
        max(0, (size + sum(sides) - side) // stride + 1)
        for size, side, stride, sides in zip(
            x.shape[1:3], kernel.shape[:2], strides, padding, strict=True
        )
    )
    return height, width


def _convolve_valid_region(
    x: Array, kernel: Array, strides: Sequence[int], padding: Padding, **options: Any
) -> Array:
    """A convolution of images that are smaller than their array: padding starts at their edge."""
    reaches = kernel.shape[:2] != (1, 1)
    y = lax.conv_general_dilated(
        valid_region.mask_outside(x) if reaches else x, kernel, strides, padding, **options
    )
    valid_region.propagate_extent(
        x,
        y,
        lambda size, axis: (
            (size + sum(padding[axis - 1]) - kernel.shape[axis - 1]) // strides[axis - 1] + 1
        ),
    )
    return y
