"""`deepjax export`: bitwise weights, StableHLO programs, the card, and deepjax reading it again."""

import dataclasses
import json
import math
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import numpy as np
import pytest

from deepjax.cli.__main__ import start
from deepjax.data import dataset_info
from deepjax.errors import InputError
from deepjax.evaluation import EvalModel
from deepjax.evaluation.export.folder import Origin, describe_network, export_network
from deepjax.evaluation.export.metadata import read_metadata
from deepjax.evaluation.export.plain import without_wrappers
from deepjax.evaluation.export.stablehlo import PLATFORMS, to_stablehlo
from deepjax.evaluation.models import PreprocessingOverrides, from_run, from_weights
from deepjax.models import create_model, unstack_blocks
from deepjax.models.stochastic_depth import stochastic_depth
from deepjax.models.weights.convert import load_pretrained, save_safetensors
from deepjax.models.weights.files import read_tensors
from deepjax.training import open_run
from tests.data.own.images import write_classes
from tests.models.torch_reference import library, needs_torch
from tests.numpy_variables import numpy_variables

SHORT = ["--steps", "2", "--batch-size", "8", "--learning-rate", "0.01"]
THIN = ["--model", "resnet18", "--width", "4", "--image-size", "32", *SHORT]
LABELS = ("ant hill", "bee", "犬")
DEFAULTS = PreprocessingOverrides()
BATCHES = (1, 2, 7)
PHOTOGRAPHS = dataset_info("imagenet2012")


def images_of(count: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(count).standard_normal((count, *shape)).astype(np.float32)


def logits_of(member: EvalModel, images: np.ndarray) -> np.ndarray:
    return np.asarray(jax.jit(lambda x: member.model.apply(member.variables, x))(images))


def assert_close(found, wanted, tolerance=1e-5):
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


def member_of(name: str, shape=(32, 32, 3), classes=3, **fields) -> EvalModel:
    """A network with random weights, as `from_run` gives those of a run."""
    model = create_model(name, num_classes=classes, **fields)
    dataset = dataclasses.replace(
        dataset_info("imagenet2012"),
        num_classes=classes,
        shape=shape,
        label_names=tuple("abc"[:classes]),
        encoded=shape[2] == 3,
        mean=(99.0,) * shape[2],
        std=(66.0,) * shape[2],
    )
    return EvalModel(name, "random", model, numpy_variables(model, shape), dataset, shape[0])


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Three classes of images, and a run with averaged weights that was trained on them."""
    root = tmp_path_factory.mktemp("export")
    write_classes(root / "photos", dict.fromkeys(LABELS, 12))
    data = ["--dataset", str(root / "photos"), "--ema-decay", "0.5"]
    start(["train", *data, *THIN, "--output-dir", str(root / "trained")])
    start(["export", str(root / "trained"), "--license", "mit", "--output-dir", str(root / "out")])
    return root


def test_weights_are_the_averages_bitwise(photos):
    run = open_run(photos / "trained", averaged=True)
    found = load_pretrained("resnet18", photos / "out", num_classes=3, width=4)
    for name in ("params", "batch_stats"):
        jax.tree.map(np.testing.assert_array_equal, found[name], run.variables[name])
    assert "averages of --ema-decay 0.5" in (photos / "out" / "README.md").read_text()


def test_metadata_and_card_state_the_facts_of_the_run(photos):
    about = json.loads((photos / "out" / "deepjax.json").read_text())
    final = json.loads((photos / "trained" / "metrics.jsonl").read_text().splitlines()[-1])
    assert final["kind"] == "final"
    assert tuple(about["dataset"]["label_names"]) == LABELS
    assert about["metrics"] == {name: final[name] for name in about["metrics"]}
    assert (about["network"], about["fields"]) == ("resnet18", {"num_classes": 3, "width": 4})
    assert (about["crop"], about["shorter_side"]) == (
        32,
        round(32 / 0.875),
    )  # torchvision's 224/256
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # torchvision's, of ImageNet
    assert (about["dataset"]["mean"], about["dataset"]["std"]) == (mean, std)
    card = (photos / "out" / "README.md").read_text()
    facts = [
        f"test error {100 * final['test_error']:.2f} %", f"all {final['test_images']} test images",
        *LABELS, str(mean), str(std), "37 pixels", "32 x 32", "bilinear", "RGB", 'license: "mit"',
        '"learning_rate": 0.01', '"width": 4', "no network that computes the same",
    ]  # fmt: skip
    assert [fact for fact in facts if fact not in card] == []
    assert '"momentum"' not in card  # the default
    assert str(photos / "out") not in card


def test_predict_and_evaluate_use_what_is_in_the_folder(photos, tmp_path, capsys):
    outputs = []
    for name, given in (("run", "--run"), ("weights", "--weights")):
        source = photos / ("trained" if name == "run" else "out")
        output = tmp_path / f"{name}.json"
        image = str(photos / "photos" / "bee")
        start(["predict", image, given, str(source), "--output", str(output)])
        outputs.append(json.loads(output.read_text()))
    for one, other in zip(*outputs, strict=True):
        assert [c["label"] for c in one["classes"]] == [c["label"] for c in other["classes"]]
        wanted = [c["probability"] for c in one["classes"]]
        assert_close([c["probability"] for c in other["classes"]], np.asarray(wanted))
    command = ["evaluate", "resnet18", "--weights", str(photos / "out")]
    start([*command, "--output-dir", str(tmp_path / "result")])
    [found] = json.loads((tmp_path / "result" / "result.json").read_text())["sets"]
    about = read_metadata(photos / "out")
    assert found["top1_error"] == pytest.approx(about.metrics["test_error"])
    for name, message in (("digits", "3 classes"), (str(tmp_path / "other"), "ant hill, bee, 犬")):
        write_classes(tmp_path / "other", {"bee": 6, "cat": 6, "dog": 6})
        with pytest.raises(InputError, match=f"dataset is .*{message}"):
            start([*command, "--dataset", name, "--output-dir", str(tmp_path / "refused")])
    with pytest.raises(InputError, match="name is 'resnet34'; allowed: resnet18"):
        from_weights(str(photos / "out"), "resnet34", None, DEFAULTS)


def test_an_export_is_exported_again(photos, tmp_path):
    command = ["export", "resnet18", "--weights", str(photos / "out")]
    start([*command, "--layout", "timm", "--output-dir", str(tmp_path / "again")])
    first, again = read_metadata(photos / "out"), read_metadata(tmp_path / "again")
    for name in ("fields", "metrics", "recipe", "licence", "crop", "shorter_side"):
        assert getattr(first, name) == getattr(again, name)
    assert first.dataset.label_names == again.dataset.label_names
    tensors, others = read_tensors(photos / "out"), read_tensors(tmp_path / "again")
    jax.tree.map(np.testing.assert_array_equal, tensors, others)


JAX_ALONE = textwrap.dedent("""
    import sys
    import numpy as np
    from jax import export
    program = export.deserialize(bytearray(open("out/model.stablehlo", "rb").read()))
    for count in (1, 2, 7):
        np.save(f"logits{count}.npy", program.call(np.load(f"images{count}.npy")))
    assert not [name for name in sys.modules if name.split(".")[0] in ("deepjax", "flax")]
    print(*program.platforms)
""")


def test_a_program_runs_in_jax_alone(photos, tmp_path):
    """For batches of 1, 2 and 7, its logits are those of the run."""
    member = from_run(photos / "trained", None, DEFAULTS)
    command = ["export", str(photos / "trained"), "--format", "stablehlo"]
    start([*command, "--output-dir", str(tmp_path / "out")])
    assert not (tmp_path / "out" / "model.safetensors").exists()
    for count in BATCHES:
        np.save(tmp_path / f"images{count}.npy", images_of(count, (32, 32, 3)))
    python = [sys.executable, "-c", JAX_ALONE]
    done = subprocess.run(python, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == list(PLATFORMS)
    for count in BATCHES:
        wanted = logits_of(member, images_of(count, (32, 32, 3)))
        assert_close(np.load(tmp_path / f"logits{count}.npy"), wanted)


@pytest.mark.parametrize(
    ("name", "size", "fields"),
    [
        ("resnet18", 32, {"stages": (1, 1, 1, 1), "width": 4}),
        *(
            pytest.param(*case, marks=pytest.mark.reference)
            for case in (
                ("resnet50", 32, {"stages": (1, 1, 1, 1), "width": 8}),
                ("vgg11", 224, {"width": 2}),
                ("googlenet", 64, {"width": 8, "auxiliary": False}),
                ("inception_v3", 107, {"width": 4, "auxiliary": False}),
                ("resnetv2_50d", 64, {"stages": (1, 1, 1, 1), "width": 8}),
                ("nf_resnet50", 64, {"stages": (1, 1, 1, 1), "width": 8}),
                ("cifar_fixup20", 32, {"stages": (1, 1, 1), "width": 4}),
            )
        ),
    ],
)
def test_programs_are_the_network_as_written_on_each_platform(name, size, fields):
    """One convolution for each kernel on all platforms, and equal logits on this one."""
    member = member_of(name, (size, size, 3), **fields)
    given = member.model, member.variables, (size, size, 3)
    kernels = [leaf for leaf in jax.tree.leaves(member.variables["params"]) if leaf.ndim == 4]
    for platform in PLATFORMS:
        program = jax.export.deserialize(bytearray(to_stablehlo(*given, [platform])))
        text = program.mlir_module()
        assert text.count("stablehlo.convolution") == len(kernels), platform
    program = jax.export.deserialize(bytearray(to_stablehlo(*given)))
    for count in (1, 3):
        images = images_of(count, (size, size, 3))
        assert_close(np.asarray(program.call(images)), logits_of(member, images))


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("cifar_resnet20", {}),
        pytest.param("resnet50", {"norm": "group"}, marks=pytest.mark.reference),
        pytest.param("cifar_preact164", {}, marks=pytest.mark.reference),
    ],
)
def test_stochastic_depth_becomes_part_of_the_weights(name, fields):
    stages = (2,) * len(create_model(name).stages)
    wrapped = stochastic_depth(name, 0.4, stages=stages, width=16, num_classes=3, **fields)
    variables = numpy_variables(wrapped, (32, 32, 3))
    images = images_of(2, (32, 32, 3))
    plain, folded = without_wrappers(wrapped, variables)
    assert_close(plain.apply(folded, images), wrapped.apply(variables, images))
    refused = stochastic_depth("cifar_fixup20", 0.4, stages=(1, 1, 1))
    with pytest.raises(InputError, match=r"drop_path is 0\.6; allowed: 0 for the export"):
        without_wrappers(refused, numpy_variables(refused, (32, 32, 3)))


def test_layouts_are_those_of_the_network(tmp_path):
    thin = {"stages": (1, 1, 1, 1), "width": 8}
    for name, layout in (("resnetv2_18", "timm"), ("resnet18", "torchvision")):
        export_network(member_of(name, **thin), Origin({"num_classes": 3} | thin), tmp_path / name)
        assert read_metadata(tmp_path / name).layout == layout
        assert not read_metadata(tmp_path / name).twins  # of other widths
    refused = member_of("resnetv2_18", **thin)
    with pytest.raises(
        InputError, match="layout is 'torchvision'; allowed: 'timm' for resnetv2_18"
    ):
        export_network(refused, Origin({}), tmp_path / "refused", layout="torchvision")
    assert not (tmp_path / "refused").exists()


def test_public_weights_have_the_preprocessing_and_accuracy_of_their_source(tmp_path, monkeypatch):
    """Those of timm's results-imagenet.csv; a folder stands for the repository of that name."""
    monkeypatch.chdir(tmp_path)
    model = create_model("resnet18")
    variables = jax.tree.map(np.asarray, numpy_variables(model, (64, 64, 3)))
    weights = "timm/resnet18.a1_in1k"
    save_safetensors(f"{weights}/model.safetensors", "resnet18", variables)
    start(["export", "resnet18", "--weights", weights, "--output-dir", "out"])
    card = Path("out/README.md").read_text()
    facts = [
        weights,
        "71.504 %",
        "Not measured here",
        "235 pixels, bicubic",
        "224 x 224",
        "unknown",
    ]
    assert [fact for fact in facts if fact not in card] == []
    again, public = (
        from_weights(source, "resnet18", None, DEFAULTS) for source in ("out", weights)
    )
    assert (again.crop, again.resize) == (public.crop, public.resize) == (224, 235)
    assert again.interpolation == public.interpolation == "bicubic"
    assert len(again.dataset.label_names) == 1000
    jax.tree.map(np.testing.assert_array_equal, again.variables, public.variables)


def test_preprocessing_that_is_chosen_is_in_the_folder(tmp_path, capsys):
    """Torchvision's own for the known weights; what is assumed for others is in the card."""
    model = create_model("googlenet_tv", auxiliary=False)
    variables = jax.tree.map(np.asarray, numpy_variables(model, (64, 64, 3)))
    save_safetensors(tmp_path / "g.safetensors", "googlenet_tv", variables, auxiliary=False)
    command = ["export", "googlenet_tv", "--weights", str(tmp_path / "g.safetensors")]
    start([*command, "--output-dir", str(tmp_path / "unknown")])
    assert "override with --known, --resize" in capsys.readouterr().err
    card = (tmp_path / "unknown" / "README.md").read_text()
    assert "Assumed: these weights are not known" in card and "override" not in card
    known = ["--known", "torchvision IMAGENET1K_V1"]
    start([*command, *known, "--output-dir", str(tmp_path / "known")])
    assert capsys.readouterr().err == ""
    about = json.loads((tmp_path / "known" / "deepjax.json").read_text())
    assert about["dataset"]["mean"] == about["dataset"]["std"] == [0.5] * 3
    assert about["assumed"] == "" and about["metrics"]["stated_top1"] == 69.778
    start([*command, "--normalize", "half", "--crop", "96", "--output-dir", str(tmp_path / "own")])
    about = json.loads((tmp_path / "own" / "deepjax.json").read_text())
    assert about["dataset"]["mean"] == [0.5] * 3 and about["crop"] == 96
    exported = str(tmp_path / "known")
    for refused in ({"overrides": PreprocessingOverrides(known=known[1])}, {"entry": "ema"}):
        given = {"overrides": DEFAULTS} | refused
        with pytest.raises(InputError, match=r"(known|entry) is .*known, which"):
            from_weights(exported, "", None, **given)


def test_a_run_that_is_exported_with_other_preprocessing_has_no_measured_error(photos, tmp_path):
    command = ["export", str(photos / "trained"), "--normalize", "half", "--output-dir"]
    start([*command, str(tmp_path / "out")])
    about = json.loads((tmp_path / "out" / "deepjax.json").read_text())
    assert about["metrics"] == {} and about["dataset"]["mean"] == [0.5] * 3
    assert "Not measured." in (tmp_path / "out" / "README.md").read_text()


def test_the_card_of_an_average_names_its_checkpoints(tmp_path):
    runs = []
    for rate in ("0.01", "0.02"):
        runs.append(str(tmp_path / f"rate{rate}"))
        train = ["--model", "cifar_plain20", "--width", "4", "--steps", "2", "--batch-size", "64"]
        start(["train", *train, "--learning-rate", rate, "--output-dir", runs[-1]])
    start(["average", *runs, "--batches", "3", "--output-dir", str(tmp_path / "soup")])
    start(["export", str(tmp_path / "soup"), "--output-dir", str(tmp_path / "out")])
    card = (tmp_path / "out" / "README.md").read_text()
    average = (
        "the mean of the parameters of rate0.01 step 2, rate0.02 step 2; batch statistics of 192 "
        "training images in 3 batches"
    )
    assert f"The weights are {average}. Options of `deepjax train` for the first of these" in card
    assert f"| weights | {tmp_path / 'soup'}, {average} |" in card
    assert "Not measured." in card
    again = ["export", "cifar_plain20", "--weights", str(tmp_path / "out")]
    start([*again, "--output-dir", str(tmp_path / "again")])
    assert f"The weights are {average}." in (tmp_path / "again" / "README.md").read_text()


@pytest.mark.parametrize(
    ("name", "fields", "layout"),
    [
        ("vgg11_lrn", {"width": 4}, "deepjax"),
        ("googlenet", {"width": 8}, "deepjax"),  # with its auxiliary heads
        ("googlenet_tv", {"width": 8}, "torchvision"),
        ("nf_resnet50", {"width": 8, "stages": (1, 1, 1, 1)}, "timm"),
        ("cifar_fixup20", {"width": 4, "stages": (1, 1, 1)}, "deepjax"),
        ("cifar_resnet110", {"width": 4, "stages": (2, 2, 2), "scan": True}, "torchvision"),
    ],
)
def test_each_kind_of_network_is_read_again_bitwise(name, fields, layout, tmp_path):
    member = member_of(name, (224, 224, 3), **fields)
    export_network(member, Origin({"num_classes": 3} | fields), tmp_path / "out")
    assert read_metadata(tmp_path / "out").layout == layout
    again = from_weights(str(tmp_path / "out"), name, None, DEFAULTS).variables
    wanted = unstack_blocks(member.variables) if "scan" in fields else member.variables
    for collection in wanted:
        jax.tree.map(np.testing.assert_array_equal, again[collection], wanted[collection])


NETWORK = textwrap.dedent("""
    from flax import linen as nn, nnx

    class Linen(nn.Module):
        num_classes: int
        width: int = 8

        @nn.compact
        def __call__(self, x, train=False):
            x = nn.relu(nn.BatchNorm(not train)(nn.Conv(self.width, (3, 3))(x)))
            return nn.Dense(self.num_classes)(x.mean((1, 2)))

    class Nnx(nnx.Module):
        def __init__(self, num_classes, rngs, width=8):
            self.conv = nnx.Conv(1, width, (3, 3), rngs=rngs)
            self.norm = nnx.BatchNorm(width, rngs=rngs)
            self.head = nnx.Linear(width, num_classes, rngs=rngs)

        def __call__(self, x):
            return self.head(nnx.relu(self.norm(self.conv(x))).mean((1, 2)))
""")


HALF = "rngs, width=8, dtype=None"


@pytest.mark.parametrize(
    ("name", "kernel"),
    [("Linen", "params.Conv_0.kernel"), ("Nnx", "params.network.conv.kernel")],
)
def test_an_own_network_is_written_under_its_own_paths(name, kernel, tmp_path, monkeypatch):
    (tmp_path / "nets_to_export.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "nets_to_export", raising=False)
    model = ["--model", f"nets_to_export:{name}"]
    train = ["train", *model, "--model-args", "width=4", *SHORT, "--output-dir", "trained"]
    start(train)
    export = ["export", "trained", "--output-dir", "out"]
    with pytest.raises(InputError, match=f"give --model nets_to_export:{name}"):
        start(export)
    start([*export, *model])
    assert read_tensors("out")[kernel].shape == (3, 3, 1, 4)
    assert "paths of the variables" in Path("out/README.md").read_text()
    with pytest.raises(InputError, match=f"give --model nets_to_export:{name}"):
        start(["evaluate", "--weights", "out", "--output-dir", "result"])
    start(["evaluate", "--weights", "out", *model, "--output-dir", "result"])
    [found] = json.loads(Path("result/result.json").read_text())["sets"]
    wanted = read_metadata(Path("out")).metrics["test_error"]
    assert found["top1_error"] == pytest.approx(wanted)
    with pytest.raises(InputError, match="layout is 'timm'; allowed: none for nets_to_export"):
        start([*export[:-1], "other", *model, "--layout", "timm"])


def test_the_precision_is_that_of_the_run(tmp_path, monkeypatch):
    """Of an NNX network, which has no field for it on the outside."""
    (tmp_path / "nets_of_half.py").write_text(NETWORK.replace("rngs, width=8", HALF))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    model = ["--model", "nets_of_half:Nnx"]
    train = ["train", *model, "--precision", "bfloat16", *SHORT, "--output-dir", "trained"]
    start(train)
    start(["export", "trained", *model, "--output-dir", "out"])
    assert read_metadata(Path("out")).precision == "bfloat16"
    start(["export", "trained", *model, "--precision", "float32", "--output-dir", "single"])
    assert read_metadata(Path("single")).precision == "float32"


def test_a_vgg_for_large_images_has_no_twin_in_timm():
    """Timm's computes something else there: tests/models/weights/test_twins.py."""
    variables = {"params": {}}
    for side, twins in ((224, {"torchvision", "timm"}), (256, {"torchvision"})):
        member = EvalModel("vgg11", "", create_model("vgg11"), variables, PHOTOGRAPHS, side)
        about = describe_network(member, member.model, Origin({}), "torchvision")
        assert set(about.twins) == twins


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["RUN"], r"output_dir is '.*full'; allowed: a new folder, or an empty one"),
        (["resnet18"], "resnet18 has no weights; give --weights SOURCE, or a run directory"),
        (["resnet19"], "'resnet19' is unknown; did you mean 'resnet18'"),
        (["runs/none"], "runs/none is no run directory with checkpoints"),
        (["CONFIG"], "is no run directory with checkpoints"),
        (["resnet18", "--weights", "none.safetensors"], "source is .*there is no such file"),
        (["RUN", "--format", "onnx"], "option --format is 'onnx'"),
        (["RUN", "--layout", "keras"], "option --layout is 'keras'"),
        (["RUN", "--license", "a\nb"], "license is 'a.*nb'; allowed: text of one line"),
    ],
)
def test_input_errors_are_one_line_and_write_nothing(arguments, message, photos, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "config.json").write_text((photos / "trained" / "config.json").read_text())
    places = {"RUN": str(photos / "trained"), "CONFIG": str(tmp_path)}
    out = tmp_path / ("full" if arguments == ["RUN"] else "new")
    given = [places.get(each, each) for each in arguments]
    with pytest.raises(InputError, match=message) as raised:
        start(["export", *given, "--output-dir", str(out)])
    assert len(str(raised.value).splitlines()) == 1
    assert not (tmp_path / "new").exists()
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 1}', '{"format": 9}'])
def test_corrupt_metadata_are_refused(text, tmp_path):
    (tmp_path / "deepjax.json").write_text(text)
    with pytest.raises(InputError, match=r"deepjax\.json (cannot be read|has format 9)"):
        from_weights(str(tmp_path), "resnet18", None, DEFAULTS)


def run_card(folder: Path, begins: str, monkeypatch) -> dict:
    """What the lines of a card define that begin so."""
    blocks = re.findall(r"```python\n([^`]*)```", (folder / "README.md").read_text())
    [code] = [block for block in blocks if block.startswith(begins)]
    monkeypatch.chdir(folder)
    defined = {}
    exec(code.replace("FOLDER", str(folder)), defined)  # noqa: S102  # as a reader does
    return defined


@needs_torch
@pytest.mark.reference
@pytest.mark.parametrize(
    ("name", "fields", "shape", "size"),
    [
        ("resnet18", {}, (64, 64, 3), 64),
        ("resnetv2_18", {}, (32, 32, 1), 32),
        ("googlenet_tv", {"auxiliary": True}, (224, 224, 3), 224),
    ],
)
def test_pytorch_reads_it_by_the_lines_of_the_card(
    name, fields, shape, size, tmp_path, monkeypatch
):
    """Logits of torchvision and timm equal ours; timm's preprocessing is that of the folder."""
    library("torchvision")  # before timm, which imports it
    timm = library("timm")
    import torch

    member = dataclasses.replace(member_of(name, shape, **fields), resize=size + 11)
    export_network(member, Origin({"num_classes": 3} | fields), tmp_path / "out")
    images = images_of(2, shape)
    wanted = logits_of(member, images)
    libraries = {"resnet18": ("torchvision", "timm"), "resnetv2_18": ("timm",)}
    for used in libraries.get(name, ("torchvision",)):
        model = run_card(tmp_path / "out", f"import {used}", monkeypatch)["model"].eval()
        with torch.no_grad():
            assert_close(model(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy(), wanted)
    if name == "googlenet_tv":
        assert not (tmp_path / "out" / "config.json").exists()  # timm has no GoogLeNet
        return
    expected = timm.data.resolve_model_data_config(model)
    assert tuple(expected["input_size"]) == (shape[2], size, size)
    side = math.floor(size / expected["crop_pct"])  # timm.data.transforms_factory
    assert side == (size + 11 if shape[2] == 3 else size)
    np.testing.assert_allclose(expected["mean"], [99 / 255] * shape[2])
    assert model.pretrained_cfg["label_names"] == ["a", "b", "c"]
