"""The record of pilots: rates, errors by seed, and the power that they promise."""

import dataclasses
import json

import numpy as np
import pytest

from deepjax.study.arms.rates import read_rates
from deepjax.study.arms.result import ArmResult
from deepjax.study.arms.runs import collect
from deepjax.study.claim import FAMILY
from deepjax.study.pilots import sweep
from deepjax.study.pilots.record import (
    print_pilots,
    promised_power,
    select_rates,
    write_record,
)
from deepjax.study.pilots.sweep import run_pilots
from deepjax.study.preset import Preset
from deepjax.study.results import StudyResults
from deepjax.study.stats.intervals import PILOT_SEEDS, Components
from deepjax.study.stats.power import power_with
from deepjax.study.study import has_pilots, pilot_arms, study_seeds, trained_arms
from tests.study import toy
from tests.study.pilots.planted import planted_runner

PRESET = Preset("digits", 6, training=toy.TRAINING, grid=(0.05, 0.1, 0.2))


@pytest.fixture
def piloted(monkeypatch, tmp_path):
    """The directory of the toy study's pilots, the rates that they selected, and the record."""
    arms = pilot_arms(toy.STUDY, PRESET)
    curves = {
        "deep": lambda at: 0.1 + 0.02 * abs(at - 1),
        "shallow": lambda at: 0.08 + 0.01 * at**2,
    }
    for name, arm in arms.items():
        monkeypatch.setattr(sweep, "Runner", planted_runner(curves[name]))
        run_pilots(arm, PRESET.grid, tmp_path, None, lambda *_: None)
    rates = select_rates(toy.STUDY, "small", PRESET, arms, tmp_path)
    at_rates = trained_arms(toy.STUDY, PRESET, rates, pilots=True)
    results = {name: collect(at_rates[name], tmp_path) for name in arms}
    found = StudyResults(PRESET, study_seeds(PRESET, pilots=True), results)
    study = dataclasses.replace(toy.STUDY, claims=toy.CLAIMS[:1])  # nothing is measured here
    return tmp_path, rates, write_record(study, "small", rates, arms, found, tmp_path, 1.0)


def test_repeated_arms_have_no_rate_of_their_own():
    arms = pilot_arms(toy.STUDY, PRESET)
    assert list(arms) == ["deep", "shallow"]
    assert arms["deep"].seeds == tuple(range(1000, 1000 + PILOT_SEEDS))
    assert pilot_arms(toy.STUDY, dataclasses.replace(PRESET, rate=0.1)) == {}
    assert pilot_arms(toy.STUDY, dataclasses.replace(PRESET, pilots="other")) == {}


def test_a_study_without_arms_of_its_own_has_pilots_for_the_power_of_its_claims():
    assert has_pilots(toy.STUDY, dataclasses.replace(PRESET, pilots="other"))
    assert not has_pilots(toy.STUDY, dataclasses.replace(PRESET, judged=False))
    exact = dataclasses.replace(toy.STUDY, arms={}, claims=toy.CLAIMS[3:])
    assert not has_pilots(exact, PRESET)


def test_the_rates_are_written_with_every_error(piloted, capsys):
    out, rates, record = piloted
    assert read_rates(out / "rates.json") == rates
    assert {name: rate.rate for name, rate in rates.items()} == {"deep": 0.2, "shallow": 0.1}
    assert json.loads((out / "pilots.json").read_text()) == record
    deep = record["arms"]["deep"]
    assert list(deep["errors"]["train"]) == ["0.05", "0.1", "0.2", "0.4"]
    expected = 0.1 + 0.001 * np.arange(PILOT_SEEDS)
    np.testing.assert_allclose(deep["errors"]["test"]["0.2"], expected, atol=1 / 360)
    assert deep["selection"] == {
        "train": rates["deep"].train_error,
        "test": rates["deep"].test_error,
    }
    print_pilots(rates, record["power"])
    printed = capsys.readouterr().out
    assert "deep                     rate 0.2; " in printed and "power at 1: Deep is" in printed


def pilots_of(deep=None, measured=()):
    """Results on the seeds of pilots: errors of one arm, (seeds, images), or measured values."""
    arms = {}
    if deep is not None:
        arms["deep"] = ArmResult(0.1, [], {"train": deep, "test": deep}, "digits", "deep",
                                 {"train": 0.0, "test": 0.0})  # fmt: skip
    return StudyResults(PRESET, study_seeds(PRESET, pilots=True), arms, measured)


@pytest.mark.parametrize("headline", [False, True])
@pytest.mark.parametrize("seeds", [6, 12])
def test_power_by_hand(headline, seeds):
    """Pilots that differ by a point, on images that are equally difficult; or a measured value."""
    spread = float(np.arange(PILOT_SEEDS).std(ddof=1)) / np.sqrt(seeds)
    level = 0.05 / FAMILY if headline else 0.05
    wrong = np.add.outer(0.10 + 0.01 * np.arange(PILOT_SEEDS), np.zeros(50))
    values = [{"x": float(seed)} for seed in range(PILOT_SEEDS)]
    for quantity, results, images in (
        (toy.error("deep"), pilots_of(deep=wrong), 50),
        (toy.measured("x"), pilots_of(measured=values), 1),
    ):
        claim = dataclasses.replace(
            toy.CLAIMS[0], quantity=quantity, headline=headline, interest=2.0
        )
        study = dataclasses.replace(toy.STUDY, claims=(claim, *toy.CLAIMS[3:]))
        results = dataclasses.replace(results, preset=dataclasses.replace(PRESET, seeds=seeds))
        [promise] = promised_power(study, results).values()
        expected = power_with(Components(spread, 0.0, 0.0), seeds, images, 2.0, level)
        assert promise["power"] == pytest.approx(expected)


def test_no_power_is_promised_where_a_seed_has_no_value():
    results = pilots_of(measured=[{"x": 1.0}] * (PILOT_SEEDS - 1) + [None])
    claim = dataclasses.replace(toy.CLAIMS[0], quantity=toy.measured("x"))
    study = dataclasses.replace(toy.STUDY, claims=(claim,))
    assert promised_power(study, results)["Deep is worse."]["power"] == 0.0
