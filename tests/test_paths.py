"""Paths given by users: expanded and absolute, or refused in one line that names the field."""

from pathlib import Path

import pytest

from deepjax.cli import evaluate
from deepjax.data.prepared import data_directory
from deepjax.errors import InputError
from deepjax.evaluation.models import PreprocessingOverrides, from_run
from deepjax.models.weights.files import read_tensors
from deepjax.paths import run_directory, user_path
from deepjax.training import TrainConfig, train
from deepjax.training.run_directory.run_dir import open_run
from experiments import run_studies as studies


@pytest.mark.parametrize(
    "given",
    ["run", "a b/c", "\u65e5\u672c", "a/../b", "x=1,y:2", ".", "a~", "'\"$&;|<>(){}!#%^`", "/x"],
)
def test_a_usual_path_becomes_absolute_and_is_otherwise_unchanged(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert (
        user_path(given, "out")
        == run_directory(given)
        == user_path(Path(given), "out")
        == tmp_path / given
    )


def test_home_is_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setenv("TFDS_DATA_DIR", "~/elsewhere")
    assert user_path("~", "out") == Path("/home/ada")
    assert user_path(Path("~/runs/a"), "out") == Path("/home/ada/runs/a")
    assert data_directory("~/data") == Path("/home/ada/data")
    assert data_directory() == Path("/home/ada/elsewhere")
    monkeypatch.delenv("TFDS_DATA_DIR")
    assert data_directory() == Path("/home/ada/tensorflow_datasets")


REFUSED = {
    "": "not empty",
    "gs://bucket/run": "URLs are not supported",
    "gs:/bucket/run": "URLs are not supported",  # as pathlib writes it
    "runs/s3:/x": "ends in a colon",
    "/gs/bucket": "does not begin with /gs/",
    "~no_such_user/x": "~USER",
    "a\nb": "line breaks",
    "a\x1b[31mb": "control characters",
    "a\u2028b": "line breaks",
    "x\udce9": "in UTF-8",
    "x" * 256: "names of up to 255 bytes; one has 256",
    "\u65e5" * 86: "one has 258",
    "/" + "x" * 99 + "/" + "/".join(["y" * 200] * 20): "a path of up to",
}


@pytest.mark.parametrize("given", REFUSED, ids=range(len(REFUSED)))
def test_an_invalid_path_is_refused_in_one_line(given):
    for call in (user_path, run_directory):
        with pytest.raises(InputError, match=f"^folder is .*{REFUSED[given]}") as caught:
            call(given, "folder")
        assert str(caught.value).isprintable()


@pytest.mark.parametrize("character", "*?[\\")
def test_no_run_starts_where_checkpoints_cannot_be_saved(character, tmp_path):
    """Under such a name Orbax 0.12.8 loses every checkpoint, or reads those of another folder."""
    out = tmp_path / f"a{character}b]" / "run"
    assert user_path(out, "data_dir") == out
    with pytest.raises(InputError, match=r"^out is .*checkpoints cannot be saved there"):
        train(TrainConfig(model="cifar_resnet20"), out)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "use",
    [
        read_tensors,
        lambda path: evaluate.load_members(evaluate.Options("resnet18", weights=(path,))),
        lambda path: studies.main(studies.Options(runs=Path(path))),
    ],
)
def test_every_path_of_a_user_is_checked(use):
    with pytest.raises(InputError, match="URLs are not supported"):
        use("gs://bucket/x")


@pytest.mark.parametrize(
    "use",
    [
        lambda path: train(TrainConfig(model="cifar_resnet20"), path),
        open_run,
        lambda path: from_run(Path(path), None, PreprocessingOverrides()),
    ],
)
def test_a_run_directory_is_a_path_or_a_url_of_a_known_scheme(use):
    with pytest.raises(InputError, match=r"allowed: a path of this machine, gs://... or s3://..."):
        use("http://bucket/x")
