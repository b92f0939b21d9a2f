"""Random directions have the norms of the filters or layers of the network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepjax.analysis.core.mode import TRAIN
from deepjax.analysis.landscape.directions import random_direction
from deepjax.analysis.landscape.line import loss_line
from tests.analysis.landscape.landscape_cases import Cnn, batch_of, init, moved, norms


@pytest.mark.parametrize(
    ("layer", "inside"), [("conv", (0, 1, 2)), ("head", 0), ("blocks/dense", 1)]
)
def test_each_filter_has_the_norm_of_the_networks_own(layer, inside):
    params = init()["params"]
    found = random_direction({"params": params}, jax.random.key(1), axes={"blocks": (0, -1)})
    for part in layer.split("/"):
        params, found = params[part], found[part]
    np.testing.assert_allclose(
        norms(found["kernel"], inside), norms(params["kernel"], inside), rtol=1e-5
    )
    np.testing.assert_array_equal(found.get("bias", 0), 0)


def test_other_normalisations_and_what_does_not_move():
    params = init()["params"]
    layer, plain, one = (
        random_direction({"params": params}, jax.random.key(1), kind, axes=axes)
        for kind, axes in (("layer", {"blocks": (0, -1)}), (None, None), ("filter", None))
    )
    dense = ("blocks", "dense", "kernel")
    of = {
        name: tree[dense[0]][dense[1]][dense[2]]
        for name, tree in (("own", params), ("layer", layer), ("one", one))
    }
    # A layer inside the scan.
    np.testing.assert_allclose(norms(of["layer"], (1, 2)), norms(of["own"], (1, 2)), rtol=1e-5)
    # The axis of the scan is found from the bias (2, 4).
    np.testing.assert_allclose(norms(of["one"], 1), norms(of["own"], 1), rtol=1e-5)
    assert np.std(plain["conv"]["kernel"]) == pytest.approx(1, rel=0.4)
    for tree in (layer, plain, one):
        assert not np.any(tree["norm"]["scale"]) and not np.any(tree["blocks"]["dense"]["bias"])


def test_filter_normalised_lines_do_not_depend_on_the_scale_before_batch_norm():
    """Li et al. 2018, section 4: ten times the weights before batch norm is the same network."""
    variables, batch, key = init(), batch_of(), jax.random.key(2)
    large = moved(
        variables,
        {**jax.tree.map(jnp.zeros_like, variables["params"]), "conv": variables["params"]["conv"]},
        9.0,
    )

    def line(variables, kind):
        return loss_line(
            Cnn(),
            variables,
            batch,
            random_direction(variables, key, kind),
            alphas=[-1, -0.5, 0.5, 1],
            mode=TRAIN,
        ).loss

    np.testing.assert_allclose(line(variables, "filter"), line(large, "filter"), rtol=1e-4)
    assert not np.allclose(line(variables, None), line(large, None), rtol=0.01)
