"""How a linen module is called in training and in evaluation: its mode arguments and fields."""

import copy
import dataclasses
import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

from flax import linen as nn
from flax.core import FrozenDict

from deepjax.errors import InputError, require

Output = int | str | tuple[int | str, ...] | Callable[[Any], Any] | None

# Names that are True in training, and names that are True in evaluation. The first tuple of each is
# recognised with any default, also without one; the second only with a boolean default.
_TRAINS = ("train", "training", "is_training")
_EVALUATES = ("deterministic", "use_running_average")
_TRAINS_IF_BOOL = ("is_train", "train_mode", "enable_dropout")
_EVALUATES_IF_BOOL = ("inference", "is_eval", "eval_mode", "evaluate")


@dataclasses.dataclass(frozen=True)
class Network:
    """A linen module and how it is called; instruments take it in place of a module."""

    module: nn.Module
    eval_kwargs: Mapping[str, Any] = FrozenDict()
    """Keyword arguments of its call in evaluation, such as {"noisy": False}."""
    train_kwargs: Mapping[str, Any] = FrozenDict()
    """The same in training."""
    output: Output = None
    """The output to use: an index, key or attribute, a path of these, or a function."""
    seed: int = 0
    """Of the keys of random streams, where an instrument is given none."""

    def __post_init__(self) -> None:
        """Raise InputError unless it is a linen module with hashable arguments."""
        require(
            isinstance(self.module, nn.Module),
            "module",
            type(self.module).__name__,
            "an instance of flax.linen.Module",
        )
        for name in ("eval_kwargs", "train_kwargs"):
            given = FrozenDict({key: frozen(value) for key, value in getattr(self, name).items()})
            object.__setattr__(self, name, given)
            _require_hashable(given, name, "Network")


Model = nn.Module | Network
"""What every instrument takes."""
AModel = TypeVar("AModel", bound=Model)


def network_of(model: Model) -> Network:
    """`Network(model)` for a module; a network itself."""
    return model if isinstance(model, Network) else Network(model)


def name_of(model: Model) -> str:
    """Name of the module's class."""
    return type(network_of(model).module).__name__


def as_static(model: AModel) -> AModel:
    """The network as a static argument of jit: with tuples for lists, frozen dicts for dicts.

    Raises InputError, naming the field, where one cannot be hashed, such as an array.
    """
    if isinstance(model, Network):
        return dataclasses.replace(model, module=as_static(model.module))  # type: ignore[return-value]
    try:
        hash(model)
        return model
    except TypeError:
        fields = {name: frozen(value) for name, value in _fields(model).items()}
    for name, value in fields.items():
        _require_hashable(value, name, type(model).__name__)
    return model.clone(**fields)


def frozen(value: Any) -> Any:
    """Tuples for lists and frozen dicts for dicts, also inside modules."""
    if isinstance(value, nn.Module):
        return as_static(value)
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return tuple(frozen(each) for each in value)
    if isinstance(value, Mapping):
        return FrozenDict({name: frozen(each) for name, each in value.items()})
    return value


def _require_hashable(value: Any, field: str, owner: str) -> None:
    try:
        hash(value)
    except TypeError as error:
        given = f"is a {type(value).__name__}"
        raise InputError(
            f"field {field} of {owner} {given}; allowed: what can be hashed, to compile once"
        ) from error


def _fields(module: nn.Module) -> dict[str, Any]:
    names = [
        field.name
        for field in dataclasses.fields(module)
        if field.init and field.name not in ("parent", "name")
    ]
    return {name: getattr(module, name) for name in names if hasattr(module, name)}


@dataclasses.dataclass(frozen=True)
class Mode:
    """A network in training or in evaluation."""

    module: nn.Module
    """With its mode fields set."""
    kwargs: FrozenDict[str, Any]
    """Keyword arguments of its call."""
    switches: tuple[str, ...]
    """What was set, such as "config.dropout.deterministic=True"; empty: nothing was found."""


@functools.lru_cache(maxsize=256)
def mode_of(network: Network, train: bool) -> Mode:
    """The module and arguments for training or evaluation.

    Switches are arguments of the module's call, its fields, and entries of its fields (a config),
    by their usual names; without any, those of modules among its fields, whose call arguments it
    passes on if it takes **kwargs. `eval_kwargs` and `train_kwargs` are always set.
    """
    module, found = _with_fields(network.module, train, "", {}, deep=False)
    kwargs = _call_switches(network.module, train)
    if not found and not kwargs:
        module, found = _with_fields(network.module, train, "", {}, deep=True)
        kwargs = _handed_on(network.module, train)
    kwargs = kwargs | dict(network.train_kwargs if train else network.eval_kwargs)
    return Mode(
        module, FrozenDict(kwargs), (*(f"{name}={value}" for name, value in kwargs.items()), *found)
    )


def required_mode_kwargs(model: Model) -> dict[str, Any]:
    """Mode arguments without a default, set to evaluation: those that initialisation needs."""
    network = network_of(model)
    names = _parameters(network.module)
    kwargs = _call_switches(network.module, False) or {
        name: value
        for name, value in _handed_on(network.module, False).items()
        if _is_demanded(network.module, name)
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


def _parameters(module: nn.Module) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(type(module).__call__).parameters if callable(module) else {}


def _wanted(name: str, train: bool) -> bool | None:
    """The value of a switch of that name; None: not a switch."""
    if name in (*_TRAINS, *_TRAINS_IF_BOOL):
        return train
    return not train if name in (*_EVALUATES, *_EVALUATES_IF_BOOL) else None


def _call_switches(module: nn.Module, train: bool) -> dict[str, Any]:
    """Mode arguments of the call and their values, except where a field of that name is set."""
    fields = _fields(module)
    found = {}
    for name, parameter in _parameters(module).items():
        wanted = _wanted(name, train)
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
    wanted = _wanted(name, train) if isinstance(name, str) else None
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
    if isinstance(value, tuple):
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
        if _wanted(name, True) is not None
    }


def _rebuilt(value: Any, entries: dict[Any, Any]) -> Any:
    if hasattr(value, "_replace"):
        return value._replace(**entries)
    if isinstance(value, tuple):
        return tuple(entries.values())
    if isinstance(value, Mapping):
        return FrozenDict(entries)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(value, **entries)
    new = copy.copy(value)
    for name, each in entries.items():
        object.__setattr__(new, name, each)
    return new
