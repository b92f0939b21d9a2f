"""Runs whose --output-dir is a URL: the bits of a run on a disk, and commands that read them."""

import json

import pytest

from deepjax.cli import evaluate, report, runs
from deepjax.cli import train as train_command
from deepjax.errors import InputError
from deepjax.storage.bucket import Bucket
from deepjax.storage.lock import BucketLock
from deepjax.training import RunOptions, TrainConfig, compile_training, open_run, train
from deepjax.training.checkpoint.inspect import digest
from deepjax.training.checkpoint.run_copy import local_run
from deepjax.training.metrics.metrics_log import TIMES, read_rows
from tests.storage.servers import SECRETS

CONFIG = TrainConfig(model="cifar_plain20", width=2, batch_size=240, epochs=2)  # 5 steps an epoch
OPTIONS = RunOptions(save_every=2)
FLAGS = ["--model", "cifar_plain20", "--width", "2", "--batch-size", "240", "--epochs", "2"]


@pytest.fixture(scope="module")
def programs():
    return compile_training(CONFIG, OPTIONS)


@pytest.fixture(scope="module")
def on_disk(programs, tmp_path_factory):
    """Digest and rows of the run on a disk."""
    out = tmp_path_factory.mktemp("disk") / "run"
    train(CONFIG, out, OPTIONS, programs=programs)
    return digest(out), rows_of(out)


def rows_of(folder):
    rows = read_rows(folder / "metrics.jsonl")
    return [{name: each for name, each in row.items() if name not in TIMES} for row in rows]


def outcome(url):
    folder = local_run(url, "run")
    return digest(folder), rows_of(folder)


def stopping_at(step):
    """A report of progress that ends the training as an error of the machine would."""

    def report_progress(done, total, note):
        if done >= step:
            raise KeyboardInterrupt

    return report_progress


def test_a_run_in_a_bucket_has_the_bits_of_one_on_a_disk(store, programs, on_disk):
    url = store.url("run")
    train(CONFIG, url, OPTIONS, programs=programs)
    assert outcome(url) == on_disk
    assert train(CONFIG, url, OPTIONS, programs=programs).was_done
    run = open_run(url)
    assert (run.step, run.steps) == (10, (8, 10))
    names = Bucket(url).sizes()
    assert {name for name in names if "/" not in name} >= {"config.json", "metrics.jsonl"}
    assert not any(".parts/" in name for name in names)  # one object each, at the end


def test_an_interrupted_run_is_resumed_bitwise_by_a_machine_that_has_nothing(
    store, programs, on_disk, tmp_path, monkeypatch
):
    url = store.url("resumed")
    for number, step in enumerate((3, 7)):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"machine {number}"))
        with pytest.raises(KeyboardInterrupt):
            train(CONFIG, url, OPTIONS, programs=programs, report=stopping_at(step))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a third"))
    assert train(CONFIG, url, OPTIONS, programs=programs).resumed_at > 0
    assert outcome(url) == on_disk
    staging = tmp_path / "a third" / "deepjax" / "staging"
    assert list(staging.iterdir()) == []  # nothing stays on this machine


def test_a_second_process_is_refused_and_another_configuration_too(store, programs):
    url = store.url("locked")
    owner = BucketLock(Bucket(url), print)
    owner.acquire()
    with pytest.raises(InputError, match=f"{url} is in use by process"):
        train(CONFIG, url, OPTIONS, programs=programs)
    owner.release()
    with pytest.raises(KeyboardInterrupt):
        train(CONFIG, url, OPTIONS, programs=programs, report=stopping_at(3))
    other = TrainConfig(model="cifar_plain20", width=4, batch_size=240, epochs=2)
    with pytest.raises(InputError, match=f"{url} .*width") as caught:
        train(other, url, OPTIONS)
    assert "staging" not in str(caught.value)


def test_a_refused_start_leaves_nothing_that_blocks_the_corrected_one(store, programs, on_disk):
    url = store.url("refused")
    wrong = TrainConfig(model="cifar_plain20", width=2, batch_size=240, epochs=2, dataset="cifar10")
    with pytest.raises(InputError, match="is not prepared"):
        train(wrong, url, RunOptions(data_dir="/nowhere"))
    train(CONFIG, url, OPTIONS, programs=programs)
    assert outcome(url) == on_disk


def test_no_object_has_a_credential(store, programs):
    url = store.url("secrets")
    train(CONFIG, url, OPTIONS, programs=programs)
    bucket = Bucket(url)
    contents = b"".join(bucket.read(name) for name in bucket.sizes())
    assert not any(secret.encode() in contents for secret in SECRETS.values())


@pytest.mark.system
def test_commands_read_runs_in_a_bucket(store, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for url in (store.url("runs/a"), store.url("runs/b")):
        train_command.start([*FLAGS, "--output-dir", url])
        assert f"in {url}: config.json" in capsys.readouterr().out
    assert "curves.png" in Bucket(url).sizes()
    runs.start(["list", store.url("runs")])
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["run", "a", "b"]
    runs.start(["show", url, "--json"])
    shown = json.loads(capsys.readouterr().out)
    assert (shown["run"], shown["state"], shown["checkpoints"]) == (url, "done", [5, 10])
    runs.start(["verify", url])
    assert capsys.readouterr().out.count("  OK  digest ") == 2
    runs.start(["diff", store.url("runs/a"), url])
    assert capsys.readouterr().out == "no difference\n"
    report.start([url])
    assert f"report in {url}/report.html" in capsys.readouterr().out
    assert {"report.html", "report/curves.png"} <= set(Bucket(url).sizes())
    assert f"--output-dir {url}<" in Bucket(url).read("report.html").decode()
    evaluate.start(["--run", url, "--output-dir", "evaluation"])
    assert f"agrees with the final row of {url}: " in capsys.readouterr().out
    result = json.loads((tmp_path / "evaluation" / "result.json").read_text())
    assert result["evaluation"][0]["weights"] == f"{url}, step 10"
    train_command.start([*FLAGS, "--weights", url, "--output-dir", "tuned"])
    assert "starts from" in capsys.readouterr().err
    with pytest.raises(InputError, match="holds no training run"):
        runs.start(["list", store.url("nothing")])
    with pytest.raises(InputError, match=f"^{store.url('nothing')} holds no config.json"):
        runs.start(["show", store.url("nothing")])
