"""Convolutions inside loops: the same results, in XLA:CPU's fast layout; nothing else changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from deepjax.analysis import hvp
from deepjax.backend.conv_layouts import CONVOLUTION, LOOPS, canonicalize_conv_layouts
from deepjax.data import dataset_info
from deepjax.models import create_model
from deepjax.training import TrainConfig
from deepjax.training.build import step_options
from deepjax.training.step.optimizers import make_optimizer, make_schedule
from deepjax.training.step.state import init_state
from deepjax.training.step.step import make_train_step

CASES = {
    "3x3": {},
    "stride 2": {"window_strides": (2, 2), "padding": ((0, 1), (1, 1))},
    "dilated": {"rhs_dilation": (2, 2)},
    "groups": {"feature_group_count": 4},
}


def gradients_in_a_loop(**options):
    """Gradients with respect to the images and to each of three kernels, inside a loop."""
    options = {
        "window_strides": (1, 1),
        "padding": ((1, 1), (1, 1)),
        "dimension_numbers": ("NHWC", "HWIO", "NHWC"),
    } | options

    def loss(x, kernel):
        return jnp.sum(jnp.sin(lax.conv_general_dilated(x, kernel, **options)))

    def body(x, kernel):
        by_x, by_kernel = jax.grad(loss, (0, 1))(x, kernel)
        return x + by_x, by_kernel

    return lambda x, kernels: lax.scan(body, x, kernels)


def orders(jaxpr, in_loop=False):
    """(whether inside a loop, layout) of each convolution."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == CONVOLUTION:
            yield in_loop, equation.params["dimension_numbers"]
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda value: hasattr(value, "eqns")
        ):
            if hasattr(inner, "eqns"):
                yield from orders(inner, in_loop or equation.primitive.name in LOOPS)


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_the_same_gradients_with_every_convolution_canonical(options):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 7, 6, 8)), jnp.float32)
    kernels = (
        jnp.asarray(
            rng.normal(size=(3, 3, 3, 8 // options.get("feature_group_count", 1), 8)), jnp.float32
        )
        / 10
    )
    plain = gradients_in_a_loop(**options)
    fast = canonicalize_conv_layouts(plain)
    for mine, theirs in zip(jax.jit(fast)(x, kernels), jax.jit(plain)(x, kernels), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-4)
    order = lax.conv_dimension_numbers(x.shape, kernels.shape[1:], ("NHWC", "HWIO", "NHWC"))
    before, after = (list(orders(jax.make_jaxpr(fun)(x, kernels).jaxpr)) for fun in (plain, fast))
    assert {found for _, found in before} != {order}, (
        "without another layout in the gradients this test is vacuous"
    )
    assert after == [(True, order)] * len(before)


def test_outside_loops_and_on_other_backends_nothing_changes(monkeypatch):
    model = create_model("cifar_resnet20", width=4)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    step = jax.grad(lambda variables, x: jnp.sum(model.apply(variables, x)))
    x = jnp.ones((2, 8, 8, 3))
    assert (
        jax.jit(canonicalize_conv_layouts(step)).lower(variables, x).as_text()
        == jax.jit(step).lower(variables, x).as_text()
    )
    looped = gradients_in_a_loop()
    arguments = jnp.ones((2, 6, 6, 4)), jnp.ones((2, 3, 3, 4, 4))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert str(jax.make_jaxpr(canonicalize_conv_layouts(looped))(*arguments)) == str(
        jax.make_jaxpr(looped)(*arguments)
    )


def a_step(scan=False, accumulate=1):
    """(training step of a small network, its arguments)."""
    data = dataset_info("digits")
    config = TrainConfig(
        "cifar_resnet20", data.name, batch_size=8, width=4, grad_accum_steps=accumulate
    )
    model, optimizer = create_model(config.model, width=4, scan=scan), make_optimizer(config)
    state = jax.eval_shape(lambda: init_state(model, optimizer, data.shape, 0.1, 0))
    batch = {
        "image": jax.ShapeDtypeStruct((8, *data.shape), jnp.uint8),
        "label": jax.ShapeDtypeStruct((8,), jnp.int32),
    }
    return make_train_step(model, optimizer, make_schedule(config), data, step_options(config)), (
        state,
        batch,
    )


def a_product():
    """A Hessian-vector product over two batches."""
    model = create_model("cifar_resnet20", width=4)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    batch = {"image": jnp.zeros((2, 8, 8, 3)), "label": jnp.zeros(2, jnp.int32)}
    return lambda vector: hvp(model, variables, [batch, batch], vector), (variables["params"],)


@pytest.mark.parametrize(
    "make", [lambda: a_step(scan=True), lambda: a_step(accumulate=4), a_product]
)
def test_functions_with_gradients_in_a_loop_have_canonical_convolutions(make):
    function, arguments = make()
    found = [
        order for in_loop, order in orders(jax.make_jaxpr(function)(*arguments).jaxpr) if in_loop
    ]
    assert len(found) > 10
    assert {order.lhs_spec + order.rhs_spec + order.out_spec for order in found} == {
        (0, 3, 1, 2, 3, 2, 0, 1, 0, 3, 1, 2)
    }
