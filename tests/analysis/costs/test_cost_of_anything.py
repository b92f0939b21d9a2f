"""Counts of unusual products, of networks with any inputs, and names of what is not counted."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax
from jax.experimental import pallas as pl
from jax.sharding import AxisType, PartitionSpec

from deepjax.analysis import (
    TRAIN,
    Network,
    cost,
    count_macs,
    count_params,
    macs_by_layer,
    stage_table,
)
from deepjax.analysis.costs.counts import count_macs_by_layer
from deepjax.analysis.jaxpr.module_paths import steps
from deepjax.analysis.network.input_shapes import input_shapes
from deepjax.analysis.network.module import apply_module
from deepjax.backend.lowering import reference_lowering
from deepjax.errors import InputError
from deepjax.models import create_model, model_info
from tests import zoo

SQUARE = np.ones((8, 8), np.float32)
TOKENS = jax.ShapeDtypeStruct((2, 5), jnp.int32)


class Computes(nn.Module):
    """A network that is one function."""

    function: object

    def __call__(self, *inputs):
        return self.function(*inputs)


def turns(start, goes_on, step, x):
    """A product in a `while` that counts."""
    return lax.while_loop(
        lambda carry: goes_on(carry[0]),
        lambda carry: (step(carry[0]), carry[1] @ SQUARE),
        (start, x),
    )[1]


def many_numbers(x):
    return jnp.sin(jnp.broadcast_to(x, (999, 1, 8))).sum(0)


def on_devices(x):
    """Rows sharded over all devices."""
    mesh = jax.make_mesh((jax.device_count(),), ("rows",), axis_types=(AxisType.Auto,))
    spec = PartitionSpec("rows")
    return jax.shard_map(lambda x: x @ SQUARE, mesh=mesh, in_specs=spec, out_specs=spec)(x)


def kernel(x_ref, o_ref):
    o_ref[...] = x_ref[...] @ x_ref[...]


def multiply_in_pallas(x):
    return pl.pallas_call(kernel, out_shape=jax.ShapeDtypeStruct(x.shape[1:], x.dtype))(x[0])


# Closed forms: rows x columns x contracted size; height x width x kernel x channels in x out.
COUNTED = {
    "transposed 2x2 stride 2": (
        nn.ConvTranspose(8, (2, 2), strides=(2, 2)),
        (16, 16, 4),
        16 * 16 * 4 * 4 * 8,
    ),
    "transposed 3x3 stride 2": (
        nn.ConvTranspose(8, (3, 3), strides=(2, 2)),
        (16, 16, 4),
        16 * 16 * 9 * 4 * 8,
    ),
    "transposed 4 stride 3": (nn.ConvTranspose(2, (4,), strides=(3,)), (10, 5), 10 * 4 * 5 * 2),
    "groups": (nn.Conv(8, (3, 3), feature_group_count=4), (6, 6, 4), 6 * 6 * 9 * 1 * 8),
    "dilated kernel": (
        nn.Conv(8, (3, 3), kernel_dilation=(2, 2), padding="VALID"),
        (6, 6, 4),
        2 * 2 * 9 * 4 * 8,
    ),
    # The windows are extracted by a convolution.
    "own kernel everywhere": (
        nn.ConvLocal(2, (3,), padding="VALID"),
        (6, 4),
        4 * 12 * 2 + 4 * 12 * 3,
    ),
    "ragged product": (
        Computes(lambda x: lax.ragged_dot(x[0], jnp.ones((2, 4, 5)), jnp.array([5, 7], jnp.int32))),
        (12, 4),
        12 * 4 * 5,
    ),
    "complex numbers": (
        Computes(lambda x: lax.complex(x, x) @ SQUARE.astype(np.complex64)),
        (8,),
        4 * 64,
    ),
    "fori_loop": (
        Computes(lambda x: lax.fori_loop(0, 5, lambda _, x: x @ SQUARE, x)),
        (8,),
        5 * 64,
    ),
    "while up": (Computes(lambda x: turns(0, lambda i: i < 5, lambda i: i + 1, x)), (8,), 5 * 64),
    "while down by 2": (
        Computes(lambda x: turns(9, lambda i: i >= 0, lambda i: i - 2, x)),
        (8,),
        5 * 64,
    ),
    "while never": (Computes(lambda x: turns(5, lambda i: i < 5, lambda i: i + 1, x)), (8,), 0),
    "bound into jit": (
        Computes(
            lambda x: jax.jit(lambda n, x: lax.fori_loop(0, n, lambda _, x: x @ SQUARE, x))(5, x)
        ),
        (8,),
        5 * 64,
    ),
    "condition of a while": (
        Computes(lambda x: lax.while_loop(lambda c: jnp.sum(c) < 1, lambda c: c + 1, x)),
        (8,),
        0,
    ),
    "branches": (
        Computes(lambda x: lax.cond(x[0, 0] > 0, lambda x: x @ SQUARE, many_numbers, x)),
        (8,),
        64,
    ),
    "gradient inside": (zoo.Force(), (4,), 2 * 4 * 3),
    "recurrent": (zoo.Recurrent(), (7, 4), 7 * (4 * 4 * 5 + 4 * 5 * 5) + 5 * 3),
    "devices": (Computes(lambda x: on_devices(x[0])), (16, 8), 16 * 64),
    "custom derivative": (
        Computes(lambda x: jax.nn.relu(jax.checkpoint(lambda x: x @ SQUARE)(x))),
        (8,),
        64,
    ),
}


@pytest.mark.parametrize("name", COUNTED)
def test_counts_in_closed_form(name):
    model, shape, expected = COUNTED[name]
    assert count_macs(model, shape) == expected
    report = cost(model, shape)
    assert report.total.macs == expected
    assert report.not_counted == ()


def test_a_transposed_convolution_as_the_compiler_counts_it():
    """Two FLOPs a multiply-add and one for each bias; no product with padding here."""
    report = cost(nn.ConvTranspose(8, (2, 2), strides=(2, 2)), (16, 16, 4), xla=True)
    assert report.xla is not None
    assert report.xla.flops == 2 * report.total.macs + 32 * 32 * 8


LOOP = "in a while loop whose length depends on its data"
NOT_COUNTED = {
    "dynamic while": (
        Computes(lambda x: turns(0, lambda i: i < jnp.bitwise_count(i) + 5, lambda i: i + 1, x)),
        LOOP,
    ),
    "endless": (Computes(lambda x: turns(0, lambda i: i < 5, lambda i: i * 1, x)), LOOP),
    "wraps around": (
        Computes(lambda x: turns(np.int8(0), lambda i: i <= 127, lambda i: i + np.int8(1), x)),
        LOOP,
    ),
    "fft": (Computes(lambda x: jnp.abs(jnp.fft.fft(x))), "fft"),
    "cholesky": (Computes(lambda x: lax.linalg.cholesky(x.T @ x)), "cholesky"),
    "solve": (Computes(lambda x: jnp.linalg.solve(jnp.asarray(SQUARE), x.T)), "triangular_solve"),
    "one branch": (
        Computes(
            lambda x: lax.cond(
                x[0, 0] > 0, lambda x: jnp.abs(jnp.fft.fft(x)), lambda x: x @ SQUARE, x
            )
        ),
        "fft",
    ),
    "callback": (Computes(lambda x: jax.pure_callback(np.asarray, x, x)), "pure_callback"),
    "pallas": (Computes(multiply_in_pallas), "pallas_call"),
}


@pytest.mark.parametrize("name", NOT_COUNTED)
def test_what_is_not_counted_is_named(name):
    model, reason = NOT_COUNTED[name]
    shape = (8, 8) if name == "pallas" else (8,)
    assert any(reason in each for each in cost(model, shape).not_counted)
    assert f"not counted: {cost(model, shape).not_counted[0]}" in str(cost(model, shape))
    with pytest.raises(
        InputError,
        match=f"Computes has multiply-adds that are not counted: .*{reason}.*deepjax.analysis.cost",
    ):
        count_macs(model, shape)
    assert stage_table(model, shape)[0].not_counted


def test_layers_beside_a_loop_are_counted():
    report = cost(zoo.Halting(), (4,))
    assert {row.layer: row.macs for row in report.layers} == {"cell": 0, "head": 12}
    assert report.not_counted == (f"dot_general of cell, {LOOP}", f"activations of cell, {LOOP}")


@pytest.mark.parametrize(
    "network", [zoo.JittedBlocks(), zoo.DecoratedBlocks(), nn.jit(zoo.JittedBlocks)()]
)
def test_equal_layers_in_jit_each_have_their_own_work(network):
    # Leaves cached traces that interceptors have not seen.
    network.init(jax.random.key(0), jnp.ones((1, 4)))
    expected = {"b0/dense": (20, 16, 16), "b1/dense": (20, 16, 16), "head": (15, 12, 12)}
    rows = cost(network, (4,)).layers
    assert {row.layer: (row.params, row.macs, row.activation_bytes) for row in rows} == expected
    assert macs_by_layer(network, (4,)) == {layer: macs for layer, (_, macs, _) in expected.items()}
    assert [row.name for row in stage_table(network, (4,))] == ["b0", "b1", "head"]


NETWORKS = {
    "jit": (zoo.JittedBlocks(), (4,)),
    "jitted methods": (zoo.DecoratedBlocks(), (4,)),
    "trains by default": (zoo.TrainsByDefault(), (4,)),
    "tokens": (zoo.Tokens(), TOKENS),
    "two inputs": (zoo.TwoInputs(), ((6, 6, 3), jax.ShapeDtypeStruct((1, 5), jnp.int32))),
    "gradient inside": (zoo.Force(), (4,)),
    "recurrent": (zoo.Recurrent(), (7, 4)),
    "boxed": (zoo.PartitionedDense(), (4,)),
    "upsampling": (zoo.Upsampler(), (6, 6, 4)),
    "halting": (zoo.Halting(), (4,)),
    **{
        name: (create_model(name), model_info(name).input_shape)
        for name in ("cifar_resnet20", "vgg11")
    },
    **{
        name: (create_model(name, scan=True), model_info(name).input_shape)
        for name in ("cifar_nf20",)
    },
}


@pytest.mark.parametrize("name", NETWORKS)
def test_rows_add_up_to_the_whole(name):
    """To all leaves of init's parameters, and to the products of a jaxpr without interception."""
    model, given = NETWORKS[name]
    inputs = input_shapes(model, given).args
    variables = jax.eval_shape(lambda inputs: model.init(jax.random.key(0), *inputs), inputs)
    params = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))
    with reference_lowering():
        plain = jax.make_jaxpr(
            lambda *given: apply_module(model, given[0], (given[1], None), False)
        )(variables, inputs)
    macs = sum(count_macs_by_layer(steps(plain.jaxpr)).values())
    report, stages = cost(model, given), stage_table(model, given)
    assert (
        report.total.params
        == sum(row.params for row in stages)
        == count_params(model, given)
        == params
    )
    assert report.total.macs == sum(row.macs for row in stages) == macs
    assert macs > 0


class Applies(nn.Module):
    """Computes with a module whose variables are its own constants."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3).apply({"params": {"kernel": jnp.ones((4, 3)), "bias": jnp.zeros(3)}}, x)


def test_a_module_with_variables_of_its_own_is_part_of_the_layer_that_applies_it():
    assert macs_by_layer(nn.Sequential([Applies(), nn.Dense(2)]), (4,)) == {
        "layers_0": 12,
        "layers_1": 6,
    }


def test_tokens_and_several_inputs_by_hand():
    """Two sentences of five tokens: q, k, v, output, scores and sums over 2 heads of 4; a head."""
    attention = {
        "query": 10 * 64,
        "key": 10 * 64,
        "value": 10 * 64,
        "out": 10 * 64,
        "": 2 * 2 * 5 * 5 * 4 * 2,
    }
    expected = {f"attention/{name}".rstrip("/"): macs for name, macs in attention.items()} | {
        "head": 10 * 8 * 3
    }
    assert macs_by_layer(zoo.Tokens(), TOKENS) == expected
    assert macs_by_layer(zoo.Tokens(), jnp.zeros((2, 5), jnp.int32)) == expected
    report = cost(zoo.Tokens(), TOKENS)
    assert str(report).startswith("Tokens: forward pass of int32[2,5], no training switch found")
    both = ((6, 6, 3), jax.ShapeDtypeStruct((4, 5), jnp.int32))
    assert cost(zoo.TwoInputs(), both, examples=4).total.macs == 4 * (36 * 27 * 4 + 8 * 2)


def test_the_network_that_evaluation_calls():
    """As `Network` says, and in evaluation where the call's default is training."""
    assert count_macs(zoo.TrainsByDefault(), (4,)) == 12
    assert "evaluation mode (train=False)" in str(cost(zoo.TrainsByDefault(), (4,)))
    assert "training mode (train=True)" in str(cost(zoo.TrainsByDefault(), (4,), mode=TRAIN))
    assert count_macs(Network(zoo.TrainsByDefault()), (4,)) == 12


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        (None, {}, r"input_shape is None; allowed: \(height, width, channels\)"),
        ((0, 3), {}, r"input_shape is \(0, 3\); allowed"),
        ("image", {}, "input_shape is 'image'; allowed"),
        (TOKENS, {"examples": 2}, "examples is 2; allowed: 1 where inputs are given"),
        (
            (5,),
            {},
            "input_shape is float32\\[1,5\\], batch included; .* for other dtypes .* "
            "give a jax.ShapeDtypeStruct",
        ),
    ],
)
def test_inputs_that_are_refused(given, options, message):
    with pytest.raises(InputError, match=message):
        cost(zoo.Tokens(), given, **options)
