"""No import goes up, light imports stay light, public names are documented, lock files name no index."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "deepjax").rglob("*.py"))
BASE = {
    "errors",
    "paths",
    "progress",
    "command_line",
    "renamed_options",
    "backend",
}  # what every package may use
# A package may import itself, the base, and the packages named here.
ALLOWED = {
    "models": set(),
    "data": set(),
    "analysis": set(),
    "training": {"models", "data", "analysis"},
    "evaluation": {"training", "models", "data"},
    "study": {"training", "models", "data", "analysis"},
    "cli": {"study", "evaluation", "training", "models", "data", "analysis", "__init__"},
    "__init__": {"models"},
} | {name: set() for name in BASE}


def package(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "deepjax":
            names |= {alias.name if alias.name in ALLOWED else "__init__" for alias in node.names}
        elif (
            isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("deepjax.")
        ):
            names.add(package(node.module))
        elif isinstance(node, ast.Import):
            names |= {
                package(alias.name) for alias in node.names if alias.name.startswith("deepjax")
            }
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_import_goes_up(path):
    name = path.relative_to(ROOT / "deepjax").with_suffix("").parts[0]
    assert imports(path) <= ALLOWED[name] | BASE | {name}


@pytest.mark.parametrize("module", ["deepjax", "deepjax.models"])
def test_models_load_no_data_library(module):
    heavy = ("tensorflow_datasets", "grain", "orbax", "matplotlib", "tensorflow", "tyro")
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ast.literal_eval(done.stdout) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_public_names_are_documented_and_files_are_small(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name} has no docstring"
    assert path.read_text().count("\n") <= 400


def test_lock_files_have_hashes_and_no_index():
    for path in ROOT.glob("requirements*.lock"):
        text = path.read_text()
        pins = re.findall(r"^[a-zA-Z0-9._-]+==", text, re.MULTILINE)
        assert len(pins) > 50
        assert len(re.findall(r"^\S+==\S+.*\\\n    --hash=sha256:", text, re.MULTILINE)) == len(
            pins
        )
        assert "://" not in text and "index-url" not in text
