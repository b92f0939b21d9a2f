"""Training and evaluation mode of any network. Expected: `apply` by hand."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from deepjax.analysis import (
    Network,
    cross_entropy,
    kernel_order,
    trace,
)
from deepjax.analysis.core.mode import EVAL
from deepjax.analysis.network.module import apply_module, initialise, loss_of, mode_text
from deepjax.errors import InputError
from tests.analysis.network.network_cases import (
    CLASSES,
    FEATURES,
    Branching,
    ByField,
    ByFlag,
    X,
    Y,
    dropped_head,
    loss_of_logits,
)


class ByArgument(nn.Module):
    @nn.compact
    def __call__(self, x, *, is_training=True):
        return dropped_head(x, not is_training)


class ByOptionalField(nn.Module):
    deterministic: bool | None = False

    @nn.compact
    def __call__(self, x, deterministic: bool | None = None):
        return dropped_head(x, nn.merge_param("deterministic", self.deterministic, deterministic))


@dataclasses.dataclass(frozen=True)
class Config:
    classes: int = CLASSES
    deterministic: bool = False


class Settings(NamedTuple):
    train: bool = True


class Plain:
    """A config that is neither a dataclass nor a mapping."""

    def __init__(self, train=True):
        self.train = train


class ByConfig(nn.Module):
    config: Any
    off: Callable[[Any], bool] = lambda config: config.deterministic

    @nn.compact
    def __call__(self, x):
        return dropped_head(x, self.off(self.config))


class Wrapper(nn.Module):
    inner: nn.Module

    def __call__(self, *args, **kwargs):
        return self.inner(*args, **kwargs)


class Required(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return dropped_head(x, not train)


class Unusual(nn.Module):
    """Its switch has a name that nobody can know."""

    @nn.compact
    def __call__(self, x, noisy=True):
        return dropped_head(x, not noisy)


class Both(nn.Module):
    """Switches in the call and in a field."""

    deterministic: bool = False

    @nn.compact
    def __call__(self, x, train=True):
        return dropped_head(nn.BatchNorm(use_running_average=not train)(x), self.deterministic)


def _of_mapping(config: Any) -> bool:
    return not config["dropout"]["training"]


def _of_train(config: Any) -> bool:
    return not config.train


SEQUENCE = nn.Sequential([nn.Dense(16), nn.Dropout(0.5, deterministic=False), nn.Dense(CLASSES)])


SHARED = ByField()


# (network, the module in evaluation, arguments of its call then, what is said)
MODES = [
    (ByArgument(), ByArgument(), {"is_training": False}, "evaluation mode (is_training=False)"),
    (ByFlag(), ByFlag(), {"enable_dropout": False}, "evaluation mode (enable_dropout=False)"),
    (ByField(), ByField(False), {}, "evaluation mode (training=False)"),
    (ByOptionalField(), ByOptionalField(True), {}, "evaluation mode (deterministic=True)"),
    (
        ByOptionalField(None),
        ByOptionalField(None),
        {"deterministic": True},
        "evaluation mode (deterministic=True)",
    ),
    (
        ByConfig(Config()),
        ByConfig(Config(deterministic=True)),
        {},
        "evaluation mode (config.deterministic=True)",
    ),
    (
        ByConfig(Settings(), _of_train),
        ByConfig(Settings(False), _of_train),
        {},
        "evaluation mode (config.train=False)",
    ),
    (
        ByConfig(Plain(), _of_train),
        ByConfig(Plain(False), _of_train),
        {},
        "evaluation mode (config.train=False)",
    ),
    (
        ByConfig({"dropout": {"training": True}}, _of_mapping),
        ByConfig({"dropout": {"training": False}}, _of_mapping),
        {},
        "evaluation mode (config.dropout.training=False)",
    ),
    (
        Wrapper(ByArgument()),
        Wrapper(ByArgument()),
        {"is_training": False},
        "evaluation mode (is_training=False)",
    ),
    (Wrapper(Required()), Wrapper(Required()), {"train": False}, "evaluation mode (train=False)"),
    (Wrapper(ByField()), Wrapper(ByField(False)), {}, "evaluation mode (inner.training=False)"),
    (
        SEQUENCE,
        nn.Sequential([nn.Dense(16), nn.Dropout(0.5, deterministic=True), nn.Dense(CLASSES)]),
        {},
        "evaluation mode (layers.1.deterministic=True)",
    ),
    (
        nn.Sequential([SHARED, nn.relu, SHARED]),
        None,
        {},
        "evaluation mode (layers.0.training=False)",
    ),
    (Both(), Both(True), {"train": False}, "evaluation mode (train=False, deterministic=True)"),
    (
        Network(Unusual(), eval_kwargs={"noisy": False}),
        Unusual(),
        {"noisy": False},
        "evaluation mode (noisy=False)",
    ),
    (nn.Dense(CLASSES), nn.Dense(CLASSES), {}, "no training switch found; called as it is"),
    (
        Unusual(),
        Unusual(),
        {"rngs": {"dropout": jax.random.key(0)}},
        "no training switch found; called as it is; draws from the random stream 'dropout' in "
        "evaluation",
    ),
]


def fresh_variables(model: Any) -> Any:
    # The shared module is applied to its own output.
    inputs = jnp.zeros((1, CLASSES)) if model is MODES[13][0] else X[:1]
    return initialise(model, inputs)


@pytest.mark.parametrize(
    ("model", "module", "kwargs", "said"),
    MODES,
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_evaluation_is_evaluation_wherever_the_switch_is(model, module, kwargs, said):
    x = X[:, :CLASSES] if module is None else X
    variables = fresh_variables(model)
    module = (
        nn.Sequential([shared := ByField(False), nn.relu, shared]) if module is None else module
    )

    def by_hand(params: Any) -> Any:
        return loss_of_logits(module.apply({**variables, "params": params}, x, **kwargs))

    value, gradient = jax.value_and_grad(by_hand)(variables["params"])
    found = jax.jit(
        jax.value_and_grad(
            lambda params: loss_of(
                model, {**variables, "params": params}, (x, Y), cross_entropy, False
            )
        )
    )
    ours, gradients = found(variables["params"])
    np.testing.assert_allclose(ours, value, rtol=1e-6)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), gradients, gradient)
    assert mode_text(model, variables, (x, Y), False) == said


def test_training_is_training_wherever_the_switch_is():
    kwargs = {"train_kwargs": {"noisy": True}, "eval_kwargs": {"noisy": False}}
    for model in (
        ByField(False),
        ByConfig(Config(deterministic=True)),
        Wrapper(ByFlag()),
        Network(Unusual(), **kwargs),
    ):
        module = getattr(model, "module", model)
        on = {
            Wrapper: Wrapper(ByFlag()),
            ByField: ByField(True),
            ByConfig: ByConfig(Config()),
            Unusual: Unusual(),
        }[type(module)]
        variables = initialise(model, X)
        expected = loss_of_logits(on.apply(variables, X, rngs={"dropout": jax.random.key(0)}))
        np.testing.assert_allclose(
            loss_of(model, variables, (X, Y), cross_entropy, True), expected, rtol=1e-6
        )


def test_a_switch_that_does_not_reach_the_network_is_said():
    each = nn.vmap(
        ByFlag, variable_axes={"params": None}, split_rngs={"params": False, "dropout": True}
    )()
    v = initialise(each, X)
    trace(each, v, (X, Y), mode=EVAL)
    assert mode_text(each, v, (X, Y), False) == (
        "no training switch found; called as it is; draws from the random stream 'dropout' in "
        "evaluation; enable_dropout does not reach it through nn.vmap or nn.scan"
    )


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return dropped_head(x, not train)


class Head(nn.Module):
    @nn.compact
    def __call__(self, x, deterministic=True):
        return dropped_head(x, deterministic)


class Handing(nn.Module):
    body: nn.Module
    head: nn.Module

    def __call__(self, x, **kwargs):
        return self.head(self.body(x, **kwargs))


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (
            nn.Sequential([nn.Dense(8), nn.relu, Block()]),
            "no training switch found; called as it is; train does not reach the module inside "
            "that takes it",
        ),
        (
            nn.Sequential([nn.Dense(6), nn.MultiHeadDotProductAttention(2), nn.Dense(CLASSES)]),
            "no training switch found; called as it is; deterministic does not reach the module "
            "inside that takes it",
        ),
        (
            Handing(Block(), Head()),
            "evaluation mode (train=False); deterministic does not reach the module inside that "
            "takes it",
        ),
    ],
    ids=["sequential", "attention", "one of two"],
)
def test_a_switch_that_is_refused_on_its_way_inside_is_left_out_and_said(model, said):
    """Expected: the call without it, by `apply`; each of these refuses the other switch."""
    v, kwargs = initialise(model, X), {"train": False} if isinstance(model, Handing) else {}
    np.testing.assert_allclose(
        apply_module(model, v, (X, None), False)[0], model.apply(v, X, **kwargs), rtol=1e-6
    )
    assert (
        trace(model, v, (X, Y), mode=EVAL).mode_text == mode_text(model, v, (X, Y), False) == said
    )
    assert initialise(model, X).keys() == model.init(jax.random.key(0), X).keys()
    by_name = Network(model, eval_kwargs={"nothing": 1})
    with pytest.raises(InputError, match="unexpected keyword argument 'nothing'"):
        trace(by_name, v, (X, Y), mode=EVAL)


def test_kernels_of_a_network_whose_switch_is_required():
    assert kernel_order(Required(), (FEATURES,)) == ["Dense_1", "Dense_0"]
    assert kernel_order(Network(Unusual()), (FEATURES,)) == ["Dense_1", "Dense_0"]


@pytest.mark.parametrize("transform", [nn.remat, nn.jit])
def test_a_switch_that_is_traced_at_the_top_is_named(transform):
    v = initialise(Branching(), X)
    message = (
        r"bool\[\]; if a training switch is traced, make it static \(static_argnums of nn.remat, "
        r"static_argnames of nn.jit\)"
    )
    with pytest.raises(InputError, match=message) as error:
        trace(transform(Branching)(), v, (X, Y), mode=EVAL)
    assert "\n" not in str(error.value)
