"""The speedrun: its rules, each of its techniques, and its recipe in PyTorch."""

import functools
import importlib
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from deepjax import command_line
from deepjax.data import dataset_info
from deepjax.data.augment.basic import normalize
from deepjax.errors import InputError
from deepjax.study import speedrun as core
from deepjax.study.speedrun import RECIPES, TECHNIQUES
from deepjax.training import compile_training, replace_options, train_config
from experiments import speedrun
from tests.models.torch_reference import needs_torch

SMALL = "fashion_mnist_small"
FOLDER = Path(__file__).parents[1] / "experiments" / "benchmarks"
variants = {f"without {name}": TECHNIQUES - {name} for name in sorted(TECHNIQUES)}
variants |= {"none": frozenset(), "all": TECHNIQUES}


def network(name):
    recipe = RECIPES[name]
    return core.SpeedrunNetwork(recipe.stem, recipe.stages)


@pytest.mark.parametrize("name", RECIPES)
def test_the_network_has_eight_layers_or_more(name):
    images = jax.ShapeDtypeStruct((2, *dataset_info(name).shape), np.float32)
    params = jax.eval_shape(network(name).init, jax.random.key(0), images)["params"]
    kernels = [layer for layer in params.values() if "kernel" in layer]
    assert len(kernels) == RECIPES[name].layers >= 8


def test_whitened_patches_are_uncorrelated_with_the_variance_of_the_floor():
    """An eigenvalue v becomes v / (v + 0.01): closed form; the second half is the negative."""
    images = np.random.default_rng(0).integers(0, 256, (50, 8, 8, 1), np.uint8)
    images[:, :, 1::2] = images[:, :, ::2]  # correlated
    dataset = dataset_info(SMALL)
    kernel = core.whitening_kernel(images, dataset, 3)
    assert kernel.shape == (3, 3, 1, 18)
    scaled = np.asarray(normalize(images, dataset))
    patches = np.stack(
        [scaled[:, i : i + 3, j : j + 3].reshape(50, 9) for i in (0, 2, 4) for j in (0, 2, 4)]
    ).reshape(-1, 9)
    second_moment = patches.T @ patches / len(patches)
    filters = kernel[..., :9].reshape(9, 9)
    variances = np.linalg.eigvalsh(second_moment)
    expected = np.diag(variances / (variances + 0.01))
    np.testing.assert_allclose(filters.T @ second_moment @ filters, expected, atol=1e-4)
    np.testing.assert_array_equal(kernel[..., 9:], -kernel[..., :9])


def test_a_technique_that_is_not_used_cannot_be_omitted():
    with pytest.raises(
        InputError, match="without is 'progressive_resizing'; allowed: label_smoothing"
    ):
        command_line.parse(speedrun.Options, ["--without", "progressive_resizing"])


def test_the_target_is_reached_where_the_interval_lies_above_it():
    record = {
        "dataset": SMALL,
        "target": 88.0,
        "steps": 560,
        "from_python": {"empty cache": 12.3},
        "variants": {},
        "hardware": "",
        "versions": "",
    }
    for accuracies, text in (([88.2, 88.3], "not reached"), ([88.30, 88.31], "is reached")):
        runs = [{"accuracy": value, "seconds": 2.0} for value in accuracies]
        assert text in speedrun.describe(record | {"runs": runs})


@pytest.mark.slow
@pytest.mark.parametrize("name", variants)
def test_each_combination_of_techniques_trains(name):
    """Eight steps; the program has the techniques' options, and flips average both images."""
    used = variants[name]
    with jax.numpy_dtype_promotion("standard"):  # Muon counts its steps as integers
        run = core.compile_speedrun(SMALL, used, steps=8)
        accuracy, seconds = run.train(0)
        assert 0 < accuracy < 100
        assert seconds > 0
        assert run.train(0)[0] == accuracy  # a function of the seed
    config = run.programs.config
    assert (config.optimization.optimizer == "muon") == ("muon" in used)
    assert (config.objective.label_smoothing > 0) == ("label_smoothing" in used)
    assert (config.ema_decay > 0) == ("averaging" in used)
    assert (config.data.progressive_sizes != ()) == ("progressive_resizing" in used)
    assert (config.transfer.freeze != ()) == ("whitening" in used)
    state = run.programs.fresh_state(config)
    images, variables = run.test_split.images[:64], (state.params, state.batch_stats)
    both = np.array_equal(
        run.predict(*variables, images), run.predict(*variables, images[:, :, ::-1])
    )
    assert both == ("test_flips" in used)


@needs_torch
@pytest.mark.reference
def test_the_recipe_in_pytorch_takes_the_same_steps(monkeypatch):
    """Five steps of Muon from the same weights on the same images, without flips."""
    torch = importlib.import_module("torch")
    monkeypatch.syspath_prepend(str(FOLDER))
    recipe = RECIPES[SMALL]
    options = core.technique_options(recipe, recipe.techniques, 20)
    config = replace_options(train_config("own/speedrun", SMALL, **options), augment=False)
    make = functools.partial(core.SpeedrunNetwork, recipe.stem, recipe.stages)
    with jax.numpy_dtype_promotion("standard"):  # Muon counts its steps as integers
        made = compile_training(config, make=make)
    data = dataset_info(SMALL)
    kernel = core.whitening_kernel(made.train_split.images, data, 4)
    state = made.fresh_state(config)
    state = state.replace(params=state.params | {"stem": {"kernel": jax.numpy.asarray(kernel)}})
    numbers = {"stem": recipe.stem, "stages": recipe.stages}
    task = {
        "images": made.train_split.images,
        "kernel": np.asarray(kernel, np.float32),
        "mean": data.mean,
        "std": data.std,
        "recipe": json.dumps(numbers),
    }
    twin = importlib.import_module("speedrun_torch").Trainer(task, compiled=False)
    net = twin.network()
    copy_weights(torch, net, jax.device_get(state.params))
    optimizer = importlib.import_module("speedrun_torch").Muon(net)
    loss_of = twin.loss_of(net)
    losses = []
    for step in range(5):
        batch = made.batch_at(config, step)
        state, metrics = made.train_step(state, made.partitioner.put_batch(batch))
        net.zero_grad(set_to_none=True)
        loss = loss_of(torch.from_numpy(batch["image"]), torch.from_numpy(batch["label"]).long())
        loss.backward()
        optimizer.step(config.learning_rate * (1 - step / 20))
        losses.append((float(metrics["loss"]), float(loss.detach())))
    own, others = np.array(losses).T
    assert own[-1] < own[0]
    np.testing.assert_allclose(own, others, rtol=1e-3)


def copy_weights(torch, net, params):
    """The parameters of the linen network into PyTorch's."""
    pairs = [("stem", net.stem), ("stem_norm", net.stem_norm), ("classifier", net.classifier)]
    for i, layers in enumerate(net.stages, 1):
        for j in range(0, len(layers), 2):
            pairs.append((f"stage{i}_conv{j // 2 + 1}", layers[j]))
            pairs.append((f"stage{i}_norm{j // 2 + 1}", layers[j + 1]))
    assert {name for name, _ in pairs} == set(params)
    with torch.no_grad():
        for name, module in pairs:
            for field, value in params[name].items():
                target = module.bias if field == "bias" else module.weight
                axes = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[value.ndim]
                target.copy_(torch.from_numpy(np.array(value.transpose(axes))))
