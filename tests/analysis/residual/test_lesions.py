"""Lesions: against networks whose branches are set to zero by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepjax.analysis import EVAL, TRAIN
from deepjax.analysis.network.module import cross_entropy
from deepjax.analysis.residual.lesions import error_rate, lesions
from deepjax.errors import InputError
from deepjax.models.resnet import ResNet
from tests.analysis.counting import CountCalls
from tests.analysis.residual.residual_networks import (
    CLASSES,
    WIDTH,
    Net,
    Shared,
    batch_of,
    entropy,
    initialised,
    rewired,
)
from tests.zoo import Halting


@pytest.mark.parametrize("mode", [EVAL, TRAIN])
@pytest.mark.parametrize(
    "model", [Net(), Net(linear=True), Net(how="remat")], ids=["plain", "linear", "remat"]
)
def test_a_branch_of_zeros_written_out(model, mode):
    variables, batch = initialised(model), batch_of()
    found = lesions(model, variables, batch, removed=[2, 4], draws=3, mode=mode)
    assert (found.loss, found.error) == pytest.approx(
        [float(each) for each in entropy(model, variables, batch, mode.train)], rel=1e-5
    )
    assert [row.removed for row in found.blocks] == [(f"block{i}/sum",) for i in range(4)]
    assert [len(row.removed) for row in found.several] == [2, 2, 2, 4]  # of four there is one set
    for row in (*found.blocks, *found.several):
        dense = [name.replace("/sum", "/dense") for name in row.removed]
        loss, error = entropy(
            model, rewired(variables, dense, jnp.zeros((WIDTH, WIDTH))), batch, mode.train
        )
        assert (row.loss, row.error) == pytest.approx((float(loss), error), rel=1e-5)
        assert (row.loss_change, row.error_change) == (
            row.loss - found.loss,
            row.error - found.error,
        )


def test_modules_of_a_plain_network_are_bypassed():
    model, batch = Net(linear=True, residual=False), batch_of()
    variables = initialised(model)
    names = ["block0/dense", "block2/dense"]
    found = lesions(model, variables, batch, layers=names, removed=[2])
    assert found.kind == "module" and [row.removed for row in found.blocks] == [
        (name,) for name in names
    ]
    for row in (*found.blocks, *found.several):
        loss, error = entropy(model, rewired(variables, row.removed, jnp.eye(WIDTH)), batch)
        assert (row.loss, row.error) == pytest.approx((float(loss), error), rel=1e-5)


@pytest.mark.parametrize("by_name", [False, True])
def test_a_shared_sum_has_a_gate_for_each_call(by_name):
    model, batch = Shared(by_name), batch_of()
    variables = initialised(model)
    found = lesions(model, variables, batch)
    assert [row.removed[0] for row in found.blocks] == ["add#1", "add#2", "add#3"]
    for i, row in enumerate(found.blocks):
        loss, _ = entropy(
            model, rewired(variables, [f"dense{i}"], jnp.zeros((WIDTH, WIDTH))), batch
        )
        assert row.loss == pytest.approx(float(loss), rel=1e-5)


def test_our_residual_network_starts_as_its_shortcuts():
    """With zero_init every branch is 0: removing it changes nothing (Goyal et al. 2017, 5.1)."""
    images = jnp.asarray(np.random.default_rng(0).standard_normal((4, 8, 8, 3), np.float32))
    for zero_init in (True, False):
        model = ResNet(
            stages=(2, 1),
            block="basic",
            stem="cifar",
            width=2,
            num_classes=CLASSES,
            zero_init=zero_init,
        )
        found = lesions(
            model, jax.jit(model.init)(jax.random.key(0), images), (images, jnp.arange(4) % CLASSES)
        )
        assert [row.removed[0] for row in found.blocks] == [
            "stage1_block1/sum",
            "stage1_block2/sum",
            "stage2_block1/sum",
        ]
        assert all((row.loss_change == 0) == zero_init for row in found.blocks)


def test_sets_are_sampled_from_the_key():
    model, batch = Net(depth=6), batch_of()
    variables = initialised(model)
    first, again, other = (
        lesions(model, variables, batch, removed=[3, 2], draws=5, key=jax.random.key(seed)).several
        for seed in (0, 0, 1)
    )
    assert first == again != other
    assert [len(row.removed) for row in first] == [2] * 5 + [3] * 5
    assert all(len(set(row.removed)) == len(row.removed) for row in first)


def squares(outputs, batch):
    return jnp.mean(jnp.square(outputs))


def by_example(outputs, batch):
    return outputs[:, 0]


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (Net(residual=False), {}, "Net has no residual sums: .* such as block0/norm, block0/dense"),
        (Net(how="scan"), {}, "blocks/sum runs several times inside nn.scan"),
        (
            Net(),
            {"layers": ["block0/dens"]},
            "layer 'block0/dens' is unknown; did you mean 'block0/dense'",
        ),
        (
            Net(),
            {"layers": ["head"]},
            "layer is 'head'; allowed: one that keeps its input's shape",
        ),
        (Net(), {"layers": []}, "layers is "),
        (
            Net(how="scan"),
            {"layers": ["blocks/dense"]},
            "blocks/dense runs several times inside nn.scan",
        ),
        (Net(), {"removed": [5]}, "removed is 5; allowed: 1 to the 4 blocks"),
        (Net(), {"removed": [0]}, "removed is 0"),
        (Net(), {"removed": [2], "draws": 0}, "draws is 0"),
        (Net(), {"metric": by_example}, r"metric returned the shape \(8,\); allowed: a scalar"),
        (
            Net(),
            {"metric": lambda outputs, batch: jnp.dot(outputs, outputs)},
            "metric cannot take what Net returns",
        ),
        (Net(), {"loss": by_example}, r"loss returned the shape \(8,\)"),
        (Net(), {"batch": (jnp.zeros((8, 5)), jnp.zeros(8, jnp.int32))}, "Net cannot take a batch"),
    ],
)
def test_bad_arguments_of_lesions(model, options, message):
    given = {"batch": batch_of()} | options
    with pytest.raises(InputError, match=message):
        lesions(model, initialised(model), given.pop("batch"), **given)


def test_a_block_in_a_loop_of_unknown_length_has_no_gate_of_its_own():
    x = jnp.ones((2, 4))
    variables = Halting().init(jax.random.key(0), x)
    with pytest.raises(InputError, match="cell runs several times inside nn"):
        lesions(Halting(), variables, (x, jnp.zeros(2, jnp.int32)), layers="cell")


def test_an_error_rate():
    outputs = jnp.array([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    assert error_rate(outputs, (None, jnp.array([1, 1, 1, 0]))) == 0.5
    with pytest.raises(InputError, match=r"labels is 'of shape \(3,\)'"):
        error_rate(outputs, (None, jnp.zeros(3, jnp.int32)))


def test_nothing_compiles_twice_and_progress_is_reported():
    model, loss, reports = Net(), CountCalls(cross_entropy), []
    variables, other = initialised(model), initialised(model, 1)
    lesions(model, variables, batch_of(), loss=loss)
    traces = loss.calls
    lesions(
        model,
        other,
        batch_of(seed=1),
        loss=loss,
        removed=[2],
        draws=2,
        progress=lambda *done: reports.append(done),
    )
    assert reports == [(i, 7) for i in range(1, 8)]
    assert loss.calls == traces


def test_the_figures_show_the_findings():
    model, batch = Net(), batch_of()
    found = lesions(model, initialised(model), batch, removed=[2, 3, 4], draws=3)
    assert [row["count"] for row in found.rows()] == [1] * 4 + [2] * 3 + [3] * 3 + [4]
    ax = found.plot()
    most = max(row.error_change for row in found.blocks)
    assert f"{most:+.2g} at most" in ax.get_title("left") and found.plot(ax) is ax
    assert [text.get_text() for text in ax.get_xticklabels()] == [f"block{i}" for i in range(4)]
    assert found.plot_several().get_title("left").startswith("4 of 4 branches removed: error")
