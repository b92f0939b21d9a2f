"""The tables of tests/tiers.py name tests that exist, and give each test one tier."""

import ast
from pathlib import Path

import pytest

from tests.tiers import KINDS, NUMERICS, RUNS_IN_MAKE_TEST, SYSTEM, tier_of

FUNCTIONS = {
    node.name
    for path in Path(__file__).parent.rglob("test_*.py")
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.FunctionDef)
}


@pytest.mark.parametrize("name", [*NUMERICS, *SYSTEM, *RUNS_IN_MAKE_TEST])
def test_each_name_is_that_of_a_test(name):
    assert name in FUNCTIONS


def test_tiers_by_name_parameter_and_fixture():
    counts = next(name for name, kept in NUMERICS.items() if kept == KINDS)
    assert tier_of(counts, "vgg11", frozenset()) is None
    assert tier_of(counts, "policy0-vgg11", frozenset()) is None
    assert tier_of(counts, "vgg13", frozenset()) == "numerics"
    assert tier_of("test_float32_networks_under_x64", "", frozenset()) == "numerics"
    process = "test_as_a_process_it_exits_with_2_and_one_line"
    assert tier_of(process, "command0", frozenset()) is None
    assert tier_of(process, "command1", frozenset()) == "system"
    assert tier_of("test_any", "", frozenset({"tmp_path"})) is None
    assert tier_of("test_any", "", frozenset({"programs"})) == "system"
    resumed = "test_interrupted_at_any_step_it_ends_in_the_same_bits"
    assert tier_of(resumed, "4", frozenset({"whole"})) is None
    assert tier_of(resumed, "1", frozenset({"whole"})) == "system"
