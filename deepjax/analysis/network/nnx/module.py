"""NNX modules as networks: `from_nnx`."""

import dataclasses
import functools
import inspect
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array

from deepjax.analysis.network.adapter import Adapter, Inputs
from deepjax.analysis.network.network import Network, Output, mode_of, wanted_value
from deepjax.analysis.network.nnx.calls import see_calls
from deepjax.analysis.network.nnx.linen import call_linen, call_of, is_plain
from deepjax.analysis.network.nnx.run import Sown, running
from deepjax.analysis.network.nnx.sow import call_and_capture, collection_name
from deepjax.analysis.network.nnx.writes import refuse_writes
from deepjax.errors import InputError

Key = tuple[Any, ...]
"""Path of a variable in NNX: attribute names, and indices of lists."""
CONSTANTS = "constants"
"""The collection of arrays that are in no nnx.Variable; they are never differentiated."""


@dataclasses.dataclass(frozen=True)
class _Stream:
    """One random stream: where it is, and which keys it takes."""

    path: Key
    tag: str
    shape: tuple[int, ...]
    """Of its key; () unless a transform stacks it."""


@dataclasses.dataclass(frozen=True)
class NnxModule(Adapter):
    """The structure of an NNX module, whose arrays are in the variables."""

    graph: Any
    name: str
    paths: tuple[tuple[str, Key], ...]
    """(collection, path) of each variable but those of random streams."""
    streams: tuple[_Stream, ...]
    sown: tuple[Key, ...]
    """Variables that an earlier call has sown, which are no inputs of this one."""
    call: Any
    """The function that takes the inputs, without a `self`."""
    shapes: Any = dataclasses.field(compare=False)
    train: bool | None = None
    """None: as the module was."""
    has_layers = True

    @functools.cached_property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """Those of `__call__`, without random streams."""
        found = dict(list(inspect.signature(self.call).parameters.items())[1:])
        found.pop("rngs", None)
        return found

    def in_mode(self, train: bool) -> tuple["NnxModule", tuple[str, ...]]:
        """Sets attributes of the usual names, such as `deterministic`, in all its modules."""
        module = self._merged(self._placeholders(), {})
        return dataclasses.replace(self, train=train), _set_mode(module, train)

    def apply(
        self,
        variables: dict[str, Any],
        inputs: Inputs,
        keys: Mapping[str, Array],
        mutable: Sequence[str],
        kwargs: Mapping[str, Any],
    ) -> tuple[Any, dict[str, Any]]:
        """The module is built from the arrays, called, and its changed arrays are returned.

        Collections in `mutable` without variables are those that it may sow into.
        """
        given = {name: flatten_dict(tree) for name, tree in variables.items()}
        module = self._merged({at: given[at[0]][_names(at[1])] for at in self.paths}, keys)
        if self.train is not None:
            _set_mode(module, self.train)
        sown: Sown = {name: {} for name in mutable if name not in given}
        kept = [name for name in mutable if name in given]
        kwargs = {**kwargs, **({"mutable": kept} if is_plain(module) else {})}
        with running(keys, kept, sown) as run:
            refuse_writes(module, kept, keys)
            see_calls(module, run)
            call_linen(module, run)
            outputs = call_and_capture(
                module, lambda: module(*inputs.args, **inputs.kwargs, **kwargs), sown
            )
        changed = self._state(module, kept) | sown
        return outputs, {name: unflatten_dict(flat) for name, flat in changed.items()}

    def variables_for(self, inputs: Any) -> dict[str, Any]:
        """Those of the module."""
        return self.shapes

    def _placeholders(self) -> dict[Any, Any]:
        shapes = {name: flatten_dict(tree) for name, tree in self.shapes.items()}
        return {at: shapes[at[0]][_names(at[1])] for at in self.paths}

    def _merged(self, arrays: Mapping[Any, Any], keys: Mapping[str, Array]) -> nnx.Module:
        flat = {at[1]: value for at, value in arrays.items()}
        for stream in self.streams:
            key = keys.get(stream.tag, jax.random.key(0))
            # Different masks in modules that share a stream's name.
            key = jax.random.fold_in(key, zlib.crc32("/".join(_names(stream.path)).encode()))
            flat[*stream.path, "key"] = jax.random.split(key, stream.shape) if stream.shape else key
            flat[*stream.path, "count"] = jnp.zeros(stream.shape, jnp.uint32)
        flat |= dict.fromkeys(self.sown, ())
        return nnx.merge(self.graph, unflatten_dict(flat))

    def _state(self, module: nnx.Module, names: Sequence[str]) -> Sown:
        """The arrays of these collections."""
        arrays, found = _arrays(module), {name: {} for name in names}
        for collection, path in self.paths:
            if collection in found:
                found[collection][_names(path)] = arrays[path]
        return found


def from_nnx(
    module: nnx.Module, *, output: Output = None, mode_argument: str | None = None
) -> tuple[Network, dict[str, Any]]:
    """(network, variables) of an NNX module, for every instrument; the module is not changed.

    variables: {"params": ..., "batch_stats": ...} as nested dicts, with the indices of lists as
    names: "blocks/0/conv"; arrays that are in no nnx.Variable are in "constants". Call it again
    after training steps for new arrays: the network is equal to the earlier one, so that nothing
    recompiles. `mode=` sets `deterministic`, `use_running_average`, `training` and the like in
    all modules, and such arguments of its call; random streams start from `key=`, not from the
    module's own state. Linen modules in nnx.bridge.ToNNX run as linen networks do. output,
    mode_argument: as in `Network`.
    Raises InputError for anything but a callable NNX module.
    """
    if not isinstance(module, nnx.Module) or not callable(module):
        raise InputError(
            f"module is a {type(module).__name__}; allowed: an instance of flax.nnx.Module that "
            "can be called"
        )
    graph, state = nnx.split(module)
    variables: dict[str, dict[Any, Any]] = {"params": {}}
    paths, streams, sown = [], [], []
    for path, leaf in nnx.to_flat_state(state):
        if isinstance(leaf, nnx.RngKey):
            streams.append(_Stream(path[:-1], leaf.tag, leaf.get_value().shape))
        elif isinstance(_value(leaf), tuple):
            sown.append(path)
        elif not isinstance(leaf, nnx.RngState):
            is_variable = isinstance(leaf, nnx.Variable)
            collection = collection_name(type(leaf)) if is_variable else CONSTANTS
            paths.append((collection, path))
            variables.setdefault(collection, {})[_names(path)] = _value(leaf)
    trees = {name: unflatten_dict(flat) for name, flat in variables.items()}
    shapes = jax.eval_shape(lambda: trees)
    parts = (graph, type(module).__name__, tuple(paths), tuple(streams), tuple(sown))
    adapter = NnxModule(*parts, call_of(module), shapes)
    return Network(adapter, output=output, mode_argument=mode_argument), trees


def _names(path: Key) -> tuple[str, ...]:
    return tuple(map(str, path))


def _arrays(module: nnx.Module) -> dict[Key, Any]:
    return {path: _value(each) for path, each in nnx.to_flat_state(nnx.state(module))}


def _value(leaf: Any) -> Any:
    """Of a variable or of an array; numbers become arrays, as in nnx.jit."""
    if isinstance(leaf, nnx.Variable):
        return leaf.get_value()
    return leaf if isinstance(leaf, Array) else jnp.asarray(leaf)


def _set_mode(module: nnx.Module, train: bool) -> tuple[str, ...]:
    """Set the mode attributes of all modules; returns which, without repetition."""
    found: dict[str, None] = {}
    for _, each in nnx.iter_modules(module):
        for attribute, value in list(vars(each).items()):
            name = attribute.removeprefix("to_nnx__")
            wanted = wanted_value(name, train)
            if wanted is None or not isinstance(value, bool | None):
                continue
            if value is None and name not in ("deterministic", "use_running_average"):
                continue
            setattr(each, attribute, wanted)
            found[f"{name}={wanted}"] = None
        if isinstance(each, nnx.bridge.ToNNX):
            mode: Any = mode_of(Network(each.to_nnx__module), train)
            each.to_nnx__module = mode.module
            fields = [text for text in mode.switches if text.partition("=")[0] not in mode.kwargs]
            found |= dict.fromkeys(fields)
    return tuple(found)
