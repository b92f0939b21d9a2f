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

from deepjax.analysis.network.adapter import Adapter, Inputs, MissingStream, UnexpectedWrite
from deepjax.analysis.network.network import Network, Output, wanted_value
from deepjax.analysis.network.nnx_calls import see_calls
from deepjax.analysis.network.nnx_sow import call_and_capture, collection_name
from deepjax.errors import InputError

Key = tuple[Any, ...]
"""Path of a variable in NNX: attribute names, and indices of lists."""


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
    """The function `__call__` of the module's class."""
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
        see_calls(module)
        before = _arrays(module)
        outputs, sown = call_and_capture(
            module,
            lambda: module(*inputs.args, **inputs.kwargs, **kwargs),
            [name for name in mutable if name not in given],
        )
        after = _arrays(module)
        self._require_keys(before, after, keys)
        return outputs, self._changed(before, after, given, mutable) | sown

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

    def _require_keys(self, before: Any, after: Any, keys: Mapping[str, Array]) -> None:
        for stream in self.streams:
            count = (*stream.path, "count")
            if stream.tag not in keys and after[count] is not before[count]:
                raise MissingStream(stream.tag)

    def _changed(
        self, before: Any, after: Any, given: Mapping[str, Any], mutable: Sequence[str]
    ) -> dict[str, Any]:
        found: dict[str, dict[Any, Any]] = {name: dict(given.get(name, {})) for name in mutable}
        for collection, path in self.paths:
            if collection == "params" or after[path] is before[path]:
                continue
            if collection not in mutable:
                raise UnexpectedWrite(collection)
            found[collection][_names(path)] = after[path]
        return {name: unflatten_dict(tree) for name, tree in found.items()}


def from_nnx(
    module: nnx.Module, *, output: Output = None, mode_argument: str | None = None
) -> tuple[Network, dict[str, Any]]:
    """(network, variables) of an NNX module, for every instrument; the module is not changed.

    variables: {"params": ..., "batch_stats": ...} as nested dicts, with the indices of lists as
    names: "blocks/0/conv". Call it again after training steps for new arrays: the network is equal
    to the earlier one, so that nothing compiles anew. `mode=` sets `deterministic`,
    `use_running_average`, `training` and the like in all modules, and such arguments of its call;
    random streams start from `key=`, not from the module's own state. output, mode_argument: as in
    `Network`.
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
    for path, variable in nnx.to_flat_state(state):
        if isinstance(variable, nnx.RngKey):
            streams.append(_Stream(path[:-1], variable.tag, variable.get_value().shape))
        elif isinstance(variable.get_value(), tuple):
            sown.append(path)
        elif not isinstance(variable, nnx.RngState):
            collection = collection_name(type(variable))
            paths.append((collection, path))
            variables.setdefault(collection, {})[_names(path)] = variable.get_value()
    trees = {name: unflatten_dict(flat) for name, flat in variables.items()}
    shapes = jax.eval_shape(lambda: trees)
    parts = (graph, type(module).__name__, tuple(paths), tuple(streams), tuple(sown))
    adapter = NnxModule(*parts, type(module).__call__, shapes)
    return Network(adapter, output=output, mode_argument=mode_argument), trees


def _names(path: Key) -> tuple[str, ...]:
    return tuple(map(str, path))


def _arrays(module: nnx.Module) -> dict[Key, Any]:
    return {path: each.get_value() for path, each in nnx.to_flat_state(nnx.state(module))}


def _set_mode(module: nnx.Module, train: bool) -> tuple[str, ...]:
    """Set the mode attributes of all modules; returns which, without repetition."""
    found: dict[str, None] = {}
    for _, each in nnx.iter_modules(module):
        for name, value in list(vars(each).items()):
            wanted = wanted_value(name, train)
            if wanted is None or not isinstance(value, bool | None):
                continue
            if value is None and name not in ("deterministic", "use_running_average"):
                continue
            setattr(each, name, wanted)
            found[f"{name}={wanted}"] = None
    return tuple(found)
