"""The structure of the code: layers, cycles, light imports, sizes, unique and documented names."""

import ast
import collections
import functools
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "deepjax").rglob("*.py"))
# What every package may use.
BASE = {
    *("errors", "io", "owner", "paths", "progress", "command_line", "renamed_options"),
    *("provenance", "familiar_options", "html_page", "help_page", "option_specs", "backend"),
}
# A package may import itself, the base, and the packages named here.
ALLOWED = {
    "models": set(),
    "data": {"storage"},
    "analysis": set(),
    "storage": set(),
    "training": {"models", "data", "analysis", "storage"},
    "evaluation": {"training", "models", "data", "analysis", "storage"},
    "study": {"training", "models", "data", "analysis", "storage"},
    "cli": {"study", "evaluation", "training", "models", "data", "analysis", "storage", "__init__"},
    "__init__": {"models"},
    "__main__": {"cli"},
} | {name: set() for name in BASE}
# tyro parses command lines, the others read data, write checkpoints and draw.
HEAVY = ("tensorflow_datasets", "tensorflow", "grain", "orbax", "matplotlib", "tyro")
LINES, LINES_OF_A_STUDY, FILES_IN_A_PACKAGE = 400, 300, 20
OF_COMMANDS = {"main", "start", "Options"}  # one meaning, in every file that is a command
OF_FLAX = {"setup"}  # of linen.Module, which documents it

Graph = Mapping[str, set[str]]


def module_of(path: Path) -> str:
    """The dotted name of a file below the root; that of a package for its __init__.py."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports(tree: ast.AST, modules: Iterable[str]) -> set[str]:
    """The modules of deepjax that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, "relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in modules else str(node.module) for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.split(".")[0] == "deepjax"}


def layer_of(module: str) -> str:
    """The first name below deepjax; "__init__" for deepjax itself."""
    return module.split(".")[1] if "." in module else "__init__"


def package_of(module: str) -> str:
    """The sub-package that holds a module; the module itself if it is at the root of a package."""
    parts = module.split(".")
    is_package = module in MODULES and MODULES[module].name == "__init__.py"
    in_sub_package = len(parts) > 3 or (len(parts) == 3 and is_package)
    return ".".join(parts[:3]) if in_sub_package else module


def graph_of_modules() -> Graph:
    # A package may import its own modules.
    return {module: imports(parsed(path), MODULES) - {module} for module, path in MODULES.items()}


def cycles(graph: Graph) -> list[list[str]]:
    """The sets of nodes that reach each other, by Tarjan's algorithm."""
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(node: str) -> None:
        number[node] = lowest[node] = len(number)
        stack.append(node)
        for target in graph.get(node, ()):
            if target not in number:
                visit(target)
            if target in stack:
                lowest[node] = min(lowest[node], lowest[target])
        if lowest[node] == number[node]:
            at = stack.index(node)
            found.append(sorted(stack[at:]))
            del stack[at:]

    for node in graph:
        if node not in number:
            visit(node)
    return [component for component in found if len(component) > 1]


def test_no_import_goes_up():
    up = [
        f"{module} imports {target}"
        for module, targets in graph_of_modules().items()
        for target in targets
        if layer_of(target) not in ALLOWED[layer_of(module)] | BASE | {layer_of(module)}
    ]
    assert up == []


def test_modules_import_each_other_in_no_cycle():
    assert cycles(graph_of_modules()) == []


def test_sub_packages_import_each_other_in_no_cycle():
    """Nor do a sub-package and the modules beside it; a package's own __init__ only re-exports."""
    graph = collections.defaultdict(set)
    for module, targets in graph_of_modules().items():
        graph[package_of(module)] |= {package_of(target) for target in targets}
    assert cycles({node: targets - {node} for node, targets in graph.items()}) == []


def test_cycles_are_found():
    """Two cycles, one of them of three nodes, and nodes that are in none."""
    graph = {"a": {"b"}, "b": {"c", "f"}, "c": {"a"}, "d": {"e", "a"}, "e": {"d"}, "f": {"g"}}
    assert sorted(cycles(graph)) == [["a", "b", "c"], ["d", "e"]]
    tree = ast.parse("def f():\n    from deepjax.data import loader, sample\n    import deepjax.io")
    assert imports(tree, {"deepjax.data.loader"}) == {
        "deepjax.data.loader",
        "deepjax.data",
        "deepjax.io",
    }


def test_models_and_instruments_load_no_heavy_library():
    code = (
        "import importlib, sys\n"
        "for module in ('deepjax', 'deepjax.models', 'deepjax.analysis'):\n"
        "    importlib.import_module(module)\n"
        f"    print(module, [name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "deepjax []",
        "deepjax.models []",
        "deepjax.analysis []",
    ]


def public(tree: ast.Module) -> list[ast.FunctionDef | ast.ClassDef]:
    """The public functions and classes that a module defines."""
    return [
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    ]


def is_command(path: Path) -> bool:
    return path.name == "__main__.py" or path.parent.name == "cli"


def test_no_public_name_has_two_meanings():
    """A function or class is defined once, and imported elsewhere; commands have one entry each."""
    places = collections.defaultdict(list)
    for module, path in MODULES.items():
        for node in public(parsed(path)):
            if not (is_command(path) and node.name in OF_COMMANDS):
                places[node.name].append(module)
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


def test_modules_and_public_names_are_documented():
    missing = []
    for module, path in MODULES.items():
        tree = parsed(path)
        missing += [module] if not ast.get_docstring(tree) else []
        for node in public(tree):
            methods = public(ast.Module(node.body, [])) if isinstance(node, ast.ClassDef) else []
            missing += [
                f"{module}.{inner.name}"
                for inner in [node, *methods]
                if not ast.get_docstring(inner) and inner.name not in OF_FLAX
            ]
    assert missing == []


def test_files_and_packages_are_small():
    lines = {path: path.read_text().count("\n") for path in FILES}
    assert {module_of(path): count for path, count in lines.items() if count > LINES} == {}
    in_package = collections.Counter(path.parent for path in FILES if path.name != "__init__.py")
    assert {path.name: n for path, n in in_package.items() if n > FILES_IN_A_PACKAGE} == {}
    studies = {path.name: path.read_text().count("\n") for path in ROOT.glob("experiments/*.py")}
    assert {name: count for name, count in studies.items() if count > LINES_OF_A_STUDY} == {}


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("requirements*.lock")), ids=lambda path: path.name
)
def test_lock_files_have_hashes_and_no_index(path):
    text = path.read_text()
    pins = re.findall(r"^[a-zA-Z0-9._-]+==", text, re.MULTILINE)
    hashed = re.findall(r"^\S+==\S+.*\\\n    --hash=sha256:", text, re.MULTILINE)
    assert len(pins) > 30
    assert len(hashed) == len(pins)
    assert "://" not in text and "index-url" not in text


def listed_files(page: str) -> set[str]:
    """The files that the design page lists under its headings of packages, by their paths."""
    found = set()
    heading = re.compile(r"^### (deepjax/\w*).*\n+```\n((?:.*\n)*?)```", re.MULTILINE)
    for root, block in heading.findall(page):
        folder = ""
        for line in block.splitlines():
            name = line.split()[0]
            folder = folder if line.startswith(" ") else name if name.endswith("/") else ""
            if name.endswith(".py"):
                found.add(f"{root.rstrip('/')}/{folder}{name}")
    return found


def test_the_design_page_lists_every_file():
    """So that a reader finds the right one. Of embedded data sets it names the folder alone."""
    files = {str(path.relative_to(ROOT)) for path in FILES if path.name != "__init__.py"}
    listed = listed_files((ROOT / "docs" / "design.md").read_text())
    builders = {f"deepjax/data/{name}/builder.py" for name in ("digits", "fashion_mnist_small")}
    assert sorted(files - listed - builders) == []
    assert sorted(listed - files) == []
