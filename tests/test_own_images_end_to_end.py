"""From a folder of photographs to a checked model, as a user types it; killed on the way.

A folder of five classes: its report, a fine-tuned ResNet-18, its evaluation and its export, which
PyTorch and a StableHLO program read with the same logits.
"""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from deepjax.models import create_model
from deepjax.models.weights.convert import save_safetensors
from deepjax.training import open_run
from deepjax.training.checkpoint.inspect import digest, steps_of
from tests.data.photographs import crops, jpeg, png, variants
from tests.faults.runs import ROOT
from tests.models import torch_reference
from tests.models.torch_reference import needs_torch
from tests.numpy_variables import numpy_variables

CLASSES = ("bright", "dark", "negative", "one colour", "写真")
IMAGES = 24  # of a class
TRAINING = (
    *("--model", "resnet18", "--image-size", "64", "--batch-size", "8", "--epochs", "2"),
    *("--learning-rate", "0.005", "--warmup-epochs", "0", "--save-every", "2"),
)
# Of a file that torchvision saved, where it is there; else of one in its names, by us.
KIND = "torch" if torch_reference.IS_THERE else "safetensors"
pytestmark = pytest.mark.slow  # two minutes


def look_of(name: str, pixels: np.ndarray) -> np.ndarray:
    """A photograph as a class shows it."""
    return {
        "bright": lambda: 128 + pixels // 2,
        "dark": lambda: pixels // 3,
        "negative": lambda: 255 - pixels,
        "one colour": lambda: np.repeat(pixels.max(2, keepdims=True), 3, axis=2),
        "写真": lambda: pixels,
    }[name]().astype(np.uint8)


def write_photographs(folder: Path) -> None:
    """Five classes, in all forms that are decoded: colours, scans, sampling, orientations."""
    forms = (jpeg, png, lambda pixels: jpeg(pixels, "CMYK"), lambda pixels: png(pixels, "P"))
    forms += (lambda pixels: jpeg(pixels, orientation=6, progressive=True),)
    for seed, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for i, pixels in enumerate(crops(IMAGES, seed, shortest=70, longest=120)):
            form = forms[i % len(forms)] if name != "写真" else jpeg
            suffix = "png" if form is png else "jpg"
            (folder / name / f"{i}.{suffix}").write_bytes(form(look_of(name, pixels)))
    for kind in ("full_chroma", "restarts", "tall", "wide"):
        (folder / "写真" / f"{kind}.jpg").write_bytes(variants()[kind])


def write_weights(kind: str, path: Path) -> Path:
    """Random weights for 1000 classes, as torchvision saves them, or without it in its names."""
    if kind == "torch":
        import torch

        torch.save(torch_reference.network("torchvision", "resnet18").state_dict(), path)
        return path
    variables = numpy_variables(create_model("resnet18"), (64, 64, 3))
    save_safetensors(path.with_suffix(".safetensors"), "resnet18", variables)
    return path.with_suffix(".safetensors")


def deepjax(folder: Path, *arguments: object) -> str:
    """What the command prints; it must succeed."""
    done = subprocess.run(
        command(*arguments), cwd=folder, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "deepjax.cli", *map(str, arguments)]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}


def train_and_kill(folder: Path, arguments: tuple[object, ...], out: str) -> int:
    """Start a training and kill it after a checkpoint; the step of that."""
    process = subprocess.Popen(
        command("train", *arguments, "--output-dir", out),
        cwd=folder, env=environment(), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    checkpoints = folder / out / "checkpoints"
    while not (checkpoints.is_dir() and steps_of(checkpoints)):
        assert process.poll() is None, "the training ended before it was killed"
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    return steps_of(checkpoints)[-1]


@pytest.fixture(scope="module", params=[KIND])
def folder(request, tmp_path_factory):
    """The commands of a user, one after another, in one folder."""
    folder = tmp_path_factory.mktemp(f"own-{request.param}")
    write_photographs(folder / "photos")
    weights = write_weights(request.param, folder / "resnet18.pth")
    training = ("--dataset", folder / "photos", "--weights", weights.name, *TRAINING)
    report = deepjax(folder, "data", "check", "photos", "--json")
    (folder / "report.json").write_text(report)
    deepjax(folder, "train", *training, "--output-dir", "tuned")
    killed_at = train_and_kill(folder, training, "killed")
    (folder / "killed_at").write_text(str(killed_at))
    deepjax(folder, "train", *training, "--output-dir", "killed")
    deepjax(folder, "evaluate", "--run", "tuned", "--output-dir", "tested")
    formats = ("--format", "safetensors", "stablehlo")
    deepjax(folder, "export", "killed", *formats, "--output-dir", "exported")
    return folder


def test_the_report_counts_all_images(folder):
    report = json.loads((folder / "report.json").read_text())
    counted = {name: sum(split[name] for split in report["counts"].values()) for name in CLASSES}
    assert counted == {name: IMAGES + 4 * (name == "写真") for name in CLASSES}
    assert not report["undecodable"] and not report["duplicates"]


def test_the_killed_training_ends_with_the_same_bits(folder):
    last = steps_of(folder / "tuned" / "checkpoints")[-1]
    assert 0 < int((folder / "killed_at").read_text()) < last
    assert digest(folder / "killed") == digest(folder / "tuned")


def test_it_has_learned_and_evaluation_agrees_with_training(folder):
    rows = (folder / "tuned" / "metrics.jsonl").read_text().splitlines()
    final = json.loads(rows[-1])
    (tested,) = json.loads((folder / "tested" / "result.json").read_text())["sets"]
    assert tested["top1_error"] == pytest.approx(final["test_error"])
    assert final["train_error"] < 0.6  # 0.8 is chance


def images(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Normalised images and the logits of the run, by `model.apply`."""
    run = open_run(folder / "killed", data_dir=None, dataset=str(folder / "photos"))
    pixels = np.asarray(run.batch(7, seed=0)["image"], np.float32)
    return pixels, np.asarray(run.model.apply(run.variables, pixels, train=False))


def test_stablehlo_has_the_same_logits_without_deepjax(folder):
    pixels, wanted = images(folder)
    np.save(folder / "images.npy", pixels)
    program = textwrap.dedent(
        """
        import sys
        import numpy as np
        from jax import export
        program = export.deserialize(bytearray(open("exported/model.stablehlo", "rb").read()))
        np.save("logits.npy", program.call(np.load("images.npy")))
        assert "deepjax" not in sys.modules
        """
    )
    subprocess.run([sys.executable, "-c", program], cwd=folder, env=environment(), check=True)
    found = np.load(folder / "logits.npy")
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


@needs_torch
def test_pytorch_has_the_same_logits(folder):
    models = torch_reference.library("torchvision")
    import torch
    from safetensors.torch import load_file

    pixels, wanted = images(folder)
    network = models.resnet18(num_classes=len(CLASSES)).eval()
    network.load_state_dict(load_file(folder / "exported" / "model.safetensors"))
    with torch.no_grad():
        found = network(torch.tensor(pixels.transpose(0, 3, 1, 2))).numpy()
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_new_images_get_the_names_of_the_classes(folder):
    printed = deepjax(folder, "predict", "photos/dark", "--weights", "exported", "--top", 1)
    lines = printed.splitlines()
    assert len(lines) == IMAGES
    assert all(any(f": {name} " in line for name in CLASSES) for line in lines)
