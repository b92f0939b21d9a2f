"""Every field of a configuration is held against its annotation, whoever gives the value."""

import dataclasses
import re
from typing import Any, Literal

import pytest

from deepjax.errors import InputError
from deepjax.training import RunOptions, TrainConfig
from deepjax.training.config import train_config
from deepjax.training.validation import check_types

CONFIG = TrainConfig(model="cifar_resnet20")
FIELDS = [
    (group, field.name)
    for group in (
        CONFIG,
        CONFIG.optimization,
        CONFIG.data,
        CONFIG.augmentation,
        CONFIG.objective,
        CONFIG.guard,
        RunOptions(),
    )
    for field in dataclasses.fields(group)
]


@dataclasses.dataclass(frozen=True)
class Every:
    """A field of each kind that is understood."""

    name: str = "a"
    count: int = 1
    share: float = 0.5
    on: bool = True
    kind: Literal["one", "two"] = "one"
    scope: Literal["all", "own"] | int = "all"
    places: tuple[float, ...] = (0.5, 1)
    folder: str | None = None


@pytest.mark.parametrize(
    "fields", [{}, {"share": 1}, {"scope": 3}, {"places": ()}, {"folder": "x"}, {"on": False}]
)
def test_values_of_the_kind_are_taken(fields):
    check_types(Every(**fields))


@pytest.mark.parametrize(
    ("field", "given", "said"),
    [
        ("name", 1, "name is 1; allowed: a text"),
        ("count", 2.5, "count is 2.5; allowed: an integer"),
        ("count", True, "count is True; allowed: an integer"),
        ("share", "0.5", "share is '0.5'; allowed: a number"),
        ("share", False, "share is False; allowed: a number"),
        ("on", 1, "on is 1; allowed: True or False"),
        ("kind", "tow", "kind is 'tow'; did you mean 'two'? allowed: 'one', 'two'"),
        ("kind", None, "kind is None; did you mean 'one'? allowed: 'one', 'two'"),
        (
            "scope",
            "owns",
            "scope is 'owns'; did you mean 'own'? allowed: 'all', 'own' or an integer",
        ),
        ("scope", True, "scope is True; allowed: 'all', 'own' or an integer"),
        ("places", [0.5], "places is [0.5]; allowed: a tuple, of each a number"),
        ("places", ("a",), "places is ('a',); allowed: a tuple, of each a number"),
        ("folder", 3, "folder is 3; allowed: a text or None"),
    ],
)
def test_other_values_are_refused_in_a_line(field, given, said):
    with pytest.raises(InputError, match=f"^{re.escape(said)}$"):
        check_types(dataclasses.replace(Every(), **{field: given}))


@pytest.mark.parametrize(("group", "field"), FIELDS, ids=[field for _, field in FIELDS])
def test_every_field_of_a_run_refuses_values_of_other_types(group, field):
    for given in (object(), [1], {"a": 1}, b"x"):
        with pytest.raises(InputError, match=rf"^{field} is .*allowed: "):
            dataclasses.replace(group, **{field: given})


@pytest.mark.parametrize(
    ("field", "given", "said"),
    [
        ("optimizer", "adam", "did you mean 'adamw'"),
        ("schedule", "cosin", "did you mean 'cosine'"),
        ("on_nonfinite", "ignore", "allowed: 'halt', 'skip', 'rollback'"),
        ("remat", "all", "allowed: 'none', 'convolutions', 'blocks'"),
        ("precision", "float16", "did you mean 'bfloat16'"),
        ("bn_scope", "ghost", "allowed: 'global', 'replica' or an integer"),
        ("bn_scope", 2.5, "allowed: 'global', 'replica' or an integer"),
        ("epochs", 2.5, "allowed: an integer"),
        ("seed", True, "allowed: an integer"),
    ],
)
def test_a_wrong_choice_names_the_nearest(field, given, said):
    value: Any = given
    with pytest.raises(
        InputError, match=f"^{field} is {re.escape(repr(given))}; .*{re.escape(said)}"
    ):
        train_config(**{"model": "cifar_resnet20", field: value})


@pytest.mark.parametrize(
    ("field", "given", "said"),
    [
        ("strategy", "pmp", "did you mean 'pmap'"),
        ("probe", "all", "'full'"),
        ("step_timeout", "5", "number"),
    ],
)
def test_a_wrong_option_too(field, given, said):
    value: Any = given
    with pytest.raises(
        InputError, match=f"^{field} is {re.escape(repr(given))}; .*{re.escape(said)}"
    ):
        RunOptions(**{field: value})
