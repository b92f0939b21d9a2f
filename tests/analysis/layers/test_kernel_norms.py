"""Norms and order of layers, for modules that deepjax does not know."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from deepjax.analysis import (
    TRAIN,
    count_macs,
    count_params,
    from_function,
    from_nnx,
    kernel_norms,
    kernel_order,
)
from deepjax.errors import InputError


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


class Heads(nnx.Module):
    """Attributes not in the order of the calls; a head that only training calls."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.train = False
        self.a_last, self.b_extra, self.z_first = (nnx.Linear(4, 4, rngs=rngs) for _ in range(3))

    def __call__(self, x):
        x = self.z_first(x)
        if self.train:
            self.b_extra(x)
        return self.a_last(x)


def test_order_of_an_nnx_module_is_that_of_its_calls_in_a_mode():
    network, _ = from_nnx(Heads())
    assert kernel_order(network, (4,)) == ["z_first", "a_last"]
    assert kernel_order(network, (4,), mode=TRAIN) == ["z_first", "b_extra", "a_last"]
    with pytest.raises(InputError, match="is a function, which has no layers"):
        kernel_order(from_function(lambda params, x: x), (4,))
    with pytest.raises(InputError, match=r"input_shape is float32\[1,5\], .*; for other dtypes"):
        kernel_order(network, (5,))
