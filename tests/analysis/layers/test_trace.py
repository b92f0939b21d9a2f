"""taps and trace: against linen's own capture and perturbation by hand, on foreign networks."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import deepjax
from deepjax.analysis import taps, trace
from deepjax.analysis.core.mode import EVAL
from deepjax.analysis.network.module import cross_entropy
from deepjax.errors import InputError
from tests.analysis.counting import CountCalls
from tests.numpy_variables import numpy_variables

close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)


class Cnn(nn.Module):
    """Flax's own MNIST example."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(features=4, kernel_size=(3, 3))(x))
        x = nn.avg_pool(x, window_shape=(2, 2), strides=(2, 2))
        x = nn.relu(nn.Conv(features=8, kernel_size=(3, 3))(x))
        x = nn.avg_pool(x, window_shape=(2, 2), strides=(2, 2))
        x = x.reshape((x.shape[0], -1))
        return nn.Dense(features=10)(nn.relu(nn.Dense(features=16)(x)))


class Transformer(nn.Module):
    """A block of linen's attention over pixels as tokens, with dropout and another switch."""

    @nn.compact
    def __call__(self, x, deterministic=False):
        x = nn.Dense(8)(x.reshape(x.shape[0], -1, x.shape[-1]))
        y = nn.MultiHeadDotProductAttention(num_heads=2, dropout_rate=0.1)(
            nn.LayerNorm()(x), deterministic=deterministic
        )
        x = x + nn.Dropout(0.1)(y, deterministic=deterministic)
        x = x + nn.Dense(8)(nn.gelu(nn.Dense(16)(nn.LayerNorm()(x))))
        return nn.Dense(10)(x.mean(axis=1))


class Shared(nn.Module):
    """One layer called three times."""

    def setup(self):
        self.first, self.again, self.last = nn.Dense(8), nn.Dense(8), nn.Dense(10)

    def __call__(self, x):
        x = self.first(x.reshape(x.shape[0], -1))
        for _ in range(3):
            x = nn.relu(self.again(x))
        return self.last(x)


class Body(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        return nn.relu(nn.Dense(8)(x)), None


class Lifted(nn.Module):
    """Blocks under a scan, under remat, or written out."""

    how: str = "scan"

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(8)(x.reshape(x.shape[0], -1))
        if self.how == "scan":
            x, _ = nn.scan(
                Body, variable_axes={"params": 0}, split_rngs={"params": True}, length=3
            )(name="body")(x, None)
        else:
            body = nn.remat(Body) if self.how == "remat" else Body
            for i in range(3):
                x, _ = body(name=f"body{i}")(x)
        return nn.Dense(10)(x)


class WithState(nn.Module):
    """Batch norm, dropout and a residual sum that names its arguments."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(4, (3, 3))(x)
        y = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        x = Add(name="add")(x, nn.Conv(4, (3, 3), name="branch")(y))
        return nn.Dense(10)(nn.Dropout(0.5, deterministic=not train)(x.mean(axis=(1, 2))))


class Add(nn.Module):
    def __call__(self, shortcut, branch):
        return shortcut + branch


class Named(nn.Module):
    """Sums whose arguments are given by name, and whose shortcut is broadcast."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(8)(x.reshape(x.shape[0], -1))
        x = Add(name="named")(branch=nn.Dense(8)(x), shortcut=x)
        return nn.Dense(10)(Add(name="broadcast")(x[:, :1], x))


class Mlp(nn.Module):
    """The example of Flax's front page: a list among the fields."""

    features: list[int]

    @nn.compact
    def __call__(self, x):
        x = x.reshape(x.shape[0], -1)
        for feature in self.features[:-1]:
            x = nn.relu(nn.Dense(feature)(x))
        return nn.Dense(self.features[-1])(x)


class Heads(nn.Module):
    """Four instances of one layer under nn.vmap, with one set of parameters or four."""

    shared: bool

    @nn.compact
    def __call__(self, x):
        x = jnp.stack([x.reshape(x.shape[0], -1)[:, i::4] for i in range(4)], 1)
        axes = {"params": None if self.shared else 0}
        layer = nn.vmap(
            nn.Dense,
            in_axes=1,
            out_axes=1,
            variable_axes=axes,
            split_rngs={"params": not self.shared},
        )
        return nn.Dense(10)(layer(8, name="each")(x).mean(axis=1))


@pytest.fixture(autouse=True)
def _standard_promotion():
    """Flax's own average pooling divides by an integer."""
    with jax.numpy_dtype_promotion("standard"):
        yield


SEQUENTIAL = nn.Sequential(
    [lambda x: x.reshape(x.shape[0], -1), nn.Dense(8), nn.relu, nn.Dense(10)]
)
NETWORKS = [
    Cnn(),
    Transformer(),
    Shared(),
    *(Lifted(how) for how in ("scan", "remat", "plain")),
    WithState(),
    Named(),
    Mlp([8, 10]),
    SEQUENTIAL,
]


def ids(value):
    is_module = isinstance(value, nn.Module)
    return f"{type(value).__name__}{getattr(value, 'how', '')}" if is_module else None


def batch_of(examples=6):
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(examples, 8, 8, 2)), jnp.float32)
    return images, jnp.asarray(rng.integers(0, 10, examples), jnp.int32)


def init(model):
    return model.init({"params": jax.random.key(1), "dropout": jax.random.key(2)}, batch_of()[0])


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(each, marks=pytest.mark.slow if isinstance(each, Transformer) else ())
        for each in NETWORKS
    ],
    ids=ids,
)
def test_the_rows_of_foreign_networks(model):
    batch, variables = batch_of(), init(model)
    report = trace(model, variables, batch)
    rngs = {"dropout": jax.random.key(0)}

    def loss(params):
        switch = {"train": True} if isinstance(model, WithState) else {}
        outputs, state = model.apply(
            variables | {"params": params},
            batch[0],
            **switch,
            rngs=rngs,
            capture_intermediates=True,
            mutable=True,
        )
        return cross_entropy(outputs, batch), (outputs, state["intermediates"])

    (value, (outputs, captured)), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(
        variables["params"]
    )
    close(report.loss, value)
    assert report.layers[-1].layer == ""
    close(report.layers[-1].mean, outputs.mean())
    for row in report.layers:
        owned = gradients
        for part in filter(None, row.layer.split("/")):
            owned = owned.get(part, {})
        leaves = [leaf for leaf in owned.values() if not isinstance(leaf, dict)]
        if leaves:
            close(
                row.parameter_gradient_norm,
                math.sqrt(sum(float(jnp.sum(leaf**2)) for leaf in leaves)),
                rtol=1e-4,
            )
        seen = captured
        for part in filter(None, row.layer.split("/")):
            seen = seen.get(part, {})
        if isinstance(seen.get("__call__", (None,))[0], jax.Array):
            outputs = (
                np.stack(seen["__call__"])
                if row.layer != "again"
                else np.stack([*seen["__call__"]])
            )
            close(row.mean, outputs.mean(), atol=1e-5)
            close(row.std, outputs.std(), rtol=1e-4)


def test_activations_and_gradients_are_those_of_a_perturbation_by_hand():
    model, batch = WithState(), batch_of()
    variables, rngs = init(model), {"dropout": jax.random.key(5)}
    seen = taps(model, variables, batch, ["branch", "BatchNorm_0"], key=rngs["dropout"])

    def loss(zeros):
        def add(function, arguments, keywords, context):
            output = function(*arguments, **keywords)
            return output + zeros[context.module.name] if context.module.name in zeros else output

        with nn.intercept_methods(add):
            outputs, _ = model.apply(
                variables, batch[0], train=True, rngs=rngs, mutable=["batch_stats"]
            )
        return cross_entropy(outputs, batch)

    by_hand = jax.grad(loss)({name: jnp.zeros_like(tap.activation) for name, tap in seen.items()})
    for name, tap in seen.items():
        close(tap.gradient, by_hand[name])


def test_a_scanned_block_has_one_row_for_all_its_runs():
    batch, scanned, plain = batch_of(), Lifted("scan"), Lifted("plain")
    variables = init(scanned)
    params = dict(variables["params"])
    body = params.pop("body")
    unrolled = {
        "params": params
        | {f"body{i}": jax.tree.map(lambda leaf, i=i: leaf[i], body) for i in range(3)}
    }
    one = {row.layer: row for row in trace(scanned, variables, batch).layers}["body/Dense_0"]
    three = [
        row
        for row in trace(plain, unrolled, batch).layers
        if row.layer.startswith("body") and not row.output
    ]
    assert one.runs == 3 and [row.runs for row in three] == [1, 1, 1]
    close(one.mean, np.mean([row.mean for row in three]))
    close(one.gradient_norm, np.linalg.norm([row.gradient_norm for row in three]))
    close(
        one.parameter_gradient_norm, np.linalg.norm([row.parameter_gradient_norm for row in three])
    )


@pytest.mark.parametrize("shared", [True, False])
def test_instances_under_vmap_have_one_row_for_all(shared):
    model, batch = Heads(shared), batch_of()
    variables = init(model)
    (row,) = [row for row in trace(model, variables, batch).layers if row.layer == "each"]
    x, params = np.asarray(batch[0]).reshape(6, -1), jax.device_get(variables["params"]["each"])
    parts = np.stack([x[:, i::4] for i in range(4)], 1)
    outputs = (
        np.einsum("nik,ko->nio" if shared else "nik,iko->nio", parts, params["kernel"])
        + params["bias"]
    )
    assert row.runs == 4
    close([row.mean, row.std], [outputs.mean(), outputs.std()], rtol=1e-4)
    with pytest.raises(InputError, match="layer 'each' runs 4 times inside a scan or vmap"):
        taps(model, variables, batch, ["each"])


def test_taps_refuse_a_layer_without_gradient():
    class Frozen(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(10)(
                jax.lax.stop_gradient(nn.Dense(8, name="trunk")(x.reshape(x.shape[0], -1)))
            )

    with pytest.raises(InputError, match="nothing leads from layer 'trunk' to the loss"):
        taps(Frozen(), init(Frozen()), batch_of(), ["trunk"])


def test_inside_jit_taps_work_and_trace_is_refused():
    model, batch = Cnn(), batch_of()
    variables = init(model)
    inside = jax.jit(
        lambda variables: taps(model, variables, batch, ["Conv_0"])["Conv_0"].gradient
    )(variables)
    close(inside, taps(model, variables, batch, ["Conv_0"])["Conv_0"].gradient)
    with pytest.raises(InputError, match=r"cannot run inside jax.jit; allowed there: taps"):
        jax.jit(lambda variables: trace(model, variables, batch))(variables)


def test_a_shared_layer_has_one_row_for_all_its_calls():
    rows = {row.layer: row for row in trace(Shared(), init(Shared()), batch_of()).layers}
    assert [rows[name].runs for name in ("first", "again", "last")] == [1, 3, 1]


def test_remat_changes_no_row():
    batch, variables = batch_of(), init(Lifted("plain"))
    renamed = {
        "params": {
            name.replace("CheckpointBody", "Body"): leaf
            for name, leaf in init(Lifted("remat"))["params"].items()
        }
    }
    assert jax.tree.structure(renamed) == jax.tree.structure(variables)
    with_remat, without = (
        trace(Lifted(how), variables, batch).rows() for how in ("remat", "plain")
    )
    for a, b in zip(with_remat, without, strict=True):
        assert a["layer"] == b["layer"]
        close(
            [a["mean"], a["gradient_norm"], a["dead_fraction"]],
            [b["mean"], b["gradient_norm"], b["dead_fraction"]],
        )


def test_the_sum_of_a_residual_block():
    model, batch = WithState(), batch_of()
    variables = init(model)
    row = {row.layer: row for row in trace(model, variables, batch).layers}["add"]
    seen = taps(model, variables, batch, ["Conv_0", "branch"])
    shortcut, branch = (
        np.asarray(seen[name].activation, np.float64).ravel() for name in ("Conv_0", "branch")
    )
    close([row.shortcut_norm, row.branch_norm], [np.linalg.norm(shortcut), np.linalg.norm(branch)])
    close(
        row.cosine, shortcut @ branch / np.linalg.norm(shortcut) / np.linalg.norm(branch), atol=1e-5
    )
    close(row.branch_ratio, row.branch_norm / row.shortcut_norm)


@pytest.mark.parametrize(
    "kind", ["resnet20", "preact110", "fixup20", "skipinit20", "rezero20", "nf20"]
)
def test_each_residual_block_of_ours_shows_its_sum(kind):
    thin = {"width": 2, "stages": (2, 2, 2)} | ({"stem_width": 2} if kind == "preact110" else {})
    model = deepjax.create_model(f"cifar_{kind}", **thin)
    variables = numpy_variables(model, (32, 32, 3))
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 32, 32, 3)), jnp.float32)
    sums = [
        row
        for row in trace(model, variables, (images, jnp.zeros(2, jnp.int32)), mode=EVAL).layers
        if row.shortcut_norm
    ]
    assert len(sums) == sum(model.stages) and all(row.layer.endswith("/sum") for row in sums)


def test_dead_channels_are_counted():
    model, batch = Cnn(), batch_of()
    variables = init(model)
    bias = variables["params"]["Conv_0"]["bias"].at[0].set(-100.0)
    variables["params"]["Conv_0"]["bias"] = bias
    rows = {row.layer: row for row in trace(model, variables, batch).layers}
    assert rows["Conv_0"].dead_fraction == 0.25


def test_the_update_ratio_is_the_optimizers():
    model, batch = Cnn(), batch_of()
    variables = init(model)
    updates = jax.tree.map(lambda leaf: -0.01 * leaf, variables["params"])
    rows = trace(model, variables, batch, updates=updates).layers
    close([row.update_ratio for row in rows if row.update_ratio is not None], 0.01)
    assert sum(row.update_ratio is not None for row in rows) == 4
    assert all(row.update_ratio is None for row in trace(model, variables, batch).layers)


def test_a_layer_without_influence_on_the_loss_has_zero_gradient():
    class Blind(nn.Module):
        @nn.compact
        def __call__(self, x):
            nn.Dense(3, name="unused")(x.reshape(x.shape[0], -1))
            return nn.Dense(10)(x.reshape(x.shape[0], -1))

    row = {row.layer: row for row in trace(Blind(), init(Blind()), batch_of()).layers}["unused"]
    assert row.runs == 0 and math.isnan(row.mean) and row.gradient_norm == 0


@pytest.mark.eight_devices
def test_equal_on_one_and_eight_devices():
    model, batch = WithState(), batch_of(16)
    variables = init(model)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    spread = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))
    for a, b in zip(
        trace(model, variables, batch).rows(), trace(model, variables, spread).rows(), strict=True
    ):
        close(
            [a["mean"], a["std"], a["gradient_norm"]],
            [b["mean"], b["std"], b["gradient_norm"]],
            rtol=1e-4,
        )


def test_nothing_recompiles_from_call_to_call():
    model, batch = Cnn(), batch_of()
    variables, loss = init(model), CountCalls(cross_entropy)
    trace(model, variables, batch, loss=loss)
    traces = loss.calls
    again = jax.tree.map(lambda leaf: leaf + 1.0, variables)
    trace(Cnn(), again, batch, loss=loss)
    assert loss.calls == traces


def test_a_report_is_a_table_and_a_figure():
    report = trace(WithState(), init(WithState()), batch_of())
    lines = repr(report).splitlines()
    assert lines[0].startswith("loss ") and len(lines) == 2 + len(report.layers)
    assert "update ratio" not in lines[1] and "branch ratio" in lines[1]
    assert str(report) == repr(report) and len(report.plot().axes) == 4
    assert {"layer", "mean", "gradient_norm"} <= set(report.rows()[0])


def test_the_text_of_many_layers_is_short_and_all_are_printed():
    class Deep(nn.Module):
        @nn.compact
        def __call__(self, x):
            for _ in range(40):
                x = nn.Dense(3)(x)
            return x

    report = trace(
        Deep(), Deep().init(jax.random.key(0), jnp.ones((2, 3))), (jnp.ones((2, 3)), jnp.arange(2))
    )
    assert len(report.layers) == 41 and len(str(report).splitlines()) == 2 + 41
    short = repr(report).splitlines()
    assert len(short) == 2 + 24 + 1 and short[14] == "... 17 more"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"layers": ["Conv_9"]},
            "layer 'Conv_9' is unknown; did you mean 'Conv_.'. allowed: Conv_0",
        ),
        (
            {"loss": lambda outputs, batch: outputs},
            r"loss returned the shape \(6, 10\); allowed: a scalar",
        ),
        (
            {"batch": (jnp.zeros((6, 4, 4, 2)), jnp.zeros(6, jnp.int32))},
            r"Cnn cannot take a batch with inputs of shape \(6, 4, 4, 2\)",
        ),
        (
            {"batch": (jnp.zeros((6, 8, 8, 2)), jnp.zeros(5, jnp.int32))},
            r"labels have the shape \(5,\), outputs \(6, 10\)",
        ),
        ({"batch": {"pixels": 1, "other": 2}}, "batch has the keys"),
        ({"batch": 3}, "batch is a int; allowed"),
    ],
)
def test_bad_input_is_one_line(change, message):
    arguments = {"batch": batch_of()} | change
    with pytest.raises(InputError, match=message) as error:
        trace(Cnn(), init(Cnn()), **arguments)
    assert "\n" not in str(error.value)


def test_taps_refuse_layers_of_several_runs():
    with pytest.raises(InputError, match="layer 'again' is called 3 times"):
        taps(Shared(), init(Shared()), batch_of(), ["again"])
    with pytest.raises(InputError, match="runs 3 times inside a scan"):
        taps(Lifted("scan"), init(Lifted("scan")), batch_of(), ["body/Dense_0"])
