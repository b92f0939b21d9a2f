"""A network and how it is called in training and in evaluation: its mode arguments and fields."""

import copy
import dataclasses
import functools
import inspect
from collections.abc import Callable, Collection, Hashable, Mapping
from typing import Any

from flax import linen as nn
from flax import nnx
from flax.core import FrozenDict

from deepjax.analysis.core.content import content_key
from deepjax.analysis.network.adapter import Adapter
from deepjax.errors import InputError

Output = int | str | tuple[int | str, ...] | Callable[[Any], Any] | None

# Names that are True in training, and names that are True in evaluation. The first tuple of each is
# recognised with any default, also without one; the second only with a boolean default.
_TRAINS = ("train", "training", "is_training")
_EVALUATES = ("deterministic", "use_running_average")
_TRAINS_IF_BOOL = ("is_train", "train_mode", "enable_dropout")
_EVALUATES_IF_BOOL = ("inference", "is_eval", "eval_mode", "evaluate")


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """A network and how it is called; instruments take it in place of a linen module.

    `from_nnx` and `from_function` create one of an NNX module and of any JAX function.
    Networks with equal fields are equal, also where a field is a dict, a config or an array.
    """

    module: nn.Module | Adapter
    eval_kwargs: Mapping[str, Any] = FrozenDict()
    """Keyword arguments of its call in evaluation, such as {"noisy": False}."""
    train_kwargs: Mapping[str, Any] = FrozenDict()
    """The same in training."""
    output: Output = None
    """The output to use: an index, key or attribute, a path of these, or a function."""
    mode_argument: str | None = None
    """A boolean argument of the call that is True in training, if it has an unusual name."""
    _content: Hashable = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Raise InputError unless it is a module, with fields that can be compared."""
        _require_module(self.module)
        name = self.mode_argument
        for field, train in (("eval_kwargs", False), ("train_kwargs", True)):
            given = dict(getattr(self, field)) | ({} if name is None else {name: train})
            object.__setattr__(self, field, FrozenDict(given))
        fields = (self.module, dict(self.eval_kwargs), dict(self.train_kwargs), self.output)
        object.__setattr__(self, "_content", content_key(fields))

    def __hash__(self) -> int:
        """By content: it is a static argument of jit."""
        return hash(self._content)

    def __eq__(self, other: object) -> bool:
        """By content."""
        return isinstance(other, Network) and self._content == other._content


Model = nn.Module | Network
"""What every instrument takes."""


def network_of(model: Model) -> Network:
    """`Network(model)` for a module; a network itself."""
    return model if isinstance(model, Network) else Network(model)


def name_of(model: Model) -> str:
    """Name of the module's class, or of the function."""
    module = network_of(model).module
    return module.name if isinstance(module, Adapter) else type(module).__name__


def _require_module(module: Any) -> None:
    if isinstance(module, nn.Module | Adapter):
        return
    hint = ""
    if isinstance(module, nnx.Module):
        hint = "; for an NNX module: network, variables = from_nnx(module)"
    elif callable(module):
        hint = "; for a function of (parameters, inputs): from_function(function)"
    raise InputError(
        f"model is a {type(module).__name__}; allowed: an instance of flax.linen.Module, or a "
        f"Network{hint}"
    )


def _fields(module: nn.Module) -> dict[str, Any]:
    names = [
        field.name
        for field in dataclasses.fields(module)
        if field.init and field.name not in ("parent", "name")
    ]
    return {name: getattr(module, name) for name in names if hasattr(module, name)}


@dataclasses.dataclass(frozen=True)
class ModeSetting:
    """A network set to training or to evaluation."""

    module: nn.Module | Adapter
    """With its mode fields set."""
    kwargs: FrozenDict[str, Any]
    """Keyword arguments of its call."""
    switches: tuple[str, ...]
    """What was set, such as "config.dropout.deterministic=True"; empty: nothing was found."""


@functools.lru_cache(maxsize=256)
def mode_of(network: Network, train: bool) -> ModeSetting:
    """The module and arguments for training or evaluation.

    Switches are arguments of the module's call, its fields, and entries of its fields (a config),
    by their usual names; without any, those of modules among its fields, whose call arguments it
    passes on if it takes **kwargs. `eval_kwargs` and `train_kwargs` are always set.
    """
    kwargs = _call_switches(network.module, train)
    if isinstance(network.module, Adapter):
        module, found = network.module.in_mode(train)
    else:
        module, found = _with_fields(network.module, train, "", {}, deep=False)
        if not found and not kwargs:
            module, found = _with_fields(network.module, train, "", {}, deep=True)
            kwargs = _handed_on(network.module, train)
    kwargs = kwargs | dict(network.train_kwargs if train else network.eval_kwargs)
    return ModeSetting(
        module, FrozenDict(kwargs), (*(f"{name}={value}" for name, value in kwargs.items()), *found)
    )


def required_mode_kwargs(model: Model) -> dict[str, Any]:
    """Mode arguments without a default, set to evaluation: those that initialisation needs."""
    network = network_of(model)
    module = network.module
    names, kwargs = _parameters(module), _call_switches(module, False)
    if not kwargs and isinstance(module, nn.Module):
        kwargs = {
            name: value
            for name, value in _handed_on(module, False).items()
            if _is_demanded(module, name)
        }
    kwargs |= network.eval_kwargs
    return {
        name: value
        for name, value in kwargs.items()
        if name not in names or _has_no_default(names[name])
    }


def refusable_kwargs(model: Model, kwargs: Collection[str]) -> frozenset[str]:
    """Those of the arguments that the call may refuse: found on inner modules, via **kwargs."""
    network = network_of(model)
    certain = {*_parameters(network.module), *network.train_kwargs, *network.eval_kwargs}
    return frozenset(kwargs) - certain


def _is_demanded(module: nn.Module, name: str) -> bool:
    """Whether a module among the fields needs that argument."""
    owners = [_parameters(each) for each in _modules(_fields(module))]
    return any(name in names and _has_no_default(names[name]) for names in owners)


def _has_no_default(parameter: inspect.Parameter) -> bool:
    """None counts as no default: linen's merge_param needs the argument or the field."""
    return parameter.default in (inspect.Parameter.empty, None)


def call_parameters(model: Model) -> Mapping[str, inspect.Parameter]:
    """Parameters of the network's call that are inputs or modes, by name, without `self`."""
    return {
        name: each for name, each in _parameters(network_of(model).module).items() if name != "self"
    }


def _parameters(module: nn.Module | Adapter) -> Mapping[str, inspect.Parameter]:
    if isinstance(module, Adapter):
        return module.parameters
    return inspect.signature(type(module).__call__).parameters if callable(module) else {}


def wanted_value(name: str, train: bool) -> bool | None:
    """The value of a switch of that name; None: not a switch."""
    if name in (*_TRAINS, *_TRAINS_IF_BOOL):
        return train
    return not train if name in (*_EVALUATES, *_EVALUATES_IF_BOOL) else None


def _call_switches(module: nn.Module | Adapter, train: bool) -> dict[str, Any]:
    """Mode arguments of the call and their values, except where a field of that name is set."""
    fields = {} if isinstance(module, Adapter) else _fields(module)
    found = {}
    for name, parameter in _parameters(module).items():
        wanted = wanted_value(name, train)
        certain = (
            name in (*_TRAINS, *_EVALUATES)
            or isinstance(parameter.default, bool)
            or parameter.annotation in (bool, "bool")
        )
        named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        # linen's merge_param refuses argument and field together.
        decided = parameter.default is None and fields.get(name) is not None
        if wanted is not None and certain and named and not decided:
            found[name] = wanted
    return found


def _handed_on(module: nn.Module, train: bool) -> dict[str, Any]:
    """Mode arguments that a call with **kwargs passes on to modules among the fields."""
    takes_any = any(each.kind is each.VAR_KEYWORD for each in _parameters(module).values())
    found: dict[str, Any] = {}
    for inner in _modules(_fields(module)) if takes_any else ():
        found |= _call_switches(inner, train) or _handed_on(inner, train)
    return found


def _modules(value: Any) -> list[nn.Module]:
    if isinstance(value, nn.Module):
        return [value]
    inner = (
        value.values()
        if isinstance(value, Mapping)
        else value
        if isinstance(value, tuple | list)
        else ()
    )
    return [module for each in inner for module in _modules(each)]


def _with_fields(
    module: nn.Module, train: bool, path: str, done: dict[int, Any], deep: bool
) -> tuple[nn.Module, tuple[str, ...]]:
    """(the module with its mode fields set, which): fields, and entries of a config.

    deep: also those of modules among the fields.
    """
    if id(module) in done:  # a shared module must stay shared
        return done[id(module)], ()
    names, changes, found = _parameters(module), {}, ()
    for name, value in _fields(module).items():
        if value is None and (name in names or name not in (*_TRAINS, *_EVALUATES)):
            continue  # the argument of the call decides, or it is not a switch
        value = False if value is None else value
        changes[name], more = _set(name, value, train, f"{path}{name}", done, deep)
        found += more
    done[id(module)] = module.clone(**changes) if found else module
    return done[id(module)], found


def _set(
    name: Any, value: Any, train: bool, path: str, done: dict[int, Any], deep: bool
) -> tuple[Any, tuple[str, ...]]:
    """(a field or an entry of one with its switches set, which were set)."""
    wanted = wanted_value(name, train) if isinstance(name, str) else None
    if wanted is not None and isinstance(value, bool):
        return wanted, (f"{path}={wanted}",)
    if isinstance(value, nn.Module):
        return _with_fields(value, train, f"{path}.", done, deep) if deep else (value, ())
    entries = _entries(value)
    new = {
        key: _set(key, each, train, f"{path}.{key}", done, deep) for key, each in entries.items()
    }
    found = sum((more for _, more in new.values()), ())
    return (
        _rebuilt(value, {key: each for key, (each, _) in new.items()}) if found else value
    ), found


def _entries(value: Any) -> dict[Any, Any]:
    """Entries of a config or container, by name or index."""
    if isinstance(value, type) or callable(value):
        return {}
    if hasattr(value, "_asdict"):  # a named tuple
        return value._asdict()
    if isinstance(value, tuple | list):
        return dict(enumerate(value))
    if isinstance(value, Mapping):
        return dict(value)
    if dataclasses.is_dataclass(value):
        return {
            field.name: getattr(value, field.name)
            for field in dataclasses.fields(value)
            if field.init
        }
    return {
        name: each
        for name, each in getattr(value, "__dict__", {}).items()
        if wanted_value(name, True) is not None
    }


def _rebuilt(value: Any, entries: dict[Any, Any]) -> Any:
    if hasattr(value, "_replace"):
        return value._replace(**entries)
    if isinstance(value, tuple | list):
        return type(value)(entries.values())
    if isinstance(value, Mapping):
        return FrozenDict(entries)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(value, **entries)
    new = copy.copy(value)
    for name, each in entries.items():
        object.__setattr__(new, name, each)
    return new
