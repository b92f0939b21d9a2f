"""Tangent kernels: closed forms, and full Jacobians."""

import math

import jax
import numpy as np
import pytest

from deepjax.analysis.ntk.kernel import ntk
from tests.analysis.ntk.ntk_cases import Cnn, Linear, Mlp, Two, gaussian, init, jacobian


def test_the_kernel_of_a_linear_network():
    """K = x . x' + 1 for each output, from the weights and the bias, and 0 between two outputs."""
    x, y = gaussian((5, 3)), gaussian((4, 3), 1)
    exact = np.asarray(x @ y.T, float) + 1
    one, three = Linear(), Linear(3)
    np.testing.assert_allclose(ntk(one, init(one, x), x, y).matrix, exact, rtol=1e-5)
    full = ntk(three, init(three, x), x, y, output="full")
    np.testing.assert_allclose(full.matrix, exact[:, :, None, None] * np.eye(3), rtol=1e-5)
    np.testing.assert_allclose(full.flattened, np.kron(exact, np.eye(3)), rtol=1e-5)
    np.testing.assert_allclose(
        ntk(three, init(three, x), x, y, output="trace").matrix, 3 * exact, rtol=1e-5
    )
    assert (
        full.outputs == 3
        and full.parameters == 12
        and full.rows()[5]["kernel"] == pytest.approx(exact[1, 1], rel=1e-5)
    )


@pytest.mark.parametrize("chunk", [2, 16])
@pytest.mark.parametrize("other", [False, True])
def test_the_kernel_of_a_network_with_batch_norm_is_that_of_the_full_jacobian(other, chunk):
    x, y = gaussian((5, 6, 6, 1)), gaussian((3, 6, 6, 1), 1)
    variables = init(Cnn(), x)
    left = jacobian(Cnn(), variables, x)
    full = np.einsum("iap,jbp->ijab", left, jacobian(Cnn(), variables, y) if other else left)
    trace = np.trace(full, axis1=2, axis2=3)
    for output, wanted in (("full", full), ("trace", trace), ("mean", trace / 2)):
        found = ntk(Cnn(), variables, x, y if other else None, output=output, chunk=chunk)
        np.testing.assert_allclose(found.matrix, wanted, rtol=1e-4, atol=1e-5)
        assert found.symmetric == (not other) and found.parameters == left.shape[-1]


@pytest.mark.parametrize("output", ["mean", "full"])
def test_a_kernel_is_symmetric_with_eigenvalues_of_at_least_zero(output):
    x = gaussian((7, 3))
    found = ntk(Mlp(), init(Mlp(), x), x, output=output, chunk=3)
    np.testing.assert_allclose(found.flattened, found.flattened.T, rtol=1e-5)
    values = np.sort(np.linalg.eigvalsh(found.flattened))[::-1]
    np.testing.assert_allclose(found.eigenvalues, values)
    assert (values > -found.rounding).all() and found.condition == pytest.approx(
        values[0] / values[-1]
    )
    assert [row["eigenvalue"] for row in found.rows()] == found.eigenvalues.tolist()
    assert sum(row["fraction"] for row in found.rows()) == pytest.approx(1)


def test_fewer_parameters_than_examples_leave_a_singular_kernel():
    x = gaussian((6, 2))
    found = ntk(Linear(), init(Linear(), x), x)
    # Two weights and a bias.
    assert found.condition == math.inf and (found.eigenvalues > found.rounding).sum() == 3
    assert "singular" in found.plot().get_title("left")


def test_networks_of_two_inputs():
    x, y = gaussian((4, 3)), gaussian((4, 2), 1)
    variables = Two(False).init(jax.random.key(0), x, y)
    np.testing.assert_allclose(
        ntk(Two(False), variables, ((x, y), None)).matrix,
        np.asarray(x @ x.T + y @ y.T, float) + 2,
        rtol=1e-5,
    )
