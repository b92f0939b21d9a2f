"""Every command line: one line for every mistake, and the exit codes."""

import subprocess
import sys
from pathlib import Path

import pytest

from deepjax.cli import __main__ as cli
from deepjax.cli.train import Options
from deepjax.command_line import EXIT_PIPE, parse, run_command
from deepjax.errors import InputError, NonFiniteError, Stopped

ROOT = Path(__file__).parents[1]
GOOD = ["--model", "cifar_resnet20", "--output-dir", "somewhere"]


def test_a_good_command_line():
    options = parse(
        Options, [*GOOD, "--epochs", "3", "--no-nesterov", "--milestones", "0.2", "0.4"]
    )
    assert (
        options.config.epochs,
        options.config.optimization.nesterov,
        options.config.optimization.milestones,
    ) == (
        3,
        False,
        (0.2, 0.4),
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*GOOD, "--epoch", "3"], "option --epoch is unknown; did you mean --epochs"),
        (
            [*GOOD, "--hosts.coordinator", "x:1", "--epoch", "3"],
            "option --epoch is unknown; did you mean --epochs",
        ),
        (
            [*GOOD, "--hosts.process", "2"],
            "option --hosts.process is unknown; did you mean --hosts.processes",
        ),
        ([*GOOD, "--epochs", "three"], "--epochs"),
        ([*GOOD, "--epochs", "0"], "epochs is 0"),
        ([*GOOD, "--schedule", "cosin"], "cosin"),
        (["--output-dir", "x", "--model", "resnet20"], "did you mean 'cifar_resnet20'"),
        ([*GOOD, "--dataset", "digitz"], "did you mean 'digits'"),
        (["--output-dir", "x"], "--model"),
        ([*GOOD, "--seed", "-1"], "seed is -1"),
    ],
)
def test_every_mistake_is_one_line(arguments, message):
    with pytest.raises(InputError) as caught:
        parse(Options, arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("x"), 2),
        (NonFiniteError("x"), 3),
        (Stopped("x"), 143),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes(error, code, capsys):
    def fail() -> None:
        raise error

    with pytest.raises(SystemExit) as stop:
        run_command(fail)
    assert stop.value.code == code
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("train", "interrupted; the same command resumes from the last checkpoint\n"),
        ("predict", "interrupted\n"),
        ("data", "interrupted\n"),
    ],
)
def test_only_a_training_that_is_interrupted_is_said_to_resume(name, line, monkeypatch, capsys):
    def interrupt(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("sys.argv", ["deepjax", name, "x"])
    monkeypatch.setattr(f"deepjax.cli.{name}.start", interrupt)
    with pytest.raises(SystemExit):
        cli.main()
    assert capsys.readouterr().err == line


@pytest.mark.parametrize(
    "command",
    [
        ["experiments/train.py", "--model", "cifar_resnet2O", "--output-dir", "x"],
        [
            "experiments/train.py",
            "--model",
            "cifar_resnet20",
            "--dataset",
            "svhn_cropped",
            "--data-dir",
            "/nonexistent",
            "--output-dir",
            "{tmp}",
        ],
        ["experiments/degradation.py", "--dataset", "cifar"],
        ["-m", "deepjax", "data", "prepare", "fashion"],
        ["-m", "deepjax", "runs", "digest", "nowhere"],
        ["-m", "deepjax", "runs", "digset", "nowhere"],
    ],
)
def test_as_a_process_it_exits_with_2_and_one_line(command, tmp_path):
    command = [part.replace("{tmp}", str(tmp_path / "run")) for part in command]
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr


@pytest.mark.system
@pytest.mark.parametrize(
    "command",
    [
        ["-m", "deepjax.cli", "models"],
        [
            "-c",
            "from deepjax.command_line import run_command; "
            "run_command(lambda: print(*range(10**5), sep='\\n'))",
        ],
        ["experiments/train.py", "--recipe", "list"],
    ],
)
def test_where_the_reader_has_gone_it_ends_quietly(command):
    """As `deepjax.models | head -1` has it: the pipe is closed before the first line is written."""
    process = subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    assert (process.stderr.read(), process.wait()) == (b"", EXIT_PIPE)
    process.stderr.close()


def test_a_broken_pipe_of_something_else_is_not_hidden():
    with pytest.raises(BrokenPipeError):
        run_command(_broken)


def _broken() -> None:
    raise BrokenPipeError
