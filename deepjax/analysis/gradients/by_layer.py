"""Leaves of a gradient grouped by the layer that owns them, and layers in forward order."""

from collections.abc import Iterable, Mapping
from typing import Any

from deepjax.analysis.core.params import Path, path_string
from deepjax.analysis.network.calls import all_calls
from deepjax.analysis.network.module import Batch, Model


def leaves_by_layer(leaves: Mapping[Path, Any]) -> dict[Path, list[Any]]:
    """Leaves by the path of their module; () is the network itself."""
    layers: dict[Path, list[Any]] = {}
    for path, leaf in leaves.items():
        layers.setdefault(path[:-1], []).append(leaf)
    return layers


def sort_by_call(
    layers: Iterable[Path], model: Model, variables: Any, batch: Batch, train: bool
) -> list[Path]:
    """The layers in the order in which the forward pass ends them; uncalled layers are last.

    Of a function, which has no layers, in the order of the parameters. Nothing is computed.
    """
    order: dict[str, int] = {}
    for call in all_calls(model, variables, batch, train):
        order.setdefault(call.path, len(order))
    return sorted(layers, key=lambda layer: order.get(path_string(layer), len(order)))
