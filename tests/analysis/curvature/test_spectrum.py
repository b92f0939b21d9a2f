"""Eigenvalues, densities and traces of given matrices, each the Hessian of a quadratic loss."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from deepjax.analysis.curvature.gradient_subspace import gradient_subspace_overlap
from deepjax.analysis.curvature.spectrum import spectral_density, top_eigenvalues
from deepjax.analysis.curvature.trace import hessian_trace
from deepjax.errors import InputError


class Point(nn.Module):
    """Returns its parameters: 1, 2, ..., n."""

    @nn.compact
    def __call__(self, x):
        return self.param("w", lambda key: jnp.arange(1.0, len(x) + 1))


def bowl(outputs, batch):
    """w^T A w / 2 with A the labels: its gradient is A w and its Hessian A."""
    return jnp.vdot(outputs, batch[1] @ outputs, precision="highest") / 2


def of(matrix):
    """(model, variables, batch) whose Hessian under `bowl` is the matrix."""
    batch = (jnp.zeros((len(matrix), 1)), jnp.asarray(matrix, jnp.float32))
    return Point(), Point().init(jax.random.key(0), batch[0]), batch


def rotated(values, seed=0):
    """A symmetric matrix with these eigenvalues."""
    turn, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(values), len(values))))
    return (turn * values) @ turn.T


KNOWN = np.array([-2.0, -0.5, *np.zeros(12), 0.5, 1, 3, 5, 8, 10])


def smoothed(values, points, sigma):
    """The density by its definition."""
    bells = np.exp(-(((np.asarray(points)[:, None] - values) / sigma) ** 2) / 2) / (
        sigma * math.sqrt(2 * math.pi)
    )
    return bells.mean(1)


@pytest.mark.parametrize(
    ("which", "wanted"),
    [("magnitude", [10, 8, 5, 3, -2]), ("largest", [10, 8, 5, 3, 1]), ("smallest", [-2, -0.5, 0])],
)
def test_extreme_eigenvalues(which, wanted):
    found = top_eigenvalues(*of(rotated(KNOWN)), len(wanted), which=which, loss=bowl)
    np.testing.assert_allclose(found.values, wanted, rtol=1e-5, atol=1e-5)
    assert (found.residuals < 1e-4).all()
    assert found.rows()[0] == {
        "index": 1,
        "eigenvalue": found.values[0],
        "residual": found.residuals[0],
    }


def test_a_residual_says_how_far_an_eigenvalue_can_be_off():
    """Some eigenvalue lies within |A v - lambda v| of lambda (Golub and Van Loan, 8.1.13)."""
    true = np.linspace(0, 1, 200)
    found = top_eigenvalues(*of(rotated(true)), 5, steps=12, loss=bowl)
    off = np.abs(found.values[:, None] - true).min(1)
    assert (off <= found.residuals + 1e-6).all()
    assert found.residuals[-1] > 0.01  # 12 products are too few
    assert (
        top_eigenvalues(*of(rotated(true)), 5, steps=100, loss=bowl).residuals.max()
        < found.residuals.max() / 10
    )


@pytest.mark.parametrize(
    "values", [np.zeros(8), np.ones(8), np.repeat([2.0, 1.0], 4), np.eye(8)[0]]
)
def test_equal_eigenvalues_end_the_krylov_space_early(values):
    """After one product per distinct eigenvalue; the method then continues in another space."""
    found = top_eigenvalues(*of(np.diag(values)), 8, loss=bowl, keep=True)
    np.testing.assert_allclose(found.values, np.sort(values)[::-1], atol=1e-5)
    vectors = np.stack([tree["w"] for tree in found.vectors])
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(8), atol=1e-5)
    density = spectral_density(*of(np.diag(values)), loss=bowl, sigma=0.1, probes=2)
    np.testing.assert_allclose(
        density.evaluate([0.0, 1.0]), smoothed(values, [0.0, 1.0], 0.1), rtol=1e-3, atol=1e-6
    )


def test_the_trace_of_a_diagonal_matrix_is_exact():
    found = hessian_trace(*of(np.diag(KNOWN)), probes=5, loss=bowl)
    np.testing.assert_allclose(found.estimates, KNOWN.sum(), rtol=1e-6)
    assert found.error < 1e-5


def test_the_trace_of_another_is_estimated():
    matrix = rotated(KNOWN)
    found = hessian_trace(*of(matrix), probes=200, loss=bowl)
    assert abs(found.trace - KNOWN.sum()) < 4 * found.error
    assert found.error == pytest.approx(
        math.sqrt(2 * (np.sum(matrix**2) - np.sum(np.diag(matrix) ** 2)) / 200), rel=0.2
    )


@pytest.mark.parametrize("sigma", [None, 0.3])
def test_the_density_of_a_diagonal_matrix_is_exact(sigma):
    """Random signs give each eigenvector the same weight."""
    found = spectral_density(*of(np.diag(KNOWN)), classes=3, sigma=sigma, probes=2, loss=bowl)
    assert found.sigma == pytest.approx(sigma or math.sqrt(1e-5) * 12, rel=1e-5)
    points = np.linspace(-3, 11, 50)
    np.testing.assert_allclose(
        found.evaluate(points), smoothed(KNOWN, points, found.sigma), rtol=1e-3, atol=1e-6
    )
    assert (found.lambda_min, found.lambda_max) == pytest.approx((-2, 10), rel=1e-5)
    assert found.outlier_ratio == pytest.approx(10 / 5, rel=1e-5)
    assert found.negative_fraction == pytest.approx(2 / 20, rel=1e-4)
    rows = found.rows(4001)
    assert sum(row["density"] for row in rows) * (
        rows[1]["eigenvalue"] - rows[0]["eigenvalue"]
    ) == pytest.approx(1, rel=1e-3)


def test_the_density_of_another_is_estimated():
    found = spectral_density(*of(rotated(KNOWN)), probes=60, sigma=0.5, loss=bowl)
    points = np.linspace(-3, 11, 15)
    single = [
        smoothed_by(nodes, weights, points, 0.5)
        for nodes, weights in zip(found.nodes, found.weights, strict=True)
    ]
    np.testing.assert_allclose(found.evaluate(points), np.mean(single, axis=0), rtol=1e-6)
    error = np.std(single, axis=0, ddof=1) / math.sqrt(60)
    assert (np.abs(found.evaluate(points) - smoothed(KNOWN, points, 0.5)) <= 4 * error + 1e-7).all()


def smoothed_by(nodes, weights, points, sigma):
    bells = np.exp(-(((points[:, None] - nodes) / sigma) ** 2) / 2) / (
        sigma * math.sqrt(2 * math.pi)
    )
    return bells @ weights


def test_wigners_semicircle():
    """Wigner 1955: random symmetric matrices have the eigenvalue density sqrt(4 - x^2) / (2 pi)."""
    size = 600
    noise = np.random.default_rng(0).standard_normal((size, size))
    found = spectral_density(
        *of((noise + noise.T) / math.sqrt(2 * size)), steps=60, probes=10, sigma=0.2, loss=bowl
    )
    points = np.linspace(-1.4, 1.4, 29)
    # The standard deviation of a point's density over random signs is about 0.013:
    # sqrt(2 / (127 x 10)) of 0.32, for 127 eigenvalues under the Gaussian.
    np.testing.assert_allclose(
        found.evaluate(points), np.sqrt(4 - points**2) / (2 * math.pi), atol=0.04
    )
    assert (found.lambda_min, found.lambda_max) == pytest.approx((-2, 2), abs=0.05)
    # The integral of the density from 0 to 0.2.
    middle = 0.2 * math.sqrt(4 - 0.2**2) / (4 * math.pi) + math.asin(0.1) / math.pi
    assert found.negative_fraction == pytest.approx(0.5 - middle, abs=0.04)


def test_the_fraction_of_the_gradient_in_the_top_eigenvectors():
    """The gradient is A w; for a diagonal A its i-th entry is lambda_i w_i, with w = 1, ..., n."""
    values = np.array([4.0, -3, 2, 1, 0.5])
    squares = (values * np.arange(1, 6)) ** 2
    found = gradient_subspace_overlap(*of(np.diag(values)), 3, loss=bowl)
    np.testing.assert_allclose(found.eigenvalues, [4, 2, 1], rtol=1e-5)
    np.testing.assert_allclose(
        found.fractions, np.cumsum(squares[[0, 2, 3]]) / squares.sum(), rtol=1e-4
    )
    assert found.gradient_norm == pytest.approx(math.sqrt(squares.sum()), rel=1e-5)
    assert (found.fraction, found.random_fraction) == (found.fractions[-1], 3 / 5)
    assert [row["fraction"] for row in found.rows()] == found.fractions.tolist()
    assert gradient_subspace_overlap(*of(np.diag(values)), 5, loss=bowl).fraction == pytest.approx(
        1, rel=1e-5
    )
    assert math.isnan(gradient_subspace_overlap(*of(np.zeros((5, 5))), 2, loss=bowl).fraction)


def test_an_unknown_outlier_ratio():
    assert math.isnan(spectral_density(*of(np.diag(KNOWN)), loss=bowl, probes=1).outlier_ratio)
    assert math.isnan(
        spectral_density(*of(np.diag(KNOWN)), loss=bowl, probes=1, classes=9).outlier_ratio
    )  # lambda_9 is 0


@pytest.mark.parametrize(
    ("instrument", "options", "message"),
    [
        (top_eigenvalues, {"k": 0}, "k is 0; allowed: 1 to 20"),
        (
            top_eigenvalues,
            {"k": 21},
            "k is 21; allowed: 1 to 20: no more than steps, and than parameters",
        ),
        (gradient_subspace_overlap, {"k": 6, "steps": 5}, "k is 6; allowed: 1 to 5"),
        (
            top_eigenvalues,
            {"which": "top"},
            "which is 'top'; allowed: 'magnitude', 'largest', 'smallest'",
        ),
        (top_eigenvalues, {"steps": 0}, "steps is 0; allowed: 1 or more"),
        (spectral_density, {"probes": 0}, "probes is 0; allowed: 1 or more"),
        (spectral_density, {"sigma": 0.0}, "sigma is 0.0; allowed: None, or above 0"),
        (spectral_density, {"classes": 0}, "classes is 0; allowed: None, or 1 or more"),
        (spectral_density, {"layers": "v"}, "layer 'v' is unknown"),
    ],
)
def test_what_cannot_be_computed(instrument, options, message):
    with pytest.raises(InputError, match=message):
        instrument(*of(np.diag(KNOWN)), loss=bowl, **options)


def test_a_matrix_that_is_not_finite():
    with pytest.raises(InputError, match="curvature is nan; allowed: finite values"):
        top_eigenvalues(*of(np.full((3, 3), np.nan)), 1, loss=bowl)


def test_progress_counts_products():
    seen = []
    note = lambda *done: seen.append(done)  # noqa: E731
    top_eigenvalues(*of(np.diag(KNOWN)), 2, steps=6, loss=bowl, progress=note)
    assert seen == [(done, 8) for done in range(1, 9)]
    seen.clear()
    spectral_density(*of(np.diag(KNOWN)), steps=4, probes=3, loss=bowl, progress=note)
    assert seen == [(done, 12) for done in range(1, 13)]


def test_the_figures_say_what_was_found():
    given = of(np.diag(KNOWN))
    for instrument, options, title in [
        (top_eigenvalues, {"k": 4}, "Hessian: $\\lambda_1$ = 10\n20 examples"),
        (
            spectral_density,
            {"classes": 3},
            "Hessian: $\\lambda_{max}$ = 10, $\\lambda_{min}$ = -2, "
            "$\\lambda_1/\\lambda_{3}$ = 2\n",
        ),
        (
            gradient_subspace_overlap,
            {"k": 4, "operator": "gauss_newton"},
            " of the squared gradient in the top 4 of 20 directions",
        ),
    ]:
        found = instrument(*given, loss=bowl, **options)
        ax = found.plot()
        assert title in ax.get_title("left") and found.plot(ax) is ax
