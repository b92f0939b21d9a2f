"""`python .ci/check_distribution.py PYTHON ...`: the wheel and the sdist, as their users get them.

Builds both in build/dist, compares the wheel of the working tree with that of the sdist, and looks
for the package's data. Then, for each interpreter that is there, installs the wheel in an
environment of its own and uses it: commands, a training, a type checker. Prints a line for each
step; exit code 1 if one failed. Needs `build` for the Python that runs it, and basedpyright.
"""

import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
OUT = ROOT / "build" / "dist"
RUN = "--model cifar_resnet20 --width 4 --dataset digits --epochs 1 --output-dir runs/a"
COMMANDS = (
    "deepjax --version",
    "deepjax --help",
    "python -m deepjax --help",
    "deepjax models resnet18",
    f"deepjax train {RUN}",
    f"deepjax train {RUN}",  # is done
    "deepjax evaluate --run runs/a --output-dir runs/a_evaluated",
    "deepjax report runs/a",
    "deepjax runs list",
    "deepjax train --model resnet1 --dataset digits",  # exit code 2
)
USER_SCRIPT = """import deepjax
model = deepjax.create_model("resnet18")
reveal_type(deepjax.model_info("resnet18"))
deepjax.list_models(18)
"""
# What a type checker says of it; that py.typed is in the wheel is checked with the other files.
TYPED = ('" is "ModelInfo"', '"Literal[18]" is not assignable to "str"')


def build() -> Path:
    """Both distributions in build/dist; returns the wheel, which is that of the sdist."""
    shutil.rmtree(OUT, ignore_errors=True)
    for arguments in (["--outdir", f"{OUT}"], ["--wheel", "--outdir", f"{OUT / 'tree'}"]):
        run([sys.executable, "-m", "build", "--quiet", *arguments, f"{ROOT}"])
    [wheel], [of_tree] = OUT.glob("*.whl"), (OUT / "tree").glob("*.whl")
    found, expected = contents(wheel), contents(of_tree)
    different = sorted(name for name in found | expected if found.get(name) != expected.get(name))
    report("wheel of the sdist = wheel of the working tree", different)
    tracked = run(["git", "-C", f"{ROOT}", "ls-files", "deepjax"]).split()
    report("every tracked file of the package is in it", sorted({*tracked} - {*found}))
    return wheel


def contents(wheel: Path) -> Mapping[str, bytes]:
    """The files of a wheel by name."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def use(python: str, wheel: Path) -> None:
    """Install the wheel in a new environment and use it, in a folder without the repository."""
    place = ROOT / "build" / f"clean-{Path(python).name}"
    shutil.rmtree(place, ignore_errors=True)
    run([python, "-m", "venv", f"{place / 'venv'}"])
    programs = place / "venv" / "bin"
    environment = {
        **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "JAX_PLATFORMS": "cpu",
    }
    begin = time.monotonic()
    run([f"{programs / 'python'}", "-m", "pip", "install", "--quiet", f"{wheel}"])
    version = run([f"{programs / 'python'}", "--version"]).strip()
    report(f"{version}: installed in {time.monotonic() - begin:.0f} s", [])
    for command in COMMANDS:
        begin, expected = time.monotonic(), 2 if "resnet1 " in command else 0
        done = start([f"{programs / command.split()[0]}", *command.split()[1:]], place, environment)
        failed = [] if done.returncode == expected else [f"{done.returncode}: {done.stderr[-800:]}"]
        report(f"{version}: {command}: {time.monotonic() - begin:.0f} s", failed)
    (place / "user.py").write_text(USER_SCRIPT)
    checker = f"{ROOT / '.venv' / 'bin' / 'basedpyright'}"
    said = start([checker, "--pythonpath", f"{programs / 'python'}", "user.py"], place).stdout
    report(f"{version}: types are known", [text for text in TYPED if text not in said])
    shutil.rmtree(place)


FAILED: list[str] = []


def report(step: str, failures: Sequence[str]) -> None:
    """Print a step and what is wrong with it."""
    print("ok    " if not failures else "FAILED", step, *failures, flush=True)
    FAILED.extend([step] if failures else [])


def start(
    command: Sequence[str], place: Path = ROOT, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """A finished command."""
    return subprocess.run(  # noqa: S603  # commands of this file
        command, cwd=place, env=environment, capture_output=True, text=True, check=False
    )


def run(command: Sequence[str]) -> str:
    """Standard output of a command, whose failure ends the check."""
    done = start(command)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    return done.stdout


def main(interpreters: Sequence[str]) -> int:
    """Check with each interpreter; those that are missing are named."""
    wheel = build()
    for python in interpreters:
        found = shutil.which(python)
        if found and start([found, "--version"]).returncode == 0:  # pyenv has shims of absent ones
            use(found, wheel)
        else:
            print(f"not run {python}: no such interpreter here", flush=True)
    print(f"{len(FAILED)} failed: {'; '.join(FAILED)}" if FAILED else "all steps passed")
    return int(bool(FAILED))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
