"""What a training takes from weights: mean and std, classes, channels, and what is refused."""

import dataclasses
import json

import numpy as np
import pytest

from deepjax.cli.train import Options
from deepjax.command_line import parse
from deepjax.data import dataset_info
from deepjax.errors import InputError
from deepjax.evaluation import EvalModel
from deepjax.evaluation.export.folder import Origin, export_network
from deepjax.models import create_model
from deepjax.models.weights.convert import save_safetensors
from deepjax.training import train
from deepjax.training.config import TrainConfig, train_config
from deepjax.training.network import starting_weights
from deepjax.training.transfer.described import (
    WeightsDescription,
    has_other_classes,
    is_run,
    may_test_on_seen_images,
)
from deepjax.training.transfer.expected_images import dataset_of, expected_images
from tests.numpy_variables import numpy_variables

SMALL = {"width": 4, "image_size": 32, "steps": 1, "batch_size": 16}
PHOTOGRAPHS = {"dataset": "imagenette/320px-v2"}  # of 224 pixels
TORCHVISION = "torchvision IMAGENET1K_V1"


def config(weights, **options) -> TrainConfig:
    return train_config(**{"model": "resnet18", **SMALL, "weights": str(weights), **options})


@pytest.fixture
def rgb(tmp_path):
    """A file of weights for images of three channels and 7 classes, and its variables."""
    variables = numpy_variables(create_model("resnet18", width=4, num_classes=7), (32, 32, 3))
    save_safetensors(tmp_path / "rgb.safetensors", "resnet18", variables, width=4)
    return tmp_path / "rgb.safetensors", variables


def arrays(path, channels: int, first_label: int = 0) -> str:
    """Images of 8 pixels in 7 classes."""
    rng, parts = np.random.default_rng(0), {}
    for split in ("train", "val"):
        parts[f"{split}_images"] = rng.integers(0, 256, (28, 8, 8, channels), np.uint8)
        parts[f"{split}_labels"] = np.arange(28) % 7 + first_label
    np.savez(path, **parts)
    return str(path)


@pytest.mark.parametrize("model", ["googlenet_tv", "inception_v3", "resnet34"])
def test_a_file_has_to_say_which_weights_it_holds_where_some_expect_one_half(model):
    """Torchvision's GoogLeNet and Inception-v3 take images of mean and std 0.5."""
    options = {"model": model, "weights": f"{model}.pth", **PHOTOGRAPHS}
    with pytest.raises(
        InputError, match=f"say which these are by --weights-known: '{TORCHVISION}'"
    ):
        dataset_of(train_config(**options))
    photographs = dataset_info(PHOTOGRAPHS["dataset"])
    assert dataset_of(train_config(**options, weights_known="none")) == photographs
    known = dataset_of(train_config(**options, weights_known=TORCHVISION))
    assert known.mean == (photographs.mean if model == "resnet34" else (127.5,) * 3)


def test_known_weights_are_named_rightly():
    with pytest.raises(InputError, match="weights_known of resnet18 'torchvision' is unknown; did"):
        dataset_of(config("resnet18.pth", weights_known="torchvision"))
    with pytest.raises(InputError, match="weights_known is 'none'; allowed: a name only with"):
        train_config("resnet18", weights_known="none")
    for weights in ({}, {"weights": "timm/resnet50.a1_in1k"}, {"weights": "resnet50.pth"}):
        found = dataset_of(train_config("resnet50", **PHOTOGRAPHS, **weights))
        assert found == dataset_info(PHOTOGRAPHS["dataset"])


@pytest.mark.parametrize(
    ("model", "weights", "options", "message"),
    [  # sizes and shorter sides of timm's and torchvision's configurations
        ("resnet50", "timm/resnet50.tv_in1k", {}, ""),
        (
            "resnet50", "timm/resnet50.a1_in1k", {},
            "timm/resnet50.a1_in1k is tested on crops of 224 pixels from a shorter side of 235, "
            "bicubic; this run tests on crops of 224 from 256, bilinear; give --eval-crop 0.953; "
            "`deepjax evaluate --run` takes --interpolation bicubic",
        ),
        ("resnet50", "timm/resnet50.tv2_in1k", {"eval_crop": 0.966}, ""),
        (
            "inception_v3", "inception_v3.pth", {"weights_known": TORCHVISION},
            "torchvision IMAGENET1K_V1 is tested on crops of 299 pixels from a shorter side of "
            "342, bilinear; this run tests on crops of 224 from 256, bilinear; give "
            "--image-size 299",
        ),
        ("inception_v3", "inception_v3.pth",
         {"weights_known": TORCHVISION, "image_size": 299}, ""),
        ("resnet50", "timm/resnet50.tv_in1k", {"image_size": 96}, ""),  # the user's choice
    ],
)  # fmt: skip
def test_other_crops_than_the_weights_expect_are_a_warning(model, weights, options, message):
    given = train_config(model, **PHOTOGRAPHS, weights=weights, **options)
    assert expected_images(given, None).difference == message


ABOUT = WeightsDescription("resnet18", {}, "", (), False, (0.0,), (1.0,))


@pytest.mark.parametrize(
    ("theirs", "their_names", "mine", "my_names", "other"),
    [
        ("/a/photos", ("ant", "bee"), "/b/photos", ("ant", "bee"), False),
        ("/a/photos", ("ant", "bee"), "/a/photos", ("cat", "dog"), True),  # replaced since
        ("/a/photos", ("ant", "bee"), "/a/photos[test_fraction=0.1]", ("ant", "bee"), False),
        ("digits", (), "digits[:400]", (), False),
        ("cifar10", (), "digits", (), True),
        ("cifar10", (), "/a/photos", ("ant", "bee"), True),
    ],
)
def test_classes_are_compared_by_name(theirs, their_names, mine, my_names, other):
    about = dataclasses.replace(ABOUT, dataset=theirs, label_names=their_names)
    classes = len(my_names) or 10
    dataset = dataclasses.replace(
        dataset_info("digits"), name=mine, num_classes=classes, label_names=my_names
    )
    assert has_other_classes(about, dataset) == other


@pytest.mark.parametrize(
    ("theirs", "mine", "seen"),
    [
        ("/a/photos", "/a/photos", False),
        ("/a/photos", "/a/photos[test_fraction=0.2,split_seed=1]", True),
        ("/a/photos[test_fraction=0.1]", "/a/photos[test_fraction=0.1]", False),
        ("/a/photos", "/a/photos[test_fraction=0.2]", False),  # the default
        ("/a/photos", "/b/photos[test_fraction=0.1]", False),
        ("digits", "digits[:400]", False),
        ("digits", "digits[-100:]", True),  # training images are for tests
        ("digits[-100:]", "digits", False),  # test images were not trained on
        ("digits[-200:]", "digits[:400][-100:]", False),
    ],
)
def test_images_that_the_weights_may_have_seen(theirs, mine, seen):
    about = dataclasses.replace(ABOUT, dataset=theirs)
    dataset = dataclasses.replace(dataset_info("digits"), name=mine)
    assert may_test_on_seen_images(about, dataset) == seen


def test_a_run_says_its_classes_and_which_images_it_has_seen(tmp_path):
    data, run = arrays(tmp_path / "seven.npz", 1), tmp_path / "run"
    train(config("", dataset=data), run)
    other = f"{data}[-7:]"
    lines: list[str] = []
    train(config(run, dataset=other), tmp_path / "held", say=lines.append)
    assert lines[0] == f"starts from {run}; mean and std of their training"
    assert lines[1].startswith(f"warning: {run} was trained on {data}, of which other images are")
    about = json.loads((run / "dataset.json").read_text())
    about["label_names"] = [f"class {label}" for label in range(7)]
    (run / "dataset.json").write_text(json.dumps(about))
    assert starting_weights(config(run, dataset=data)).new == ("head",)


def exported(folder, dataset, **fields):
    """A folder as `deepjax export` writes it, and the variables in it."""
    model = create_model("resnet18", num_classes=7, width=4, **fields)
    member = EvalModel(
        "resnet18", "random", model, numpy_variables(model, (8, 8, 1)), dataset, 8
    )  # fmt: skip
    export_network(member, Origin({"num_classes": 7, "width": 4, **fields}), folder)
    return member.variables


def test_an_exported_folder_gives_its_mean_and_classes(tmp_path):
    data = arrays(tmp_path / "seven.npz", 1)
    measured = dataset_info(data)
    theirs = dataclasses.replace(measured, mean=(51.0,), std=(102.0,))
    variables = exported(tmp_path / "out", theirs)
    start = starting_weights(config(tmp_path / "out", dataset=data))
    assert (start.new, start.warnings) == ((), ())
    assert start.summary().endswith("out; mean and std of their training")
    kernel = variables["params"]["head"]["kernel"]
    np.testing.assert_array_equal(start.leaves["params", "head", "kernel"], kernel)
    found = dataset_of(config(tmp_path / "out", dataset=data))
    assert (found.mean, found.std) == (pytest.approx((51.0,)), pytest.approx((102.0,)))
    others = arrays(tmp_path / "others.npz", 1, first_label=7)
    assert starting_weights(config(tmp_path / "out", dataset=others)).new == ("head",)
    photographs = dataset_of(config(tmp_path / "out", **PHOTOGRAPHS))
    assert photographs == dataset_info(PHOTOGRAPHS["dataset"])


def test_an_exported_folder_of_another_network_is_refused(tmp_path):
    data = arrays(tmp_path / "seven.npz", 1)
    exported(tmp_path / "out", dataset_info(data), stride_in="1x1")  # of equal shapes
    refused = "of resnet18 stride_in=1x1; allowed: weights of resnet18 stride_in=3x3"
    with pytest.raises(InputError, match=refused):
        starting_weights(config(tmp_path / "out", dataset=data))
    same = config(tmp_path / "out", dataset=data, model_args=("stride_in=1x1",))
    assert starting_weights(same).new == ()
    with pytest.raises(InputError, match=r"of resnet18 .*; allowed: weights of resnet34 width=4"):
        starting_weights(config(tmp_path / "out", dataset=data, model="resnet34"))
    (tmp_path / "out" / "deepjax.json").write_text("{}")
    with pytest.raises(InputError, match=r"deepjax.json cannot be read"):
        starting_weights(config(tmp_path / "out", dataset=data))


def test_four_channels_take_copies_of_three(rgb, tmp_path):
    """As timm's adapt_input_conv: red, green, blue, red, times 3 / 4."""
    path, variables = rgb
    data = arrays(tmp_path / "four.npz", 4)
    start = starting_weights(config(path, dataset=data))
    kernel = np.asarray(variables["params"]["stem_conv"]["kernel"])
    found = start.leaves["params", "stem_conv", "kernel"]
    np.testing.assert_allclose(found, 0.75 * kernel[:, :, [0, 1, 2, 0]], rtol=1e-6)
    result = train(config(path, dataset=data), tmp_path / "run")
    assert (result.steps, result.test_images) == (1, 28)
    with pytest.raises(
        InputError, match=r"auto_augment is 'rand'; allowed: 'none' for .*4 channel"
    ):
        config(path, dataset=data, auto_augment="rand")


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("~no_such_user/x.pth", "weights is .~no_such_user/x.pth.; allowed: ~, ~USER"),
        ("x" * 256, "weights is .*xxx.*; allowed: names of up to 255 bytes"),
        ("none.pth", "weights is 'none.pth'; allowed: .* there is no such file"),
        (TORCHVISION, "weights is 'torchvision .*which only torchvision has; write it to a file"),
    ],
)
def test_paths_that_are_none_are_one_line(weights, message, tmp_path):
    assert not is_run(weights)
    with pytest.raises(InputError, match=message):
        train(config(weights), tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


def test_an_empty_path_and_an_entry_of_a_run_are_refused(tmp_path):
    with pytest.raises(InputError, match="option --weights is empty"):
        parse(Options, ["--model", "resnet18", "--weights", "", "--output-dir", "run"])
    train(config(""), tmp_path / "run")
    with pytest.raises(InputError, match=r"weights_entry is 'model_ema'; allowed: '' for .*run"):
        starting_weights(config(tmp_path / "run", weights_entry="model_ema"))
