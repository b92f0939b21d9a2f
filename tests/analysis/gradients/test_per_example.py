"""Per-example gradients against a loop over the examples."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from deepjax.analysis import EVAL, TRAIN, Ghost
from deepjax.analysis.gradients.per_example import per_example_gradients
from deepjax.analysis.network.module import cross_entropy
from deepjax.errors import InputError
from tests.analysis.counting import CountCalls
from tests.analysis.gradients.gradient_networks import Net, images, initialised, layers_of, loop


class Body(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        return x + nn.relu(nn.Dense(5, name="dense")(x)), None


class Lifted(nn.Module):
    """Blocks under a scan or under remat."""

    how: str

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(5, name="first")(x.reshape(x.shape[0], -1))
        if self.how == "scan":
            x, _ = nn.scan(
                Body, variable_axes={"params": 0}, split_rngs={"params": True}, length=3
            )(name="body")(x, None)
        else:
            x, _ = nn.remat(Body)(name="body")(x)
        return nn.Dense(4, name="head")(x)


CASES = {
    "frozen statistics": (Net(), EVAL, 4),  # chunks of 4, 4 and 2
    "ghost batches": (Net(), Ghost(2), 16),
    "ghost batches with dropout": (Net(rate=0.5), Ghost(2), 2),  # chunks of 2, 2 and 1
    "no norm, dropout": (Net(normalised=False, rate=0.5), TRAIN, 3),
    "no norm": (Net(normalised=False), EVAL, 10),
    "scan": (Lifted("scan"), EVAL, 4),
    "remat": (Lifted("remat"), EVAL, 4),
}


@pytest.mark.parametrize(("model", "mode", "chunk"), CASES.values(), ids=CASES)
def test_a_loop_over_the_examples(model, mode, chunk):
    variables, batch = initialised(model), images()
    found = per_example_gradients(model, variables, batch, mode=mode, chunk=chunk, keep=True)
    size = (mode.ghost or 1) if mode.train else 0
    expected = loop(model, variables, batch, size, jax.random.key(0))
    # Entries that nearly cancel are exact to the rounding of the largest ones.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            a, b, rtol=1e-4, atol=1e-6 + 1e-5 * np.abs(b).max()
        ),
        found.gradients,
        expected,
    )
    assert found.count == 10 // (mode.ghost or 1) and found.has_batch_norm == (
        "norm" in variables["params"]
    )
    by_layer = layers_of(expected)
    assert {row.layer for row in found.layers} == set(by_layer)
    for row in found.layers:
        each = by_layer[row.layer]
        mean, variance = each.mean(0), each.var(0, ddof=1)
        assert row.parameters == each.shape[1]
        assert row.mean_norm == pytest.approx(np.linalg.norm(mean), rel=1e-4, abs=1e-6)
        assert row.example_norm == pytest.approx(np.linalg.norm(each, axis=1).mean(), rel=1e-4)
        assert row.variance == pytest.approx(variance.sum(), rel=1e-3)
        sizes = mean**2 + variance
        # The convolution's bias, before batch norm, has a gradient of 0 and rounding.
        alive = sizes > 1e-10 * sizes.max()
        if row.layer == "idle":
            assert math.isnan(row.gsnr) and row.example_norm == 0
        else:
            n = found.count
            ratio = (mean[alive] ** 2 / variance[alive]).mean() * (n - 3) / (n - 1) - 1 / n
            assert row.gsnr == pytest.approx(ratio, rel=1e-2, abs=1e-4)


@pytest.mark.parametrize("signal", [0.0, 1.0])
@pytest.mark.parametrize("count", [5, 20])
def test_noise_alone_has_no_signal(signal, count):
    """Gaussian gradients: signal^2 is the true ratio, whatever the number of examples."""

    class Weights(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x @ self.param("w", nn.initializers.zeros, (4000,))

    x = signal + jnp.asarray(
        np.random.default_rng(count).standard_normal((count, 4000), np.float32)
    )
    variables = {"params": {"w": jnp.zeros(4000)}}
    found = per_example_gradients(
        Weights(), variables, (x, jnp.zeros(count)), loss=lambda outputs, _: jnp.mean(outputs)
    )
    assert found.layers[0].gsnr == pytest.approx(signal**2, abs=0.1)


def test_order_is_the_forward_pass_and_gradients_are_kept_on_request_only():
    model, batch = Net(), images()
    found = per_example_gradients(model, initialised(model), batch)
    assert [row["layer"] for row in found.rows()] == ["second_by_name", "norm", "head", "idle"]
    assert found.gradients is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bn": 2}, "no longer takes bn=; use mode=EVAL, TRAIN or Ghost"),
        ({"mode": "batch"}, "mode is 'batch'; allowed: EVAL, TRAIN or Ghost"),
        ({"mode": TRAIN}, r"mode is TRAIN; allowed: EVAL or Ghost\(k\), because under batch stat"),
        ({"mode": Ghost(3)}, "a number of examples that divides the batch of 10"),
        (
            {"mode": Ghost(10)},
            r"batch is 'of 10 examples in Ghost\(10\)'; allowed: what leaves two gradients or more",
        ),
        ({"layers": "hed"}, "layer 'hed' is unknown; did you mean 'head'"),
        ({"chunk": 0}, "chunk is 0; allowed: a number of gradients"),
        ({"batch": (images(10)[0], images(8)[1])}, r"labels have the shape \(8,\)"),
        ({"batch": (jnp.zeros((4, 4, 4, 3)), jnp.zeros(4, jnp.int32))}, "Net cannot take a batch"),
        (
            {"loss": lambda outputs, batch: outputs[:, 0]},
            r"loss returned the shape \(10,\); allowed: a scalar",
        ),
        ({"variables": {}}, "'params' is missing"),
    ],
)
def test_bad_arguments_of_per_example_gradients(options, message):
    model = Net()
    given = {"variables": initialised(model), "batch": images()} | options
    with pytest.raises(InputError, match=message):
        per_example_gradients(model, given.pop("variables"), given.pop("batch"), **given)


def test_nothing_compiles_twice_and_the_figure_shows_the_finding():
    model, loss = Net(), CountCalls(cross_entropy)
    found = per_example_gradients(model, initialised(model), images(), loss=loss)
    traces = loss.calls
    per_example_gradients(model, initialised(model, 1), images(seed=3), loss=loss)
    assert loss.calls == traces
    ax = found.plot()
    title = ax.get_title("left")
    assert title.startswith("10 gradients: ") and title.endswith("10 examples, running statistics")
    assert ax.get_yscale() == "log"
    assert found.plot(ax, title="Mine") is ax and ax.get_title("left") == "Mine"
    assert repr(found).startswith("PerExampleGradients: gradients 10, mean gradient's norm ")


def test_progress_by_chunk_of_equal_size():
    seen = []
    per_example_gradients(
        Net(), initialised(Net()), images(), chunk=8, progress=lambda *done: seen.append(done)
    )
    assert seen == [(1, 2), (2, 2)]  # of 5
