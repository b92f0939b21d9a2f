"""Execute the notebooks from their plain-text copies, and publish how long each took.

    make notebooks                                          # all
    python experiments/run_notebooks.py --only gradients    # one; the table keeps the other rows

notebooks/NAME.py is the notebook as plain text (jupytext's percent format), NAME.ipynb the same
with outputs. Each is executed in an empty process from top to bottom. Writes the notebooks and
docs/results/notebooks.md. Exit code 1 if a cell fails, or a notebook takes more than three minutes.
"""

import dataclasses
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from deepjax.command_line import parse, run_command
from deepjax.errors import InputError, unknown_name_error
from deepjax.io import write_text

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "notebooks"
PAGE = ROOT / "docs" / "results" / "notebooks.md"
LIMIT = 180.0  # seconds of one notebook, on two idle cores
HEAD = f"""# Notebooks: the last run

    make notebooks

Every notebook of `notebooks/`, executed from top to bottom in a process of its own. Seconds from
the start of the process to its end, compilation included; at most {LIMIT:.0f} are allowed. CPU
seconds are those of all threads: much less than twice the seconds means that other programs ran.

| notebook | seconds | CPU seconds | size | commit | date | machine |
|---|---|---|---|---|---|---|
"""
METADATA = {
    "jupytext": {"formats": "ipynb,py:percent"},
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Execute the notebooks and publish their times."""

    only: tuple[str, ...] = ()
    """Names of notebooks; default all."""

    def __post_init__(self) -> None:
        for name in self.only:
            if name not in names():
                raise unknown_name_error("notebook", name, names())


def main(options: Options) -> None:
    """Execute, write the notebooks and the page; exit code 1 for what failed or was too slow."""
    rows: dict[str, str] = {}
    failed = []
    for name in options.only or names():
        began, cpu_before = time.monotonic(), children_cpu()
        error = execute(name)
        seconds, cpu = time.monotonic() - began, children_cpu() - cpu_before
        print(f"{name}: {seconds:.0f} s{f', failed: {error}' if error else ''}", flush=True)
        if error or seconds > LIMIT:
            failed.append(f"{name} ({error or f'{seconds:.0f} s'})")
        if not error:
            rows[name] = row(name, seconds, cpu)
    rows = read_page() | rows
    write_text(PAGE, HEAD + "".join(rows[name] for name in names() if name in rows))
    print(f"Read {PAGE.relative_to(ROOT)}")
    if failed:
        sys.exit(f"failed, or took more than {LIMIT:.0f} s: {'; '.join(failed)}")


def names() -> list[str]:
    """The notebooks, by name."""
    return sorted(path.stem for path in FOLDER.glob("*.py"))


def execute(name: str) -> str:
    """Execute a notebook and write it with its outputs; the error of a cell, "" if there is none.

    Raises InputError where Jupyter is not installed.
    """
    try:
        import jupytext  # pyright: ignore[reportMissingImports]
        from nbclient import NotebookClient  # pyright: ignore[reportMissingImports]
        from nbclient.exceptions import (  # pyright: ignore[reportMissingImports]
            CellExecutionError,
        )
    except ImportError as error:
        raise InputError(f"{error.name} is not installed; run `make notebooks-env`") from error
    notebook: Any = jupytext.read(FOLDER / f"{name}.py")
    options = {"record_timing": False, "kernel_name": "python3", "timeout": 1200}
    options |= {"startup_timeout": 300, "coalesce_streams": True}
    # Without the kernel's warning of its local connection.
    options |= {"extra_arguments": ["--Application.log_level=40"]}
    os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)  # so that compilation counts
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # no word of slow compilations in outputs
    resources = {"metadata": {"path": str(FOLDER)}}
    try:
        NotebookClient(notebook, resources=resources, **options).execute()
    except CellExecutionError as error:
        print(re.sub(r"\x1b\[[0-9;]*m", "", str(error)), file=sys.stderr)  # without colours
        return f"{error.ename}: {error.evalue}"
    notebook.metadata = METADATA
    for i, cell in enumerate(notebook.cells, 1):
        cell.id = f"cell-{i}"
        cell.metadata = {}
    text = jupytext.writes(notebook, fmt="ipynb")
    write_text(FOLDER / f"{name}.ipynb", text if text.endswith("\n") else text + "\n")
    return ""


def row(name: str, seconds: float, cpu: float) -> str:
    """The row of a notebook on the page."""
    size = (FOLDER / f"{name}.ipynb").stat().st_size
    date = time.strftime("%Y-%m-%d")
    machine = f"{os.cpu_count()} CPU cores, load {os.getloadavg()[0]:.1f}"
    cells = (f"{seconds:.0f}", f"{cpu:.0f}", f"{size / 1000:.0f} kB", commit(), date, machine)
    return f"| {name} | {' | '.join(cells)} |\n"


def commit() -> str:
    """The commit of this checkout, marked where the code or a plain-text copy differs from it."""
    head = git("rev-parse", "--short=12", "HEAD") or "unknown"
    changed = git("status", "--porcelain", "--", "deepjax", "experiments", "notebooks/*.py")
    return f"{head} with changes" if changed else head


def git(*arguments: str) -> str:
    """What a git command prints; "" outside of a checkout."""
    command = ["git", "-C", str(ROOT), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    return done.stdout.strip()


def read_page() -> dict[str, str]:
    """The rows of the present page, by notebook."""
    if not PAGE.exists():
        return {}
    found = re.findall(r"^\| (\w+) \| \d.*\n", PAGE.read_text(), flags=re.MULTILINE)
    lines = re.findall(r"^\| \w+ \| \d.*\n", PAGE.read_text(), flags=re.MULTILINE)
    return dict(zip(found, lines, strict=True))


def children_cpu() -> float:
    """CPU seconds of the child processes that have ended."""
    times = os.times()
    return times.children_user + times.children_system


if __name__ == "__main__":
    run_command(lambda: main(parse(Options)))
