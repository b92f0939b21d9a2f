"""`deepjax data`: the list of data sets, and preparing one; tests/data/own tests `check`."""

import dataclasses
import json

import pytest

from deepjax.cli.__main__ import start
from deepjax.data import catalog, dataset_info, list_datasets
from deepjax.data.prepare import small
from deepjax.errors import InputError
from tests.data.prepare.small_archives import COUNTS, write_small_archives


def test_list_says_what_is_ready_and_what_prepares_the_rest(tmp_path, capsys):
    start(["data", "list", "--data-dir", str(tmp_path)])
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert set(list_datasets()) <= lines.keys()
    assert lines["digits"].split()[1:] == ["1,437", "+", "360", "8x8x1", "10", "classes", "ready"]
    assert lines["cifar10"].endswith("  deepjax data prepare cifar10")
    start(["data", "list", "--data-dir", str(tmp_path), "--json"])
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    imagenet = dataset_info("imagenet2012")
    assert rows["imagenet2012"] == {
        "name": "imagenet2012", "shape": [224, 224, 3], "classes": 1000, "ready": False,
        "train_size": imagenet.train_size, "test_size": imagenet.test_size,
    }  # fmt: skip


def test_prepared_data_are_ready(tmp_path, monkeypatch, capsys):
    archives = write_small_archives(tmp_path / "archives", "cifar10")
    sizes = {"train_size": COUNTS["train"], "test_size": COUNTS["test"]}
    few = dataclasses.replace(dataset_info("cifar10"), name="few_cifar10", **sizes)
    monkeypatch.setitem(catalog.CATALOG, few.name, few)
    monkeypatch.setattr(small, "check_archive", lambda path, known: None)
    places = ["--data-dir", str(tmp_path / "data"), "--manual-dir", str(archives)]
    start(["data", "prepare", few.name, *places])
    assert f"prepared in {tmp_path / 'data' / 'cifar10'}" in capsys.readouterr().out
    start(["data", "list", "--data-dir", str(tmp_path / "data")])
    [line] = [each for each in capsys.readouterr().out.splitlines() if each.startswith("few_")]
    assert line.endswith(" ready")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prepare", "fashion"], "did you mean 'fashion_mnist'"),
        (["prepare", "digits"], "is part of the package: nothing to prepare"),
        (["prepare", "cifar10", "--resized", "32"], "resized is 32; allowed: a data set of photo"),
        (["prepare"], "NAME"),
        (["lst"], "action 'lst' is unknown; did you mean 'list'"),
    ],
)
def test_mistakes_are_one_line(arguments, message):
    with pytest.raises(InputError) as raised:
        start(["data", *arguments])
    assert message in str(raised.value) and "\n" not in str(raised.value)
