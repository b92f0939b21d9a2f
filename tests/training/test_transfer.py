"""Training from weights: what is loaded, what stays frozen, at which rates the rest learns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict

from deepjax.data import dataset_info
from deepjax.errors import InputError
from deepjax.models import create_model
from deepjax.models.weights.convert import save_safetensors
from deepjax.models.weights_table import PUBLIC_WEIGHTS
from deepjax.training import RunOptions, compile_training, open_run, train
from deepjax.training.checkpoint.inspect import digest
from deepjax.training.config import TrainConfig, train_config
from deepjax.training.config_groups import TransferConfig
from deepjax.training.step.patterns import matches, rate_factors
from deepjax.training.transfer import FrozenBatchNorm, dataset_of
from tests.numpy_variables import numpy_variables

NETWORK = {"model": "resnet18", "dataset": "digits", "width": 4, "image_size": 32, "steps": 4}
PLAIN = {
    "batch_size": 64,
    "momentum": 0.0,
    "nesterov": False,
    "weight_decay": 0.0,
    "warmup_epochs": 0.0,
}


def config(**options) -> TrainConfig:
    return train_config(**{**NETWORK, **PLAIN, **options})


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of weights of three channels and 7 classes, and its variables."""
    model = create_model("resnet18", width=4, num_classes=7)
    variables = numpy_variables(model, (32, 32, 3), seed=5)
    path = tmp_path_factory.mktemp("weights") / "resnet18.safetensors"
    save_safetensors(path, "resnet18", variables, width=4)
    return path, variables


def started(config: TrainConfig, lines: list[str] | None = None):
    programs = compile_training(config)
    return programs, programs.starting_state(config, (lines if lines is not None else []).append)


def test_a_file_is_loaded_with_a_new_classifier_and_kernels_for_grey_images(weights):
    path, theirs = weights
    lines: list[str] = []
    programs, state = started(config(weights=str(path)), lines)
    fresh = programs.fresh_state(programs.config)
    given, new = flatten_dict(theirs["params"]), flatten_dict(fresh.params)
    for key, leaf in flatten_dict(state.params).items():
        if key[0] == "head":
            np.testing.assert_array_equal(leaf, new[key])
        elif key == ("stem_conv", "kernel"):
            np.testing.assert_allclose(leaf, given[key].sum(2, keepdims=True), rtol=1e-6)
        else:
            np.testing.assert_array_equal(leaf, given[key])
    for key, leaf in flatten_dict(state.batch_stats).items():
        np.testing.assert_array_equal(leaf, flatten_dict(theirs["batch_stats"])[key])
    assert lines == [f"starts from {path}, head newly initialised"]


def test_the_new_classifier_follows_the_seed_of_the_run(weights):
    path, _ = weights
    kernels = [
        started(config(weights=str(path), seed=seed))[1].params["head"]["kernel"]
        for seed in (0, 0, 1)
    ]
    assert (kernels[0] == kernels[1]).all() and not jnp.allclose(kernels[0], kernels[2])


def test_a_run_is_continued_by_another_and_resumes_without_it(tmp_path):
    first = config(epochs=1)
    train(first, tmp_path / "first")
    again = config(weights=str(tmp_path / "first"), seed=1)
    _, state = started(again)
    for one, other in zip(
        jax.tree.leaves(state.params),
        jax.tree.leaves(open_run(tmp_path / "first").variables["params"]),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)
    train(again, tmp_path / "whole", RunOptions(save_every=2))

    def interrupt(step: int, total: int, note: str) -> None:
        if step >= 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(again, tmp_path / "second", RunOptions(save_every=2), report=interrupt)
    (tmp_path / "first").rename(tmp_path / "gone")
    train(again, tmp_path / "second", RunOptions(save_every=2))
    assert digest(tmp_path / "second") == digest(tmp_path / "whole")


def after_steps(config: TrainConfig, steps: int = 3):
    programs, state = started(config)
    before = jax.tree.map(np.asarray, {"params": state.params, "batch_stats": state.batch_stats})
    batches = iter(programs.batches(config))
    for _ in range(steps):
        state, metrics = programs.train_step(state, next(batches))
    after = jax.tree.map(np.asarray, {"params": state.params, "batch_stats": state.batch_stats})
    changed = {
        "/".join(path[1:])
        for (path, one), other in zip(
            flatten_dict(before).items(), flatten_dict(after).values(), strict=True
        )
        if not np.array_equal(one, other)
    }
    return changed, metrics


def test_a_linear_probe_changes_the_classifier_alone():
    probe = config(freeze=("!head*",), freeze_batch_norm=True, weight_decay=1e-2, momentum=0.9)
    changed, metrics = after_steps(probe)
    assert changed == {"head/kernel", "head/bias"}
    norms = {layer: float(norm) for layer, norm in metrics["gradient_norms"].items()}
    assert {layer for layer, norm in norms.items() if norm} == {"head"}


def test_frozen_stages_stay_and_their_statistics_move_unless_these_are_frozen():
    changed, _ = after_steps(config(freeze=("stem*", "stage1*")))
    names = {name for name in changed if name.startswith(("stem", "stage1"))}
    assert names and all(name.endswith(("/mean", "/var")) for name in names)
    assert any(name.startswith("stage2") and name.endswith("kernel") for name in changed)


def test_rates_are_scaled_by_the_factors_of_all_patterns_that_match():
    transfer = TransferConfig(
        rate_factors=("stage1*=0.1", "*bias=2", "head*=10"), freeze=("stem*",)
    )
    params = {"stem_conv": {"kernel": 0}, "stage1": {"kernel": 0, "bias": 0}, "head": {"bias": 0}}
    assert rate_factors(params, transfer) == {
        "stem_conv": {"kernel": 0.0},
        "stage1": {"kernel": pytest.approx(0.1), "bias": pytest.approx(0.2)},
        "head": {"bias": pytest.approx(20.0)},
    }


def test_an_update_is_as_much_smaller_as_its_rate():
    def step(**options):
        programs, state = started(config(**options))
        before = jax.tree.map(np.asarray, state.params)
        state, _ = programs.train_step(state, next(iter(programs.batches(programs.config))))
        return jax.tree.map(lambda new, old: np.asarray(new) - old, state.params, before)

    plain, scaled = step(), step(rate_factors=("stage2*=0.25", "head*=4"))
    for path, update in flatten_dict(scaled).items():
        factor = {"stage2": 0.25, "head": 4.0}.get(path[0].split("_")[0], 1.0)
        np.testing.assert_allclose(update, factor * flatten_dict(plain)[path], rtol=1e-3, atol=2e-7)


def test_frozen_batch_norms_equal_evaluation_and_keep_their_averages():
    class Net(nn.Module):
        """With a batch norm of flax."""

        num_classes: int = 10
        dtype: type = jnp.float32

        @nn.compact
        def __call__(self, x, train=False):
            x = nn.BatchNorm(use_running_average=not train)(nn.Conv(4, (3, 3))(x))
            return nn.Dense(self.num_classes)(x.mean((1, 2)))

    images = jax.random.normal(jax.random.key(0), (8, 8, 8, 3))
    for network in (Net(), create_model("cifar_resnet20", stages=(1, 1, 1), width=4)):
        variables = network.init(jax.random.key(1), images)
        variables = jax.tree.map(lambda leaf: leaf + 0.1, variables)
        frozen = FrozenBatchNorm(network)
        logits, state = frozen.apply(variables, images, train=True, mutable=["batch_stats"])
        np.testing.assert_allclose(logits, network.apply(variables, images), rtol=1e-5, atol=1e-6)
        moved, _ = network.apply(variables, images, train=True, mutable=["batch_stats"])
        assert not np.allclose(logits, moved, rtol=1e-3)
        jax.tree.map(np.testing.assert_array_equal, state["batch_stats"], variables["batch_stats"])


def test_mean_and_std_are_those_that_known_weights_expect():
    """Torchvision's GoogLeNet takes images of mean and std 0.5; its ResNets ImageNet's."""
    options = {"model": "googlenet_tv", "dataset": "imagenette/160px-v2"}
    known = next(iter(PUBLIC_WEIGHTS["googlenet_tv"]))
    assert dataset_of(train_config(**options, weights=known)).mean == (127.5,) * 3
    for other in (
        {},
        {"weights": "file.pth"},
        {"model": "resnet50", "weights": "timm/resnet50.a1_in1k"},
    ):
        found = dataset_of(train_config(**options | other))
        assert found == dataset_info("imagenette/160px-v2")


@pytest.mark.parametrize(
    ("path", "pattern", "result"),
    [
        ("stage1_block1/conv1/kernel", "stage1*", True),
        ("stage10/kernel", "stage1/*", False),
        ("head/bias", "!head*", False),
        ("stem/kernel", "!head*", True),
    ],
)
def test_patterns(path, pattern, result):
    assert matches(path, pattern) == result


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"freeze": ("satge1*",)}, "pattern of parameters 'satge1\\*' is unknown"),
        ({"freeze": ("*",)}, "which freezes every parameter"),
        ({"rate_factors": ("nowhere=2",)}, "pattern of parameters 'nowhere' is unknown"),
    ],
)
def test_patterns_that_do_not_fit_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        compile_training(config(**options))


@pytest.mark.parametrize("text", ["head", "head=x", "=2", "head=-1", "head=inf"])
def test_factors_are_numbers(text):
    with pytest.raises(InputError, match="allowed: PATTERN=FACTOR"):
        TransferConfig(rate_factors=(text,))


def test_weights_of_another_network_are_named(weights, tmp_path):
    path, _ = weights
    with pytest.raises(InputError, match="these are not weights of resnet34"):
        started(config(model="resnet34", weights=str(path)))
    train(config(model="resnet34", steps=1), tmp_path / "other")
    with pytest.raises(InputError, match="allowed: a run of resnet18, not resnet34"):
        started(config(weights=str(tmp_path / "other")))
