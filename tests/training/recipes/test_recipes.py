"""What recipes add to the step: optimizers, targets, accumulation, precision, remat, averages."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deepjax.data import dataset_info
from deepjax.data.augment.mixup import cutmix_box, mixup_or_cutmix
from deepjax.models import create_model
from deepjax.training.build import step_options
from deepjax.training.config import replace_options, train_config
from deepjax.training.network import model_from
from deepjax.training.step.losses import label_cross_entropy, smooth_labels, soft_cross_entropy
from deepjax.training.step.optimizers import make_optimizer, make_schedule
from deepjax.training.step.remat import rematerialized
from deepjax.training.step.state import eval_variables, init_state
from deepjax.training.step.step import make_train_step
from tests.numpy_variables import numpy_variables

CONFIG = train_config(
    model="cifar_resnet20",
    width=2,
    batch_size=16,
    steps=8,
    warmup_epochs=0.0,
    augment=False,
    decay_norm_and_bias=True,
)
DIGITS = dataset_info("digits")
# Without batch statistics, so that parts of a batch are exact.
MODEL = create_model("cifar_resnet20", width=2, stages=(1, 1), norm="group")


def batch(seed: int = 0, size: int = 16):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 17, (size, 8, 8, 1), np.uint8),
        "label": rng.integers(0, 10, size).astype(np.int32),
    }


def after_steps(count: int = 2, model=MODEL, **fields):
    """State and last metrics after so many steps."""
    config = replace_options(CONFIG, **fields)
    optimizer = make_optimizer(config)
    step = jax.jit(
        make_train_step(model, optimizer, make_schedule(config), DIGITS, step_options(config))
    )
    state = init_state(
        model, optimizer, DIGITS.shape, config.learning_rate, 0, ema=config.ema_decay > 0
    )
    metrics = None
    for i in range(count):
        state, metrics = step(state, batch(i))
    return state, metrics


def assert_close(a, b, tolerance: float = 1e-5):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)


# optax's own optimizers, with the learning rate inside. For LARS that is another place, which makes
# no difference while the rate is constant.
THEIRS = {
    "sgd": lambda rate: optax.chain(
        optax.add_decayed_weights(1e-4), optax.sgd(rate, 0.9, nesterov=True)
    ),
    "lars": lambda rate: optax.lars(rate, 1e-4, True, 0.001, 0.0, kernels, 0.9, True),
    "lamb": lambda rate: optax.chain(
        optax.scale_by_adam(eps=1e-6),
        optax.add_decayed_weights(1e-4),
        optax.masked(optax.scale_by_trust_ratio(), kernels),
        optax.scale(-rate),
    ),
    "adamw": lambda rate: optax.adamw(rate, weight_decay=1e-4),
}


def kernels(params):
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


@pytest.fixture
def mixed_types():
    """Optax's Adam mixes its step count with its rates, which strict promotion forbids."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.usefixtures("mixed_types")
@pytest.mark.parametrize("name", THEIRS)
def test_optimizers_equal_optax_s_own(name):
    config = replace_options(CONFIG, optimizer=name)
    params = {"conv": {"kernel": jnp.full((3, 3, 2, 4), 0.3), "bias": jnp.full((4,), 0.1)}}
    ours, theirs, rate = make_optimizer(config), THEIRS[name](0.05), jnp.asarray(0.05)
    a = b = params
    state_a, state_b = ours.init(a), theirs.init(b)
    for i in range(4):
        gradients = jax.tree.map(
            lambda leaf, i=i: jnp.cos(jnp.arange(leaf.size, dtype=jnp.float32) + i).reshape(
                leaf.shape
            ),
            params,
        )
        updates, state_a = ours.update(gradients, state_a, a, learning_rate=rate)
        a = optax.apply_updates(a, updates)
        updates, state_b = theirs.update(gradients, state_b, b)
        b = optax.apply_updates(b, updates)
    assert_close(a, b, 1e-6)


@pytest.mark.usefixtures("mixed_types")
def test_muon_makes_the_update_of_a_convolution_near_orthogonal():
    """Jordan et al. 2024: five Newton-Schulz steps make the singular values nearly equal."""
    config = replace_options(CONFIG, optimizer="muon", weight_decay=0.0)
    params = {"conv": {"kernel": jnp.zeros((3, 3, 2, 4)), "bias": jnp.zeros((4,))}}
    gradients = {
        "conv": {
            "kernel": jax.random.normal(jax.random.key(0), (3, 3, 2, 4))
            * jnp.array([[[[1.0, 2.0, 4.0, 8.0]]]]),
            "bias": jnp.ones((4,)),
        }
    }
    optimizer = make_optimizer(config)
    one = jnp.ones(())
    updates, _ = optimizer.update(gradients, optimizer.init(params), params, learning_rate=one)
    values = jnp.linalg.svd(updates["conv"]["kernel"].reshape(18, 4), compute_uv=False)
    spread = jnp.linalg.svd(gradients["conv"]["kernel"].reshape(18, 4), compute_uv=False)
    assert float(values.max() / values.min()) < 2 < 5 < float(spread.max() / spread.min())
    # Downhill: the update is added.
    assert float(jnp.sum(updates["conv"]["kernel"] * gradients["conv"]["kernel"])) < 0


def test_smoothed_targets_have_the_closed_form():
    """Szegedy et al. 2015, section 7: 1 - e of the label's loss and e of the mean over classes."""
    logits, labels = jax.random.normal(jax.random.key(0), (5, 10)), jnp.arange(5)
    mean = -jnp.mean(jax.nn.log_softmax(logits), axis=-1)
    expected = 0.9 * label_cross_entropy(logits, labels) + 0.1 * mean
    np.testing.assert_allclose(
        soft_cross_entropy(logits, smooth_labels(labels, 10, 0.1)), expected, rtol=1e-5
    )


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.5, 0.0), (0.0, 1.0), (0.5, 1.0)])
def test_mixed_pixels_and_targets_have_one_share(mixup, cutmix):
    """Images of zeros and of ones: the mean pixel is the fraction of ones, and so is the target."""
    images = jnp.stack([jnp.zeros((8, 8, 1)), jnp.ones((8, 8, 1))])
    shares = []
    for seed in range(30):
        mixed, targets = mixup_or_cutmix(jax.random.key(seed), images, jnp.eye(2), mixup, cutmix)
        np.testing.assert_allclose(jnp.mean(mixed, axis=(1, 2, 3)), targets[:, 1], atol=1e-6)
        np.testing.assert_allclose(targets.sum(1), 1, rtol=1e-6)
        shares.append(float(targets[0, 0]))
    assert np.std(shares) > 0.1


def test_boxes_have_the_stated_area_where_no_edge_cuts_them():
    areas = [
        float(jnp.mean(cutmix_box(jax.random.key(i), 64, 64, jnp.asarray(0.25))))
        for i in range(200)
    ]
    assert max(areas) == 0.25
    assert min(areas) < 0.2


def test_parts_of_a_batch_add_up_to_the_whole():
    whole, metrics = after_steps(2, optimizer="sgd")
    parts, of_parts = after_steps(2, grad_accum_steps=4)
    assert_close(parts.params, whole.params)
    assert float(of_parts["loss"]) == pytest.approx(float(metrics["loss"]), rel=1e-5)
    assert (float(of_parts["errors"]), float(of_parts["images"])) == (float(metrics["errors"]), 16)


def test_batch_norm_has_the_statistics_of_each_part():
    """As documented: the running mean after one step of two parts is two moves of one tenth."""
    model = MODEL.clone(norm="batch")
    state, _ = after_steps(1, model, grad_accum_steps=2)
    images = batch(0)["image"]
    halves = [images[i::2] for i in (0, 1)]  # every second image in a part
    expected = 0.0
    for half in halves:
        one, _ = after_steps(1, model)
        del one
        normal = (half.astype(np.float32) - DIGITS.mean[0]) / DIGITS.std[0]
        variables = init_state(model, make_optimizer(CONFIG), DIGITS.shape, 0.1, 0)
        kernel = variables.params["stem_conv"]["kernel"]
        out = jax.lax.conv_general_dilated(
            jnp.asarray(normal), kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        expected = 0.9 * expected + 0.1 * jnp.mean(out, (0, 1, 2))
    np.testing.assert_allclose(
        state.batch_stats["stem_norm"]["mean"], expected, rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize(
    ("remat", "scan"),
    [
        ("convolutions", True),
        *[
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("convolutions", False), ("blocks", False), ("blocks", True))
        ],
    ],
)
def test_rematerialisation_changes_no_number(remat, scan):
    model = create_model("cifar_resnet20", width=2, stages=(2, 2), scan=scan)
    assert_close(after_steps(2, model, remat=remat)[0].params, after_steps(2, model)[0].params)


@pytest.mark.parametrize(("remat", "share"), [("convolutions", 0.6), ("blocks", 0.3)])
def test_rematerialisation_keeps_less_for_the_backward_pass(remat, share, capsys):
    """What JAX keeps; whether a backend then needs less memory is up to XLA (docs/training.md)."""
    model = create_model("cifar_resnet20", width=4)
    variables = numpy_variables(model, (8, 8, 1))

    def loss(params, images):
        logits, _ = model.apply(
            variables | {"params": params}, images, train=True, mutable=["batch_stats"]
        )
        return jnp.sum(logits)

    def kept(remat: str) -> int:
        images = jnp.zeros((64, 8, 8, 1))
        jax.ad_checkpoint.print_saved_residuals(
            rematerialized(loss, remat), variables["params"], images
        )
        shapes = re.findall(r"^f32\[([\d,]+)\]", capsys.readouterr().out, re.MULTILINE)
        return sum(math.prod(map(int, shape.split(","))) for shape in shapes)

    assert kept(remat) < share * kept("none")


def test_averages_are_exponential_and_are_what_is_evaluated():
    states = [after_steps(count, ema_decay=0.75)[0] for count in range(3)]
    expected = states[0].params
    for state in states[1:]:
        expected = jax.tree.map(lambda a, v: 0.75 * a + 0.25 * v, expected, state.params)
    params, _ = eval_variables(states[2])
    assert_close(params, expected)
    assert eval_variables(after_steps(1)[0])[0] is not None


def test_bfloat16_keeps_float32_where_it_matters():
    model = model_from(dataclasses.replace(CONFIG, precision="bfloat16"))
    assert model.dtype == jnp.bfloat16
    state, metrics = after_steps(1, model)
    assert {leaf.dtype for leaf in jax.tree.leaves((state.params, state.batch_stats, metrics))} == {
        jnp.dtype("float32")
    }
    whole, _ = after_steps(1, model_from(CONFIG))
    moved = [
        float(jnp.max(jnp.abs(a - b)))
        for a, b in zip(*map(jax.tree.leaves, (state.params, whole.params)), strict=True)
    ]
    assert 0 < max(moved) < 0.1


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        ("constant", [1, 1, 1]),
        ("linear", [1, 0.5, 0]),
        ("cosine", [1, 0.5, 0]),
        ("step", [1, 0.1, 0.01]),
    ],
)
def test_schedules_at_start_middle_and_end(schedule, values):
    course = make_schedule(replace_options(CONFIG, schedule=schedule, steps=100))
    np.testing.assert_allclose([float(course(step)) for step in (0, 50, 100)], values, atol=1e-6)
