"""How a linen module is called: which of its arguments and fields switch between training and evaluation, and what it is given."""

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

# True in training, and True in evaluation. The first of each are switches whatever their default is, as `train` may be required.
_TRAINS = ("train", "training", "is_training")
_EVALUATES = ("deterministic", "use_running_average")
_TRAINS_IF_BOOL = ("is_train", "train_mode", "enable_dropout")
_EVALUATES_IF_BOOL = ("inference", "is_eval", "eval_mode", "evaluate")


@dataclasses.dataclass(frozen=True)
class Network:
    """A linen module and how it is called; every instrument takes one wherever it takes a module, which is `Network(module)`."""

    module: nn.Module
    eval_kwargs: Mapping[str, Any] = FrozenDict()
    """Further keyword arguments of its call in evaluation, for a switch of any name: {"noisy": False}."""
    train_kwargs: Mapping[str, Any] = FrozenDict()
    """The same in training."""
    output: Output = None
    """Which array of what the module returns: an index, key or attribute, or several from the outside in, or a function of it."""
    seed: int = 0
    """Of the keys that random streams start from where an instrument is given none."""

    def __post_init__(self) -> None:
        """Raise InputError for what is no linen module, and for arguments that cannot be hashed, such as arrays."""
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
"""What every instrument takes: a linen module, or one with how it is called."""
AModel = TypeVar("AModel", bound=Model)


def network_of(model: Model) -> Network:
    """The module with how it is called; of a bare module the defaults."""
    return model if isinstance(model, Network) else Network(model)


def name_of(model: Model) -> str:
    """Name of the module's class."""
    return type(network_of(model).module).__name__


def hashable(model: AModel) -> AModel:
    """The same network as a key of what is compiled: tuples for the lists, and frozen dicts for the dicts, among its fields.

    Raises InputError, naming the field, where one cannot be a key even so, such as an array.
    """
    if isinstance(model, Network):
        return dataclasses.replace(model, module=hashable(model.module))  # type: ignore[return-value]
    try:
        hash(model)
        return model
    except TypeError:
        fields = {name: frozen(value) for name, value in _fields(model).items()}
    for name, value in fields.items():
        _require_hashable(value, name, type(model).__name__)
    return model.clone(**fields)


def frozen(value: Any) -> Any:
    """Tuples for lists, frozen dicts for dicts, inside of modules too."""
    if isinstance(value, nn.Module):
        return hashable(value)
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
    """With those of its fields set that are switches."""
    kwargs: FrozenDict[str, Any]
    """Keyword arguments of its call."""
    switches: tuple[str, ...]
    """What was set, as "deterministic=True" or "config.dropout.deterministic=True"; empty: no switch was found."""


@functools.lru_cache(maxsize=256)
def mode_of(network: Network, train: bool) -> Mode:
    """The module and arguments for training or evaluation.

    Switches are arguments of the module's call, its fields, and entries of its fields (a config), by their usual names; where
    there are none, those of modules among its fields, whose calls' switches it hands on if it takes **kwargs. What the network
    is given by name (`eval_kwargs`, `train_kwargs`) is set whatever it is called.
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
    """The arguments without which the call fails, set to evaluation: those of initialisation, for which defaults hold."""
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


def guessed(model: Model, kwargs: Collection[str]) -> frozenset[str]:
    """Those of these arguments that the call may not take: found inside, where it may pass **kwargs to another module too."""
    network = network_of(model)
    certain = {*_parameters(network.module), *network.train_kwargs, *network.eval_kwargs}
    return frozenset(kwargs) - certain


def _is_demanded(module: nn.Module, name: str) -> bool:
    """Whether a module among the fields needs that argument."""
    owners = [_parameters(each) for each in _modules(_fields(module))]
    return any(name in names and _has_no_default(names[name]) for names in owners)


def _has_no_default(parameter: inspect.Parameter) -> bool:
    """Of None linen's merge_param refuses a module whose field has no value either."""
    return parameter.default in (inspect.Parameter.empty, None)


def _parameters(module: nn.Module) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(type(module).__call__).parameters if callable(module) else {}


def _wanted(name: str, train: bool) -> bool | None:
    """The value of a switch of that name; None: it is no switch."""
    if name in (*_TRAINS, *_TRAINS_IF_BOOL):
        return train
    return not train if name in (*_EVALUATES, *_EVALUATES_IF_BOOL) else None


def _call_switches(module: nn.Module, train: bool) -> dict[str, Any]:
    """Arguments of the call that are switches, set; without those that a field of the same name decides."""
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
        decided = (
            parameter.default is None and fields.get(name) is not None
        )  # linen's merge_param refuses both
        if wanted is not None and certain and named and not decided:
            found[name] = wanted
    return found


def _handed_on(module: nn.Module, train: bool) -> dict[str, Any]:
    """What a call that takes **kwargs hands on to modules among the fields."""
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
    """The module with its switches set, and which: its fields, entries of a config, and with `deep` modules among the fields."""
    if id(module) in done:  # one module in two places has one set of parameters, and must stay one
        return done[id(module)], ()
    names, changes, found = _parameters(module), {}, ()
    for name, value in _fields(module).items():
        if value is None and (name in names or name not in (*_TRAINS, *_EVALUATES)):
            continue  # the call's own argument decides, or it is no switch
        value = False if value is None else value  # as a switch it has not been set yet
        changes[name], more = _set(name, value, train, f"{path}{name}", done, deep)
        found += more
    done[id(module)] = module.clone(**changes) if found else module
    return done[id(module)], found


def _set(
    name: Any, value: Any, train: bool, path: str, done: dict[int, Any], deep: bool
) -> tuple[Any, tuple[str, ...]]:
    """A field or an entry of one, with the switches in it set, and which."""
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
    """What a config or a container holds, by name or place."""
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
