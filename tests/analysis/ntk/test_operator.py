"""The kernel as a linear operator, validated against its matrix and against SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from scipy.sparse.linalg import eigsh

from deepjax.analysis import TRAIN, from_function, ntk, ntk_operator
from deepjax.errors import InputError


class Mlp(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dropout(0.5, deterministic=not train)(jnp.tanh(nn.Dense(6, name="first")(x)))
        return nn.Dense(3, name="head")(x)


MODEL = Mlp()
INPUTS = jax.random.normal(jax.random.key(1), (7, 5))
VARIABLES = MODEL.init(jax.random.key(0), INPUTS)
VECTOR = np.linspace(-1, 1, 21, dtype=np.float32)


@pytest.mark.parametrize("chunk", [1, 3, 16])  # 3 does not divide 7 examples
@pytest.mark.parametrize("options", [{}, {"layers": "head"}, {"mode": TRAIN}])
def test_products_are_those_of_the_matrix(chunk, options):
    wanted = ntk(MODEL, VARIABLES, INPUTS, output="full", **options).flattened
    operator = ntk_operator(MODEL, VARIABLES, INPUTS, chunk=chunk, **options)
    assert operator.shape == (21, 21) and operator.dtype == np.float32
    np.testing.assert_allclose(operator.T @ VECTOR, wanted @ VECTOR, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(operator.diagonal(), np.diag(wanted), rtol=1e-4)


def test_by_jacrev_and_by_scipy():
    def outputs(params):
        return MODEL.apply({"params": params}, INPUTS).ravel()

    rows = jax.tree.leaves(jax.jacrev(outputs)(VARIABLES["params"]))
    jacobian = np.concatenate([np.asarray(leaf, float).reshape(21, -1) for leaf in rows], axis=1)
    operator = ntk_operator(MODEL, VARIABLES, INPUTS)
    np.testing.assert_allclose(operator.todense(), jacobian @ jacobian.T, rtol=1e-4, atol=1e-4)
    largest = eigsh(operator.to_scipy(), k=2, return_eigenvectors=False)
    np.testing.assert_allclose(
        np.sort(largest), np.linalg.eigvalsh(jacobian @ jacobian.T)[-2:], rtol=1e-4
    )


def test_a_function_and_a_list_of_batches():
    def apply(params, x):
        return jnp.tanh(x @ params)

    params = jax.random.normal(jax.random.key(2), (5, 2))
    network = from_function(apply)
    whole = ntk_operator(network, params, INPUTS[:6]).todense()
    parts = ntk_operator(network, params, [(INPUTS[:3],), (INPUTS[3:6],)]).todense()
    np.testing.assert_allclose(parts, whole, rtol=1e-5)
    assert "6 examples, 2 outputs" in repr(ntk_operator(network, params, INPUTS[:6]))


def test_refused():
    with pytest.raises(InputError, match="chunk is 0"):
        ntk_operator(MODEL, VARIABLES, INPUTS, chunk=0)
    with pytest.raises(InputError, match=r"shape \(3,\)"):
        ntk_operator(MODEL, VARIABLES, INPUTS) @ np.ones(3)
