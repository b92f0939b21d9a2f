"""Files, modules, tests and options that README, docs and SECURITY.md name exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "SECURITY.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "instruments").glob("*.md")),
    *sorted((ROOT / "docs" / "tutorials").glob("*.md")),
    *sorted((ROOT / "docs" / "gallery").glob("*.md")),
]
OF_OTHER_PROGRAMS = {  # SLURM, torchrun, gcloud, TensorBoard
    "nproc-per-node", "max-restarts", "nodes", "ntasks-per-node", "gpus-per-node",
    "gpus-per-task", "signal", "zone", "worker", "command", "help", "help-all",
    "logdir", "me",
}  # fmt: skip


def options_of(path: Path) -> set[str]:
    """The options that classes of a file declare, as a command line spells them."""
    fields = [
        node.target.id
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    ]
    return {field.replace("_", "-") for field in fields}


OPTIONS = OF_OTHER_PROGRAMS.union(
    *(
        options_of(path)
        for name in ("deepjax", "experiments")
        for path in ROOT.glob(f"{name}/**/*.py")
    ),
    *(re.findall(r'"--([a-z-]+)"', path.read_text()) for path in ROOT.glob("tests/*/__main__.py")),
)
TESTS = {
    node.name
    for path in ROOT.glob("tests/**/test_*.py")
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.FunctionDef)
}


def exists(name: str) -> bool:
    """Whether a path (also one below deepjax or docs) or a name of a module is there."""
    if not name.startswith("deepjax."):
        return any((base / name).exists() for base in (ROOT, ROOT / "deepjax", ROOT / "docs"))
    parts = name.split(".")
    for n in range(len(parts), 0, -1):
        path = ROOT.joinpath(*parts[:n])
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.is_file():
                return (
                    n == len(parts) or re.search(rf"\b{parts[n]}\b", file.read_text()) is not None
                )
    return False


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_modules_and_tests_exist(page):
    text = page.read_text()
    paths = re.findall(r"(?<![\w/.~-])((?:[a-z_]+/)+[a-z_0-9]+\.(?:py|md|sh|json))\b", text)
    modules = re.findall(r"\bdeepjax\.(?!json\b)[a-z_.]+[a-z_]", text)  # deepjax.json is a file
    missing = [name for name in [*paths, *modules] if not exists(name)]
    if page.name == "SECURITY.md":
        missing += set(re.findall(r"`(test_\w+)`", text)) - TESTS
    assert sorted(set(missing)) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_options_exist(page):
    text = page.read_text()
    if page.name in ("mistakes.md", "first_hour.md"):  # which have unknown options
        return
    if page.name == "timm.md":  # whose first column has timm's options
        text = re.sub(r"^\|[^|]*\|", "|", text, flags=re.MULTILINE)
    named = re.findall(r"(?<![\w-])--([a-z][a-z.-]*[a-z])", text)
    unknown = {name.split(".")[-1].removeprefix("no-") for name in named} - OPTIONS
    assert sorted(unknown) == []


@pytest.mark.parametrize("front", ["README.md", "docs/index.md"])
def test_the_effects_of_the_front_pages_are_those_of_the_published_page(front):
    readme = (ROOT / front).read_text()
    page = (ROOT / "docs" / "results" / "README.md").read_text().replace("+", "")
    effects = re.findall(r"(-?\d\.\d+) (\[-?\d\.\d+, -?\d\.\d+\]) (?:points|times)", readme)
    assert len(effects) >= 5
    for mean, interval in effects:
        assert f"{mean} points" in page or f"**{mean}**" in page
        assert interval in page
