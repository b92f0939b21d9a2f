"""Losses, errors and optimizers of the recipes against PyTorch, timm and NumPy."""

import dataclasses
import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deepjax.data import dataset_info
from deepjax.training.build import step_options
from deepjax.training.config import replace_options, train_config
from deepjax.training.network import model_from
from deepjax.training.step.losses import top_k_error
from deepjax.training.step.optimizers import make_optimizer
from deepjax.training.step.preprocess import preprocess_batch
from deepjax.training.step.step import classifier_loss, make_eval_step
from tests.models.torch_reference import library, needs_torch
from tests.numpy_variables import numpy_variables

CONFIG = train_config(
    model="cifar_resnet20", width=2, batch_size=16, steps=8, warmup_epochs=0.0, augment=False
)
DIGITS = dataset_info("digits")


def batch(size: int = 16):
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 17, (size, 8, 8, 1), np.uint8),
        "label": rng.integers(0, 10, size).astype(np.int32),
    }


@needs_torch
@pytest.mark.parametrize(
    ("threshold", "mixed", "smoothing"),
    [(0.0, False, 0.0), (0.2, False, 0.1), (0.0, True, 0.1), (0.2, True, 0.0)],
)
def test_binary_cross_entropy_is_timm_s(threshold, mixed, smoothing):
    library("timm")
    torch, timm = importlib.import_module("torch"), importlib.import_module("timm.loss")
    logits = np.random.default_rng(1).normal(0, 3, (16, 10)).astype(np.float32)
    mixes = {"mixup": 0.2, "cutmix": 1.0} if mixed else {}
    config = replace_options(
        CONFIG, loss="sigmoid", target_threshold=threshold, label_smoothing=smoothing, **mixes
    )
    options = step_options(config)
    prepare = jax.jit(preprocess_batch, static_argnums=(2, 3))
    seen = prepare(jax.random.key(2), batch(), DIGITS, options)
    soft = prepare(
        jax.random.key(2), batch(), DIGITS, dataclasses.replace(options, target_threshold=0.0)
    )["target"]
    given = torch.from_numpy(np.array(soft) if mixed else batch()["label"].astype(np.int64))
    theirs = timm.BinaryCrossEntropy(smoothing=smoothing, target_threshold=threshold or None)(
        torch.from_numpy(logits), given
    )
    assert float(classifier_loss(jnp.asarray(logits), seen, "sigmoid")) == pytest.approx(
        float(theirs), rel=1e-5
    )
    assert not threshold or set(np.unique(seen["target"])) == {0.0, 1.0}


def after(config, gradients, params):
    """Parameters after a step for each gradient, at rate 0.05."""
    optimizer = make_optimizer(config)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for gradient in gradients:
        updates, state = update(gradient, state, params, learning_rate=jnp.asarray(0.05))
        params = optax.apply_updates(params, updates)
    return params


@needs_torch
@pytest.mark.usefixtures("mixed_types")
@pytest.mark.parametrize(
    ("fields", "make"),
    [
        (
            {"optimizer": "lamb", "grad_clip_norm": 1.0},
            lambda optim, groups: optim.Lamb(groups, lr=0.05, max_grad_norm=1.0),
        ),
        (
            {"optimizer": "lamb"},
            lambda optim, groups: optim.Lamb(groups, lr=0.05, max_grad_norm=None),
        ),
        (
            {"optimizer": "rmsprop", "nesterov": False},
            lambda optim, groups: optim.RMSpropTF(
                groups, lr=0.05, alpha=0.9, eps=1.0, momentum=0.9, lr_in_momentum=True
            ),
        ),
    ],
    ids=["lamb clipped", "lamb", "rmsprop"],
)
def test_optimizers_are_timm_s(fields, make):
    """As timm groups parameters: decay and trust ratios for kernels; RMSProp as in TensorFlow."""
    library("timm")
    torch, optim = importlib.import_module("torch"), importlib.import_module("timm.optim")
    rng = np.random.default_rng(0)
    params = {
        "kernel": rng.normal(0, 0.3, (3, 3, 2, 4)).astype(np.float32),
        "bias": rng.normal(0, 0.1, 4).astype(np.float32),
    }
    gradients = [
        {name: rng.normal(0, scale, leaf.shape).astype(np.float32) for name, leaf in params.items()}
        for scale in (0.01, 1, 0.1)
    ]
    ours = after(
        replace_options(CONFIG, weight_decay=0.02, **fields),
        gradients,
        jax.tree.map(jnp.asarray, params),
    )
    theirs = {
        name: torch.nn.Parameter(torch.from_numpy(leaf.copy())) for name, leaf in params.items()
    }
    groups = [
        {"params": [theirs["kernel"]], "weight_decay": 0.02},
        {"params": [theirs["bias"]], "weight_decay": 0.0},
    ]
    optimizer = make(optim, groups)
    for gradient in gradients:
        for name, leaf in theirs.items():
            leaf.grad = torch.from_numpy(gradient[name])
        optimizer.step()
    for name, leaf in theirs.items():
        np.testing.assert_allclose(ours[name], leaf.detach().numpy(), rtol=1e-4, atol=1e-6)


@pytest.fixture
def mixed_types():
    """Optax's Adam mixes its step count with its rates, which strict promotion forbids."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def test_clipping_keeps_the_direction_and_the_norm():
    config = replace_options(
        CONFIG, optimizer="sgd", momentum=0.0, nesterov=False, weight_decay=0.0, grad_clip_norm=2.0
    )
    steep, gentle = {"kernel": jnp.asarray([30.0, 40.0])}, {"kernel": jnp.asarray([0.3, 0.4])}
    start = {"kernel": jnp.zeros(2)}
    np.testing.assert_allclose(
        after(config, [steep], start)["kernel"], [-0.05 * 1.2, -0.05 * 1.6], rtol=1e-6
    )
    np.testing.assert_allclose(
        after(config, [gentle], start)["kernel"], [-0.05 * 0.3, -0.05 * 0.4], rtol=1e-6
    )


def test_guesses_are_the_largest_logits():
    """Against a sort, for which the first of equals comes first too."""
    rng = np.random.default_rng(0)
    logits, labels = (
        rng.integers(0, 6, (200, 12)).astype(np.float32),
        rng.integers(0, 12, 200).astype(np.int32),
    )
    order = np.argsort(-logits, axis=1, kind="stable")
    for guesses in (1, 5, 12):
        expected = [label not in row[:guesses] for row, label in zip(order, labels, strict=True)]
        np.testing.assert_array_equal(
            top_k_error(jnp.asarray(logits), jnp.asarray(labels), guesses), np.float32(expected)
        )
    np.testing.assert_array_equal(
        top_k_error(jnp.asarray(logits), jnp.asarray(labels)), np.argmax(logits, axis=1) != labels
    )


@pytest.mark.parametrize("guesses", [1, 5])
def test_a_logit_that_is_no_number_is_never_right(guesses):
    nothing = jnp.full((12, 12), jnp.nan)
    assert float(jnp.sum(top_k_error(nothing, jnp.arange(12), guesses))) == 12
    best = jnp.where(
        jnp.eye(12) > 0, jnp.inf, jnp.where(jnp.arange(12)[None, :] < guesses, jnp.nan, 0.0)
    )
    # As many logits as there are guesses are NaN, and are ranked above it.
    assert float(top_k_error(best, jnp.arange(12), guesses)[-1]) == 1


def test_drop_path_is_stochastic_depth_of_each_image():
    """Survival of the l-th of 9 branches: 1 - 0.3 l / 9; the parameters keep their names."""
    plain, dropping = model_from(CONFIG), model_from(dataclasses.replace(CONFIG, drop_path=0.3))
    assert (dropping.survival, dropping.per) == (pytest.approx(0.7), "example")
    assert jax.tree.structure(numpy_variables(dropping, DIGITS.shape)) == jax.tree.structure(
        numpy_variables(plain, DIGITS.shape)
    )


def test_top5_errors_are_counted_from_ten_classes_on():
    model = model_from(CONFIG).clone(stages=(1, 1))
    variables, data = (
        numpy_variables(model, DIGITS.shape),
        batch() | {"mask": np.float32([1] * 13 + [0] * 3)},
    )
    data["label"] = np.arange(16, dtype=np.int32) % 10
    sums = jax.jit(make_eval_step(model, DIGITS))(
        variables["params"], variables["batch_stats"], data
    )
    whole = jax.jit(functools.partial(model.apply, train=False))(
        variables, (data["image"] - DIGITS.mean[0]).astype(np.float32) / DIGITS.std[0]
    )
    five = np.argsort(-np.asarray(whole), axis=1)[:, :5]
    assert float(sums["top5_errors"]) == sum(data["label"][i] not in five[i] for i in range(13))
    few = dataclasses.replace(DIGITS, name="few", num_classes=9)
    assert "top5_errors" not in jax.eval_shape(
        make_eval_step(model, few), variables["params"], variables["batch_stats"], data
    )
