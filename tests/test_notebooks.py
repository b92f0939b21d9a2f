"""Every notebook agrees with its plain-text copy, and is stored executed and small.

`make notebooks` executes them: tests/README.md.
"""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MAX_BYTES = 1_500_000


def cells_of_notebook(path: Path) -> list[tuple[str, str]]:
    """(kind, source) of every cell."""
    cells = json.loads(path.read_text())["cells"]
    return [(cell["cell_type"], "".join(cell["source"]).strip()) for cell in cells]


def cells_of_script(text: str) -> list[tuple[str, str]]:
    """The same of jupytext's percent format, below its header."""
    found = []
    for part in re.split(r"^# %%", text, flags=re.MULTILINE)[1:]:
        kind, _, source = part.partition("\n")
        is_text = kind.strip() == "[markdown]"
        if is_text:
            source = re.sub(r"^# ?", "", source, flags=re.MULTILINE)
        found.append(("markdown" if is_text else "code", source.strip()))
    return found


def code_cells(path: Path) -> list[dict]:
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


def test_the_percent_format_is_read():
    text = (
        "# ---\n# header\n# ---\n\n# %% [markdown]\n# # Title\n#\n# text\n\n# %%\nx = 1\n\n# why\n"
    )
    assert cells_of_script(text) == [("markdown", "# Title\n\ntext"), ("code", "x = 1\n\n# why")]


def test_every_notebook_has_a_copy():
    folder = ROOT / "notebooks"
    assert len(NOTEBOOKS) >= 8
    assert {path.stem for path in NOTEBOOKS} == {path.stem for path in folder.glob("*.py")}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_both_copies_agree(path):
    assert cells_of_notebook(path) == cells_of_script(path.with_suffix(".py").read_text())


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_stored_executed_and_without_traces_of_the_machine(path):
    """In order, with every figure, no error or warning, and no path or time of the machine."""
    code, text = code_cells(path), path.read_text()
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    shown = [output for cell in code for output in cell["outputs"]]
    assert all(output["output_type"] != "error" for output in shown)
    assert all(output.get("name") != "stderr" for output in shown)
    for cell in code:
        has_figure = any("image/png" in output.get("data", {}) for output in cell["outputs"])
        assert has_figure == ("plt.show()" in "".join(cell["source"]))
    assert '"execution":' not in text and not re.search(
        r"/(home|root|tmp|work)/|site-packages", text
    )
    assert path.stat().st_size < MAX_BYTES
