"""A table of many networks: patterns, failures, a kill half-way, the files."""

import contextlib
import csv
import dataclasses
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest

from deepjax.cli import evaluate_table
from deepjax.cli.evaluate import Options, main
from deepjax.command_line import parse
from deepjax.data import dataset_info, load_split
from deepjax.data.augment.basic import normalize
from deepjax.errors import InputError
from deepjax.evaluation.candidates import find_candidates
from deepjax.evaluation.model_table import ImageRate
from deepjax.evaluation.predict import predict
from deepjax.models import create_model
from deepjax.models.weights.convert import save_safetensors
from deepjax.training import train_config
from deepjax.training.checkpoint.manager import Checkpoints
from deepjax.training.network import model_from
from deepjax.training.run_directory.config_file import init_run_dir
from deepjax.training.step.optimizers import make_optimizer
from deepjax.training.step.state import init_state
from tests.evaluation.test_dense import drawn
from tests.faults.runs import ROOT

CONFIG = train_config(model="cifar_plain20", width=4, model_args=("stages=[1,1,1]",))
NAMES = ("a", "b", "c")
HELD_OUT = "digits[-50:]"


def save_run(out, seed, step=3, dataset="digits", weights=None):
    """A run directory with initial parameters, of the seed or of `weights`."""
    config = dataclasses.replace(CONFIG, seed=seed, dataset=dataset)
    init_run_dir(out, config)
    key = seed if weights is None else weights
    state = init_state(model_from(config), make_optimizer(config), config.input_shape, 0.1, key)
    with contextlib.closing(Checkpoints(out)) as checkpoints:
        checkpoints.save_last(state.replace(step=jnp.asarray(step, jnp.int32)), {})


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for seed, name in enumerate(NAMES):
        save_run(folder / name, seed)
    (folder / "notes").mkdir()
    return folder


@pytest.fixture
def evaluated(monkeypatch):
    """The sources of the networks that are evaluated."""
    found = []

    def spy(member, *arguments):
        found.append(member.source)
        return predict(member, *arguments)

    monkeypatch.setattr(evaluate_table, "predict", spy)
    return found


def run_command(out, *arguments):
    main(parse(Options, [*map(str, arguments), "--output-dir", str(out)]))


def table(out):
    with (out / "table.csv").open() as file:
        return list(csv.DictReader(file))


def without_speed(out):
    return [{k: v for k, v in row.items() if k != "images_per_second"} for row in table(out)]


@pytest.mark.system
def test_a_killed_evaluation_is_completed(runs, tmp_path, evaluated, capsys):
    """SIGKILL after the first network: the next start evaluates the others alone."""
    arguments = ["--models", f"{runs}/*", "--batch-size", "16"]
    command = [sys.executable, "experiments/evaluate.py", *arguments]
    killed = subprocess.Popen(
        [*command, "--output-dir", str(tmp_path / "killed")],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2"},
    )
    end = time.monotonic() + 300
    while not (tmp_path / "killed" / "table.md").exists() and time.monotonic() < end:
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    done = [row["weights"] for row in table(tmp_path / "killed")]
    assert 1 <= len(done) < 3
    run_command(tmp_path / "killed", *arguments)
    assert f"3 networks on digits; {len(done)} are done" in capsys.readouterr().out
    assert {each.split(",")[0] for each in evaluated} == {str(runs / name) for name in NAMES} - set(
        done
    )
    assert len(evaluated) == 3 - len(done)
    run_command(tmp_path / "complete", *arguments)
    assert without_speed(tmp_path / "killed") == without_speed(tmp_path / "complete")
    run_command(tmp_path / "killed", *arguments)
    assert len(evaluated) == 3 - len(done) + 3


def test_the_numbers_of_a_row(runs, tmp_path):
    """Compared with `model.apply` and by-hand counts of the network of three blocks."""
    run_command(tmp_path, "--models", f"{runs}/a", f"{runs}/b")
    rows = {row["weights"]: row for row in table(tmp_path)}
    assert set(rows) == {f"{runs}/a", f"{runs}/b"}
    row, config = rows[f"{runs}/b"], dataclasses.replace(CONFIG, seed=1)
    model, split = model_from(config), load_split(dataset_info("digits"), "test")
    state = init_state(model, make_optimizer(config), config.input_shape, 0.1, 1)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    digits = dataset_info("digits")
    logits = np.asarray(model.apply(variables, normalize(split.images, digits), train=False))
    right = np.argsort(-logits, kind="stable")[:, :5] == split.labels[:, None]
    assert float(row["top1"]) == pytest.approx(100 * np.mean(right[:, 0]), abs=5e-4)
    assert float(row["top5"]) == pytest.approx(100 * np.mean(right.any(1)), abs=5e-4)
    # Of 3x3 kernels: a stem, and two in each block of 4, 8 and 16 channels; at 8, 4 and 2 pixels.
    kernels = [(1, 4, 8), (4, 4, 8), (4, 4, 8), (4, 8, 4), (8, 8, 4), (8, 16, 2), (16, 16, 2)]
    norms = 2 * sum(out for _, out, _ in kernels)
    assert int(row["params"]) == sum(9 * i * o for i, o, _ in kernels) + norms + 16 * 10 + 10
    assert int(row["macs"]) == sum(9 * i * o * side**2 for i, o, side in kernels) + 16 * 10
    manifest = (runs / "b" / "checkpoints" / "3" / "manifest.json").read_bytes()
    revision = f"step 3, sha256 {hashlib.sha256(manifest).hexdigest()[:12]}"
    assert (row["crop"], row["revision"], row["images"]) == ("8", revision, "360")
    assert float(row["images_per_second"]) > 0
    text = (tmp_path / "table.md").read_text()
    assert f"| {float(row['top1']):.3f} | {float(row['top5']):.3f} |" in text
    assert "without compilation" in text
    stored = json.loads((tmp_path / "table.json").read_text())
    assert {"command", "versions"} <= stored.keys()


def test_networks_that_fail_are_rows_and_are_tried_again(tmp_path, evaluated, capsys):
    """A file cut short, one of other classes and one of another network stop no other."""
    folder = tmp_path / "weights"
    folder.mkdir()
    good = drawn(create_model("cifar_plain20"), 8, channels=1)
    save_safetensors(folder / "cifar_plain20.safetensors", "cifar_plain20", good)
    (folder / "cifar_plain32.safetensors").write_bytes(b"cut short")
    save_safetensors(
        folder / "cifar_plain44.safetensors",
        "cifar_plain20",
        drawn(create_model("cifar_plain20", num_classes=7), 8, channels=1),
    )
    arguments = ["--models", "cifar_plain*", "--weights-dir", folder, "--dataset", "digits"]
    with pytest.raises(InputError, match=r"2 of 3 networks failed \(cifar_plain32, cifar_plain44"):
        run_command(tmp_path / "out", *arguments)
    assert "FAILED" in capsys.readouterr().out
    rows = {row["model"]: row for row in table(tmp_path / "out")}
    assert [*rows] == ["cifar_plain20", "cifar_plain32", "cifar_plain44"]
    assert rows["cifar_plain20"]["error"] == "" and len(evaluated) == 1
    for name in ("cifar_plain32", "cifar_plain44"):
        assert rows[name]["error"] and rows[name]["top1"] == ""
        assert f"- {name}, {folder / name}.safetensors: " in (tmp_path / "out/table.md").read_text()
    (folder / "cifar_plain44.safetensors").unlink()
    (folder / "cifar_plain32.safetensors").write_bytes(
        (folder / "cifar_plain20.safetensors").read_bytes()
    )
    with pytest.raises(InputError, match="1 of 2 networks failed"):
        run_command(tmp_path / "out", *arguments)
    found = table(tmp_path / "out")
    assert [row["model"] for row in found if row["error"]] == ["cifar_plain32", "cifar_plain44"]
    assert (
        "are not weights of"
        in next(row for row in found if row["model"] == "cifar_plain32")["error"]
    )
    assert len(evaluated) == 1


def test_a_network_that_runs_out_of_memory_stops_no_other(runs, tmp_path, monkeypatch):
    def full(member, *arguments):
        if member.source.startswith(f"{runs}/a"):
            raise MemoryError("RESOURCE_EXHAUSTED: out of memory\nmore")
        return predict(member, *arguments)

    monkeypatch.setattr(evaluate_table, "predict", full)
    arguments = ["--models", f"{runs}/[ab]"]
    with pytest.raises(InputError, match="1 of 2 networks failed"):
        run_command(tmp_path, *arguments)
    assert [row["error"] for row in table(tmp_path)] == [
        "",
        "MemoryError: RESOURCE_EXHAUSTED: out of memory",
    ]
    monkeypatch.setattr(evaluate_table, "predict", predict)
    run_command(tmp_path, *arguments, "--batch-size", "8")
    assert [row["error"] for row in table(tmp_path)] == ["", ""]


def test_a_run_that_trained_on_is_another_row(tmp_path):
    save_run(tmp_path / "run", seed=0)
    run_command(tmp_path / "out", "--models", tmp_path / "run")
    save_run(tmp_path / "run", seed=0, step=5)
    run_command(tmp_path / "out", "--models", tmp_path / "run")
    assert {row["revision"][:6] for row in table(tmp_path / "out")} == {"step 3", "step 5"}


def test_a_run_that_was_trained_anew_is_another_row(tmp_path):
    """Of the same step: a checkpoint's manifest has other sha256 sums."""
    for seed in (0, 1):
        save_run(tmp_path / "run", seed=0, weights=seed)
        run_command(tmp_path / "out", "--models", tmp_path / "run")
        shutil.rmtree(tmp_path / "run")
    first, second = table(tmp_path / "out")
    assert first["weights"] == second["weights"] and first["top1"] != second["top1"]
    assert re.fullmatch(r"step 3, sha256 [0-9a-f]{12}", first["revision"])


def test_runs_that_cannot_be_read_are_rows_and_are_tried_again(runs, tmp_path):
    shutil.copytree(runs, tmp_path / "runs")
    config = tmp_path / "runs" / "a" / "config.json"
    good = config.read_text()
    config.write_text("{")
    manifest = tmp_path / "runs" / "b" / "checkpoints" / "3" / "manifest.json"
    manifest.rename(tmp_path / "kept")
    arguments = ["--models", f"{tmp_path}/runs/*"]
    with pytest.raises(InputError, match=r"2 of 3 networks failed \(a, b\), see"):
        run_command(tmp_path / "out", *arguments)
    errors = {row["model"]: row["error"] for row in table(tmp_path / "out")}
    assert "config.json is not of a training run" in errors["a"]
    assert "manifest.json" in errors["b"] and errors["cifar_plain20"] == ""
    with pytest.raises(InputError, match=r"config\.json is not of a training run"):
        run_command(tmp_path / "none", "--models", f"{tmp_path}/runs/a")
    config.write_text(good)
    (tmp_path / "kept").rename(manifest)
    run_command(tmp_path / "out", *arguments)
    assert [row["error"] for row in table(tmp_path / "out")] == [""] * 3


def test_what_a_kill_left_of_the_files_is_written_again(runs, tmp_path):
    """Between table.json and the others: nothing is left to evaluate."""
    arguments = ["--models", f"{runs}/a"]
    run_command(tmp_path, *arguments)
    complete = [(tmp_path / name).read_text() for name in ("table.csv", "table.md")]
    (tmp_path / "table.csv").write_text(complete[0].splitlines()[0] + "\n")
    (tmp_path / "table.md").unlink()
    run_command(tmp_path, *arguments)
    assert [(tmp_path / name).read_text() for name in ("table.csv", "table.md")] == complete


def test_tables_of_other_evaluations_are_refused(runs, tmp_path):
    run_command(tmp_path, "--models", f"{runs}/a")
    before = (tmp_path / "table.json").read_bytes()
    with pytest.raises(
        InputError, match="table of another evaluation: crop is 12, there 0; choose"
    ):
        run_command(tmp_path, "--models", f"{runs}/a", "--crop", "12")
    assert (tmp_path / "table.json").read_bytes() == before
    (tmp_path / "table.json").write_bytes(before[:100])
    with pytest.raises(InputError, match=r"table\.json is corrupt \(JSONDecodeError"):
        run_command(tmp_path, "--models", f"{runs}/a")
    (tmp_path / "table.json").unlink()
    with pytest.raises(InputError, match=r"table\.csv exists without table\.json"):
        run_command(tmp_path, "--models", f"{runs}/a")


def test_patterns(runs, tmp_path):
    """Names take the most accurate weights that can be downloaded, which are read off the table."""
    found = {each.model: each.source for each in find_candidates(["resnet[13]8", "resnet50"])}
    assert found == {
        "resnet18": "timm/resnet18.a1_in1k",
        "resnet50": "timm/resnet50.tv2_in1k",
    }
    sources = [each.source for each in find_candidates(["timm/resnet18.*", "timm/resnet18.tv*"])]
    assert sources == ["timm/resnet18.tv_in1k", "timm/resnet18.a1_in1k"]
    everything = find_candidates(["all"])
    assert everything == find_candidates(["*"]) and len(everything) > 30
    assert all(each.source.startswith("timm/") for each in everything)
    assert "googlenet_tv" not in {each.model for each in everything}  # which timm does not have
    assert [each.source for each in find_candidates([f"{runs}/*"])] == [
        str(runs / name) for name in NAMES
    ]
    for pattern, folder, message in (
        (
            "cifar_*",
            None,
            r"'cifar_\*', which matches nothing; allowed: names of networks with pub",
        ),
        ("nowhere/*", None, r"'nowhere/\*', which matches nothing; allowed: public weights"),
        ("resnet*", tmp_path, r"with a file NAME\.safetensors in"),
        ("resnet*", tmp_path / "none", "weights_dir is .*; allowed: a folder"),
    ):
        with pytest.raises(InputError, match=message):
            find_candidates([pattern], folder)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resnet18", "--models", "resnet*"], "models is 'resnet*'; allowed: nothing with a NAME"),
        (["--models", "all", "--also", "imagenet_v2"], "--run or --also"),
        (["--weights-dir", "x", "--run", "r"], "weights_dir is 'x'; allowed: a folder only with"),
    ],
)
def test_options_that_do_not_fit_are_one_line(arguments, message):
    with pytest.raises(InputError) as caught:
        parse(Options, arguments)
    assert message in str(caught.value)


def test_the_rate_begins_with_the_first_batch(monkeypatch):
    """8 images before 5 s of compilation end, 24 more in 2 s: 12 a second."""
    now = iter((5.0, 7.0))
    monkeypatch.setattr("deepjax.evaluation.model_table.time.monotonic", lambda: next(now))
    rate = ImageRate()
    for done in (8, 16, 24, 32):
        rate.update(done)
    assert rate.images_per_second(32) == 12
    assert ImageRate().images_per_second(8) is None


def test_a_run_that_was_trained_on_the_test_images_has_no_result(tmp_path):
    """The first run held out images that the second one was trained on."""
    for name, dataset in (("a", "digits[-100:]"), ("b", "digits")):
        save_run(tmp_path / "runs" / name, 0, dataset=dataset)
    with pytest.raises(InputError, match=r"1 of 2 networks failed"):
        run_command(tmp_path / "first", "--models", f"{tmp_path}/runs/*")
    rows = json.loads((tmp_path / "first" / "table.json").read_text())["rows"]
    assert [row["error"] for row in rows if not row["weights"].endswith("b")] == [""]
    (error,) = [row["error"] for row in rows if row["weights"].endswith("b")]
    assert "has for tests (records 1337 to 1436 of 'train'); test it on" in error
    run_command(tmp_path / "second", "--models", f"{tmp_path}/runs/*", "--dataset", "digits")
    assert len(table(tmp_path / "second")) == 2
    with pytest.raises(InputError, match="records 1387 to 1436 of 'train'"):
        run_command(tmp_path / "third", "--run", tmp_path / "runs" / "b", "--dataset", HELD_OUT)
