"""`deepjax evaluate` on the user's own images: none that the network was trained on is tested."""

import dataclasses
import json
import shutil

import pytest

from deepjax.cli.__main__ import start
from deepjax.data import catalog, own_dataset, register
from deepjax.errors import InputError
from deepjax.training import RunOptions, train
from deepjax.training.config import train_config
from deepjax.training.run_directory.run_dir import open_run
from tests.data.own.images import write_classes, write_images

COUNTS = {"a b": 20, "犬": 10}
THIN = {"model": "cifar_plain20", "width": 2, "model_args": ("stages=[1,1,1]",)}
SHORT = {"batch_size": 8, "steps": 2, "image_size": 16}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run that tests 3 images, by options; the folder of images; and the exported network."""
    root = tmp_path_factory.mktemp("own")
    photos = write_classes(root / "photos", COUNTS)
    name = f"{photos}[test_fraction=0.1,split_seed=3]"
    train(train_config(dataset=name, **THIN, **SHORT), root / "run", RunOptions())
    start(["export", str(root / "run"), "--output-dir", str(root / "exported")])
    return root


@pytest.fixture
def moved(trained, tmp_path):
    """The images at another place; those of the training are gone."""
    (trained / "photos").rename(tmp_path / "moved")
    yield tmp_path / "moved"
    shutil.rmtree(trained / "photos", ignore_errors=True)
    (tmp_path / "moved").rename(trained / "photos")


def evaluated(out, *arguments) -> int:
    """The number of images that are tested."""
    start(["evaluate", *map(str, arguments), "--output-dir", str(out)])
    (found,) = json.loads((out / "result.json").read_text())["sets"]
    return found["images"]


def test_a_run_is_tested_on_its_own_split(trained, tmp_path, capsys):
    assert evaluated(tmp_path, "--run", trained / "run") == 3
    assert "agrees with the final row" in capsys.readouterr().out


@pytest.mark.parametrize("source", [("--run", "run"), ("--weights", "exported")])
def test_so_it_is_where_the_images_have_moved(source, trained, moved, tmp_path, capsys):
    """By default the split would be of a fifth by another seed."""
    option, name = source
    given = option, trained / name, "--dataset", moved
    assert evaluated(tmp_path / "out", *given) == 3
    printed = capsys.readouterr().out
    assert ("agrees with the final row" in printed) == (option == "--run")
    with pytest.raises(InputError, match=r"was trained on .* for tests \(14 of its 15"):
        evaluated(tmp_path / "other", *given[:3], f"{moved}[test_fraction=0.5]")


@pytest.mark.parametrize("source", [("--run", "run"), ("--weights", "exported")])
def test_images_that_have_changed_are_refused(source, trained, moved, tmp_path):
    option, name = source
    shutil.copytree(moved, trained / "photos")
    write_images(trained / "photos" / "a b" / "0", 1, seed=9)
    for dataset in ((), ("--dataset", trained / "photos")):
        with pytest.raises(InputError, match=r"has changed since .* was trained on it, and has no"):
            evaluated(tmp_path / "out", option, trained / name, *dataset)
    with pytest.raises(InputError, match="has changed since"):
        start(["report", str(trained / "run")])


@pytest.mark.parametrize("source", [("--run", "run"), ("--weights", "exported")])
def test_all_other_images_are_tested(source, trained, tmp_path, capsys):
    option, name = source
    new = write_classes(tmp_path / "new", {"a b": 4, "犬": 3}, seed=7)
    assert evaluated(tmp_path / "out", option, trained / name, "--dataset", new) == 7
    printed = capsys.readouterr().out
    assert f"warning: {new} has no test split: all of its images are tested" in printed
    assert printed.index("warning") < printed.index("7 images of 2 classes")
    new.rename(tmp_path / "test")
    (tmp_path / "own").mkdir()
    (tmp_path / "test").rename(tmp_path / "own" / "test")
    given = option, trained / name, "--dataset", tmp_path / "own"
    assert evaluated(tmp_path / "again", *given) == 7
    assert "warning" not in capsys.readouterr().out


def test_a_table_of_runs_with_other_splits(trained, tmp_path):
    """The images of the first run's tests, of which the second one was trained on some."""
    shutil.copytree(trained / "run", tmp_path / "runs" / "a")
    config = train_config(dataset=str(trained / "photos"), **THIN, **SHORT)
    train(config, tmp_path / "runs" / "b", RunOptions())
    command = ["evaluate", "--models", f"{tmp_path}/runs/*", "--output-dir", str(tmp_path / "out")]
    with pytest.raises(InputError, match=r"1 of 2 networks failed"):
        start(command)
    rows = json.loads((tmp_path / "out" / "table.json").read_text())["rows"]
    errors = {row["weights"].rpartition("/")[2]: row["error"] for row in rows}
    assert errors["a"] == "" and "was trained on images that" in errors["b"]


def test_instruments_get_no_training_images_as_test_images(trained, moved):
    """`open_run` with the images at a new path."""
    run, labels = trained / "run", []
    for path in (str(moved), f"{moved}[test_fraction=0.1,split_seed=3]"):
        labels.append(open_run(run, dataset=path).batch(3, "test")["label"].tolist())
    assert labels[0] == labels[1] and sorted(labels[0]) == [0, 0, 1]
    other = open_run(run, dataset=f"{moved}[test_fraction=0.5]")
    assert other.batch(3)["image"].shape == (3, 16, 16, 3)
    with pytest.raises(InputError, match="was trained on images that"):
        other.batch(3, "test")


def test_a_registered_description_is_that_of_the_run(trained, tmp_path, monkeypatch, capsys):
    """The next process does not know the name, nor the size, the split and the mean."""
    monkeypatch.setattr(catalog, "CATALOG", dict(catalog.CATALOG))
    chosen = {"size": 24, "test_fraction": 0.5, "split_seed": 1, "mean": (100,), "flip": False}
    own = register(own_dataset(str(trained / "photos"), "small photos", **chosen))
    train(train_config(dataset=own.name, **THIN, batch_size=8, steps=1), tmp_path / "run")
    del catalog.CATALOG[own.name]
    opened = open_run(tmp_path / "run")
    assert dataclasses.replace(opened.dataset, source=own.source) == own
    assert opened.batch(2)["image"].shape == (2, 24, 24, 3)
    assert evaluated(tmp_path / "out", "--run", tmp_path / "run") == 15
    assert "agrees with the final row" in capsys.readouterr().out
    start(["predict", str(trained / "photos" / "犬" / "0.jpg"), "--run", str(tmp_path / "run")])
    assert "犬" in capsys.readouterr().out


def test_two_runs_of_one_name_with_other_classes(trained, tmp_path, monkeypatch):
    """In one process, as a table opens them."""
    for name, classes in (("one", {"a": 6, "b": 6}), ("two", {"c": 6, "d": 6, "e": 6})):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        write_classes(tmp_path / name / "photos", classes)
        train(train_config(dataset="photos", **THIN, batch_size=8, steps=1), "run")
    names = [open_run(tmp_path / name / "run").dataset.label_names for name in ("one", "two")]
    assert names == [("a", "b"), ("c", "d", "e")]
