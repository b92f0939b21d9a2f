"""Auxiliary heads in training: their part of the gradient by hand, and their rows in the log."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from deepjax.data.augment.basic import normalize, resize
from deepjax.models import googlenet
from deepjax.training import compile_training, train
from deepjax.training.config import train_config
from deepjax.training.metrics.metrics_log import read_rows
from deepjax.training.step.step import DROPOUT

HEADS = ("4a", "4d")
MODULES = {name: googlenet.Row(*(64,) * 6) for name in ("inception4a", "inception4d")}
# Plain gradient descent: after a step the parameters have lost the rate times the gradient.
PLAIN = {
    "schedule": "constant",
    "warmup_epochs": 0.0,
    "momentum": 0.0,
    "weight_decay": 0.0,
    "augment": False,
}
CONFIG = train_config(
    model="googlenet", width=4, image_size=16, batch_size=24, steps=1, learning_rate=10.0, **PLAIN
)
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@pytest.fixture(scope="module")
def programs():
    """The stem, two modules with heads and the classifier: all nine would compile for a minute."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(googlenet, "TABLE", MODULES)
        yield compile_training(CONFIG)


def losses_and_errors(programs, params, images, labels, **options):
    """Loss and number of errors of the classifier and of each head: (3,) twice."""
    images = resize(normalize(images, programs.dataset), CONFIG.data.image_size)
    main, sown = programs.model.apply({"params": params}, images, mutable=["auxiliary"], **options)
    scores = jnp.stack([main, *(sown["auxiliary"][head] for head in HEADS)])
    losses = optax.softmax_cross_entropy_with_integer_labels(
        scores, jnp.broadcast_to(labels, scores.shape[:2])
    )
    return jnp.mean(losses, 1), jnp.sum(jnp.argmax(scores, -1) != labels[None], 1)


def test_a_head_adds_its_share_to_the_gradient(programs):
    """GoogLeNet, section 5: the gradient of the classifier's loss plus 0.3 of each head's."""
    state = programs.fresh_state(CONFIG)
    params, key = (
        jax.device_get(state.params),
        jax.random.fold_in(jax.random.fold_in(state.key, 0), DROPOUT),
    )
    images, labels = programs.train_split.images[:24], programs.train_split.labels[:24]

    def total(params):
        rngs = {"dropout": key}
        losses, errors = losses_and_errors(programs, params, images, labels, train=True, rngs=rngs)
        return losses[0] + 0.3 * losses[1] + 0.3 * losses[2], (losses, errors)

    expected, (losses, errors) = quick_jit(jax.grad(total, has_aux=True))(params)
    after, metrics = programs.train_step(
        state, programs.partitioner.put_batch({"image": images, "label": labels})
    )
    each = [metrics, *(metrics["auxiliary"][head] for head in HEADS)]
    np.testing.assert_allclose([of["loss"] for of in each], losses, rtol=1e-5)
    np.testing.assert_array_equal([of["errors"] for of in each], errors)
    before, now = flatten_dict(params), flatten_dict(jax.device_get(after.params))
    for path, gradient in flatten_dict(expected).items():
        lost = (before[path] - now[path]) / CONFIG.learning_rate
        np.testing.assert_allclose(
            lost, gradient, rtol=1e-3, atol=1e-5 * np.max(np.abs(gradient)), err_msg=str(path)
        )
    assert all(
        np.any(gradient != 0)
        for gradient in jax.tree.leaves({head: expected[f"auxiliary{head}"] for head in HEADS})
    )


def test_the_log_holds_loss_and_error_of_each_head(programs, tmp_path):
    """At a rate that changes no parameter, so that evaluation sees the network as it was drawn."""
    config = dataclasses.replace(CONFIG, learning_rate=1e-30)
    train(config, tmp_path, programs=programs)
    first, epoch, final = read_rows(tmp_path / "metrics.jsonl")
    assert {f"auxiliary{head}/logits" for head in HEADS} <= first["gradient_norms"].keys()
    assert all(set(row) == {"running_loss", "running_error"} for row in epoch["auxiliary"].values())
    params, split = jax.device_get(programs.fresh_state(config).params), programs.test_split
    losses, errors = quick_jit(
        lambda p: losses_and_errors(programs, p, split.images, split.labels)
    )(params)
    for row in (epoch, final):
        logged = [
            (row["test_loss"], row["test_error"]),
            *((of["loss"], of["error"]) for of in row["test_auxiliary"].values()),
        ]
        np.testing.assert_allclose(
            logged, np.transpose([losses, np.asarray(errors) / len(split)]), rtol=1e-5
        )
    assert (
        epoch["auxiliary"].keys()
        == final["train_auxiliary"].keys()
        == final["test_auxiliary"].keys()
        == set(HEADS)
    )
    assert len(set(np.asarray(losses).tolist())) == 3
