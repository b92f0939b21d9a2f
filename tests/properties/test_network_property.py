"""Switches in any place and of any usual name; labels of any integer dtype."""

import dataclasses
import inspect
from typing import Any

import pytest
from flax import linen as nn
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from deepjax.analysis.network.module import require_classes
from deepjax.analysis.network.network import Network, mode_of, network_of, required_mode_kwargs
from deepjax.errors import InputError
from tests.properties.examples import examples

TRAIN = ("train", "training", "is_training", "is_train", "train_mode", "enable_dropout")
EVALUATE = ("deterministic", "use_running_average", "inference", "is_eval", "eval_mode", "evaluate")
NAMES = st.sampled_from((*TRAIN, *EVALUATE))
VALUES = st.booleans()


def _wanted(name: str, train: bool) -> bool:
    return train if name in TRAIN else not train


def _module(
    fields: dict[str, Any], arguments: dict[str, Any], takes_any: bool = False
) -> nn.Module:
    """A module with these fields, and a call with these keyword arguments (name -> default)."""
    parameters = [
        inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in ("self", "x")
    ]
    parameters += [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=value)
        for name, value in arguments.items()
    ]
    parameters += [inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD)] if takes_any else []

    def call(self: Any, x: Any, **kwargs: Any) -> Any:
        return x

    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    annotations = {name: Any for name in fields}
    return type("Made", (nn.Module,), {"__call__": call, "__annotations__": annotations})(**fields)


def _nested(place: str, name: str, value: bool) -> Any:
    return {
        "field": value,
        "dict": {name: value, "width": 3},
        "dataclass": dataclasses.make_dataclass(
            "Config", [(name, bool), ("width", int)], frozen=True
        )(value, 3),
        "inner": {"deeper": {name: value}},
    }[place]


def _found(value: Any, place: str, name: str) -> Any:
    if place == "dict":
        return value[name]
    if place == "inner":
        return value["deeper"][name]
    return getattr(value, name) if place == "dataclass" else value


@examples(few=20, many=10_000)
@given(
    st.dictionaries(NAMES, VALUES, max_size=3),
    NAMES,
    VALUES,
    st.sampled_from(("field", "dict", "dataclass", "inner")),
    VALUES,
)
def test_every_switch_of_a_call_a_field_and_a_config_is_set(arguments, name, value, place, train):
    field = name if place == "field" else "config"
    network = Network(_module({field: _nested(place, name, value)}, arguments))
    mode = mode_of(network_of(network), train)
    assert dict(mode.kwargs) == {each: _wanted(each, train) for each in arguments}
    assert _found(getattr(mode.module, field), place, name) == _wanted(name, train)
    assert len(mode.switches) == len(arguments) + 1
    # The network that was passed is unchanged.
    assert _found(getattr(network.module, field), place, name) == value
    assert required_mode_kwargs(network) == {}


@examples(few=20, many=10_000)
@given(st.dictionaries(NAMES, VALUES, min_size=1, max_size=3), st.integers(1, 3), VALUES, VALUES)
def test_a_wrapper_hands_switches_on(arguments, depth, takes_any, train):
    network = inner = _module({}, arguments)
    for _ in range(depth):
        network = _module({"inner": network}, {}, takes_any)
    mode = mode_of(Network(network), train)
    assert dict(mode.kwargs) == (
        {each: _wanted(each, train) for each in arguments} if takes_any else {}
    )
    assert bool(mode.switches) == takes_any
    assert mode_of(Network(inner), train).kwargs == {
        each: _wanted(each, train) for each in arguments
    }


@examples(few=20, many=10_000)
@given(st.text(min_size=1).filter(lambda name: name not in (*TRAIN, *EVALUATE)), VALUES, VALUES)
def test_what_is_no_switch_stays(name, value, train):
    module = _module({"config": {name: value}}, {})
    mode = mode_of(network_of(Network(module)), train)
    assert mode.switches == () and dict(mode.kwargs) == {}
    assert mode.module.config[name] == value
    explicit = Network(module, train_kwargs={name: value})
    assert dict(mode_of(network_of(explicit), True).kwargs) == {name: value}


@examples(few=20, many=10_000)
@given(
    arrays.arrays(arrays.integer_dtypes() | arrays.unsigned_integer_dtypes(), st.integers(1, 20)),
    st.integers(1, 300),
)
def test_labels_are_refused_where_one_is_no_class(labels, classes):
    """Expected: each as Python's own integer."""
    outside = [int(each) for each in labels if not 0 <= int(each) < classes]
    if not outside:
        require_classes(labels, classes)
        return
    with pytest.raises(
        InputError, match=f"{len(outside)} of {len(labels)} labels are outside"
    ) as error:
        require_classes(labels, classes)
    assert str(min(outside)) in str(error.value)
