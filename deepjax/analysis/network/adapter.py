"""What the instruments need to know of a network that is not a linen module."""

import abc
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jax import Array


class Inputs(NamedTuple):
    """The arguments of a network's call."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


class Adapter(abc.ABC):
    """A network of another kind, called like a linen module. It is hashable."""

    name: str
    """For messages and tables."""
    has_layers: bool
    """Whether the outputs of its layers can be seen."""

    @property
    @abc.abstractmethod
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """Parameters of its call that are inputs or modes."""

    @abc.abstractmethod
    def in_mode(self, train: bool) -> tuple["Adapter", tuple[str, ...]]:
        """(the network in training or evaluation, what was set for that)."""

    @abc.abstractmethod
    def apply(
        self,
        variables: dict[str, Any],
        inputs: Inputs,
        keys: Mapping[str, Array],
        mutable: Sequence[str],
        kwargs: Mapping[str, Any],
    ) -> tuple[Any, dict[str, Any]]:
        """(outputs, changed collections); keys: by random stream.

        Raises MissingStream for a stream without a key, UnexpectedWrite for a collection that is
        changed although it is not in `mutable`.
        """

    @abc.abstractmethod
    def variables_for(self, inputs: Any) -> dict[str, Any]:
        """Shapes of its variables, for instruments that are given no variables."""


class MissingStream(Exception):
    """The network samples from a random stream that has no key; the message is its name."""


class UnexpectedWrite(Exception):
    """The network writes a collection that is not mutable; the message is its name."""
