"""Any JAX function as a network: `from_function`."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax import Array

from deepjax.analysis.network.adapter import Adapter, Inputs, MissingStream
from deepjax.analysis.network.network import Network, Output
from deepjax.errors import InputError, require

KEYS = ("key", "rng")
"""Names of an argument that takes a random key."""
VARIABLES = "variables"
"""Name of a first argument that takes all collections rather than the parameters."""
STATISTICS = "batch_stats"
"""Under this name the instruments find what the examples of a batch may share in training."""


class State(NamedTuple):
    """The collections of a function other than its parameters, by their own names."""

    collections: dict[str, Any]


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
        variables = with_own_names(variables)
        first, *names = self._signature
        random = [name for name in names if name in KEYS]
        for name in random:
            if name not in keys:
                raise MissingStream(name)
        supplied = {name: tree for name, tree in variables.items() if name != "params"}
        supplied |= {name: keys[name] for name in random}
        arguments, named = self._arranged(supplied, inputs, kwargs)
        start = variables if first == VARIABLES else variables["params"]
        return self.function(start, *arguments, **named), {}

    def _arranged(
        self, supplied: Mapping[str, Any], inputs: Inputs, kwargs: Mapping[str, Any]
    ) -> tuple[list[Any], dict[str, Any]]:
        """The arguments after the first, by position and by name.

        After an argument that is left out or given by name the later ones are given by name too,
        unless the function takes some by position alone: then defaults fill the places.
        """
        found, given, named = [], list(inputs.args), {**inputs.kwargs, **kwargs}
        parameters = list(self._signature.values())[1:]
        several = any(each.kind is each.VAR_POSITIONAL for each in parameters)
        by_position = True
        for each in parameters:
            stays = several or each.kind is each.POSITIONAL_ONLY
            if each.kind is each.VAR_POSITIONAL:
                found, given, by_position = [*found, *given], [], False
                continue
            if each.name in supplied:
                value = supplied[each.name]
            elif each.name in named:
                value, by_position = named.pop(each.name), by_position and stays
            elif given and _takes_position(each):
                value = given.pop(0)
            else:  # the function raises an error if it has no default
                value, by_position = each.default, by_position and stays and _has_default(each)
                if not by_position:
                    continue
            if by_position and _takes_position(each):
                found.append(value)
            else:
                named[each.name] = value
        self._require_no_more(given, inputs, {*supplied, *kwargs})
        return found, named

    def _require_no_more(self, rest: list[Any], inputs: Inputs, others: set[str]) -> None:
        if rest:
            names = [name for name in self.parameters if name not in others]
            raise InputError(
                f"batch has {len(inputs.args) + len(inputs.kwargs)} inputs; allowed for "
                f"{self.name}: {len(names)}, {', '.join(names)}"
            )

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
    Pass the same function again: a new lambda recompiles.
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


def _takes_position(parameter: inspect.Parameter) -> bool:
    return parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)


def _has_default(parameter: inspect.Parameter) -> bool:
    return parameter.default is not parameter.empty


def collections_of(variables: Any) -> dict[str, Any]:
    """{"params": the tree} for a tree of parameters; the dict itself if it has "params"."""
    if isinstance(variables, Mapping) and "params" in variables:
        return dict(variables)
    return {"params": variables}


def with_statistics(variables: dict[str, Any]) -> dict[str, Any]:
    """The collections of a function with all but the parameters as a `State`, in `STATISTICS`.

    A function may normalise by the statistics of a batch, whatever the name of its state: Haiku
    has no name of its own for batch statistics.
    """
    others = {name: tree for name, tree in with_own_names(variables).items() if name != "params"}
    return {"params": variables["params"]} | ({STATISTICS: State(others)} if others else {})


def with_own_names(variables: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `with_statistics`; other variables as they are."""
    state = variables.get(STATISTICS)
    if not isinstance(state, State):
        return variables
    return {"params": variables["params"], **state.collections}
