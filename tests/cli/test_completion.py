"""`deepjax completion`: bash itself completes with the script."""

import shutil
import subprocess

import pytest

from deepjax.cli.__main__ import COMMANDS, start
from deepjax.cli.completion import script
from deepjax.errors import InputError


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """The script for bash."""
    path = tmp_path_factory.mktemp("completion") / "deepjax.bash"
    path.write_text(script("bash", list(COMMANDS)))
    return path


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("deepjax ev", ["evaluate"]),
        ("deepjax runs com", ["compare"]),
        ("deepjax runs compare --fi", ["--figure"]),
        ("deepjax train --learn", ["--learning-rate"]),
        ("deepjax train --dataset fash", ["fashion_mnist_small", "fashion_mnist"]),
        ("deepjax train --precision ''", ["float32", "bfloat16"]),
        ("deepjax train --recipe googlenet_q", ["googlenet_quick"]),
        ("deepjax train --output-dir ''", []),  # then bash completes names of files
        ("deepjax models cifar_resnet12", ["cifar_resnet1202"]),
        ("deepjax evaluate vgg16 --protocol multi-s", ["multi-scale"]),
        ("deepjax study li", ["list"]),
    ],
)
def test_bash_completes(path, words, expected):
    program = (
        f"source {path}; complete -p deepjax >&2; COMP_WORDS=({words}); "
        'COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _deepjax; echo "${COMPREPLY[*]}"'
    )
    done = subprocess.run(
        [str(shutil.which("bash")), "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == expected
    assert done.stderr == "complete -o default -F _deepjax deepjax\n"


def test_zsh_reads_it_by_bashcompinit(path):
    lines = script("zsh", list(COMMANDS)).splitlines()
    assert lines[1] == "autoload -U +X compinit bashcompinit && compinit -u && bashcompinit"
    assert lines[2:] == path.read_text().splitlines()[1:]


def test_another_shell_is_one_line():
    with pytest.raises(InputError, match="bash"):
        start(["completion", "csh"])
