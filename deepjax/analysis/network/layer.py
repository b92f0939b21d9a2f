"""A layer as interceptors see it: one module of a network, linen or NNX."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple


class Method(NamedTuple):
    """The method that is called."""

    name: str
    function: Any
    """Tells `super().__call__` from the module's own."""


@dataclasses.dataclass(frozen=True)
class Layer:
    """The module whose method is called."""

    path: tuple[str, ...]
    """As in the parameters; () is the network."""
    type: type
    """The module's class."""
    name: str | None
    """Of the module; it differs from the path's last name where modules share a scope."""
    in_transform: bool
    """Whether it runs inside nn.scan, nn.remat or the like, which its output cannot leave."""
    module: Any = dataclasses.field(compare=False, repr=False)

    @property
    def kind(self) -> str:
        """Name of the module's class."""
        return self.type.__name__

    @property
    def label(self) -> str:
        """The path for display: "stage1_block1/conv1"; "" is the network."""
        return "/".join(self.path)

    @property
    def is_sum(self) -> bool:
        """Whether it is a residual sum: its call's arguments are (shortcut, branch)."""
        names = inspect.signature(self.type.__call__).parameters
        return tuple(names)[1:] == ("shortcut", "branch")


Around = Callable[[Layer, Method, Callable[[], Any], Any, Any], Any]
"""(layer, method, the call, positional arguments, keyword arguments) -> what it returns."""
