"""Training from weights: what is loaded, what stays frozen, at which rates the rest learns."""

import hashlib
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict

from deepjax.analysis import kernel_order
from deepjax.errors import InputError
from deepjax.models import create_model, list_models, model_info
from deepjax.models.classifier import classifier_paths
from deepjax.models.weights.convert import save_safetensors
from deepjax.training import RunOptions, compile_training, loop, open_run, train
from deepjax.training.checkpoint.inspect import digest
from deepjax.training.config import TrainConfig, train_config
from deepjax.training.config_groups import TransferConfig
from deepjax.training.network import starting_weights
from deepjax.training.step.patterns import matches, rate_factors
from deepjax.training.step.state import init_ema
from deepjax.training.transfer.frozen_batch_norm import freeze_batch_norms
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
    weights = starting_weights(config) if config.transfer.weights else None
    if lines is not None and weights is not None:
        lines.append(weights.summary())
    return programs, programs.starting_state(config, weights)


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
    assert lines == [f"starts from {path}, head newly initialised; mean and std of digits assumed"]


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
    probe = config(freeze=("!classifier",), freeze_batch_norm=True, weight_decay=1e-2, momentum=0.9)
    changed, metrics = after_steps(probe)
    assert changed == {"head/kernel", "head/bias"}
    norms = {layer: float(norm) for layer, norm in metrics["gradient_norms"].items()}
    assert {layer for layer, norm in norms.items() if norm} == {"head"}


def test_frozen_stages_stay_and_their_statistics_move_unless_these_are_frozen():
    changed, _ = after_steps(config(freeze=("stem*", "stage1*")))
    names = {name for name in changed if name.startswith(("stem", "stage1"))}
    assert names and all(name.endswith(("/mean", "/var")) for name in names)
    assert any(name.startswith("stage2") and name.endswith("kernel") for name in changed)


def test_batch_norms_are_frozen_under_stochastic_depth_too():
    changed, _ = after_steps(config(drop_path=0.2, freeze_batch_norm=True))
    assert "stage4_block1/conv1/kernel" in changed
    assert not any(name.endswith(("/mean", "/var")) for name in changed)


def test_rates_are_scaled_by_the_factors_of_all_patterns_that_match():
    transfer = TransferConfig(
        rate_factors=("stage1*=0.1", "*bias=2", "head*=10"), freeze=("stem*",)
    )
    params = {"stem_conv": {"kernel": 0}, "stage1": {"kernel": 0, "bias": 0}, "head": {"bias": 0}}
    assert rate_factors(params, transfer) == {
        "stem_conv/kernel": 0.0,
        "stage1/kernel": pytest.approx(0.1),
        "stage1/bias": pytest.approx(0.2),
        "head/bias": pytest.approx(20.0),
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
        frozen = freeze_batch_norms(network)
        logits, state = frozen.apply(variables, images, train=True, mutable=["batch_stats"])
        np.testing.assert_allclose(logits, network.apply(variables, images), rtol=1e-5, atol=1e-6)
        moved, _ = network.apply(variables, images, train=True, mutable=["batch_stats"])
        assert not np.allclose(logits, moved, rtol=1e-3)
        jax.tree.map(np.testing.assert_array_equal, state["batch_stats"], variables["batch_stats"])


@pytest.mark.parametrize(
    ("path", "pattern", "result"),
    [
        ("stage1_block1/conv1/kernel", "stage1*", True),
        ("stage10/kernel", "stage1/*", False),
        ("head/bias", "!head*", False),
        ("stem/kernel", "!head*", True),
        ("head_fc8/bias", "classifier", True),
        ("head_fc8/bias", "!classifier", False),
        ("head_fc7/bias", "!classifier", True),
        ("classifier/bias", "classifier", False),
    ],
)
def test_patterns(path, pattern, result):
    assert matches(path, pattern, {"head_fc8/kernel", "head_fc8/bias"}) == result


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"freeze": ("satge1*",)}, "pattern of parameters 'satge1\\*' is unknown"),
        ({"freeze": ("!clasifier",)}, "'clasifier' is unknown; did you mean 'classifier'"),
        ({"freeze": ("*",)}, r"freeze is \('\*',\), which freezes every parameter"),
        ({"rate_factors": ("*=0",)}, r"rate_factors is \('\*=0',\), which freezes every parameter"),
        ({"rate_factors": ("nowhere=2",)}, "pattern of parameters 'nowhere' is unknown"),
    ],
)
def test_patterns_that_do_not_fit_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        compile_training(config(**options))


def test_a_network_whose_classifier_is_not_known_has_no_such_pattern():
    with pytest.raises(
        InputError, match=r"pattern '!classifier' fits no parameter: .* such as 'a'"
    ):
        rate_factors({"a": {"kernel": 0}}, TransferConfig(freeze=("!classifier",)), ())


@pytest.mark.parametrize("text", ["head", "head=x", "=2", "head=-1", "head=inf"])
def test_factors_are_numbers(text):
    with pytest.raises(InputError, match="allowed: PATTERN=FACTOR"):
        TransferConfig(rate_factors=(text,))


def test_weights_of_another_network_are_named(weights, tmp_path):
    path, _ = weights
    with pytest.raises(InputError, match="these are not weights of resnet34"):
        starting_weights(config(model="resnet34", weights=str(path)))
    train(config(model="resnet34", steps=1), tmp_path / "other")
    with pytest.raises(InputError, match="of resnet34 width=4; allowed: weights of resnet18 width"):
        starting_weights(config(weights=str(tmp_path / "other")))


def test_weights_are_refused_before_the_compilation_and_leave_no_run(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "compile_training", lambda *given: pytest.fail("it compiles"))
    with pytest.raises(InputError, match="there is no such file"):
        train(config(weights="nowhere.safetensors"), tmp_path)
    assert not list(tmp_path.glob("*.json"))


def test_other_weights_are_refused_until_the_first_checkpoint(weights, tmp_path):
    given = tmp_path / "given.safetensors"
    given.write_bytes(weights[0].read_bytes())
    tuned = config(weights=str(given))

    def interrupt(step: int, total: int, note: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tuned, tmp_path / "run", report=interrupt)
    stored = json.loads((tmp_path / "run" / "weights.json").read_text())
    assert stored["sha256"] == hashlib.sha256(weights[0].read_bytes()).hexdigest()
    other = numpy_variables(create_model("resnet18", width=4), (32, 32, 3), seed=6)
    save_safetensors(given, "resnet18", other, width=4, overwrite=True)
    with pytest.raises(InputError, match=f"others than this run .*there {stored['sha256']}"):
        train(tuned, tmp_path / "run")
    given.write_bytes(weights[0].read_bytes())
    assert train(tuned, tmp_path / "run").steps == 4
    given.unlink()
    assert train(tuned, tmp_path / "run").was_done


@pytest.mark.parametrize("name", ["sgd", "lars", "lamb", "adamw", "muon", "rmsprop"])
@jax.numpy_dtype_promotion("standard")  # optax's Adam mixes counts and rates
def test_frozen_parameters_and_their_averages_are_bitwise_what_they_were(name):
    options = {"model": "cifar_resnet20", "image_size": 0, "model_args": ("stages=[1,1,1]",)}
    decay = {"weight_decay": 0.5, "decay_norm_and_bias": True, "momentum": 0.9}
    frozen = config(
        **options, **decay, optimizer=name, freeze=("!classifier",), ema_decay=0.7,
        freeze_batch_norm=True,
    )  # fmt: skip
    programs = compile_training(frozen)
    fresh = programs.fresh_state(frozen)
    noise = np.random.default_rng(0)  # norms and biases too are numbers that round
    params = jax.tree.map(lambda p: p + noise.normal(size=p.shape).astype(p.dtype), fresh.params)
    state = fresh.replace(
        params=params, ema=init_ema({"params": params, "batch_stats": fresh.batch_stats})
    )
    before = flatten_dict(jax.tree.map(np.asarray, params))
    batches = iter(programs.batches(frozen))
    for _ in range(4):
        state, _ = programs.train_step(programs.partitioner.put_state(state), next(batches))
    for tree in (state.params, state.ema["params"]):
        for path, leaf in flatten_dict(tree).items():
            same = np.asarray(leaf).tobytes() == before[path].tobytes()
            assert same == (path[0] != "head"), path


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if re.search("1001|1202", name) else ())
        for name in list_models()
    ],
)
def test_the_classifier_is_the_last_layer_of_the_network_and_of_its_heads(name):
    """The last in the order of the calls, whatever its name."""
    shape = model_info(name).input_shape
    found = classifier_paths(lambda classes: create_model(name, num_classes=classes), 10, shape)
    layers = kernel_order(create_model(name, num_classes=10), shape)
    heads = [layer for layer in layers if layer.endswith("/logits")]
    assert {"/".join(path[:-1]) for path in found} == {layers[-1], *heads}
    assert {path[-1] for path in found} == {"kernel", "bias"}
