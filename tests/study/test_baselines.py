"""The table of baselines is what its command computes."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest

from deepjax.data import dataset_info, load_split
from deepjax.errors import InputError
from deepjax.study.baselines import BASELINES, Baseline, baseline

ROOT = Path(__file__).parents[2]
PUBLISHED = json.loads((ROOT / "docs" / "results" / "baselines.json").read_text())
FIELDS = list(Baseline.__dataclass_fields__)


@pytest.fixture
def script(monkeypatch):
    """The command, whose neighbours it imports by their names."""
    monkeypatch.syspath_prepend(str(ROOT / "experiments" / "benchmarks"))
    return importlib.import_module("baselines")


def test_the_table_is_the_published_result():
    published = {
        name: Baseline(**{field: row[field] for field in FIELDS})
        for name, row in PUBLISHED["baselines"].items()
    }
    assert dict(BASELINES) == published
    assert PUBLISHED["command"].startswith("python experiments/benchmarks/baselines.py ")


def test_the_command_computes_the_errors_of_the_digits(script):
    """Up to one image, where another library rounds another way."""
    found = script.compute(script.Options(datasets=("digits",)))["baselines"]["digits"]
    known = BASELINES["digits"]
    assert found["train_images"] == known.train_images == dataset_info("digits").train_size
    assert found["linear_train"] == pytest.approx(known.linear_train, abs=1.01 / 1437)
    assert found["linear_test"] == pytest.approx(known.linear_test, abs=1.01 / 360)
    assert found["neighbours_test"] == pytest.approx(known.neighbours_test, abs=1.01 / 360)


@pytest.mark.parametrize("first", [(1e1, 1e2, 1e3), (1e-7, 1e-6, 1e-5)])
def test_the_grid_of_penalties_is_extended_until_the_best_is_inside(script, monkeypatch, first):
    """From both sides: the data are such that 1 is best; trained networks are not needed."""
    errors = {1e-1: 0.3, 1e0: 0.1, 1e1: 0.2}

    def fit(pixels, labels, penalty, tolerance):
        return lambda test: np.arange(len(test)) < 100 * errors.get(penalty, 0.5)

    monkeypatch.setattr(script, "fit", fit)
    monkeypatch.setattr(script, "PENALTIES", first)
    best, held_out = script.choose_penalty(np.zeros((500, 1)), np.zeros(500, bool))
    assert best == 1 and held_out["1"] == 0.1 and len(held_out) >= 5


def test_of_equal_penalties_the_largest_is_chosen(script, monkeypatch):
    errors = {1e-3: 0.1, 1e-2: 0.1}
    monkeypatch.setattr(
        script,
        "fit",
        lambda *given: lambda test: np.arange(len(test)) < 100 * errors.get(given[2], 0.5),
    )
    assert script.choose_penalty(np.zeros((500, 1)), np.zeros(500, bool))[0] == 1e-2


def test_neighbours_are_those_of_brute_force(script):
    train, test = (load_split(dataset_info("digits"), split) for split in ("train", "test"))
    x, y = (each.images.reshape(len(each), -1).astype(int) for each in (train, test))
    order = [np.argsort(np.square(x - one).sum(1), kind="stable") for one in y]
    votes = [np.bincount(train.labels[nearest[:3]]).argmax() for nearest in order]
    assert BASELINES["digits"].neighbours_test == round(np.mean(votes != test.labels), 6)


def test_the_whole_fashion_mnist_needs_its_archives(script, monkeypatch):
    monkeypatch.setattr("sys.argv", ["baselines.py", "--datasets", "fashion_mnist"])
    with pytest.raises(InputError, match="archives is None; allowed: a folder, for fashion_mnist"):
        script.main()


def test_a_number_of_training_images():
    small = BASELINES["fashion_mnist_small[:2000]"]
    assert baseline("fashion_mnist_small", 2000) is small and small.train_images == 2000
    assert baseline("digits", 1437) is baseline("digits") is BASELINES["digits"]
    assert all(known.train_images > 0 for known in BASELINES.values())


def test_fewer_images_make_more_errors():
    """Of every classifier on the same test images: what a mix-up of rows would break."""
    rows = [baseline("fashion_mnist_small", count) for count in (2000, 4000, 8000, 16_000)]
    for field in ("linear_test", "neighbours_test"):
        values = [getattr(row, field) for row in rows]
        assert values == sorted(values, reverse=True)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (("cifar10",), "'cifar10'"),
        (("fashion_mnist_small", 300), r"'fashion_mnist_small\[:300\]'"),
        (("cifar10", 2000), r"'cifar10\[:2000\]'"),
    ],
)
def test_what_is_missing_is_an_error_that_names_what_is_there(given, name):
    with pytest.raises(InputError, match=rf"{name} has no baseline; .*digits, fashion_mnist_sm"):
        baseline(*given)


def test_the_table_is_frozen():
    with pytest.raises(TypeError):
        BASELINES["digits"] = BASELINES["fashion_mnist"]
