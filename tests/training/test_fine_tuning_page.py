"""docs/fine_tuning.md: its commands run, and its examples print what the page shows."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from deepjax.cli.__main__ import start
from deepjax.models import create_model
from deepjax.models.weights.convert import save_safetensors
from deepjax.training import open_run
from tests.data.own.images import write_classes
from tests.numpy_variables import numpy_variables

PAGE = (Path(__file__).parents[2] / "docs" / "fine_tuning.md").read_text()
SHORTER = ["--steps", "2", "--batch-size", "8", "--image-size", "32", "--width", "4"]


@pytest.fixture(autouse=True)
def _files(tmp_path, monkeypatch):
    """Photographs of two classes, and weights of networks for 1000 classes."""
    write_classes(tmp_path / "photos", {"ant": 12, "bee": 12})
    write_weights(tmp_path, "resnet18")
    monkeypatch.chdir(tmp_path)


def write_weights(folder, name, **fields):
    variables = numpy_variables(create_model(name, **fields), (32, 32, 3))
    save_safetensors(folder / f"{name}.safetensors", name, variables, **fields)


@pytest.mark.parametrize("block", re.findall(r"```python\n([^`]*)```\n\n((?:    .*\n)+)", PAGE))
def test_examples_print_what_the_page_shows(block, capsys):
    code, output = block
    exec(compile(code, "docs/fine_tuning.md", "exec"), {})  # noqa: S102  # our own page
    shown = [line[4:] for line in output.splitlines()]
    assert capsys.readouterr().out.splitlines() == shown


@pytest.mark.slow
def test_the_commands_of_the_page_run(tmp_path):
    commands = re.findall(r"    deepjax ((?:.*\\\n)*.*)", PAGE)
    assert len(commands) == 3
    for name in ("resnet18", "googlenet_tv"):  # narrow
        (tmp_path / f"{name}.safetensors").unlink(missing_ok=True)
        write_weights(tmp_path, name, width=4)
    for command in commands:
        start([*shlex.split(command.replace("\\\n", "")), *SHORTER])
    tuned, probed = (open_run(tmp_path / "runs" / name) for name in ("tuned", "probe"))
    assert open_run(tmp_path / "runs" / "googlenet").dataset.mean == (127.5,) * 3  # of torchvision
    kernels = [run.variables["params"]["stem_conv"]["kernel"] for run in (tuned, probed)]
    assert not np.array_equal(*kernels)
