"""`deepjax predict`: the classes that evaluation would give, printed and written."""

import csv
import functools
import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from deepjax.cli.__main__ import start
from deepjax.data import dataset_info, load_split
from deepjax.data.augment.basic import normalize
from deepjax.data.image.decode import decode_rgb
from deepjax.data.label_names import label_names
from deepjax.errors import InputError
from deepjax.evaluation.models import PreprocessingOverrides, from_run
from deepjax.evaluation.predict import predict
from deepjax.evaluation.protocols import resolve_protocol
from deepjax.evaluation.unlabelled import find_images, open_images
from deepjax.models import create_model
from deepjax.models.weights.convert import save_safetensors
from deepjax.training import open_run
from deepjax.training.distributed.sharding import Partitioner, make_mesh
from tests.data.own.images import write_classes, write_images
from tests.data.photographs import crops
from tests.numpy_variables import numpy_variables

SHORT = ["--steps", "4", "--batch-size", "16", "--learning-rate", "0.02"]
THIN = ["--model", "cifar_plain20", "--model-args", "stages=[1,1,1]", "width=4", *SHORT]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Three classes of images, and a run that was trained on them."""
    root = tmp_path_factory.mktemp("predict")
    write_classes(root / "photos", {"ant hill": 12, "bee": 12, "犬": 12})
    run = ["--image-size", "32", "--output-dir", str(root / "run")]
    start(["train", "--dataset", str(root / "photos"), *THIN, *run])
    return root


def test_it_gives_what_evaluation_computes(photos, tmp_path, capsys):
    member = from_run(photos / "run", None, PreprocessingOverrides())
    split = load_split(member.dataset, "test")
    protocol = resolve_protocol("1-crop", member.name, member.crop, member.resize, (), None)
    wanted = np.exp(predict(member, split, protocol, Partitioner(make_mesh())))
    names = [str(photos / "photos" / split.records.name(i)) for i in range(len(split))]
    output = tmp_path / "found.json"
    start(["predict", *names, "--run", str(photos / "run"), "--top", "3", "--output", str(output)])
    found = json.loads(output.read_text())
    lines = capsys.readouterr().out.splitlines()
    start(["predict", *names, "--run", str(photos / "run"), "--top", "3", "--json"])
    assert json.loads(capsys.readouterr().out) == found
    assert [each["image"] for each in found] == names
    for each, row in zip(found, wanted, strict=True):
        given = {one["label"]: one["probability"] for one in each["classes"]}
        assert set(given) == {"ant hill", "bee", "犬"}
        np.testing.assert_allclose(
            [given[name] for name in member.dataset.label_names], row, rtol=1e-5, atol=1e-7
        )
        assert [one["probability"] for one in each["classes"]] == sorted(given.values())[::-1]
    best = found[0]["classes"][0]
    assert lines[0].startswith(f"{names[0]}: {best['label']} {100 * best['probability']:.1f} %, ")


def test_folders_are_read_in_order_and_broken_images_are_named(photos, tmp_path, capsys):
    (tmp_path / "new" / "deep").mkdir(parents=True)
    image = next((photos / "photos" / "bee").iterdir()).read_bytes()
    for name in ("b.jpg", "a.jpg", "deep/c.jpeg", ".hidden.jpg", "note.txt"):
        (tmp_path / "new" / name).write_bytes(image)
    (tmp_path / "new" / "broken.png").write_bytes(b"no image")
    output = tmp_path / "found.csv"
    run = ["--run", str(photos / "run"), "--top", "2", "--output", str(output)]
    start(["predict", str(tmp_path / "new"), *run])
    rows = list(csv.DictReader(output.open(encoding="utf-8")))
    found = [Path(row["image"]).name for row in rows if row["rank"] in ("1", "")]
    assert found == ["a.jpg", "b.jpg", "broken.png", "c.jpeg"]
    [broken] = [row for row in rows if row["error"]]
    assert "neither a JPEG nor a PNG" in broken["error"] and broken["label"] == ""
    assert len(rows) == 2 * 3 + 1
    assert "broken.png: cannot be decoded" in capsys.readouterr().out
    with pytest.raises(InputError, match="which exists; choose another, or remove it"):
        start(["predict", str(tmp_path / "new"), *run])


def test_a_network_of_arrays_sees_images_of_their_size(photos, tmp_path, capsys):
    """Grey, 8 x 8 pixels: computed by hand."""
    start(["train", "--dataset", "digits", *THIN, "--output-dir", str(tmp_path / "run")])
    image = next((photos / "photos" / "bee").iterdir())
    output = tmp_path / "found.json"
    command = ["--run", str(tmp_path / "run"), "--top", "10", "--output", str(output)]
    start(["predict", str(image), *command])
    [found] = json.loads(output.read_text())
    grey = Image.fromarray(decode_rgb(image.read_bytes())).convert("L")
    pixels = np.asarray(grey.resize((8, 8), Image.Resampling.BILINEAR))[None, ..., None]
    member = from_run(tmp_path / "run", None, PreprocessingOverrides())
    apply = functools.partial(member.model.apply, member.variables, train=False)
    wanted = jax.nn.softmax(apply(normalize(pixels, member.dataset)))[0]
    given = {one["label"]: one["probability"] for one in found["classes"]}
    np.testing.assert_allclose([given[str(i)] for i in range(10)], wanted, rtol=1e-4, atol=1e-6)


def test_averages_or_parameters_of_the_last_step(photos, tmp_path):
    """Each gives the probabilities of `model.apply` on its variables of the checkpoint."""
    run = tmp_path / "run"
    start(["train", "--dataset", "digits", *THIN, "--ema-decay", "0.5", "--output-dir", str(run)])
    Image.fromarray(load_split(dataset_info("digits"), "test").images[0, :, :, 0]).save(
        tmp_path / "digit.png"
    )
    pixels = load_split(dataset_info("digits"), "test").images[:1]
    for flag, averaged in (("--ema", True), ("--no-ema", False)):
        output = tmp_path / f"found{flag}.json"
        command = ["--run", str(run), "--top", "10", "--output", str(output), flag]
        start(["predict", str(tmp_path / "digit.png"), *command])
        [found] = json.loads(output.read_text())
        opened = open_run(run, averaged=averaged)
        logits = opened.model.apply(
            opened.variables, normalize(pixels, opened.dataset), train=False
        )
        given = {one["label"]: one["probability"] for one in found["classes"]}
        wanted = jax.nn.softmax(logits)[0]
        np.testing.assert_allclose([given[str(i)] for i in range(10)], wanted, rtol=1e-4)


def test_known_weights_are_normalised_as_they_expect(tmp_path, capsys):
    """Computed by hand: 0.5 and 0.5 for torchvision's GoogLeNet, ImageNet's where it is unknown."""
    model = create_model("googlenet_tv", auxiliary=False)
    variables = numpy_variables(model, (64, 64, 3))
    save_safetensors(tmp_path / "g.safetensors", "googlenet_tv", variables, auxiliary=False)
    pixels = crops(1, shortest=64, longest=64)[0]
    Image.fromarray(pixels).save(tmp_path / "x.png")
    command = ["predict", str(tmp_path / "x.png"), "--name", "googlenet_tv", "--top", "1000"]
    command += ["--weights", str(tmp_path / "g.safetensors"), "--crop", "64", "--resize", "64"]
    imagenet = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    known = ["--known", "torchvision IMAGENET1K_V1"]
    for options, (mean, std) in ((known, (0.5, 0.5)), ([], imagenet)):
        output = tmp_path / f"{len(options)}.json"
        start([*command, *options, "--output", str(output)])
        [found] = json.loads(output.read_text())
        image = (pixels[None] / 255.0 - np.array(mean)) / np.array(std)
        logits = model.apply(variables, image.astype(np.float32))
        given = [each["probability"] for each in found["classes"]]
        np.testing.assert_allclose(given, np.sort(jax.nn.softmax(logits)[0])[::-1], rtol=1e-3)
        assumed = "these weights are not known: bilinear, imagenet2012's mean assumed; override"
        assert (assumed in capsys.readouterr().err) == (not options)


def test_which_files_of_a_folder_are_images(tmp_path):
    """Links are followed, once; of hidden ones none is an image; other formats are named later."""
    write_images(tmp_path / "elsewhere", 1)
    for name in ("in/.hidden/a.jpg", "in/.b.jpg", "in/c.webp", "in/d.JPG", "in/deep/e.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "deep" / "back").symlink_to(tmp_path / "in")
    found = [os.path.relpath(path, tmp_path) for path in find_images([str(tmp_path / "in")])]
    assert found == ["in/c.webp", "in/d.JPG", "in/deep/e.png", "in/linked/0.jpg"]
    with pytest.raises(InputError, match=r"no image can be decoded; .*c\.webp: .*neither a JPEG"):
        open_images([str(tmp_path / "in" / "c.webp")], dataset_info("imagenet2012"))


def test_a_folder_that_cannot_be_read_is_refused(tmp_path, monkeypatch):
    write_images(tmp_path / "closed", 1)
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match="closed cannot be read: Permission denied"):
        find_images([str(tmp_path)])


@pytest.mark.parametrize(
    ("name", "message"), [(b"\xff.jpg", "a path in UTF-8"), (b"a\nb.jpg", "without line breaks")]
)
def test_names_that_cannot_be_written_are_refused_before_any_work(name, message, tmp_path):
    """Before the network is looked for, which is not there."""
    with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
        file.write(b"x")
    with pytest.raises(InputError, match=f"images is .*{message}"):
        start(["predict", str(tmp_path), "--run", str(tmp_path / "none")])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x.jpg"], "run is None; allowed: a run directory, or --name and --weights"),
        (["x.jpg", "--name", "resnet18"], "allowed: a run directory, or --name and --weights"),
        (["x.jpg", "--run", "r", "--output", "a.txt"], r"allowed: a file \.csv or \.json"),
        (["x.jpg", "--run", "r", "--output", "found"], r"output is 'found'; allowed: a file \.csv"),
        (["x.jpg", "--run", "r", "--entry", "ema"], "entry is 'ema'; allowed: a prefix only with"),
        (["--run", "r"], "images is ''; allowed: one file or folder"),
        (["x.jpg", "--run", "r", "--top", "0"], "top is 0; allowed: 1 or more"),
        (["x.jpg", "--name", "a", "--weights", "b", "--no-ema"], "--no-ema only for a run"),
    ],
)
def test_options_that_do_not_fit_are_one_line(arguments, message):
    with pytest.raises(InputError, match=message):
        start(["predict", *arguments])


def test_preprocessing_that_means_nothing_is_refused(photos, tmp_path):
    image, run = str(next((photos / "photos" / "bee").iterdir())), ["--run", str(photos / "run")]
    with pytest.raises(InputError, match=r"known is 'x'; allowed: '' for .*, which states its own"):
        start(["predict", image, *run, "--known", "x"])
    start(["train", "--dataset", "digits", *THIN, "--output-dir", str(tmp_path / "run")])
    for option in (["--resize", "9"], ["--interpolation", "bicubic"]):
        with pytest.raises(InputError, match="are for photographs; the images of digits"):
            start(["predict", image, "--run", str(tmp_path / "run"), *option])


def test_paths_without_images_are_refused(photos, tmp_path):
    run = ["--run", str(photos / "run")]
    for given, message in (
        (tmp_path / "none", "which does not exist"),
        (tmp_path, "has no JPEG or PNG images"),
    ):
        with pytest.raises(InputError, match=message):
            start(["predict", str(given), *run])
    (tmp_path / "x.jpg").write_bytes(b"")
    with pytest.raises(InputError, match=r"no image can be decoded; .*x\.jpg"):
        start(["predict", str(tmp_path / "x.jpg"), *run])


@pytest.mark.parametrize(
    ("name", "first"), [("digits", "0"), ("fashion_mnist_small", "T-shirt/top"), ("cifar10", "0")]
)
def test_classes_have_the_names_of_their_data_set(name, first):
    """CIFAR-10's are in its archive, which is not at hand: numbers."""
    names = label_names(dataset_info(name))
    assert names[0] == first and len(names) == dataset_info(name).num_classes


def test_a_test_set_of_other_classes_of_the_same_number_is_refused(photos, tmp_path):
    write_classes(tmp_path / "other", {"bee": 8, "cat": 8, "dog": 8})
    command = ["--run", str(photos / "run"), "--dataset", str(tmp_path / "other")]
    with pytest.raises(InputError, match="was trained on: ant hill, bee, 犬"):
        start(["evaluate", *command, "--output-dir", str(tmp_path / "out")])
