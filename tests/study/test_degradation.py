"""The study end to end on networks of 8 and 14 layers: made, resumed, refused, and judged by rules that can fail."""

import dataclasses
import json
from pathlib import Path

import pytest

from deepjax.errors import InputError
from deepjax.study.arms import ArmResult, best_rate, collect
from deepjax.study.figures import log_ratio
from experiments import degradation
from experiments.degradation import Options, Preset, judge

TINY = Preset(epochs=1, batch_size=240, rates=(0.1, 0.03), expected="nothing", width=4, warmup_epochs=0.0)


@pytest.fixture(scope="module", autouse=True)
def tiny_preset():
    """A preset of seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(degradation.PRESETS, "digits", TINY)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("study")
    degradation.main(Options(seeds=2, depths=(20, 32), out=out, jobs=2))
    return out


def test_it_leaves_result_report_and_figures(finished):
    record = json.loads((finished / "result.json").read_text())
    assert [v["outcome"] in ("supported", "refuted", "inconclusive") for v in record["verdicts"]] == [True] * 3
    assert set(record["arms"]) == {"plain20", "plain32", "resnet20", "resnet32"}
    assert all(len(arm["train_error"]) == 2 and len(arm["sweep"]) == 2 for arm in record["arms"].values())
    page = (finished / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert "http" not in page.replace("https://archive.ics.uci.edu", "")  # self-contained
    for verdict in record["verdicts"]:
        assert verdict["claim"] in page and all(finding in page for finding in verdict["findings"])


def test_the_rate_is_the_best_of_the_sweep_and_the_sweep_is_reported(finished):
    for name, arm in json.loads((finished / "result.json").read_text())["arms"].items():
        sweep = {float(rate): error for rate, error in arm["sweep"].items()}
        assert arm["rate"] == best_rate(sweep), name
        assert arm["train_error"][0] == min(sweep.values())


def test_again_it_only_draws(finished, capsys):
    before = json.loads((finished / "result.json").read_text())
    degradation.main(Options(seeds=2, depths=(20, 32), out=finished, jobs=2))
    assert "was done already" in capsys.readouterr().out
    after = json.loads((finished / "result.json").read_text())
    assert {k: v for k, v in after.items() if k != "command"} == {k: v for k, v in before.items() if k != "command"}


def test_another_study_in_the_same_directory_is_refused(finished):
    with pytest.raises(InputError, match="seeds is 3, there 2"):
        degradation.main(Options(seeds=3, depths=(20, 32), out=finished))


def test_an_arm_alone_gives_the_same_numbers(finished, tmp_path, capsys):
    """What a scheduler runs as a job of its own is what the whole study runs: to the bit, whatever runs beside it."""
    degradation.main(Options(seeds=2, depths=(20, 32), out=tmp_path, arm="plain20"))
    assert "concludes the study" in capsys.readouterr().out
    assert not (tmp_path / "result.json").exists()
    arm = degradation.make_arms(Options(seeds=2, depths=(20, 32)))["plain20"]
    alone, together = collect(arm, tmp_path), collect(arm, finished)
    assert alone is not None and together is not None
    assert (alone.sweep, [rows[-1] for rows in alone.rows]) == (together.sweep, [rows[-1] for rows in together.rows])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"dataset": "digit"}, "did you mean 'digits'"),
        ({"seeds": 1}, "seeds is 1"),
        ({"depths": (56, 20)}, "depths"),
        ({"depths": (20,)}, "depths"),
        ({"depths": (20, 57)}, "cifar_plain57"),
        ({"jobs": -1}, "jobs"),
    ],
)
def test_options_out_of_range_are_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        Options(**wrong)


def test_an_unknown_arm_is_refused(tmp_path):
    with pytest.raises(InputError, match="did you mean 'plain56'"):
        degradation.main(Options(out=tmp_path, arm="plain65"))


def arm(train: float, test: float, ratio: float = 1.0) -> ArmResult:
    """An arm of three seeds with errors around the given ones, and gradients that shrink towards the input by `ratio`."""
    norms = {f"layer{i}": ratio if i < 3 else 1.0 for i in range(9)} | {"head": 50.0}
    rows = []
    for offset in (-0.001, 0.0, 0.001):
        first = {"kind": "first", "gradient_norms": norms}
        epoch = {"kind": "epoch", "gradient_norms": norms}
        rows.append([first, epoch, {"kind": "final", "train_error": train + offset, "test_error": test + offset}])
    return ArmResult({0.1: train}, 0.1, rows)


BASE = {"plain20": arm(0.1, 0.1), "plain56": arm(0.2, 0.2), "resnet20": arm(0.05, 0.05), "resnet56": arm(0.04, 0.04)}


@pytest.mark.parametrize(
    ("change", "outcomes"),
    [
        ({}, ["supported", "supported", "supported"]),
        ({"plain56": arm(0.05, 0.2)}, ["refuted", "supported", "supported"]),  # overfits: better on training, worse on test
        ({"plain56": arm(0.1, 0.1)}, ["inconclusive", "supported", "supported"]),
        ({"resnet56": arm(0.065, 0.06)}, ["supported", "supported", "supported"]),  # within the margin
        ({"resnet56": arm(0.2, 0.2)}, ["supported", "refuted", "supported"]),  # as bad as plain
        ({"resnet56": arm(0.07, 0.07)}, ["supported", "inconclusive", "supported"]),  # on the margin
        ({"plain56": arm(0.2, 0.2, 1e-3)}, ["supported", "supported", "refuted"]),  # vanished
    ],
)
def test_each_verdict_can_come_out_either_way(change, outcomes):
    assert [verdict.outcome for verdict in judge(BASE | change, (20, 56))] == outcomes


def test_the_ratio_leaves_the_classifier_out():
    norms = {"a": 1.0, "b": 2.0, "c": 4.0, "d": 10.0, "e": 20.0, "f": 40.0, "head": 1e6}
    assert log_ratio(norms) == pytest.approx(-1.301, abs=1e-3)  # median(1, 2) / median(20, 40)


def test_presets_of_the_paper():
    """64k iterations of 128, 0.1 divided at 32k and 48k, decay 1e-4 on everything, classical momentum (section 4.2)."""
    config = degradation.make_arms(Options(dataset="cifar10"))["plain56"].config
    assert (config.total_steps, config.batch_size, config.weight_decay, config.momentum) == (64_000, 128, 1e-4, 0.9)
    assert (config.schedule, config.milestones, config.decay_all, config.nesterov) == ("step", (0.5, 0.75), True, False)
    assert dataclasses.replace(config, learning_rate=0.1).warmup_epochs == 0
