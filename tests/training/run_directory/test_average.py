"""The mean of checkpoints and runs, compared with NumPy; the directory that holds it."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from deepjax.cli.__main__ import start
from deepjax.data import dataset_info, load_split
from deepjax.data.augment.basic import normalize
from deepjax.data.loader import batch_index
from deepjax.errors import InputError
from deepjax.models.layers.norms import BatchNorm
from deepjax.training import RunOptions, open_run, replace_options, train, train_config
from deepjax.training.checkpoint.inspect import read_state
from deepjax.training.run_directory.average import average_checkpoints
from tests.data.own.images import write_classes

OPTIONS = {"batch_size": 64, "steps": 3, "learning_rate": 0.05, "augment": False, "seed": 4}


class Net(nn.Module):
    """Two batch norms, of which the second sees what the first gives; one of each library."""

    num_classes: int = 10
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.Dense(6, name="first")(images.reshape(len(images), -1))
        x = nn.relu(BatchNorm(train=train, name="norm1")(x))
        x = nn.Dense(5, name="second")(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.7, name="norm2")(x)
        return nn.Dense(self.num_classes, name="head")(x)


CONFIG = train_config("own/net", **OPTIONS)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs that start from a third and keep three checkpoints each, with their averages."""
    folder = tmp_path_factory.mktemp("runs")
    train(CONFIG, folder / "start", make=Net)
    for name, changed in (("a", {"seed": 0}), ("b", {"seed": 1, "learning_rate": 0.1})):
        config = replace_options(CONFIG, weights=str(folder / "start"), ema_decay=0.5, **changed)
        train(config, folder / name, RunOptions(save_every=1, keep_last=3), make=Net)
    return folder


def mean_of(*trees):
    return jax.tree.map(
        lambda *leaves: np.mean([np.asarray(leaf, np.float64) for leaf in leaves], axis=0), *trees
    )


def close(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), one, other)


def brute_force_statistics(params, batches):
    """Means over batches of each norm's mean and biased variance, in float64."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    sums = {"norm1": [0, 0], "norm2": [0, 0]}
    for images in batches:
        x = images.reshape(len(images), -1).astype(np.float64)
        for layer, norm in (("first", "norm1"), ("second", "norm2")):
            x = x @ p[layer]["kernel"] + p[layer]["bias"]
            mean, var = x.mean(0), ((x - x.mean(0)) ** 2).mean(0)
            sums[norm] = [sums[norm][0] + mean, sums[norm][1] + var]
            x = (x - mean) / np.sqrt(var + 1e-5) * p[norm]["scale"] + p[norm]["bias"]
            x = np.maximum(x, 0)
    return {
        norm: {"mean": mean / len(batches), "var": var / len(batches)}
        for norm, (mean, var) in sums.items()
    }


@pytest.mark.parametrize("ema", [True, False])
def test_runs_are_averaged_and_their_batch_statistics_computed_again(ema, runs, tmp_path):
    found = average_checkpoints(
        [runs / "a", runs / "b"], tmp_path / "soup", ema=ema, batches=4, make=Net
    )
    states = [read_state(runs / name)[1] for name in ("a", "b")]
    wanted = mean_of(*((state["ema"] if ema else state)["params"] for state in states))
    run = open_run(tmp_path / "soup", make=Net)
    close(run.variables["params"], wanted)
    split, digits = load_split(dataset_info("digits"), "train"), dataset_info("digits")
    ids = [batch_index(len(split), 64, 0, step) for step in range(4)]
    batches = [np.asarray(normalize(split.images[i], digits)) for i in ids]
    stats = brute_force_statistics(run.variables["params"], batches)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5),
        run.variables["batch_stats"],
        stats,
    )
    assert (found.batches, found.images) == (4, 256)
    mark = json.loads((tmp_path / "soup" / "average.json").read_text())
    assert [each["step"] for each in mark["checkpoints"]] == [3, 3]
    assert mark["weights"] == ("averages" if ema else "parameters")


def test_the_last_checkpoints_of_a_run(runs, tmp_path):
    trees = [read_state(runs / "a", step)[1]["ema"]["params"] for step in (1, 2, 3)]
    for last, chosen in ((0, trees), (2, trees[1:])):
        out = tmp_path / str(last)
        average_checkpoints([runs / "a"], out, last=last, batches=1, make=Net)
        close(open_run(out, make=Net).variables["params"], mean_of(*chosen))


def test_the_average_of_one_checkpoint_has_its_parameters(runs, tmp_path):
    """Bitwise; and so has that of three copies. One pass over the images is 22 batches."""
    given = read_state(runs / "b")[1]["ema"]["params"]
    for count, batches in ((1, 0), (3, 1)):
        out = tmp_path / str(count)
        found = average_checkpoints([runs / "b"] * count, out, last=1, batches=batches, make=Net)
        jax.tree.map(np.testing.assert_array_equal, read_state(out)[1]["params"], given)
        assert found.batches == (batches or 1437 // 64)


def test_what_reads_a_run_reads_an_average_and_training_does_not_resume_it(runs, tmp_path, capsys):
    """Evaluation, prediction, fine-tuning; of a network of the table, by the command."""
    small = ["--model", "cifar_plain20", "--model-args", "stages=[1,1,1]", "--width", "2"]
    options = [
        *small,
        "--steps",
        "2",
        "--batch-size",
        "64",
        "--keep-last",
        "2",
        "--save-every",
        "1",
    ]
    run, out = tmp_path / "run", tmp_path / "averaged"
    start(["train", *options, "--output-dir", str(run)])
    start(["average", str(run), "--batches", "2", "--output-dir", str(out)])
    printed = capsys.readouterr().out
    assert (
        f"{out}: the mean of the parameters of {run} step 1, {run} step 2; batch statistics of"
        in printed
    )
    start(["evaluate", "--run", str(out), "--output-dir", str(tmp_path / "result")])
    assert "it is an average of checkpoints" in capsys.readouterr().out
    opened, digits = open_run(out), dataset_info("digits")
    test = load_split(digits, "test")
    logits = opened.model.apply(opened.variables, normalize(test.images, digits), train=False)
    result = json.loads((tmp_path / "result" / "result.json").read_text())
    error = np.mean(np.asarray(jnp.argmax(logits, 1)) != test.labels)
    assert result["sets"][0]["top1_error"] == error
    before = sorted(path.name for path in out.iterdir())
    with pytest.raises(InputError, match=r"average of checkpoints \(average\.json\), which cannot"):
        start(["train", *options, "--output-dir", str(out)])
    assert sorted(path.name for path in out.iterdir()) == before
    weights = ["--weights", str(out), "--output-dir", str(tmp_path / "tuned")]
    start(["train", *small, "--steps", "1", "--batch-size", "64", *weights])
    with pytest.raises(InputError, match="allowed: a folder that is new or empty"):
        average_checkpoints([run], out)


def test_statistics_that_are_frozen_are_kept_and_refused_where_they_differ(runs, tmp_path):
    config = replace_options(CONFIG, weights=str(runs / "start"), freeze_batch_norm=True, steps=1)
    train(config, tmp_path / "frozen", make=Net)
    found = average_checkpoints([tmp_path / "frozen"] * 2, tmp_path / "mean", make=Net)
    given = read_state(runs / "start")[1]["batch_stats"]
    assert found.batches == 0
    jax.tree.map(
        np.testing.assert_array_equal, read_state(tmp_path / "mean")[1]["batch_stats"], given
    )
    other = replace_options(config, weights=str(runs / "a"))
    train(other, tmp_path / "other", make=Net)
    with pytest.raises(InputError, match=r"other batch statistics .* \(--freeze-batch-norm\)"):
        average_checkpoints([tmp_path / "frozen", tmp_path / "other"], tmp_path / "no", make=Net)
    assert not (tmp_path / "no").exists()


def test_what_cannot_be_averaged(runs, tmp_path):
    other, dropped = tmp_path / "other", tmp_path / "dropped"
    for path, change in (
        (other, {"dataset": "fashion_mnist_small"}),
        (dropped, {"drop_path": 0.1}),
    ):
        shutil.copytree(runs / "a", path)
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps(config | change))
    for given, options, message in (
        ([runs / "a", other], {}, r"cannot be averaged with .*: dataset is 'fashion_mnist_small'"),
        ([runs / "a", runs / "start"], {}, "averages is False, there True"),
        ([runs / "a", dropped], {}, r"drop_path is 0\.1, there 0\.0"),
        ([runs / "a"], {"last": 4}, "last is 4; allowed: 0 to 3, the checkpoints that"),
        ([tmp_path], {}, "holds no config"),
    ):
        with pytest.raises(InputError, match=message):
            average_checkpoints(given, tmp_path / "out", make=Net, **options)
    assert not (tmp_path / "out").exists()


def test_runs_from_different_initial_weights_are_warned_of(runs, tmp_path):
    train(replace_options(CONFIG, seed=9), tmp_path / "other", make=Net)
    said = []
    pair = [runs / "start", tmp_path / "other"]
    average_checkpoints(pair, tmp_path / "out", batches=1, make=Net, say=said.append)
    assert [line for line in said if "began with different initial weights" in line]
    average_checkpoints(
        [runs / "a", runs / "b"], tmp_path / "soup", batches=1, make=Net, say=said.append
    )
    assert len(said) == 1


def test_starts_are_compared_by_the_contents_of_the_weights(runs, tmp_path):
    """A copy of the run under another name is the same start; another run is none."""
    shutil.copytree(runs / "start", tmp_path / "copy")
    train(replace_options(CONFIG, seed=9), tmp_path / "other", make=Net)
    for name in ("copy", "other"):
        config = replace_options(CONFIG, weights=str(tmp_path / name), steps=1, ema_decay=0.5)
        train(config, tmp_path / f"from-{name}", make=Net)
    for name, warned in (("copy", False), ("other", True)):
        said = []
        pair = [runs / "a", tmp_path / f"from-{name}"]
        average_checkpoints(pair, tmp_path / f"out-{name}", batches=1, make=Net, say=said.append)
        assert bool(said) == warned


def test_a_new_classifier_is_part_of_the_start(tmp_path):
    """Its initial weights are those of the seed. The first run has other classes."""
    write_classes(tmp_path / "photos", {"ant": 10, "bee": 10})
    small = train_config(
        "cifar_plain20", model_args=("stages=[1,1,1]", "width=2"), image_size=16, steps=1,
        batch_size=8, dataset=str(tmp_path / "photos"),
    )  # fmt: skip
    train(small, tmp_path / "first")
    write_classes(tmp_path / "others", {"cat": 10, "dog": 10, "emu": 10})
    tuned = replace_options(small, weights=str(tmp_path / "first"))
    tuned = replace_options(tuned, dataset=str(tmp_path / "others"))
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(replace_options(tuned, seed=seed), tmp_path / name)
    for other, warned in (("b", False), ("c", True)):
        said, out = [], tmp_path / f"out-{other}"
        average_checkpoints([tmp_path / "a", tmp_path / other], out, batches=1, say=said.append)
        assert bool(said) == warned
