"""The correspondence of our variables and PyTorch's tensors: names, shapes and order of axes."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict

from deepjax.models.registry import model_info
from deepjax.models.weights.torch_names import TorchLayout

Tensors = Mapping[str, np.ndarray]

# Our leaf -> theirs. The counter is PyTorch's bookkeeping: kept so that a round trip loses nothing,
# read by no module.
_LEAVES = {
    "kernel": "weight",
    "bias": "bias",
    "scale": "weight",
    "gain": "gain",
    "mean": "running_mean",
    "var": "running_var",
    "batches": "num_batches_tracked",
}


@dataclasses.dataclass(frozen=True)
class TensorPair:
    """A leaf of our variables and the tensor with the same numbers."""

    path: tuple[str, ...]  # collection, modules, leaf
    shape: tuple[int, ...]
    tensor: str
    tensor_shape: tuple[int, ...]
    axes: tuple[int, ...]  # order of our axes in theirs, after our leaf is seen as `split`
    split: tuple[int, ...]
    dtype: Any = None  # of ours at initialisation; None for a counter, which stays as it is

    def to_torch(self, leaf: np.ndarray) -> np.ndarray:
        """Ours -> theirs, a copy."""
        return np.array(leaf.reshape(self.split).transpose(self.axes), order="C").reshape(
            self.tensor_shape
        )

    def from_torch(self, tensor: np.ndarray) -> np.ndarray:
        """Theirs -> ours, a copy, as PyTorch updates statistics in place."""
        moved = tensor.reshape([self.split[axis] for axis in self.axes])
        with np.errstate(over="ignore"):  # refused by `check_types`
            return np.array(moved.transpose(np.argsort(self.axes)), self.dtype, order="C").reshape(
                self.shape
            )


def abstract_leaves(
    model: nn.Module, name: str, channels: int | None = None
) -> dict[tuple[str, ...], Any]:
    """Shapes and dtypes by path, by abstract evaluation. channels: default the table's."""
    *size, usual = model_info(name).input_shape
    images = jax.ShapeDtypeStruct((1, *size, channels or usual), jnp.float32)
    abstract: Any = jax.eval_shape(model.init, jax.random.key(0), images)
    # Paths are tuples without sep=.
    return flatten_dict(dict(abstract))  # pyright: ignore[reportReturnType]


def tensor_pairs(leaves: Mapping[tuple[str, ...], Any], theirs: TorchLayout) -> list[TensorPair]:
    """Every leaf with its tensor."""
    pairs = [
        dataclasses.replace(_pair(path, leaf.shape, theirs), dtype=leaf.dtype)
        for path, leaf in leaves.items()
    ]
    counters = [("counters", *path[1:-1], "batches") for path in leaves if path[-1] == "mean"]
    return pairs + [_pair(path, (), theirs) for path in counters]


def _pair(path: tuple[str, ...], shape: tuple[int, ...], layout: TorchLayout) -> TensorPair:
    module = "/".join(path[1:-1])
    tensor = f"{layout.names(module)}.{_LEAVES[path[-1]]}"
    if path[-1] == "kernel":
        side = layout.maps.get(module, 1)
        split = shape if len(shape) == 4 else (side, side, shape[0] // side**2, shape[1])
        theirs = (split[3], split[2], split[0], split[1])
        flat = len(shape) == 2 and module not in layout.as_convolution
        return TensorPair(
            path, shape, tensor, (shape[1], shape[0]) if flat else theirs, (3, 2, 0, 1), split
        )
    theirs = (*shape, 1, 1, 1) if path[-1] == "gain" else shape
    return TensorPair(path, shape, tensor, theirs, tuple(range(len(shape))), shape)


def tensor_channels(layout: TorchLayout, tensors: Tensors) -> int | None:
    """Image channels by the stem's tensor (out, in, rows, columns); None where it is missing."""
    tensor = tensors.get(f"{layout.names(layout.stem)}.weight")
    return None if tensor is None else input_channels(np.shape(tensor), 1)


def input_channels(shape: tuple[int, ...], axis: int) -> int | None:
    """The input channels of a convolution's kernel; None if it has not four axes."""
    return shape[axis] if len(shape) == 4 else None
