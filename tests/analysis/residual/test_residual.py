"""Lesions and path lengths: against networks rewritten by hand, all 2^n paths, and a binomial in closed form."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from deepjax.analysis.residual.lesions import (
    _evaluate,
    _path_norms,
    error_rate,
    lesions,
    path_gradient,
    path_lengths,
)
from deepjax.errors import InputError
from deepjax.models.resnet import ResNet
from tests.zoo import Halting

WIDTH, CLASSES = 6, 3


class Add(nn.Module):
    def __call__(self, shortcut, branch):
        return shortcut + branch


class Block(nn.Module):
    """x + W x, or x + relu(W norm(x)); without the sum its plain twin."""

    linear: bool
    train: bool = False
    residual: bool = True

    @nn.compact
    def __call__(self, x, _=None):
        y = x if self.linear else nn.BatchNorm(use_running_average=not self.train, name="norm")(x)
        y = nn.Dense(x.shape[-1], use_bias=False, name="dense")(y)
        y = y if self.linear else nn.relu(y)
        return (Add(name="sum")(x, y) if self.residual else y), None


class Net(nn.Module):
    """Blocks one by one, under remat, or under a scan; without biases."""

    depth: int = 4
    linear: bool = False
    residual: bool = True
    how: str = "plain"

    @nn.compact
    def __call__(self, x, train=False):
        if self.how == "scan":
            options = {
                "variable_axes": {"params": 0, "batch_stats": 0},
                "split_rngs": {"params": True},
            }
            x, _ = nn.scan(Block, length=self.depth, **options)(self.linear, train, name="blocks")(
                x, None
            )
        else:
            block = nn.remat(Block) if self.how == "remat" else Block
            for i in range(self.depth):
                x, _ = block(self.linear, train, self.residual, name=f"block{i}")(x)
        return nn.Dense(CLASSES, use_bias=False, name="head")(x)


class Shared(nn.Module):
    """One sum for three branches, whose arguments are given by name."""

    by_name: bool = False

    @nn.compact
    def __call__(self, x):
        add = Add(name="add")
        for i in range(3):
            branch = nn.Dense(WIDTH, use_bias=False, name=f"dense{i}")(x)
            x = add(shortcut=x, branch=branch) if self.by_name else add(x, branch)
        return nn.Dense(CLASSES, use_bias=False, name="head")(x)


def batch_of(count=8, seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.standard_normal((count, WIDTH), np.float32)), jnp.asarray(
        rng.integers(0, CLASSES, count)
    )


def initialised(model, seed=0):
    return jax.jit(model.init)(jax.random.key(seed), batch_of()[0])


def entropy(model, variables, batch, train=False):
    """Loss and error of the network as it is."""
    mutable = ["batch_stats"] if train else False
    options = {"train": train} if isinstance(model, Net) else {}
    outputs = model.apply(variables, batch[0], mutable=mutable, **options)
    outputs = outputs[0] if train else outputs
    loss = -jnp.mean(
        jnp.sum(jax.nn.log_softmax(outputs) * jax.nn.one_hot(batch[1], CLASSES), axis=-1)
    )
    return loss, float(np.mean(np.argmax(outputs, -1) != np.asarray(batch[1])))


def rewired(variables, names, kernel):
    """The same network with other weights in these layers."""
    params = variables["params"]
    for name in names:
        outer, _, inner = name.rpartition("/")
        params = (
            {**params, outer: {**params[outer], inner: {"kernel": kernel}}}
            if outer
            else {**params, name: {"kernel": kernel}}
        )
    return {**variables, "params": params}


# Lesions ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize(
    "model", [Net(), Net(linear=True), Net(how="remat")], ids=["plain", "linear", "remat"]
)
def test_a_branch_of_zeros_written_out(model, train):
    variables, batch = initialised(model), batch_of()
    found = lesions(model, variables, batch, removed=[2, 4], draws=3, train=train)
    assert (found.loss, found.error) == pytest.approx(
        [float(each) for each in entropy(model, variables, batch, train)], rel=1e-5
    )
    assert [row.removed for row in found.blocks] == [(f"block{i}/sum",) for i in range(4)]
    assert [len(row.removed) for row in found.several] == [2, 2, 2, 4]  # of four there is one set
    for row in (*found.blocks, *found.several):
        dense = [name.replace("/sum", "/dense") for name in row.removed]
        loss, error = entropy(
            model, rewired(variables, dense, jnp.zeros((WIDTH, WIDTH))), batch, train
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
    found = lesions(model, variables, batch, modules=names, removed=[2])
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
    """With zero_init every branch is 0, so that to delete it changes nothing (Goyal et al. 2017, section 5.1)."""
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


def test_sets_are_drawn_from_the_seed():
    model, batch = Net(depth=6), batch_of()
    variables = initialised(model)
    first, again, other = (
        lesions(model, variables, batch, removed=[3, 2], draws=5, seed=seed).several
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
            {"modules": ["block0/dens"]},
            "module 'block0/dens' is unknown; did you mean 'block0/dense'",
        ),
        (
            Net(),
            {"modules": ["head"]},
            "module is 'head'; allowed: one that keeps its input's shape",
        ),
        (Net(), {"modules": []}, "modules is "),
        (
            Net(how="scan"),
            {"modules": ["blocks/dense"]},
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
def test_what_cannot_be_lesioned(model, options, message):
    given = {"batch": batch_of()} | options
    with pytest.raises(InputError, match=message):
        lesions(model, initialised(model), given.pop("batch"), **given)


def test_a_block_in_a_loop_of_unknown_length_has_no_gate_of_its_own():
    x = jnp.ones((2, 4))
    variables = Halting().init(jax.random.key(0), x)
    with pytest.raises(InputError, match="cell runs several times inside nn\\.scan or a loop"):
        lesions(Halting(), variables, (x, jnp.zeros(2, jnp.int32)), modules=["cell"])


def test_an_error_rate():
    outputs = jnp.array([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    assert error_rate(outputs, (None, jnp.array([1, 1, 1, 0]))) == 0.5
    with pytest.raises(InputError, match=r"labels is 'of shape \(3,\)'"):
        error_rate(outputs, (None, jnp.zeros(3, jnp.int32)))


# Path lengths -------------------------------------------------------------------------------------------------------------------


def every_path(names):
    return [
        chosen for size in range(len(names) + 1) for chosen in itertools.combinations(names, size)
    ]


CASES = {
    "linear": (Net(linear=True), False),
    "relu": (Net(), False),
    "batch statistics": (Net(), True),
    "remat": (Net(how="remat"), True),
}


@pytest.mark.parametrize(("model", "train"), CASES.values(), ids=CASES)
def test_all_paths_together_are_the_gradient(model, train):
    variables, (x, labels) = initialised(model), batch_of()
    whole = jax.jit(jax.grad(lambda x: entropy_of(model, variables, x, labels, train)))(x)
    paths = every_path([f"block{i}/sum" for i in range(4)])
    gradients = [
        np.asarray(path_gradient(model, variables, (x, labels), path, train=train)[0], np.float64)
        for path in paths
    ]
    assert len(paths) == 16
    np.testing.assert_allclose(sum(gradients), whole, rtol=1e-4, atol=1e-6)

    found = path_lengths(
        model, variables, (x, labels), samples=6, train=train
    )  # 6 over any: all paths of 4 sums
    assert found.gradient == pytest.approx(np.linalg.norm(whole), rel=1e-5)
    norms = np.array([np.linalg.norm(gradient) for gradient in gradients])
    sizes = np.array([len(path) for path in paths])
    for row in found.lengths:
        assert (row.paths, row.sampled, row.error) == (
            math.comb(4, row.length),
            math.comb(4, row.length),
            0,
        )
        assert row.norm == pytest.approx(norms[sizes == row.length].mean(), rel=1e-4)
        assert row.share == pytest.approx(norms[sizes == row.length].sum() / norms.sum(), rel=1e-4)
    assert found.effective == pytest.approx((sizes * norms).sum() / norms.sum(), rel=1e-4)


def entropy_of(model, variables, x, labels, train):
    outputs = model.apply(variables, x, train=train, mutable=["batch_stats"])[0]
    return -jnp.mean(
        jnp.sum(jax.nn.log_softmax(outputs) * jax.nn.one_hot(labels, CLASSES), axis=-1)
    )


def test_a_path_of_a_linear_network_is_a_product_of_its_weights():
    model, (x, labels) = Net(depth=3, linear=True), batch_of()
    variables = initialised(model)
    weights = [np.asarray(variables["params"][f"block{i}"]["dense"]["kernel"]) for i in range(3)]
    logits = np.asarray(model.apply(variables, x))
    odds = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = (
        (odds - np.eye(CLASSES)[labels])
        / len(x)
        @ np.asarray(variables["params"]["head"]["kernel"]).T
    )
    (found,) = path_gradient(model, variables, (x, labels), ["block0/sum", "block2/sum"])
    np.testing.assert_allclose(found, expected @ weights[2].T @ weights[0].T, rtol=1e-4, atol=1e-7)


def orthogonal(model, variables, scale):
    """Every branch turns and shrinks its input, so that a path of k branches carries scale^k of the gradient."""
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((WIDTH, WIDTH)))[0]
    return rewired(
        variables,
        [f"block{i}/dense" for i in range(model.depth)],
        jnp.asarray(scale * turn, jnp.float32),
    )


@pytest.mark.parametrize(("depth", "scale"), [(6, 0.5), (9, 2.0), (24, 0.0625)])
def test_equal_branches_spread_it_as_a_binomial(depth, scale):
    """N over k times scale^k; 2^-96 of the gradient is left on the longest path, whose square float32 does not hold."""
    model = Net(depth=depth, linear=True)
    found = path_lengths(
        model, orthogonal(model, initialised(model), scale), batch_of(), samples=2, chunk=16
    )
    p = scale / (1 + scale)
    expected = np.array(
        [math.comb(depth, k) * p**k * (1 - p) ** (depth - k) for k in range(depth + 1)]
    )
    np.testing.assert_allclose([row.share for row in found.lengths], expected, rtol=1e-3)
    assert found.effective == pytest.approx(depth * p, rel=1e-3)
    low, high = found.interval
    assert expected[: low + 1].sum() >= 0.025 > expected[:low].sum()
    assert expected[: high + 1].sum() >= 0.975 > expected[:high].sum()
    assert found.paths_inside == pytest.approx(
        sum(math.comb(depth, k) for k in range(low, high + 1)) / 2**depth
    )
    assert [row.sampled for row in found.lengths] == [1] + [2] * (depth - 1) + [1]


def test_samples_are_within_their_error():
    model = Net(depth=8)
    variables, batch = initialised(model), batch_of()
    exact, sampled = (
        path_lengths(model, variables, batch, samples=samples, chunk=32) for samples in (70, 24)
    )
    assert all(row.error == 0 for row in exact.lengths) and sampled.lengths[4].error > 0
    for all_of_them, some in zip(exact.lengths, sampled.lengths, strict=True):
        assert some.norm == pytest.approx(all_of_them.norm, abs=4 * some.error + 1e-5 * some.norm)
    assert sampled.effective == pytest.approx(exact.effective, rel=0.1)


def no_gradient(outputs, batch):
    return jnp.zeros((), jnp.float32)


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (Net(residual=False), {}, "Net has no residual sums"),
        (Net(how="scan"), {}, "blocks/sum runs several times inside nn.scan"),
        (Net(), {"samples": 0}, "samples is 0; allowed: 1 or more"),
        (Net(), {"chunk": 0}, "chunk is 0"),
        (Net(), {"loss": no_gradient}, "no path carries any gradient to the inputs"),
        (
            Net(linear=True),
            {"batch": (jnp.full((8, WIDTH), jnp.inf), batch_of()[1])},
            "paths of 0 branches carry a gradient that is not finite",
        ),
    ],
)
def test_what_has_no_paths(model, options, message):
    given = {"batch": batch_of()} | options
    with pytest.raises(InputError, match=message):
        path_lengths(model, initialised(model), given.pop("batch"), **given)


def test_inputs_without_gradient_and_unknown_sums():
    class Words(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Embed(5, WIDTH)(x)
            return nn.Dense(CLASSES)(Add(name="sum")(x, nn.Dense(WIDTH)(x)))

    words = jnp.arange(4)
    with pytest.raises(
        InputError, match="inputs is 'int32'; allowed: floats, which have gradients"
    ):
        path_lengths(Words(), Words().init(jax.random.key(0), words), (words, words % CLASSES))
    with pytest.raises(
        InputError, match="residual sum 'block1/su' is unknown; did you mean 'block1/sum'"
    ):
        path_gradient(Net(), initialised(Net()), batch_of(), ["block1/su"])


def test_nothing_compiles_twice_and_progress_is_told():
    model, told = Net(), []
    variables, other = initialised(model), initialised(model, 1)
    lesions(model, variables, batch_of())
    path_lengths(model, variables, batch_of(), samples=6)
    before = _evaluate._cache_size(), _path_norms._cache_size()
    lesions(
        model,
        other,
        batch_of(seed=1),
        removed=[2],
        draws=2,
        progress=lambda *done: told.append(done),
    )
    assert told == [(i, 7) for i in range(1, 8)]
    told.clear()
    path_lengths(
        model, other, batch_of(seed=1), samples=2, progress=lambda *done: told.append(done)
    )
    assert told == [(8, 9), (9, 9)]  # the whole gradient, and 1 + 2 + 2 + 2 + 1 paths
    assert (_evaluate._cache_size(), _path_norms._cache_size()) == before


def test_the_figures_say_what_was_found():
    model, batch = Net(), batch_of()
    variables = initialised(model)
    found = lesions(model, variables, batch, removed=[2, 3, 4], draws=3)
    assert [row["count"] for row in found.rows()] == [1] * 4 + [2] * 3 + [3] * 3 + [4]
    ax = found.plot()
    most = max(row.error_change for row in found.blocks)
    assert f"{most:+.2g} at most" in ax.get_title("left") and found.plot(ax) is ax
    assert [text.get_text() for text in ax.get_xticklabels()] == [f"block{i}" for i in range(4)]
    assert found.plot_several().get_title("left").startswith("4 of 4 branches removed: error")

    lengths = path_lengths(model, variables, batch)
    ax, (low, high) = lengths.plot(), lengths.interval
    assert (
        ax.get_title("left")
        == f"95 % of the gradient takes {low} to {high} of 4 branches, {lengths.effective:.1f} on average"
    )
    np.testing.assert_allclose(ax.lines[0].get_ydata(), np.array([1, 4, 6, 4, 1]) / 16)
    assert lengths.rows()[1]["paths"] == 4
