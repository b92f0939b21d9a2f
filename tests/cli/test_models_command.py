"""`deepjax models`: what it prints, and how it refuses."""

import json
import subprocess
import sys

import pytest

from deepjax.cli import __main__ as command
from deepjax.cli.models import WIDE
from deepjax.models import list_models, model_info


def printed(monkeypatch, capsys, *arguments, columns=80):
    monkeypatch.setattr(sys, "argv", ["deepjax", "models", *arguments])
    monkeypatch.setenv("COLUMNS", str(columns))
    command.main()
    return capsys.readouterr().out


@pytest.mark.parametrize("columns", [80, 120])
def test_the_list_fits_and_cuts_no_name(monkeypatch, capsys, columns):
    lines = printed(monkeypatch, capsys, columns=columns).splitlines()
    assert max(map(len, lines)) <= columns
    first_words = [line.split()[0] for line in lines if line.strip()]
    assert all(first_words.count(name) == 1 for name in list_models())
    papers = {model_info(name).paper for name in list_models()}
    assert papers <= {line.strip() for line in lines}
    assert not any("\x1b" in line or "…" in line for line in lines)


@pytest.mark.parametrize(("columns", "table"), [(130, ["Table", "1"]), (80, [])])
def test_a_row_of_the_list(monkeypatch, capsys, columns, table):
    """The best known weights with their accuracy.

    A narrow window omits the paper's table, with a note.
    """
    out = printed(monkeypatch, capsys, "resnet50", columns=columns)
    assert out.count("25,557,032") == 1
    listed = printed(monkeypatch, capsys, "resnet*", columns=columns)
    row = next(line for line in listed.splitlines() if line.startswith("resnet50 "))
    source, accuracy = max(model_info("resnet50").weights, key=lambda known: known[1])
    assert row.split() == [
        "resnet50",
        "25.6",
        "M",
        "4.09",
        "G",
        "224x224",
        *table,
        f"{accuracy:.2f}",
        *source.split(),
    ]
    assert ("the papers' tables" in listed) == (columns == 80)


def test_a_wide_window_folds_no_row(monkeypatch, capsys):
    lines = printed(monkeypatch, capsys, columns=WIDE).splitlines()
    for name in list_models():
        sources = [source for source, _ in model_info(name).weights]
        row = next(line for line in lines if line.split()[:1] == [name])
        assert any(row.rstrip().endswith(source) for source in sources or ["-"])


def test_a_pattern_filters(monkeypatch, capsys):
    out = printed(monkeypatch, capsys, "cifar_plain*")
    names = {
        line.split()[0] for line in out.splitlines() if line.startswith(("cifar", "resnet", "vgg"))
    }
    assert names == set(list_models("cifar_plain*"))


def test_one_network(monkeypatch, capsys):
    lines = [line.split() for line in printed(monkeypatch, capsys, "resnet18").splitlines()]
    assert ["stage4", "7x7x512", "8,393,728", "411,041,792", "435x435", "32x32"] in lines
    assert ["total", "11,689,512", "1,814,073,344"] in lines
    assert ["torchvision", "IMAGENET1K_V1", "69.76"] in lines


def test_json_has_the_networks_and_the_stages_of_one(monkeypatch, capsys):
    found = json.loads(printed(monkeypatch, capsys, "resnet*", "--json"))
    assert [each["name"] for each in found] == list_models("resnet*")
    found = json.loads(printed(monkeypatch, capsys, "resnet18", "--json"))
    assert sum(stage["params"] for stage in found["stages"]) == found["params"] == 11_689_512


@pytest.mark.parametrize(("given", "nearest"), [("resnt50", "resnet50"), ("vgg17*", "vgg1")])
def test_an_unknown_name_is_one_line_and_exit_code_2(monkeypatch, capsys, given, nearest):
    with pytest.raises(SystemExit) as stop:
        printed(monkeypatch, capsys, given)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert (
        error.startswith(f"error: model '{given}' is unknown; did you mean '{nearest}")
        and error.count("\n") == 1
    )


@pytest.mark.system
def test_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "deepjax.cli", "models", "cifar_resnet20"],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "269,722" in done.stdout
