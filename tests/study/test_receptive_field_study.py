"""Fields against theory, and the study's verdicts on made-up measurements."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepjax.models import create_model
from deepjax.study.effective_fields import (
    field_statistics,
    normalized_maps,
    recalibrate_batch_norm,
    stack_field,
    theoretical_field,
)
from deepjax.study.study import Options
from experiments.receptive_field import LAYERS, PRESETS, STUDY, draw, judge, make_arms
from tests.study.results import results

DEPTHS = np.array([5, 10, 20, 40])


@pytest.mark.parametrize(
    ("kernels", "pixels"), [((3, 3, 3), 7), ((7,), 7), ((3, 3), 5), ((1, 1, 1), 1), ((3,) * 20, 41)]
)
def test_theoretical_fields_are_those_of_the_formula(kernels, pixels):
    assert theoretical_field(kernels) == pixels == 1 + sum(kernel - 1 for kernel in kernels)


@pytest.mark.parametrize(("kernels", "sigma"), [((3, 3, 3), np.sqrt(2)), ((7,), 2.0)])
def test_untrained_stacks_are_as_wide_as_theory_has_it(kernels, sigma):
    field = stack_field(kernels, "identity", seed=1000, draws=40, images=1)
    assert field.map.shape == (7, 7)
    assert field_statistics([field])["sigma"][0] == pytest.approx(sigma, rel=0.05)
    assert np.sum(normalized_maps([field])) == pytest.approx(1, abs=1e-3)


def test_settled_statistics_are_those_of_the_images():
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


def measured(
    power: float = 0.5,
    three: float = 1.41,
    r2: float = 0.98,
    after: float = 5.0,
    box: float = 0.3,
    other: float = 1.41,
):
    """Five seeds of measurements that differ a little."""
    seeds = []
    for offset in (-0.01, -0.005, 0.0, 0.005, 0.01):
        size, sigma = (list(scale * DEPTHS ** (power + offset)) for scale in (3.6, 0.81))
        stacks = {
            kind: {"size": size, "sigma": sigma, "r2": [r2 + offset / 10] * 4}
            for kind in ("linear", "ReLU")
        }
        widths = {
            "three 3x3": (three, 0.98),
            "three other 3x3": (other, 0.98),
            "one 7x7": (2.0, box),
        }
        small = {
            name: {"sigma": [width + offset], "r2": [fit + offset]}
            for name, (width, fit) in widths.items()
        }
        residual = {
            "size": [12.0, 4 * after + offset],
            "sigma": [3.0, after + offset],
            "maps": [np.eye(8).tolist()] * 2,
        }
        pointwise = {"size": [1.0, 1.0], "sigma": [0.0, 0.0]}
        training = {"last map": residual, "middle map": residual, "1x1 map": pointwise}
        seeds.append({"stacks": stacks, "small": small, "training": training})
    return results(STUDY, {}, seeds)


@pytest.mark.parametrize(
    ("change", "outcomes"),
    [
        ({}, ["supported", "refuted", "supported", "supported", "supported", "supported"]),
        (
            {"three": 2.0},
            ["supported", "supported", "supported", "supported", "supported", "supported"],
        ),
        (
            {"three": 1.8},
            ["supported", "inconclusive", "supported", "supported", "supported", "supported"],
        ),
        # Grows as the theoretical field.
        (
            {"power": 1.0},
            ["supported", "refuted", "refuted", "supported", "supported", "supported"],
        ),
        (
            {"power": 0.6},
            ["supported", "refuted", "inconclusive", "supported", "supported", "supported"],
        ),
        ({"r2": 0.8}, ["supported", "refuted", "supported", "refuted", "supported", "supported"]),
        (
            {"after": 3.0},
            ["supported", "refuted", "supported", "supported", "inconclusive", "inconclusive"],
        ),
        # Shrinks.
        ({"after": 2.0}, ["supported", "refuted", "supported", "supported", "refuted", "refuted"]),
    ],
)
def test_each_verdict_can_come_out_either_way(change, outcomes):
    assert [verdict.outcome for verdict in judge(measured(**change))[:6]] == outcomes


def test_the_controls_flip_and_would_be_seen_if_they_did_not():
    controls = judge(measured())[6:]
    assert [control.outcome for control in controls] == [
        "refuted",
        "supported",
        "refuted",
        "refuted",
        "inconclusive",
    ]
    assert all(control.is_as_expected for control in controls)
    broken = judge(measured(box=0.99, other=2.0))[6:]
    assert [control.is_as_expected for control in broken] == [True, False, True, False, True]


def test_every_figure_is_drawn(tmp_path):
    assert all(figure.path.stat().st_size > 0 for figure in draw(measured(), tmp_path))


def test_the_layers_that_are_asked_are_the_last_maps_of_the_arms():
    arms = make_arms(Options(), PRESETS["digits"])
    assert set(arms) == {arm for arm, _, _ in LAYERS.values()}
    model = create_model("cifar_resnet20", width=4, num_classes=10)
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))["params"]
    blocks = sorted(name for name in params if name.startswith("stage"))
    assert blocks[-1] == LAYERS["last map"][1] and LAYERS["middle map"][1] in blocks


def test_the_paper_scale_is_that_of_he_et_al():
    config = make_arms(Options(dataset="cifar10"), PRESETS["cifar10"])["resnet20"].config
    assert (config.total_steps, config.batch_size, config.optimization.schedule) == (
        64_000,
        128,
        "step",
    )
