"""Any JAX function as a network: `from_function`."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax import Array

from deepjax.analysis.network.adapter import Adapter, Inputs, MissingStream
from deepjax.analysis.network.network import Network, Output
from deepjax.errors import InputError, require

KEYS = ("key", "rng")
"""Names of an argument that takes a random key."""
VARIABLES = "variables"
"""Name of a first argument that takes all collections rather than the parameters."""


@dataclasses.dataclass(frozen=True)
class Function(Adapter):
    """A function (parameters, *inputs) -> outputs."""

    function: Callable[..., Any]
    name: str
    shapes: Any = dataclasses.field(default=None, compare=False)
    has_layers = False

    @functools.cached_property
    def _signature(self) -> Mapping[str, inspect.Parameter]:
        return inspect.signature(self.function).parameters

    @property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """All but the first, and the random key."""
        rest = list(self._signature.items())[1:]
        return {name: each for name, each in rest if name not in KEYS}

    def in_mode(self, train: bool) -> tuple["Function", tuple[str, ...]]:
        """A function has no state to set."""
        return self, ()

    def apply(
        self,
        variables: dict[str, Any],
        inputs: Inputs,
        keys: Mapping[str, Array],
        mutable: Sequence[str],
        kwargs: Mapping[str, Any],
    ) -> tuple[Any, dict[str, Any]]:
        """Arguments named as a collection, "key" or "rng" are supplied; the others are inputs."""
        first, *names = self._signature
        found: list[Any] = [variables if first == VARIABLES else variables["params"]]
        named, given = dict(inputs.kwargs) | dict(kwargs), iter(inputs.args)
        for name in names:
            parameter = self._signature[name]
            if name in KEYS:
                if name not in keys:
                    raise MissingStream(name)
                value = keys[name]
            elif name in variables and name != "params":
                value = variables[name]
            elif name in named:
                continue
            elif parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
                value = next(given, parameter.default)
                if value is parameter.default:
                    break
            else:
                break
            if parameter.kind is parameter.KEYWORD_ONLY:
                named[name] = value
            else:
                found.append(value)
        return self.function(*found, *given, **named), {}

    def variables_for(self, inputs: Any) -> dict[str, Any]:
        """Those given to `from_function`."""
        if self.shapes is None:
            raise InputError(
                f"{self.name} is a function, whose parameters are not known from its inputs; "
                "allowed here: from_function(function, params=...)"
            )
        return self.shapes


def from_function(
    function: Callable[..., Any],
    *,
    params: Any = None,
    output: Output = None,
    mode_argument: str | None = None,
) -> Network:
    """A network of any JAX function: function(parameters, *inputs) -> outputs.

    Its `variables` are the tree of parameters, of any structure: those of Equinox, Haiku or plain
    arrays; all leaves must be floats (for Equinox: `eqx.partition`). With state, they are a dict
    {"params": ..., "state": ...}: an argument with the name of a collection receives it, and a
    first argument named "variables" receives the dict.
    An argument named "key" or "rng" receives a random key; one with the usual name of a mode
    (`train`, `deterministic`, ...), or that of `mode_argument`, is set by `mode=`.
    params: for instruments that take no variables, such as `cost`. output: as in `Network`.
    Pass the same function again: a new lambda compiles anew.
    Raises InputError for what is not a function of one argument or more.
    """
    require(callable(function), "function", type(function).__name__, "a function")
    name = getattr(function, "__name__", type(function).__name__)
    require(
        len(inspect.signature(function).parameters) >= 1,
        "function",
        f"{name}()",
        "a function of (parameters, *inputs)",
    )
    shapes = None if params is None else jax.eval_shape(lambda: collections_of(params))
    return Network(Function(function, name, shapes), output=output, mode_argument=mode_argument)


def collections_of(variables: Any) -> dict[str, Any]:
    """{"params": the tree} for a tree of parameters; the dict itself if it has "params"."""
    if isinstance(variables, Mapping) and "params" in variables:
        return dict(variables)
    return {"params": variables}
