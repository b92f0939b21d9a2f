"""What kernels, drift and linearised training have in common: compilation, figures, errors."""

import jax
import pytest

from deepjax.analysis.ntk.drift import kernel_drift
from deepjax.analysis.ntk.kernel import ntk
from deepjax.analysis.ntk.linearised import half_mse, linearised, linearised_training
from deepjax.errors import InputError
from tests.analysis.ntk.ntk_cases import Mlp, Two, gaussian, init
from tests.zoo import no_compilation


def test_nothing_compiles_twice_and_progress_is_shown():
    """A kernel of other examples reuses the chunks' programs."""

    def given(seed, size):
        x, y = gaussian((size, 3), seed), gaussian((4, 2), seed)
        return init(Mlp(), x, seed), x, x[:4], y

    def everything(variables, x, first, y, steps, progress=None):
        ntk(Mlp(), variables, x, chunk=2, progress=progress)
        run = linearised_training(
            Mlp(), variables, (first, y), steps=steps, learning_rate=0.1, progress=progress
        )
        kernel_drift(Mlp(), variables, {"params": run.params}, x, chunk=2, progress=progress)
        linearised(Mlp(), variables)(run.params, first)

    everything(*given(0, 4), 2)
    other, seen = given(1, 5), []
    ntk(Mlp(), *other[:2], chunk=5)  # compiles how five examples are stacked
    with no_compilation():  # the last chunk of 5 is padded to 2
        everything(*other, 3, lambda *done: seen.append(done))
    assert seen == [
        *((done, 6) for done in range(1, 7)),
        *((done, 3) for done in range(1, 4)),
        *((done, 12) for done in range(1, 13)),
    ]


def test_figures_state_the_result():
    x, y = gaussian((6, 3)), gaussian((6, 2), 1)
    variables = init(Mlp(), x)
    kernel = ntk(Mlp(), variables, x)
    ax = kernel.plot()
    assert (
        f"condition {kernel.condition:.3g}" in ax.get_title("left")
        and ax.get_yscale() == "log"
        and kernel.plot(ax) is ax
    )
    assert "between two sets" in ntk(Mlp(), variables, x, x[:2], output="full").plot().get_title(
        "left"
    )
    run = linearised_training(Mlp(), variables, (x, y), steps=5, learning_rate=0.3)
    assert run.plot().get_title("left").startswith("After 5 steps the linearisation is off by")
    assert run.plot(title="Mine").get_title("left") == "Mine"
    assert repr(run).startswith("LinearisedRun: first loss ")
    drift = kernel_drift(Mlp(), variables, {"params": run.params}, x)
    assert drift.plot(title="Mine").get_title("left") == "Mine"
    assert repr(drift).startswith("KernelDrift: drift ")
    assert f"moved by {100 * drift.drift:.3g} %" in drift.plot().get_title("left")
    assert drift.rows() == [
        {"drift": drift.drift, "alignment": drift.alignment, "growth": drift.growth, "examples": 6}
    ]
    assert repr(kernel).startswith("TangentKernel: mean of the diagonal ")
    assert ntk(Mlp(), variables, x, x[:2]).summary()["others"] == 2
    assert kernel.plot(title="Mine").get_title("left") == "Mine"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda v, x: ntk(Mlp(), v, x, output="sum"),
            "output is 'sum'; allowed: 'mean', 'trace', 'full'",
        ),
        (
            lambda v, x: ntk(Mlp(), v, x, layers="frst"),
            "layer 'frst' is unknown; did you mean 'first'",
        ),
        (lambda v, x: ntk(Mlp(), v, inputs=x), "ntk no longer takes inputs=; use batch="),
        (lambda v, x: ntk(Mlp(), v, x, chunk=0), "chunk is 0; allowed: a number of examples"),
        (lambda v, x: ntk(Mlp(), v, x[:, :2]), "Mlp cannot take a batch with inputs of shape"),
        (lambda v, x: ntk(Mlp(), v, x, x[:, :2]), "Mlp cannot take a batch with inputs of shape"),
        (lambda v, x: ntk(Mlp(), {}, x), "'params' is missing"),
        (lambda v, x: ntk(Mlp(), v, x, x).eigenvalues, "kernel is 'between two sets of inputs"),
        (
            lambda v, x: kernel_drift(Mlp(), v, {"params": {}}, x),
            "variables_t is a tree without 'first/bias'",
        ),
        (
            lambda v, x: kernel_drift(Mlp(), v["params"], v, x),
            r"variables have the collections \['first', 'head'\]; 'params' is missing",
        ),
        (lambda v, x: linearised(Mlp(), v)({"first": 0}, x), "params is a tree with 'first'"),
        (lambda v, x: linearised(Mlp(), v)(v["params"], x[:, :2]), "Mlp cannot take a batch"),
        (
            lambda v, x: linearised_training(Mlp(), v, (x, x), steps=1, learning_rate=0.1),
            r"labels is 'of shape \(4, 3\)'",
        ),
        (
            lambda v, x: linearised_training(Mlp(), v, (x, x[:, :2]), steps=0, learning_rate=0.1),
            "steps is 0; allowed: 1 or more",
        ),
        (
            lambda v, x: linearised_training(Mlp(), v, (x, x[:, :2]), steps=1, learning_rate=0),
            "learning_rate is 0; allowed: above 0",
        ),
        (
            lambda v, x: linearised_training(Mlp(), v, (x, x[:, :2]), steps=90, learning_rate=1e3),
            "at step .* a loss is not finite",
        ),
    ],
)
def test_what_is_refused(call, message):
    x = gaussian((4, 3))
    with pytest.raises(InputError, match=message):
        call(init(Mlp(), x), x)


def test_networks_that_return_no_single_array():
    x = gaussian((4, 3))
    variables = Two(True).init(jax.random.key(0), x, x)
    with pytest.raises(InputError, match="the network's output is"):
        ntk(Two(True), variables, ((x, x), None))
    assert float(half_mse(x, (x, x))) == 0
