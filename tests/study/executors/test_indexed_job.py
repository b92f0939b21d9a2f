"""The pods of a manifest as processes of this machine: all indices of a Job at the same time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

SCRIPT = """\
from deepjax.command_line import parse, run_command
from deepjax.study.runner import run_study
from deepjax.study.study import Options
from tests.study import toy

if __name__ == "__main__":
    run_command(lambda: run_study(toy.STUDY, parse(Options)))
"""


def start(script: Path, arguments: list[str], **variables: str) -> subprocess.Popen[str]:
    paths = os.pathsep.join(["", *sys.path])
    given = os.environ | {"PYTHONPATH": paths, "JAX_PLATFORMS": "cpu"} | variables
    return subprocess.Popen(
        [sys.executable, str(script), *arguments], env=given, stdout=subprocess.PIPE, text=True
    )


def printed(process: subprocess.Popen[str]) -> str:
    text, _ = process.communicate(timeout=600)
    assert process.returncode == 0
    return text


@pytest.mark.slow
def test_the_jobs_of_a_manifest_give_the_results_of_one_machine(tmp_path):
    script = tmp_path / "study.py"
    script.write_text(SCRIPT)
    given = ["--executor-options", "image=a", "claim=b", f"mount={tmp_path}/pods"]
    text = printed(start(script, ["--executor", "kubernetes", *given]))
    for job in yaml.safe_load_all(text):
        (container,) = job["spec"]["template"]["spec"]["containers"]
        variables = {each["name"]: each["value"] for each in container["env"]}
        pods = [
            start(script, container["args"], JOB_COMPLETION_INDEX=str(index), **variables)
            for index in range(job["spec"]["completions"])
        ]
        for pod in pods:
            printed(pod)
    printed(start(script, ["--output-dir", str(tmp_path / "local"), "--jobs", "2"]))
    found, expected = (
        json.loads((tmp_path / path / "result.json").read_text())
        for path in ("pods/toy-quick", "local")
    )
    different = {name for name in expected if found[name] != expected[name]}
    assert different <= {"command", "wall time", "wall_seconds"}
    again = printed(start(script, container["args"] + ["--task", "runs/deep/lr0.8-seed1"]))
    assert again == "runs/deep/lr0.8-seed1 was done already\n"
