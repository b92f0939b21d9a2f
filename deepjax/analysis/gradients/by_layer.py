"""Leaves of a gradient grouped by the layer that owns them, and layers in forward order."""

from collections.abc import Iterable
from typing import Any

from deepjax.analysis.core.calls import all_calls
from deepjax.analysis.core.module import Batch, Model, inputs_of
from deepjax.analysis.core.params import Path, by_path, path_string


def leaves_by_layer(tree: Any) -> dict[Path, list[Any]]:
    """The leaves of a params-like tree by the path of their module; () is the network itself."""
    layers: dict[Path, list[Any]] = {}
    for path, leaf in by_path(tree).items():
        layers.setdefault(path[:-1], []).append(leaf)
    return layers


def sort_by_call(
    layers: Iterable[Path], model: Model, variables: Any, batch: Batch, train: bool
) -> list[Path]:
    """The layers in the order in which the forward pass ends them; uncalled layers are last.

    Nothing is computed.
    """
    order: dict[str, int] = {}
    for call in all_calls(model, variables, inputs_of(batch), train):
        order.setdefault(call.path, len(order))
    return sorted(layers, key=lambda layer: order.get(path_string(layer), len(order)))
