"""docs/tutorials: each page is executed from top to bottom, in a folder of its own.

A ```python block is run, or written to the file of its title; a ```text block after it is what it
prints. The lines of a block without a language are commands. Commands in indented blocks need what
a test does not have (GPUs, a cluster, public weights).
"""

import dataclasses
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest

from deepjax.cli.__main__ import start
from deepjax.study.runner import run_study
from deepjax.study.study import Options
from tests.test_docs_examples import compare, make_pictures
from tests.training.distributed.test_cluster import free_port

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "tutorials"
BLOCK = re.compile(
    r"^```(?P<language>\w*)(?: title=\"(?P<file>[\w.]+)\")?\n(?P<text>.*?)^```$", re.M | re.S
)
PERCENT = re.compile(r"<!-- numbers within (\d+) % -->\s*$")
EXECUTED = ("train_and_look", "own_images", "fine_tune", "gradients_linen", "gradients_nnx")
ALONE = ("add_network", "add_study", "eight_gpus", "slurm", "tpu_pod")  # have tests of their own


def text_of(page: str) -> str:
    return (FOLDER / f"{page}.md").read_text()


def commands(text: str) -> list[list[str]]:
    """The commands of a block, split into words."""
    return [shlex.split(line) for line in text.replace("\\\n", " ").splitlines()]


def execute(page: str) -> None:
    """Run the blocks of a page in the current folder."""
    names: dict[str, Any] = {}
    text, printed = text_of(page), ""
    for block in BLOCK.finditer(text):
        match block["language"]:
            case "python" if block["file"]:
                Path(block["file"]).write_text(block["text"])
            case "python":
                with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
                    printed = make_pictures.run(block["text"], names)
            case "text":
                percent = PERCENT.search(text, 0, block.start())
                compare(printed, block["text"].rstrip(), int(percent[1]) if percent else 0)
            case _:
                for words in commands(block["text"]):
                    command(words)


def command(words: list[str]) -> None:
    """Run a command; as a process of its own where it sets the environment or is not deepjax."""
    if words[:2] == ["deepjax", "train"]:
        words = [*words, *shorter(words)]
    if words[0] == "deepjax":
        return start(words[1:])
    with started(words) as process:
        output, _ = process.communicate()
    assert process.returncode == 0, output


def shorter(words: list[str]) -> list[str]:
    """Options for three steps of a network of one block a stage."""
    stages = {"cifar_resnet20": 3, "cifar_plain20": 3, "resnet18": 4}.get(words[3])
    fewer = [] if stages is None else ["--model-args", f"stages={[1] * stages}".replace(" ", "")]
    return ["--steps", "3", *fewer]


def started(words: list[str]) -> subprocess.Popen[str]:
    settings = dict(word.split("=", 1) for word in words if re.match(r"[A-Z_]+=", word))
    words = words[len(settings) :]
    program = {"deepjax": [sys.executable, "-m", "deepjax"], "python": [sys.executable]}[words[0]]
    paths = {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        [*program, *words[1:]],
        env=os.environ | paths | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_every_tutorial_is_executed_and_in_the_menu():
    pages = {path.stem for path in FOLDER.glob("*.md")} - {"index"}
    assert pages == {*EXECUTED, *ALONE}
    menu = (ROOT / "mkdocs.yml").read_text()
    assert [page for page in sorted(pages) if f"tutorials/{page}.md" not in menu] == []
    assert [page for page in sorted(pages) if f"({page}.md)" not in text_of("index")] == []


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(name, marks=() if name == "gradients_nnx" else pytest.mark.system)
        for name in EXECUTED
    ],
)
def test_the_page_runs(page):
    execute(page)


@pytest.mark.system
def test_a_network_of_the_page_trains_and_has_a_name(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_networks", raising=False)
    execute("add_network")


@pytest.mark.system
def test_the_study_runs_and_has_forty_lines(tmp_path):
    block = next(BLOCK.finditer(text_of("add_study")))
    lines = block["text"].splitlines()
    assert len(lines) <= 40 and max(map(len, lines)) <= 100
    Path("smoothing.py").write_text(block["text"])
    study = runpy.run_path("smoothing.py")["STUDY"]
    short = dataclasses.replace(study.presets["quick"], training={"steps": 3, "batch_size": 64})
    run_study(dataclasses.replace(study, presets={"quick": short}), Options(jobs=1))
    made = {path.name for path in (tmp_path / "runs" / "smoothing-quick").iterdir()}
    assert {"result.json", "report.html", "error.png"} <= made


@pytest.mark.eight_devices
def test_eight_devices():
    execute("eight_gpus")


@pytest.mark.system
def test_two_hosts(tmp_path):
    hosts = [
        words for block in BLOCK.finditer(text_of("tpu_pod")) for words in commands(block["text"])
    ]
    assert len(hosts) == 2
    address = f"127.0.0.1:{free_port()}"
    pair = [started([address if "127" in word else word for word in words]) for words in hosts]
    outputs = [process.communicate()[0] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], outputs
    assert (tmp_path / "runs" / "pod" / "metrics.jsonl").read_text().count('"final"') == 1


def test_the_job_of_the_slurm_page_is_a_training(tmp_path):
    """sbatch, whose options end at the script, and srun are replaced by scripts that print."""
    submit, *watch = [
        words for block in BLOCK.finditer(text_of("slurm")) for words in commands(block["text"])
    ]
    script = submit.index("experiments/launch/slurm.sh")
    assert submit[0] == "sbatch" and all(word[0] == "-" for word in submit[1:script:2])
    for name in ("srun", "scontrol"):
        (tmp_path / name).write_text(f"#!/bin/sh\necho {name} $*\n")
        (tmp_path / name).chmod(0o755)
    given = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "1"}
    ran = subprocess.run(
        ["/bin/bash", *submit[script:]],
        cwd=ROOT,
        env=given,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "python experiments/train.py --model cifar_resnet20 --output-dir /shared/" in ran.stdout
    assert [words[0] for words in watch] == ["squeue", "deepjax"]
