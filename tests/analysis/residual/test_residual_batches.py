"""Lesions and paths of NNX modules, of several batches, in ghost mode; their results."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepjax.analysis import (
    EVAL,
    TRAIN,
    Ghost,
    from_function,
    from_nnx,
    lesions,
    path_gradient,
    path_lengths,
)
from deepjax.analysis.network.module import cross_entropy, loss_of
from deepjax.errors import InputError
from tests.analysis.residual.residual_networks import (
    WIDTH,
    Net,
    NnxNet,
    batch_of,
    initialised,
    rewired,
)

BATCHES = [batch_of(4, 0), batch_of(4, 1)]
BOTH = tuple(jnp.concatenate(each) for each in zip(*BATCHES, strict=True))
MODEL = Net(depth=3)
VARIABLES = initialised(MODEL)


def losses(found):
    return np.array([found.loss, *(row.loss for row in (*found.blocks, *found.several))])


@pytest.mark.parametrize("how", ["plain", "remat"])
@pytest.mark.parametrize("mode", [EVAL, TRAIN])
def test_branches_of_an_nnx_module(how, mode):
    """A branch whose weights are 0 is 0; all lesions have the dropout masks of the intact one."""
    network, variables = from_nnx(NnxNet(how))
    key = jax.random.key(3)
    found = lesions(network, variables, BOTH, mode=mode, key=key)
    assert [row.removed for row in found.blocks] == [(f"blocks/{i}/sum",) for i in range(3)]

    def loss(params):
        given = {**variables, "params": params}
        return float(loss_of(network, given, BOTH, cross_entropy, mode.train, key))

    assert found.loss == pytest.approx(loss(variables["params"]), rel=1e-5)
    for i, row in enumerate(found.blocks):
        params = jax.tree.map(lambda leaf: leaf, variables["params"])
        params["blocks"][str(i)]["dense"]["kernel"] = jnp.zeros((WIDTH, WIDTH))
        assert row.loss == pytest.approx(loss(params), rel=1e-5)


@pytest.mark.parametrize("how", ["plain", "remat"])
def test_paths_of_an_nnx_module_add_up_to_the_gradient(how):
    network, variables = from_nnx(NnxNet(how))
    x, labels = BOTH
    whole = jax.grad(lambda x: loss_of(network, variables, (x, labels), cross_entropy, True))(x)
    sums = [f"blocks/{i}/sum" for i in range(3)]
    paths = [each for size in range(4) for each in itertools.combinations(sums, size)]
    total = sum(
        np.asarray(path_gradient(network, variables, BOTH, path, mode=TRAIN)[0]) for path in paths
    )
    np.testing.assert_allclose(total, whole, rtol=1e-4, atol=1e-6)
    found = path_lengths(network, variables, BOTH, mode=TRAIN)
    assert found.gradient_norm == pytest.approx(float(jnp.linalg.norm(whole)), rel=1e-5)


@pytest.mark.parametrize("mode", [EVAL, TRAIN])
def test_lesions_of_batches_are_means(mode):
    options = {"mode": mode, "removed": [2]}
    apart = [lesions(MODEL, VARIABLES, each, **options) for each in BATCHES]
    together = lesions(MODEL, VARIABLES, BATCHES, **options)
    np.testing.assert_allclose(losses(together), np.mean(list(map(losses, apart)), 0), rtol=1e-5)
    assert together.error == pytest.approx(np.mean([each.error for each in apart]))
    ghosts = lesions(MODEL, VARIABLES, BOTH, mode=Ghost(4), removed=[2])
    if mode is TRAIN:
        np.testing.assert_array_equal(losses(ghosts), losses(together))


def test_paths_of_batches_are_those_of_the_mean_loss():
    one, several = (path_lengths(MODEL, VARIABLES, batch, samples=9) for batch in (BOTH, BATCHES))
    assert several.gradient_norm == pytest.approx(one.gradient_norm, rel=1e-5)
    for a, b in zip(one.lengths, several.lengths, strict=True):
        assert (b.norm, b.fraction) == pytest.approx((a.norm, a.fraction), rel=1e-4)
    path = ["block0/sum"]
    np.testing.assert_allclose(
        path_gradient(MODEL, VARIABLES, BATCHES, path)[0],
        path_gradient(MODEL, VARIABLES, BOTH, path)[0],
        rtol=1e-4,
        atol=1e-7,
    )


def test_paths_of_ghost_batches_against_a_direct_gradient():
    x, labels = BOTH

    def loss(x):
        halves = [
            loss_of(MODEL, VARIABLES, (x[part], labels[part]), cross_entropy, True)
            for part in (slice(4), slice(4, 8))
        ]
        return (halves[0] + halves[1]) / 2

    found = path_lengths(MODEL, VARIABLES, BOTH, mode=Ghost(4))
    expected = float(jnp.linalg.norm(jax.grad(loss)(x)))
    assert found.gradient_norm == pytest.approx(expected, rel=1e-5)


def test_chunks_of_lesions_are_the_same():
    one, four = (lesions(MODEL, VARIABLES, BOTH, removed=[2], chunk=chunk) for chunk in (1, 4))
    np.testing.assert_allclose(losses(one), losses(four), rtol=1e-5)


def test_layers_are_sums_modules_or_patterns():
    some = lesions(MODEL, VARIABLES, BOTH, layers="block[02]/sum")
    every = lesions(MODEL, VARIABLES, BOTH)
    assert some.kind == "branch" and some.blocks == (every.blocks[0], every.blocks[2])
    mixed = lesions(MODEL, VARIABLES, BOTH, layers=["block0/sum", "block1/dense"])
    assert mixed.kind == "layer" and mixed.blocks[0] == every.blocks[0]
    bypassed = rewired(VARIABLES, ["block1/dense"], jnp.eye(WIDTH))
    expected = float(loss_of(MODEL, bypassed, BOTH, cross_entropy, False))
    assert mixed.blocks[1].loss == pytest.approx(expected, rel=1e-5)
    chosen = path_gradient(MODEL, VARIABLES, BOTH, "block*/sum")
    named = path_gradient(MODEL, VARIABLES, BOTH, [f"block{i}/sum" for i in range(3)])
    np.testing.assert_array_equal(chosen[0], named[0])


def test_a_function_has_no_branches_and_old_arguments_name_the_new():
    network = from_function(lambda params, x: x @ params)
    for instrument in (lesions, path_lengths):
        with pytest.raises(InputError, match="is a function, which has no layers"):
            instrument(network, jnp.ones((WIDTH, 3)), BOTH)
        with pytest.raises(InputError, match=r"no longer takes seed=; use key=jax\.random\.key"):
            instrument(MODEL, VARIABLES, BOTH, seed=1)
    with pytest.raises(InputError, match="lesions no longer takes modules=; use layers="):
        lesions(MODEL, VARIABLES, BOTH, modules=["block0/dense"])


def test_results_print_a_table_and_take_a_title():
    found = lesions(MODEL, VARIABLES, BOTH, removed=[2])
    assert found.summary()["blocks"] == 3 and found.mode is EVAL
    assert repr(found).startswith("Lesions: loss ")
    assert "block0/sum, block1/sum" in repr(found)
    assert found.plot(title="Mine").get_title("left") == "Mine"
    paths = path_lengths(MODEL, VARIABLES, BOTH)
    assert paths.summary()["sums"] == 3 and "evaluation mode" in paths.mode_text
    assert len(repr(paths).splitlines()) == 2 + len(paths.rows()) == 6
    assert paths.plot(title="Mine").get_title("left") == "Mine"
