"""Retired words appear neither in public names nor in the help texts of options.

The field has a usual term for each of them. Words that are legitimate in another sense ("shared",
"holds", "left") are not on the list, or only in the form that was misused.
"""

import ast
import os
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = sorted((ROOT / "deepjax").rglob("*.py"))
SCRIPTS = sorted((ROOT / "experiments").glob("*.py"))

NAMES = {  # a word of a public name -> what to say
    "abandon": "delete",
    "beat": "heartbeat",
    "behind": "pending, dirty",
    "beside": "reuse_runs_from, adjacent",
    "conduct": "run_study",
    "crew": "worker_pool",
    "damage": "decode_error, corrupt",
    "damaged": "corrupt",
    "damages": "decode_errors",
    "deviation": "std",
    "drawn": "initialised, sampled",
    "evidence": "results",
    "floor": "layer, package",
    "held": "kept, validated",
    "house": "package",
    "look": "probe",
    "noted": "logged",
    "pace": "throughput",
    "picture": "figure",
    "pictures": "figures, images",
    "room": "package",
    "said": "message, logged",
    "settle": "wait_until_finished",
    "share": "fraction, ratio",
    "shares": "fractions, contributions",
    "sheet": "table",
    "spread": "partitioner",
    "subject": "context",
    "tell": "log, flush",
    "told": "given, broadcast",
    "together": "sync, collective",
    "by_first": "on_primary",
    "whole": "complete, full, valid",
    "wrong": "error, mismatch",
}
ALLOWED = {"share_y"}  # Matplotlib's own word
OPTIONS = ("Options", "Config", "Hosts", "Prepare", "Overrides")  # ends of names of option classes
TEXTS = {  # a pattern in a help text -> what to say
    r"\bbeside\b": "next to, in addition",
    r"\bcarr(y|ies|ied) on\b": "resume",
    r"\bcrew\b": "worker pool",
    r"\bdamaged?\b": "corrupt, decode error",
    r"(?<!standard )\bdeviations?\b": "standard deviation",
    r"\bdrawn\b": "sampled, initialised",
    r"\bgo(es)? (back|on)\b": "roll back, resume, continue",
    r"\bheld against\b": "compared with, validated against",
    r"\bleaves? .{0,12}\bout\b|\bleft out\b": "skip, omit, exclude",
    r"\bso many\b": "the given number of",
    r"\bthe first process\b": "process 0",
    r"\btold\b": "broadcast, given",
    r"\ba look\b|\blooks\b at\b": "probe",
    r"\bshare of\b": "fraction of, part of",
    r"\bequal bits\b|\bsame bits\b": "bitwise identical",
}


def words(name: str) -> list[str]:
    """The words of a snake_case or CamelCase name, and the name itself."""
    split = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    return [*split.split("_"), split]


def public_names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Public functions and classes, their parameters, methods and fields; with their lines."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield from _function(node)
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield node.lineno, node.name
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef) and _is_public_method(inner.name):
                    yield from _function(inner)
                elif isinstance(inner, ast.AnnAssign) and isinstance(inner.target, ast.Name):
                    yield inner.lineno, inner.target.id
        elif isinstance(node, ast.Assign):
            yield from ((node.lineno, t.id) for t in node.targets if isinstance(t, ast.Name))


def _is_public_method(name: str) -> bool:
    return not name.startswith("_") or name == "__init__"


def _function(node: ast.FunctionDef) -> Iterator[tuple[int, str]]:
    yield node.lineno, node.name
    arguments = node.args
    for argument in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]:
        yield argument.lineno, argument.arg


def help_texts(path: Path) -> Iterator[tuple[int, str]]:
    """Docstrings of option classes and of their fields, which tyro shows; with their lines."""
    in_config = path.stem.startswith("config")  # there every class is a group of options
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ClassDef) or not (in_config or node.name.endswith(OPTIONS)):
            continue
        if docstring := ast.get_docstring(node):
            yield node.lineno, docstring
        for field, text in zip(node.body, node.body[1:], strict=False):
            is_text = isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
            if isinstance(field, ast.AnnAssign) and is_text:
                yield text.lineno, str(text.value.value)


def found_names(path: Path) -> list[str]:
    """Where a module uses a retired word in a public name, with the better one."""
    tree = ast.parse(path.read_text())
    return [
        f"{os.path.relpath(path, ROOT)}:{line}: {name!r}: say {NAMES[word]} for {word!r}"
        for line, name in [(1, path.stem), *public_names(tree)]
        if not name.startswith("_") and name not in ALLOWED
        for word in dict.fromkeys(words(name))
        if word in NAMES
    ]


def found_texts(path: Path) -> list[str]:
    """Where a module uses a retired expression in a help text, with the better one."""
    return [
        f"{os.path.relpath(path, ROOT)}:{line}: {match[0]!r}: say {better}; in {text!r}"
        for line, text in help_texts(path)
        for pattern, better in TEXTS.items()
        if (match := re.search(pattern, text, re.IGNORECASE))
    ]


def test_public_names_have_no_retired_word():
    found = [line for path in PACKAGE for line in found_names(path)]
    assert not found, "\n" + "\n".join(found)


def test_help_texts_have_no_retired_expression():
    found = [line for path in PACKAGE + SCRIPTS for line in found_texts(path)]
    assert not found, "\n" + "\n".join(found)


def test_retired_words_are_found(tmp_path):
    """Of names and help texts those with a retired word are found, and no others."""
    path = tmp_path / "module.py"
    path.write_text(
        "class RunOptions:\n    share: float = 0\n    'Damaged images beside the others'\n"
        "    shared_size: int = 0\n    'Standard deviation'\n"
        "def crew(told): ...\ndef pool(tolerance): ...\ndef _crew(): ...\n"
    )
    assert [line.split(": ")[1] for line in found_names(path)] == ["'share'", "'crew'", "'told'"]
    assert [line.split(": ")[1] for line in found_texts(path)] == ["'beside'", "'Damaged'"]
