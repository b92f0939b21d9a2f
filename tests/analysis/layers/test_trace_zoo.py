"""trace and taps on unusual foreign modules: against jax.grad and forward passes by hand."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import deepjax
from deepjax.analysis import taps, trace
from deepjax.analysis.core.mode import EVAL
from deepjax.analysis.network.module import cross_entropy
from deepjax.analysis.residual.gates import residual_sites
from deepjax.errors import InputError
from deepjax.training.metrics.probe import LayerProbe
from tests.numpy_variables import numpy_variables
from tests.zoo import (  # fmt: skip
    FORCES,
    ZOO,
    Applies,
    Calls,
    Complex,
    Energy,
    Forces,
    JitBlock,
    Jitted,
    Lstm,
    Outputs,
    Recursive,
    Shapes,
    Sharing,
    Unused,
    batch_of,
    name_of,
    variables_of,
)

close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)


def rows_of(report):
    return {row.label: row for row in report.layers}


def norm(leaves):
    return math.sqrt(
        sum(
            float(np.square(np.abs(np.asarray(leaf))).sum())
            for leaf in leaves
            if leaf.dtype != jax.dtypes.float0
        )
    )


@functools.cache
def traced(model):
    """(variables, report) of a network of the zoo."""
    variables = variables_of(model)
    return variables, trace(model, variables, batch_of(), mode=EVAL)


def require_that_rows_add_up(model, variables, batch, report):
    rest = {name: tree for name, tree in variables.items() if name != "params"}
    loss = lambda params: cross_entropy(model.apply({"params": params, **rest}, batch[0]), batch)  # noqa: E731
    value, gradients = jax.jit(jax.value_and_grad(loss, allow_int=True))(variables["params"])
    close(report.loss, value)
    close(
        norm(np.asarray([row.weight_norm or 0.0 for row in report.layers])),
        norm(jax.tree.leaves(variables["params"])),
    )
    by_row = [row.parameter_gradient_norm or 0.0 for row in report.layers]
    close(norm(np.asarray(by_row)), norm(jax.tree.leaves(gradients)), rtol=1e-4)
    assert len(rows_of(report)) == len(report.layers)
    not_measured = {line.split(": ")[0] for line in report.not_measured}
    assert not_measured == {row.label for row in report.layers if not row.runs}
    assert all(
        row.gradient_norm != 0.0 or row.runs or not row.parameter_gradient_norm
        for row in report.layers
    )


@pytest.mark.parametrize("model", ZOO, ids=name_of)
def test_the_rows_of_foreign_modules_add_up_to_the_whole(model):
    variables, report = traced(model)
    require_that_rows_add_up(model, variables, batch_of(), report)


@pytest.mark.parametrize(
    ("name", "options", "pixels"),
    [
        ("cifar_nf20", {"stages": (1, 1, 1)}, 16),
        pytest.param("cifar_resnet20", {"stages": (1, 1, 1)}, 16, marks=pytest.mark.slow),
        pytest.param("vgg11_bn", {}, 32, marks=pytest.mark.slow),
        pytest.param("googlenet", {}, 32, marks=pytest.mark.slow),
    ],
)
def test_the_rows_of_our_networks_add_up_to_the_whole(name, options, pixels):
    model = deepjax.create_model(name, num_classes=3, width=2, **options)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, pixels, pixels, 3)), jnp.float32)
    variables, batch = numpy_variables(model, images.shape[1:]), (images, jnp.arange(2))
    require_that_rows_add_up(model, variables, batch, trace(model, variables, batch, mode=EVAL))


def test_under_nn_jit_every_layer_has_the_numbers_that_it_has_without(monkeypatch):
    """Of two instances of a class under nn.jit linen calls the first one only."""
    variables, report = traced(Jitted())
    with monkeypatch.context() as patched:
        patched.setattr(nn, "jit", lambda each: each)
        plain = trace(type("Plain", (Jitted,), {})(), variables, batch_of(), mode=EVAL)
    assert [row.layer for row in plain.layers] == [
        "b0/Dense_0",
        "b0",
        "a0",
        "b1/Dense_0",
        "b1",
        "a1",
        "Dense_0",
        "",
    ]
    at_the_top = trace(nn.jit(Jitted)(), variables, batch_of(), mode=EVAL)
    for a, b in zip((*report.layers, *at_the_top.layers), plain.layers * 2, strict=True):
        assert (a.layer, a.shape, a.runs) == (b.layer, b.shape, b.runs)
        close([a.mean, a.std, a.gradient_norm], [b.mean, b.std, b.gradient_norm], rtol=1e-4)
        close(a.parameter_gradient_norm or 0.0, b.parameter_gradient_norm or 0.0, rtol=1e-4)


def force(how, energy):
    """The forces by hand, of an energy of one example."""
    ones = jnp.ones(3)
    return {
        "grad": lambda x: -jax.grad(energy)(x),
        "vjp": jax.grad(energy),
        "jvp": lambda x: x * jnp.vdot(ones, jax.grad(energy)(x)),
        "jacfwd": jax.grad(energy),
        "hessian": lambda x: jax.jacrev(jax.grad(energy))(x).sum(axis=0),
    }[how]


@pytest.mark.parametrize(
    "model", [each for each in FORCES if each.how != "value_and_grad"], ids=name_of
)
def test_a_derivative_that_the_network_takes_is_part_of_the_loss(model):
    """The gradient at an inner layer is that of an addition to its output, example by example."""
    (variables, report), batch = traced(model), batch_of()
    inner, out = (variables["params"]["energy"][name] for name in ("in", "out"))

    def loss(added):
        def energy(added, x):
            return (
                jnp.tanh(x @ inner["kernel"] + inner["bias"] + added) @ out["kernel"][:, 0]
                + out["bias"][0]
            )

        forces = [
            force(model.how, functools.partial(energy, each))(x[:3])
            for each, x in zip(added, batch[0], strict=True)
        ]
        return cross_entropy(jnp.stack(forces), batch)

    by_hand = jax.jit(jax.grad(loss))(jnp.zeros((4, 4)))
    row = next(row for row in report.layers if row.layer == "energy/in" and row.runs)
    close(row.gradient_norm, np.linalg.norm(by_hand), rtol=1e-4)
    assert any(
        line.startswith("energy/out") and "a derivative that the network takes" in line
        for line in report.not_measured
    )


def test_what_enters_the_loss_by_value_and_by_derivative_has_the_gradient_of_both():
    model, batch = Forces("value_and_grad"), batch_of()
    variables = variables_of(model)

    def loss(added):
        energies = lambda x: Energy().apply({"params": variables["params"]["energy"]}, x) + added  # noqa: E731
        value, gradient = jax.value_and_grad(lambda x: jnp.sum(energies(x)))(batch[0][:, :3])
        return cross_entropy(gradient * 1.0 + value, batch)

    seen = taps(model, variables, batch, ["energy"])["energy"]
    close(seen.gradient, jax.jit(jax.grad(loss))(jnp.zeros(4)))


def test_outputs_leaf_by_leaf_and_of_other_methods():
    model, batch = Outputs(), batch_of()
    variables, report = traced(model)
    rows, params = rows_of(report), jax.device_get(variables["params"])
    dense = lambda x, layer: x @ layer["kernel"] + layer["bias"]  # noqa: E731
    trunk = dense(np.asarray(batch[0]), params["encoder"]["trunk"])
    mean, scale = (dense(trunk, params["encoder"][name]) for name in ("mean", "scale"))
    code = mean * np.exp(scale)
    last = dense(code, params["parts"]["Dense_0"])
    attended = (last * params["gain"] + 2.0 * code) @ params["embed"]["embedding"].T
    outputs = {
        "encoder.encode().mean": mean,
        "encoder.encode().scale": scale,
        "parts['z']": last,
        "parts['a']": code,
    }
    for label, output in {**outputs, "embed.attend()": attended, "(network)": attended}.items():
        close([rows[label].mean, rows[label].std], [output.mean(), output.std()], rtol=1e-4)
        assert rows[label].shape == output.shape
    assert set(rows) == {
        *outputs,
        "embed.attend()",
        "(network)",
        "encoder/trunk",
        "encoder/mean",
        "encoder/scale",
        "parts/Dense_0",
    }
    seen = taps(model, variables, batch, ["encoder", "embed.attend()"])
    assert list(seen) == ["encoder.encode().mean", "encoder.encode().scale", "embed.attend()"]
    close(seen["encoder.encode().scale"].activation, scale)


def test_both_directions_of_an_lstm():
    variables, report = traced(Lstm())
    _, state = jax.jit(lambda each: Lstm().apply(each, batch_of()[0], capture_intermediates=True))(
        variables
    )
    (_, outputs), (_, backward) = (
        state["intermediates"][name]["__call__"][0] for name in ("forward", "backward")
    )
    rows = rows_of(report)
    close([rows["forward[1]"].mean, rows["backward[1]"].mean], [outputs.mean(), backward.mean()])
    cell = rows["OptimizedLSTMCell_0[1]"]  # three runs of one step
    assert cell.runs == 3 and cell.shape == (4, 3)
    close(cell.mean, outputs.mean())
    # 8 gates per cell, and the head.
    assert sum(row.weight_norm is not None for row in report.layers) == 17


def test_other_shapes_are_counted_apart():
    _, report = traced(Shapes())
    labels = ["head (4x3)", "mix (of 4x3, 4x3)", "mix (of 4x3, 4x1)", "head (4x2x3)", "(network)"]
    assert list(rows_of(report)) == labels and [row.runs for row in report.layers] == [1] * 5
    assert [row.branch_ratio is not None for row in report.layers] == [
        False,
        True,
        False,
        False,
        False,
    ]


def test_branches_of_sums_that_are_called_with_other_shapes_are_refused():
    with pytest.raises(
        InputError, match="mix is called with several shapes, whose gates cannot be distinguished"
    ):
        residual_sites(Shapes(), traced(Shapes())[0], batch_of(), cross_entropy, False)


def test_two_modules_that_share_a_scope_have_rows_apart():
    variables, report = traced(Sharing())
    rows, params = rows_of(report), jax.device_get(variables["params"])
    x = np.maximum(
        np.asarray(batch_of()[0]) @ params["Dense_1"]["kernel"] + params["Dense_1"]["bias"], 0.0
    )
    base = x @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]
    close(rows["Dense_0 (Dense)"].mean, base.mean())
    close(
        rows["Dense_0 (LowRank)"].mean,
        (base + 3.0 + x @ params["Dense_0"]["a"] @ params["Dense_0"]["b"]).mean(),
    )


def test_a_call_of_a_parent_s_method_counts_once_and_recursion_each_time():
    (child,) = [row for row in traced(Calls())[1].layers if row.layer == "child"]
    assert child.runs == 1 and child.output == ""
    rows = rows_of(traced(Recursive())[1])
    assert [rows["layer"].runs, rows["(network)"].runs] == [3, 3]


def test_modules_of_an_inner_apply_are_no_layers_and_their_parameters_have_rows():
    model, batch = Applies(), batch_of()
    variables, report = traced(model)
    x = JitBlock().apply({"params": variables["params"]["inner"]}, batch[0])
    outputs = nn.Dense(3).apply({"params": variables["params"]["Dense_0"]}, x)
    rows = rows_of(report)
    assert [row.runs for row in report.layers] == [1, 0, 1] and math.isnan(
        rows["inner/Dense_0"].gradient_norm
    )
    close(rows["Dense_0"].mean, outputs.mean())
    reason = "parameters only: the network does not call it, or it returns no array of floats"
    assert report.not_measured == (
        f"inner/Dense_0: {reason}",
    ) and f"not measured: inner/Dense_0: {reason}" in repr(report)
    (only,) = trace(model, variables, batch, layers=["inner/Dense_0"], mode=EVAL).layers
    close(only.weight_norm, rows["inner/Dense_0"].weight_norm)
    in_training = LayerProbe(report, {}).row()["layers"]
    assert set(in_training) == {"Dense_0", "inner/Dense_0", "network"}
    assert set(in_training["inner/Dense_0"]) == {"weight_norm", "parameter_gradient_norm"}


def test_complex_numbers_count_as_pairs_of_real_ones():
    model, batch = Complex(), batch_of()
    variables, report = traced(model)
    rows, w = rows_of(report), variables["params"]["complex"]["w"]

    def loss(pair):  # the absolute value by real numbers
        real, imaginary = batch[0] @ pair[0], batch[0] @ pair[1]
        return cross_entropy(jnp.sqrt(real**2 + imaginary**2), batch)

    pair, output = jnp.stack([w.real, w.imag]), np.asarray(batch[0].astype(w.dtype) @ w)
    row = rows["complex"]
    close(
        [row.weight_norm, row.parameter_gradient_norm],
        [np.linalg.norm(pair), np.linalg.norm(jax.grad(loss)(pair))],
    )
    entries = np.stack([output.real, output.imag])
    close([row.mean, row.std, row.max_abs], [entries.mean(), entries.std(), np.abs(output).max()])
    assert row.dead_fraction == 0.0
    close(row.gradient_norm, rows["(network)"].gradient_norm)  # |z| has a gradient of length 1


def test_a_report_names_layers_without_influence_and_the_mode_switch():
    _, report = traced(Unused())
    assert report.not_measured == ("unused: nothing leads from it to the loss",)
    assert rows_of(report)["unused"].gradient_norm == 0.0
    assert repr(report).splitlines()[0].endswith(", no training switch found; called as it is")


def test_an_unknown_output_is_refused_by_the_nearest_name():
    with pytest.raises(
        InputError, match=r"layer 'embed.attend' is unknown; did you mean 'embed.attend\(\)'"
    ):
        taps(Outputs(), variables_of(Outputs()), batch_of(), ["embed.attend"])


class Signs(nn.Module):
    """A layer whose parameters have a gradient of their own: the signs of the true one."""

    @nn.compact
    def __call__(self, x):
        def backward(pull, cotangent):
            params, inputs = pull(cotangent)
            return jax.tree.map(jnp.sign, params), inputs

        call = lambda layer, x: layer(x)  # noqa: E731
        forward = lambda layer, x: nn.vjp(call, layer, x)  # noqa: E731
        x = nn.custom_vjp(call, forward_fn=forward, backward_fn=backward)(
            nn.Dense(5, name="signed"), x
        )
        return nn.Dense(3, name="head")(x)


def test_a_layer_inside_custom_vjp_is_not_measured():
    """Expected: the gradients of `jax.grad` of the network as it is, of which one is of signs."""
    model, batch = Signs(), batch_of()
    variables = variables_of(model)
    report = trace(model, variables, batch, mode=EVAL)
    require_that_rows_add_up(model, variables, batch, report)
    assert report.not_measured == ("signed: inside nn.custom_vjp, whose backward pass is its own",)
    row = rows_of(report)["signed"]
    close(row.parameter_gradient_norm, math.sqrt(batch[0].shape[-1] * 5 + 5))
    assert row.runs == 0 and math.isnan(row.gradient_norm)
    assert set(taps(model, variables, batch, ["head"])) == {"head"}
    with pytest.raises(InputError, match=r"'signed' runs inside nn\.custom_vjp"):
        taps(model, variables, batch, ["signed"])
