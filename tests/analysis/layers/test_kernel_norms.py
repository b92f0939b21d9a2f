"""Norms and order of layers, for modules that deepjax does not know."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from deepjax.analysis import count_macs, count_params, kernel_norms, kernel_order


class Foreign(nn.Module):
    """Called in an order that is not the alphabet's, with a scanned layer and a shared one."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 3), name="z_first")(x)
        x = nn.LayerNorm(name="norm")(x).mean((1, 2))
        shared = nn.Dense(4, name="b_shared")
        return nn.Dense(3, name="a_last")(shared(shared(x)))


def test_order_is_that_of_the_forward_pass():
    assert kernel_order(Foreign(), (6, 6, 2)) == ["z_first", "b_shared", "a_last"]


def test_norms_are_those_of_the_kernels():
    params = Foreign().init(jax.random.key(0), jnp.zeros((1, 6, 6, 2)))["params"]
    norms = kernel_norms(params)
    assert set(norms) == {"z_first", "b_shared", "a_last"}
    np.testing.assert_allclose(
        norms["z_first"], np.linalg.norm(np.asarray(params["z_first"]["kernel"]).ravel()), rtol=1e-6
    )


def test_costs_of_a_foreign_module_by_hand():
    assert count_params(Foreign(), (6, 6, 2)) == (9 * 2 * 4 + 4) + 8 + (16 + 4) + (12 + 3)
    assert count_macs(Foreign(), (6, 6, 2)) == 36 * 9 * 2 * 4 + 2 * 16 + 12
