"""Effective fields against theory, and the statistics that the study judges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepjax.models import create_model
from deepjax.study.effective_fields import (
    excess_kurtosis,
    field_statistics,
    normalized_map,
    recalibrate_batch_norm,
    stack_field,
    theoretical_field,
)
from deepjax.study.study import Study
from experiments.degradation import STUDY as DEGRADATION
from experiments.receptive_field import LAYERS, STUDY, same_pixels


@pytest.mark.parametrize(
    ("kernels", "pixels"), [((3, 3, 3), 7), ((7,), 7), ((3, 3), 5), ((1, 1, 1), 1), ((3,) * 20, 41)]
)
def test_theoretical_fields_are_those_of_the_formula(kernels, pixels):
    assert theoretical_field(kernels) == pixels == 1 + sum(kernel - 1 for kernel in kernels)


def test_three_3x3_see_as_many_pixels_as_one_7x7():
    assert same_pixels() == (True, "three 3x3: 7x7 pixels, one 7x7: 7x7 pixels")


@pytest.mark.parametrize(
    ("kernels", "pointwise", "sigma", "kurtosis"),
    [
        # Uniform distributions over k places add up: variances (k^2 - 1) / 12, fourth cumulants
        # -(k^4 - 1) / 120.
        ((3, 3, 3), (), np.sqrt(2), -0.5),
        ((7,), (), 2.0, -1.25),
        # The planted defect: one of three kernels adds nothing.
        ((3, 3, 3), (2,), np.sqrt(4 / 3), -0.75),
    ],
)
def test_untrained_stacks_have_the_width_and_the_kurtosis_of_theory(
    kernels, pointwise, sigma, kurtosis
):
    field = stack_field(kernels, "identity", 1000, samples=40, images=1, pointwise=pointwise)
    found = field_statistics(field)
    assert field.map.shape == (7, 7)
    assert found["sigma"] == pytest.approx(sigma, rel=0.05)
    assert found["kurtosis"] == pytest.approx(kurtosis, abs=0.1)
    assert np.sum(normalized_map(field)) == pytest.approx(1, abs=1e-3)


PLACES = np.arange(-60, 61)


@pytest.mark.parametrize(
    ("profile", "kurtosis"),
    [
        (np.exp(-0.5 * (PLACES / 8) ** 2), 0.0),
        (np.maximum(0, 1 - abs(PLACES / 50)), -0.6),
        (np.ones(121), -1.2),
        (1 / np.cosh(PLACES / 5) ** 2, 1.2),
    ],
)
def test_kurtosis_separates_a_gaussian_from_a_triangle_a_box_and_a_logistic_curve(
    profile, kurtosis
):
    assert excess_kurtosis(profile) == pytest.approx(kurtosis, abs=0.02)


def test_kurtosis_of_one_pixel_is_not_a_number():
    assert np.isnan(excess_kurtosis(np.eye(5)[2]))


def test_recalibrated_statistics_are_those_of_the_images():
    model = create_model("cifar_resnet20", width=4, num_classes=10)
    images = 3 + jax.random.normal(jax.random.key(0), (32, 8, 8, 1))
    variables = model.init(jax.random.key(1), images)
    found = recalibrate_batch_norm(model, variables, images)
    evaluated = model.apply(found, images)
    trained, _ = model.apply(found, images, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(evaluated, trained, rtol=1e-3, atol=1e-3)
    assert found["params"] is variables["params"]
    bare = {"params": variables["params"]}
    assert recalibrate_batch_norm(model, bare, images) is bare


def test_the_measured_layers_are_the_last_maps_of_two_stages():
    model = create_model("cifar_resnet20", width=4, num_classes=10)
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))["params"]
    blocks = sorted(name for name in params if name.startswith("stage"))
    assert [blocks[5], blocks[8]] == [LAYERS["middle map"], LAYERS["last map"]]


@pytest.mark.parametrize("preset", ["small", "gpu"])
def test_the_runs_of_degradation_are_reused(preset):
    def trained(study: Study):
        given = study.presets[preset]
        return given.dataset, dict(given.training), study.arms["resnet20"]

    assert trained(STUDY) == trained(DEGRADATION)
    assert STUDY.presets[preset].seeds <= DEGRADATION.presets[preset].seeds
    assert STUDY.presets[preset].pilots == "degradation"
