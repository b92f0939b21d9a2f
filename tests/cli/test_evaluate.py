"""deepjax evaluate: runs, weights, ensembles and more data sets.

On one and eight devices, two processes.
"""

import contextlib
import dataclasses
import json
import os
import socket
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepjax.cli.evaluate import Options, load_members, main, start
from deepjax.command_line import parse
from deepjax.data import dataset_info, eval_batches, load_split, register
from deepjax.data.augment.basic import normalize, resize
from deepjax.errors import InputError
from deepjax.evaluation import resolve_protocol
from deepjax.evaluation.dense import as_fully_convolutional
from deepjax.evaluation.models import (
    PreprocessingOverrides,
    from_run,
    from_weights,
    preprocessing_for,
)
from deepjax.evaluation.result_file import (
    RESULT_FILE,
    check_result_folder,
    evaluation_spec,
    set_spec,
)
from deepjax.models import create_model
from deepjax.models.stochastic_depth import StochasticDepth
from deepjax.models.weights.convert import from_torch, save_safetensors, to_torch
from deepjax.models.weights.files import read_tensors
from deepjax.training.checkpoint.manager import Checkpoints
from deepjax.training.config import replace_options, train_config
from deepjax.training.network import model_from
from deepjax.training.run_directory.config_file import init_run_dir
from deepjax.training.run_directory.data_identity import pin_description
from deepjax.training.run_directory.run_lock import hold
from deepjax.training.step.optimizers import make_optimizer
from deepjax.training.step.state import init_state
from deepjax.training.step.step import make_eval_step
from tests.data.archives import small_imagenet
from tests.evaluation.test_dense import drawn
from tests.evaluation.test_protocols import DATASET, MEMBER
from tests.faults.runs import ROOT

CONFIG = train_config(model="cifar_plain20", width=4, ema_decay=0.5, image_size=12)
STATE = drawn(model_from(CONFIG), 12, channels=1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run directory on the digits with a checkpoint whose averages are not its parameters."""
    out = tmp_path_factory.mktemp("runs") / "trained"
    init_run_dir(out, CONFIG)
    state = init_state(
        model_from(CONFIG), make_optimizer(CONFIG), CONFIG.input_shape, 0.1, seed=0, ema=True
    )
    state = state.replace(
        step=jnp.asarray(3, jnp.int32),
        ema={"params": STATE["params"], "batch_stats": STATE["batch_stats"]},
    )
    with contextlib.closing(Checkpoints(out)) as checkpoints:
        checkpoints.save_last(state, {})
    return out


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """24 images in tfds's own form, and weights of its 1000 classes."""
    folder = tmp_path_factory.mktemp("imagenet")
    dataset = small_imagenet(folder / "data", train=16, validation=24)
    variables = jax.tree.map(np.asarray, drawn(create_model("resnet18"), 32))
    save_safetensors(folder / "drawn.safetensors", "resnet18", variables)
    return dataset.name, folder


def evaluated(out, *arguments):
    main(parse(Options, [*map(str, arguments), "--output-dir", str(out)]))
    return json.loads((out / "result.json").read_text())


def test_json_is_the_file_and_all_else_goes_to_stderr(trained, tmp_path, capsys):
    start(["--run", str(trained), "--json", "--output-dir", str(tmp_path / "out")])
    printed = capsys.readouterr()
    assert json.loads(printed.out) == json.loads((tmp_path / "out" / RESULT_FILE).read_text())
    assert "top-1" in printed.err


def test_a_run_is_evaluated_as_its_own_training_would(trained, tmp_path, capsys):
    """A run's averaged weights at its newest checkpoint give the errors and loss of the trainer's
    step.
    """
    result = evaluated(tmp_path, "--run", trained)
    (found,) = result["sets"]
    digits = dataset_info("digits")
    step = jax.jit(make_eval_step(model_from(CONFIG), digits, CONFIG.data.image_size))
    sums = [
        step(STATE["params"], STATE["batch_stats"], batch)
        for batch in eval_batches(load_split(digits, "test"), 100)
    ]
    loss, errors, images = (
        sum(float(of[name]) for of in sums) for name in ("loss", "errors", "images")
    )
    assert (found["images"], found["counted"], images) == (360, 360, 360)
    assert found["top1_error"] == pytest.approx(errors / images) and 0 < errors < images
    assert found["nll"] == pytest.approx(loss / images, rel=1e-5)
    assert result["evaluation"][0]["weights"].endswith("step 3, averages")
    assert [each["label"] for each in found["classes"]] == [str(i) for i in range(10)]
    assert np.sum(found["confusion"]) == 360
    assert np.trace(found["confusion"]) == round(360 * (1 - found["top1_error"]))
    assert {"command", "versions", "hardware", "wall time"} <= result.keys()
    printed = capsys.readouterr().out
    assert "digits: 360 images of 10 classes; top-1 error " in printed
    assert "\n  classes with the greatest error: " in printed


@pytest.mark.parametrize(
    ("flag", "ema", "source"),
    [
        ("--ema", True, "step 3, averages"),
        ("--no-ema", False, "step 3, not the averages"),
    ],
)
def test_averages_or_parameters_of_the_last_step(flag, ema, source, trained, tmp_path):
    """Each gives the errors of `model.apply` on the variables in the checkpoint."""
    result = evaluated(tmp_path, "--run", trained, flag)
    (about,), (found,) = result["evaluation"], result["sets"]
    assert about["ema"] == ema and about["weights"].endswith(source)
    digits, model = dataset_info("digits"), model_from(CONFIG)
    initial = init_state(model, make_optimizer(CONFIG), CONFIG.input_shape, 0.1, seed=0)
    variables = STATE if ema else {"params": initial.params, "batch_stats": initial.batch_stats}
    split = load_split(digits, "test")
    images = resize(normalize(split.images, digits), 12)
    logits = np.asarray(model.apply(variables, images, train=False))
    assert found["top1_error"] == np.mean(logits.argmax(1) != split.labels)
    own = jax.nn.log_softmax(logits)[np.arange(len(logits)), split.labels]
    assert found["nll"] == pytest.approx(-float(np.mean(own)), rel=1e-5)


def processes(out, trained, devices, *hosts):
    command = [
        sys.executable,
        "experiments/evaluate.py",
        "--run",
        str(trained),
        "--output-dir",
        str(out),
        *hosts,
    ]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)},
    )


def equal(one, other):
    for key, value in one["sets"][0].items():
        if key in ("classes", "confusion"):
            assert other["sets"][0].get(key) == value
            continue
        assert other["sets"][0][key] == (
            pytest.approx(value, rel=1e-5) if isinstance(value, float) else pytest.approx(value)
        ), key


@pytest.mark.eight_devices
def test_one_device_finds_what_eight_find(trained, tmp_path):
    started = processes(tmp_path / "one", trained, 1)
    eight = evaluated(tmp_path / "eight", "--run", trained)
    assert started.wait(120) == 0
    one = json.loads((tmp_path / "one" / "result.json").read_text())
    assert (one["hardware"][:3], eight["hardware"][:3]) == ("1 x", "8 x")
    equal(one, eight)


@pytest.mark.eight_devices
@pytest.mark.slow
def test_two_processes_find_what_eight_devices_find(trained, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    hosts = [
        (
            "--hosts.coordinator",
            f"127.0.0.1:{port}",
            "--hosts.processes",
            "2",
            "--hosts.process-id",
            str(i),
        )
        for i in (0, 1)
    ]
    started = [processes(tmp_path / "two", trained, 2, *each) for each in hosts]
    assert [process.wait(120) for process in started] == [0, 0]
    equal(
        json.loads((tmp_path / "two" / "result.json").read_text()),
        evaluated(tmp_path / "eight", "--run", trained),
    )


def test_weights_ensembles_and_further_sets(imagenet, tmp_path):
    """An ensemble of a network with itself is that network.

    Each further data set is read as its own.
    """
    name, folder = imagenet
    register(dataclasses.replace(dataset_info(name), name="again", builder="imagenet2012"))
    common = (
        "--data-dir",
        folder / "data",
        "--dataset",
        name,
        "--crop",
        "32",
        "--protocol",
        "10-crop-whole",
    )
    alone = evaluated(
        tmp_path / "alone",
        "resnet18",
        "--weights",
        folder / "drawn.safetensors",
        *common,
        "--also",
        "again",
    )
    assert [(found["dataset"], found["images"]) for found in alone["sets"]] == [
        (name, 24),
        ("again", 24),
    ]
    assert alone["sets"][0] | {"dataset": "again"} == alone["sets"][1]
    assert alone["sets"][0]["published"] == []  # papers do not speak of these images
    twice = [f"resnet18={folder / 'drawn.safetensors'}"] * 2
    together = evaluated(tmp_path / "twice", "--weights", *twice, *common)
    equal(alone, together)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing is given to test; allowed: --weights SOURCE after the NAME"),
        (
            ["--weights", "x.safetensors"],
            "weights is 'x.safetensors'; allowed: a source after the NAME of a network",
        ),
        (["resnet50", "--weights", "missing.safetensors"], "there is no such file"),
        (["resnet5O", "--weights", "x.safetensors"], "did you mean 'resnet50'"),
        (["--run", "nowhere"], "nowhere holds no config.json"),
        (["resnet18", "--weights", "x", "--no-ema"], "ema is False; allowed: --no-ema only for"),
        (["resnet18", "--weights", "x", "--protocol", "11-crop"], "11-crop"),
        (["resnet18", "--weights", "x", "--dataset", "imagenet"], "did you mean 'imagenet"),
        (["resnet18", "--weights", "x.npz", "--resize", "-1"], "resize is -1"),
        (
            ["resnet18", "--weights", "x.npz", "--resize", "256", "--protocol", "dense"],
            "resize is 256; allowed: 0 for a protocol",
        ),
        (
            ["resnet18", "--weights", "x.npz", "--resize", "256", "--sides", "256"],
            "resize is 256; allowed: 0 for a protocol",
        ),
        (["resnet18", "--weights", "runs/step=3/x.npz"], "source is 'runs/step=3/x.npz'"),
    ],
)
def test_every_mistake_is_one_line(arguments, message, tmp_path):
    with pytest.raises(InputError) as caught:
        main(parse(Options, [*arguments, "--output-dir", str(tmp_path)]))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_nothing_is_begun_whose_result_could_not_be_written(trained, tmp_path):
    """Nor one that would take the place of another's; the same may be done again."""
    (tmp_path / "file").write_text("")
    with pytest.raises(
        InputError, match=r"file is a file, .* not a directory; choose another --output-dir"
    ):
        evaluated(tmp_path / "file", "--run", trained)


def test_the_result_of_another_evaluation_is_refused_by_the_difference(tmp_path):
    protocol = resolve_protocol("1-crop", "small", 32)
    about, sets = spec_of(MEMBER, protocol), [set_spec("digits", load("digits"))]
    write_result(tmp_path, {"evaluation": about, "sets": [sets[0] | {"top1_error": 0.1}]})
    check_result_folder(tmp_path, about, sets)
    params = jax.tree.map(lambda leaf: leaf + 1, MEMBER.variables["params"])
    others = {
        "weights": dataclasses.replace(MEMBER, source="other"),
        "sha256": dataclasses.replace(MEMBER, variables=MEMBER.variables | {"params": params}),
        "std": dataclasses.replace(MEMBER, dataset=dataclasses.replace(DATASET, std=(9.0,) * 3)),
    }
    for name, member in others.items():
        with pytest.raises(InputError, match=rf"of another evaluation \(other {name}\); choose"):
            check_result_folder(tmp_path, spec_of(member, protocol), sets)
    with pytest.raises(InputError, match=r"of another evaluation \(other protocol\)"):
        sides = resolve_protocol("1-crop", "small", 32, sides=(40,))
        check_result_folder(tmp_path, spec_of(MEMBER, sides), sets)
    for name, changed in (
        ("images", [sets[0] | {"images": 359}]),
        ("fingerprint", [sets[0] | {"fingerprint": "ab"}]),
        ("number of data sets", sets * 2),
    ):
        with pytest.raises(InputError, match=rf"\(other {name}\); choose another --output-dir"):
            check_result_folder(tmp_path, about, changed)


@pytest.mark.parametrize("result", [[], {}, {"evaluation": 3, "sets": []}, None])
def test_a_file_that_is_no_result_is_refused(result, tmp_path):
    write_result(tmp_path, result)
    with pytest.raises(InputError, match=r"allowed: a folder without a corrupt result\.json"):
        check_result_folder(tmp_path, [], [])


def spec_of(member, protocol):
    return evaluation_spec([member], [protocol], "float32")


def load(name):
    return load_split(dataset_info(name), "test")


def write_result(folder, result):
    (folder / RESULT_FILE).write_text(json.dumps(result))


def test_an_evaluation_that_is_refused_leaves_no_folder_and_a_second_one_is_refused(
    trained, tmp_path
):
    with pytest.raises(InputError, match=r"10-crop|photographs"):
        evaluated(tmp_path / "new", "--run", trained, "--protocol", "10-crop")
    assert list(tmp_path.iterdir()) == []
    with hold(tmp_path, print), pytest.raises(InputError, match="is in use by process"):
        evaluated(tmp_path, "--run", trained)
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_hold_for_stored_arrays_is_refused(trained, tmp_path):
    for option, value in (("--resize", "40"), ("--sides", "40"), ("--interpolation", "bicubic")):
        with pytest.raises(
            InputError, match=rf"{option}.* (is|are) for photographs; the images of digits"
        ):
            evaluated(tmp_path, "--run", trained, option, value)
    with pytest.raises(InputError, match=r"known is 'x'; allowed: '' for .*trained, which states"):
        evaluated(tmp_path, "--run", trained, "--known", "x")
    colours = dataclasses.replace(dataset_info("digits"), name="colours", shape=(8, 8, 3))
    with pytest.raises(
        InputError, match="dataset is 'colours'; allowed: one of the 10 classes and 1 channels"
    ):
        from_run(trained, colours, PreprocessingOverrides())


def test_the_mean_of_the_data_set_in_place_of_that_of_the_weights(tmp_path):
    """A run that started from one with another mean, which it took over: digits' own of the
    catalogue.
    """
    config = replace_options(CONFIG, ema_decay=0.0, image_size=0)
    save_state(tmp_path / "first", config)
    digits = dataset_info("digits")
    other = dataclasses.replace(digits, mean=(7.0,), std=(5.0,))
    pin_description(tmp_path / "first", other)
    tuned = replace_options(config, weights=str(tmp_path / "first"))
    save_state(tmp_path / "tuned", tuned)
    pin_description(tmp_path / "tuned", other)
    for chosen, mean, std in (
        ("expected", (7.0,), (5.0,)),
        ("dataset", digits.mean, digits.std),
        ("half", (127.5,), (127.5,)),
    ):
        member = from_run(tmp_path / "tuned", None, PreprocessingOverrides(normalize=chosen))
        assert (member.dataset.mean, member.dataset.std) == (mean, std)


def test_dense_evaluation_of_a_vgg_with_frozen_batch_norms(tmp_path):
    """Its head slides, and gives the scores of the network as it was trained."""
    config = train_config("vgg11_bn", width=2, freeze_batch_norm=True, image_size=224)
    save_state(tmp_path / "run", config)
    member = from_run(tmp_path / "run", None, PreprocessingOverrides())
    dense = as_fully_convolutional(member.model)
    assert dense.head == "conv"
    images = np.random.default_rng(0).standard_normal((1, 224, 224, 1)).astype(np.float32)
    wanted = model_from(config).apply(member.variables, images)
    np.testing.assert_allclose(dense.apply(member.variables, images), wanted, rtol=1e-4, atol=1e-5)


def save_state(out, config):
    """A run directory with initial parameters."""
    init_run_dir(out, config)
    model = model_from(config)
    state = init_state(model, make_optimizer(config), config.input_shape, 0.1, seed=0)
    with contextlib.closing(Checkpoints(out)) as checkpoints:
        checkpoints.save_last(state, {})


def test_another_precision_of_a_run_with_stochastic_depth(trained, tmp_path):
    """The network is made again as the run made it, around it what drops its blocks."""
    config = dataclasses.replace(CONFIG, model="cifar_resnet20", drop_path=0.1, ema_decay=0.0)
    init_run_dir(tmp_path / "run", config)
    with contextlib.closing(Checkpoints(tmp_path / "run")) as checkpoints:
        model = model_from(config)
        checkpoints.save_last(
            init_state(model, make_optimizer(config), config.input_shape, 0.1, seed=0), {}
        )
    member = from_run(tmp_path / "run", None, PreprocessingOverrides(precision="bfloat16"))
    assert isinstance(member.model, StochasticDepth) and member.model.network.dtype == jnp.bfloat16


@pytest.mark.filterwarnings("ignore:a library is old")
def test_assumed_preprocessing_is_reported(imagenet, monkeypatch):
    """Repositories are known by either of their names.

    Warnings of others do not look like other classes.
    """
    name, folder = imagenet
    dataset = dataset_info(name)
    tensors = folder / "drawn.safetensors"
    own = from_weights(str(tensors), "resnet18", dataset, PreprocessingOverrides())
    assert own.assumed == (
        f"these weights are not known: a shorter side of 256 for a single crop, bilinear, {name}'s "
        "mean assumed; override with --known, --resize, --interpolation, --normalize"
    )
    chosen = PreprocessingOverrides(resize=256, interpolation="bilinear", normalize="half")
    assert not from_weights(str(tensors), "resnet18", dataset, chosen).assumed
    assert not from_weights(
        str(tensors), "resnet18", dataset, PreprocessingOverrides(known="timm/resnet18.a1_in1k")
    ).assumed

    def read(source, revision):
        warnings.warn("a library is old", stacklevel=1)
        return read_tensors(tensors)

    monkeypatch.setattr("deepjax.models.weights.convert.read_tensors", read)
    at_288 = from_weights(
        "timm/resnet18.a1_in1k", "resnet18", dataset, PreprocessingOverrides(crop=288)
    )
    # test_input_size and test_crop_pct of timm's configuration
    assert (at_288.resize, at_288.assumed) == (
        288,
        "",
    )
    at_256 = from_weights(
        "timm/resnet18.a1_in1k", "resnet18", dataset, PreprocessingOverrides(crop=256)
    )
    assert (at_256.resize, at_256.assumed) == (
        269,
        "timm/resnet18.a1_in1k states no shorter side for crops of 256: 269 assumed for a single "
        "crop, in proportion to 235 for 224; override it with --resize",
    )
    assert not from_weights(
        "timm/resnet18.a1_in1k", "resnet18", dataset, PreprocessingOverrides(crop=256, resize=256)
    ).assumed
    hub = from_weights(
        "hf-hub:timm/resnet18.a1_in1k", "resnet18", dataset, PreprocessingOverrides()
    )
    assert (hub.resize, hub.interpolation, hub.assumed) == (235, "bicubic", "")
    with pytest.raises(
        InputError, match=r"known is 'x'; allowed: '', as vgg16_c has no public weights"
    ):
        preprocessing_for("vgg16_c", "x", dataset, PreprocessingOverrides(known="x"))


def test_sets_of_other_classes_are_refused(trained, imagenet, tmp_path):
    with pytest.raises(
        InputError, match=r"dataset is 'imagenet_a'; allowed: one of the 10 classes and 1 channels"
    ):
        evaluated(tmp_path, "--run", trained, "--also", "imagenet_a")
    with pytest.raises(
        InputError,
        match=r"dataset is .*; allowed: one of the 10 classes and 1 channels that .* was trained",
    ):
        evaluated(tmp_path, "--run", trained, "--dataset", imagenet[0])


def test_entry_selects_one_of_two_networks_in_a_file(tmp_path):
    """A trainer's checkpoint with the network and its average: the average is what is read."""
    name = "cifar_plain20"
    variables = drawn(create_model(name), 8, channels=1)
    tensors = to_torch(name, variables)
    average = {key: tensor + np.ones((), tensor.dtype) for key, tensor in tensors.items()}
    path = tmp_path / "checkpoint.npz"
    np.savez(
        path,
        **{f"model.{key}": tensor for key, tensor in tensors.items()},
        **{f"model_ema.{key}": tensor for key, tensor in average.items()},
    )
    given = [name, "--weights", str(path), "--dataset", "digits"]
    with pytest.raises(InputError, match="give entry='model' or entry='model_ema'"):
        load_members(parse(Options, given))
    with pytest.warns(UserWarning, match="names are read without 'model_ema.'; ignored: model"):
        (member,) = load_members(parse(Options, [*given, "--entry", "model_ema"]))
    assert member.source == f"{path}, entry 'model_ema'"
    expected = from_torch(name, average)
    jax.tree.map(np.testing.assert_array_equal, member.variables, expected)
    with pytest.raises(InputError, match="entry is 'ema'; allowed: a prefix only with --weights"):
        parse(Options, ["--run", str(tmp_path), "--entry", "ema"])


@pytest.mark.slow
def test_weights_of_other_classes_are_refused(imagenet, tmp_path):
    with pytest.raises(
        InputError, match=r"drawn.safetensors is for other classes than those of digits"
    ):
        evaluated(
            tmp_path,
            "resnet18",
            "--weights",
            imagenet[1] / "drawn.safetensors",
            "--dataset",
            "digits",
        )
