"""The code of every notebook runs from top to bottom, as plain Python, and its output is stored."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def cells(path):
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_it_runs_from_top_to_bottom(path, tmp_path):
    code = "\n\n".join("".join(cell["source"]) for cell in cells(path))
    script = tmp_path / "notebook.py"
    script.write_text(f"import matplotlib\n\nmatplotlib.use('agg')\n\n{code}\n")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_it_is_stored_with_figures_and_without_traces_of_the_machine(path):
    """Executed in order, with every figure, no error, and no path or time of the machine."""
    code, text = cells(path), path.read_text()
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    shown = [output for cell in code for output in cell["outputs"]]
    assert all(output["output_type"] != "error" for output in shown)
    for cell in code:
        has_figure = any("image/png" in output.get("data", {}) for output in cell["outputs"])
        assert has_figure == ("plt.show()" in "".join(cell["source"]))
    assert '"execution":' not in text and "/home/" not in text and "site-packages" not in text
