"""`deepjax runs`: what it prints of runs, as text and JSON."""

import dataclasses
import json
import re
import shlex
import shutil
import statistics

import numpy as np
import pytest
import scipy.stats
from PIL import Image

from deepjax.cli import runs_watch
from deepjax.cli.__main__ import start
from deepjax.cli.runs_compare import finding, group_by_options
from deepjax.cli.train import parsed
from deepjax.errors import InputError
from deepjax.training import compile_training, train
from deepjax.training.checkpoint.inspect import digest
from deepjax.training.config import train_config
from deepjax.training.metrics.loop_clock import PARTS
from deepjax.training.metrics.metrics_log import read_rows
from deepjax.training.run_directory.config_file import init_run_dir
from deepjax.training.run_directory.run_lock import hold
from deepjax.training.run_directory.run_summary import summarize_run

CONFIG = train_config("cifar_plain20", width=2, batch_size=240, epochs=2)
RATES = ("0.1", "0.02")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two learning rates with three seeds each."""
    folder = tmp_path_factory.mktemp("runs")
    programs = compile_training(CONFIG)
    for rate in RATES:
        for seed in range(3):
            config = dataclasses.replace(CONFIG, learning_rate=float(rate), seed=seed)
            train(config, folder / f"rate{rate}" / f"seed{seed}", programs=programs)
    return folder


def printed(capsys, *arguments):
    """The lines that a command prints."""
    capsys.readouterr()
    start(["runs", *map(str, arguments)])
    return capsys.readouterr().out.splitlines()


def final(run):
    return read_rows(run / "metrics.jsonl")[-1]


def test_list_has_a_line_for_each_run(runs, capsys):
    head, *lines = printed(capsys, "list", runs)
    assert re.split("  +", head)[:4] == ["run", "network", "data set", "state"]
    assert len({line.index("cifar_plain20") for line in lines}) == 1
    first = re.split("  +", lines[0])
    errors = [f"{100 * final(runs / 'rate0.02/seed0')[name]:.2f} %" for name in ERRORS]
    row = ["rate0.02/seed0", "cifar_plain20", "digits", "done", "10 / 10", *errors]
    assert first[:-1] == row and re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", first[-1])
    found = json.loads("\n".join(printed(capsys, "list", runs, "--json")))
    assert [each["run"] for each in found] == [str(path) for path in sorted(runs.glob("*/*"))]
    assert found[0]["test_error"] == final(runs / "rate0.02/seed0")["test_error"]


ERRORS = ("train_error", "test_error")


def test_list_names_a_run_that_cannot_be_read(runs, tmp_path, capsys):
    shutil.copytree(runs / "rate0.1" / "seed0", tmp_path / "corrupt")
    (tmp_path / "corrupt" / "metrics.jsonl").write_text("no row\nno row\n")
    init_run_dir(tmp_path / "new", CONFIG)
    lines = printed(capsys, "list", tmp_path)
    assert re.match(r"new +cifar_plain20 +digits +stopped +0 / 10 +- +- ", lines[1])
    assert re.match(r".*/corrupt cannot be read: .*metrics\.jsonl, line 1 is corrupt", lines[2])
    with pytest.raises(InputError, match=r"none does not exist; allowed: the --output-dir"):
        start(["runs", "list", str(tmp_path / "none")])


def test_show_prints_options_epochs_and_checkpoints(runs, capsys):
    run = runs / "rate0.02" / "seed1"
    lines = printed(capsys, "show", run)
    assert lines[0] == f"{run}: done, step 10 of 10"
    flags = [line.strip() for line in lines if line.startswith("  --")]
    words = [word for flag in flags for word in shlex.split(flag)]
    assert parsed([*words, "--output-dir", "x"]).config == summarize_run(run).config
    rows = read_rows(run / "metrics.jsonl")
    errors = [f"{100 * row['test_error']:.2f} %" for row in rows if row["kind"] == "epoch"]
    epochs = [line for line in lines if line.startswith("epoch ")]
    assert [re.search(r"test error (.*?),", line)[1] for line in epochs] == errors
    assert f"test error {100 * rows[-1]['test_error']:.2f} %" in lines[-4]
    times = [row["time"] for row in rows if "time" in row]
    total = sum(each[part] for each in times for part in PARTS)
    assert lines[-3].startswith(f"time of the loop  {total:.1f} s: ")
    assert [line.split()[:2] for line in lines[-2:]] == [["checkpoint", "5"], ["checkpoint", "10"]]
    found = json.loads("\n".join(printed(capsys, "show", run, "--json")))
    assert found["checkpoints"] == [5, 10] and found["options"]["learning_rate"] == 0.02
    assert found["time"]["device"] == pytest.approx(sum(each["device"] for each in times))
    assert found["epochs"] == [row for row in rows if row["kind"] == "epoch"]


def test_show_of_an_average_and_of_a_new_run(runs, tmp_path, capsys):
    start(["average", str(runs / "rate0.1" / "seed0"), "--batches", "1",
           "--output-dir", str(tmp_path / "average")])  # fmt: skip
    first = printed(capsys, "show", tmp_path / "average")[0]
    assert "average: the mean of the parameters of " in first and "step 5, " in first
    init_run_dir(tmp_path / "new", CONFIG)
    lines = printed(capsys, "show", tmp_path / "new")
    assert lines[0].endswith("new: stopped, step 0 of 10") and lines[-1] == "no checkpoint yet"


def test_watch_prints_an_epoch_once_and_ends_with_the_run(runs, tmp_path, capsys):
    """A log that grows while another process holds the lock."""
    out, rows = tmp_path / "run", read_rows(runs / "rate0.1" / "seed0" / "metrics.jsonl")
    init_run_dir(out, CONFIG)
    (out / "starts.jsonl").write_text('{"step": 0}\n')
    steps = [rows[:1], rows[:2], rows[:2], rows]
    assert [row["kind"] for row in rows] == ["first", "epoch", "epoch", "final"]

    def grow(interval):
        lines = [json.dumps(row | {"seconds": 4.0}) + "\n" for row in steps.pop(0)]
        (out / "metrics.jsonl").write_text("".join(lines))

    with hold(out, print), pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs_watch.time, "sleep", grow)
        lines = printed(capsys, "watch", out)
    assert lines[0] == f"cifar_plain20 on digits, 10 steps, {out}"
    error = f"test error {100 * rows[1]['test_error']:.2f} %"
    # 4 seconds for 5 of 10 steps
    assert lines[1].startswith("epoch 1, step 5 of 10, running error ")
    assert lines[1].endswith(f"{error}, 4 s left") and lines[2].startswith("epoch 2, step 10 of 10")
    assert lines[3].startswith("done: train error ") and len(lines) == 4 and not steps


def test_the_pace_is_that_of_the_last_process(runs):
    """It began at step 5; the 6 seconds are of its 5 steps, and 90 are left."""
    run = summarize_run(runs / "rate0.1" / "seed0")
    run = dataclasses.replace(run, config=dataclasses.replace(run.config, steps=100))
    row = run.epochs[1] | {"seconds": 6.0}
    starts = [{"step": 0}, {"step": 5}]
    assert runs_watch.describe_epoch(run, row, starts).endswith(", 1 min 48 s left")
    assert runs_watch.describe_epoch(run, row, starts[:1]).endswith(", 54 s left")
    assert "left" not in runs_watch.describe_epoch(run, row, [])


@pytest.mark.parametrize(
    ("kind", "line"), [("halted", "halted on non-finite values"), ("epoch", "no process trains in")]
)
def test_watch_says_why_nothing_follows(kind, line, runs, tmp_path, capsys):
    init_run_dir(tmp_path, CONFIG)
    row = read_rows(runs / "rate0.1" / "seed0" / "metrics.jsonl")[1] | {"kind": kind}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    assert printed(capsys, "watch", tmp_path)[-1].startswith(line)


def test_compare_pairs_the_seeds(runs, tmp_path, capsys):
    """The interval is SciPy's of Student's t."""
    figure = tmp_path / "new" / "curves.png"
    lines = printed(capsys, "compare", runs, "--figure", figure)
    errors = {
        rate: [100 * final(runs / f"rate{rate}" / f"seed{seed}")["test_error"] for seed in range(3)]
        for rate in RATES
    }
    assert re.split("  +", lines[0]) == ["group", "runs", "train error", "test error"]
    for line, rate in zip(lines[1:], ("0.02", "0.1"), strict=False):
        mean, std = statistics.fmean(errors[rate]), statistics.stdev(errors[rate])
        label, count, _, test = re.split("  +", line)
        assert (label, count) == (f"learning_rate={rate}", "3")
        assert test == f"{mean:.2f} % ({std:.2f})"
    difference = np.subtract(errors["0.1"], errors["0.02"])
    low, high = scipy.stats.t.interval(
        0.95, 2, difference.mean(), difference.std(ddof=1) / np.sqrt(3)
    )
    assert lines[4] == (
        f"learning_rate=0.1 less learning_rate=0.02: {difference.mean():+.2f} points of test "
        f"error, 95 % interval {low:+.2f} to {high:+.2f}, paired over 3 seeds"
    )
    assert len(lines) == 5 and np.asarray(Image.open(figure)).std() > 1
    arguments = ("--figure", tmp_path / "other.png", "--json")
    found = json.loads("\n".join(printed(capsys, "compare", runs, *arguments)))
    assert found["differences"][0]["interval"] == pytest.approx([low, high])
    assert [len(each["runs"]) for each in found["groups"]] == [3, 3]


def test_compare_leaves_averages_out_and_refuses_equal_runs(runs, tmp_path, capsys):
    one, other = runs / "rate0.1" / "seed0", runs / "rate0.1" / "seed1"
    start(["average", str(one), "--batches", "1", "--output-dir", str(tmp_path / "average")])
    lines = printed(capsys, "compare", one, other, tmp_path / "average")
    assert re.split("  +", lines[1])[:2] == ["all runs", "2"] and len(lines) == 3
    shutil.copytree(one, tmp_path / "again")
    with pytest.raises(InputError, match=r"have the same options and seed \(all runs, seed 0\)"):
        start(["runs", "compare", str(one), str(tmp_path / "again")])
    with pytest.raises(InputError, match="allowed: two training runs or more, without"):
        start(["runs", "compare", str(one), str(tmp_path / "average")])
    for name, message in (("a.txt", r"a file \.png"), ("b.png", "a new file")):
        (tmp_path / "b.png").write_bytes(b"")
        figure = ["--figure", str(tmp_path / name)]
        with pytest.raises(InputError, match=f"figure is .*; allowed: {message}"):
            start(["runs", "compare", str(one), str(other), *figure])


def test_groups_differ_in_options_alone(runs, tmp_path):
    init_run_dir(tmp_path / "deep", train_config("cifar_plain32", width=2, epochs=2))
    summaries = [summarize_run(runs / "rate0.1" / "seed0"), summarize_run(tmp_path / "deep")]
    assert [*group_by_options(summaries)] == [
        "model=cifar_plain20, batch_size=240",
        "model=cifar_plain32, batch_size=128",
    ]


@pytest.mark.parametrize(
    ("interval", "mean", "words"),
    [
        ((-3.0, 1.0), -1.0, "No difference in test error is shown (95 % interval -3.00 to +1.00"),
        ((-3.0, -1.0), -2.0, "b: test error 2.00 points lower (95 % interval 1.00 to 3.00"),
        ((1.0, 3.0), 2.0, "b: test error 2.00 points higher (95 % interval 1.00 to 3.00"),
    ],
)
def test_the_title_of_the_curves_is_the_finding(interval, mean, words):
    rows = [{"label": label, "test_error": 5.0} for label in "ab"]
    difference = {"other": "b", "first": "a", "interval": interval, "mean": mean, "seeds": 6}
    assert finding(rows, [difference]) == f"{words}, 6 seeds)"


def test_the_title_without_pairs_names_the_lowest_error():
    row = {"test_error_std": 0.5, "done": 3, "runs": ["x"] * 3}
    rows = [row | {"label": "a", "test_error": 5.0}, row | {"label": "b", "test_error": 4.0}]
    assert finding(rows, []) == "Lowest mean test error: b, 4.00 % (0.50), 3 seeds"
    assert finding(rows[:1], []) == "Test error ends at 5.00 % (0.50), 3 seeds"
    assert finding([row | {"label": "a", "test_error": None}], []) == "No run is done yet"


def test_checkpoints_as_json(runs, capsys):
    run, other = runs / "rate0.02" / "seed1", runs / "rate0.02" / "seed2"

    def document(*arguments):
        return json.loads("\n".join(printed(capsys, *arguments, "--json")))

    step, value = digest(run)
    assert document("digest", run) == {"run": str(run), "step": step, "digest": value}
    newest = document("verify", run)["checkpoints"][-1]
    assert (newest["step"], newest["digest"]) == (step, value) and newest["bytes"] > 0
    assert document("diff", run, run)["differences"] == []
    assert document("diff", run, other)["differences"]


def test_progress_within_an_epoch_and_incidents(runs):
    run = summarize_run(runs / "rate0.1" / "seed0")
    progress = {"step": 10, "note": "loss 0.500", "seconds_left": 61}
    assert runs_watch.describe_progress(run, progress) == (
        "step 10 of 10 (100%), loss 0.500, 1 min 1 s left"
    )
    assert runs_watch.describe_progress(run, None) == "step 10 of 10"
    for row, words in (
        ({"kind": "skipped", "step": 7}, "step 7 was skipped: not finite, or a spike"),
        ({"kind": "rollback", "step": 5, "bad_step": 8}, "step 8 was bad; back to step 5"),
        ({"kind": "damaged", "step": 3, "image": "a.jpg", "why": "empty"}, "a.jpg cannot be"),
    ):
        assert words in runs_watch.describe_row(run, row, [])
    assert runs_watch.describe_row(run, {"kind": "trace", "step": 3}, []) == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lst"], "action 'lst' is unknown; did you mean 'list'"),
        (["show"], "RUN"),
        (["show", "none"], "none holds no config.json"),
        (["verify", "none"], "none holds no checkpoint"),
        (["watch", "none", "--interval", "0"], "interval is 0.0; allowed: above 0 seconds"),
        (["compare", "none"], "none does not exist"),
    ],
)
def test_mistakes_are_one_line(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as raised:
        start(["runs", *arguments])
    assert message in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_shows_each_action(arguments, capsys):
    lines = printed(capsys, *arguments)
    shown = re.findall(r"deepjax runs (\w+) ", "\n".join(lines))
    assert shown == ["list", "show", "watch", "compare", "verify", "digest", "diff"]
