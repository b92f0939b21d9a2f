"""The record of pilots: rates, errors by seed, and the power that they promise."""

import dataclasses
import json

import numpy as np
import pytest

from deepjax.study.arms.rates import read_rates
from deepjax.study.claim import FAMILY
from deepjax.study.pilots import sweep
from deepjax.study.pilots.record import conclude_pilots, print_rates, promised_power
from deepjax.study.pilots.sweep import run_pilots
from deepjax.study.preset import Preset
from deepjax.study.stats.intervals import PILOT_SEEDS, Components
from deepjax.study.stats.power import power_with
from deepjax.study.study import pilot_arms
from tests.study import toy
from tests.study.pilots.planted import planted_runner

PRESET = Preset("digits", 6, training=toy.TRAINING, grid=(0.05, 0.1, 0.2))


@pytest.fixture
def concluded(monkeypatch, tmp_path):
    """The directory of the toy study's pilots, and the rates that they selected."""
    arms = pilot_arms(toy.STUDY, PRESET)
    curves = {
        "deep": lambda at: 0.1 + 0.02 * abs(at - 1),
        "shallow": lambda at: 0.08 + 0.01 * at**2,
    }
    for name, arm in arms.items():
        monkeypatch.setattr(sweep, "Runner", planted_runner(curves[name]))
        run_pilots(arm, PRESET.grid, tmp_path, None, lambda *_: None)
    return tmp_path, conclude_pilots(toy.STUDY, "small", PRESET, arms, tmp_path, 1.0)


def test_repeated_arms_have_no_pilots_of_their_own():
    arms = pilot_arms(toy.STUDY, PRESET)
    assert list(arms) == ["deep", "shallow"]
    assert arms["deep"].seeds == tuple(range(1000, 1000 + PILOT_SEEDS))
    assert pilot_arms(toy.STUDY, dataclasses.replace(PRESET, rate=0.1)) == {}
    assert pilot_arms(toy.STUDY, dataclasses.replace(PRESET, pilots="other")) == {}


def test_the_rates_are_written_with_every_error(concluded, capsys):
    out, rates = concluded
    assert read_rates(out / "rates.json") == rates
    assert {name: rate.rate for name, rate in rates.items()} == {"deep": 0.2, "shallow": 0.1}
    record = json.loads((out / "pilots.json").read_text())
    deep = record["arms"]["deep"]
    assert list(deep["errors"]["train"]) == ["0.05", "0.1", "0.2", "0.4"]
    expected = 0.1 + 0.001 * np.arange(PILOT_SEEDS)
    np.testing.assert_allclose(deep["errors"]["test"]["0.2"], expected, atol=1 / 360)
    assert deep["selection"] == {
        "train": rates["deep"].train_error,
        "test": rates["deep"].test_error,
    }
    print_rates(rates)
    assert "deep                     rate 0.2; " in capsys.readouterr().out


def test_power_is_promised_for_claims_on_errors_alone(concluded):
    """That of the difference of both arms, on the same images, with the preset's seeds."""
    out, _ = concluded
    [(text, promise)] = json.loads((out / "pilots.json").read_text())["power"].items()
    assert (text, promise["interest"], promise["level"]) == ("Deep is worse.", 1.0, 0.05)
    assert 0 < promise["power"] <= 1


@pytest.mark.parametrize("headline", [False, True])
@pytest.mark.parametrize("seeds", [6, 12])
def test_power_by_hand(headline, seeds):
    """One arm of pilots that differ by a point, on images that are equally difficult."""
    wrong = np.add.outer(0.10 + 0.01 * np.arange(PILOT_SEEDS), np.zeros(50))
    errors = {"deep": {split: {0.1: wrong} for split in ("train", "test")}}
    rates = {"deep": toy.SelectedRate(0.1)}
    claim = dataclasses.replace(
        toy.CLAIMS[0], quantity=toy.error("deep"), headline=headline, interest=2.0
    )
    study = dataclasses.replace(toy.STUDY, claims=(claim, *toy.CLAIMS[1:]))
    preset = dataclasses.replace(PRESET, seeds=seeds)
    [promise] = promised_power(study, preset, rates, errors, pilot_arms(study, preset)).values()
    level = 0.05 / FAMILY if headline else 0.05
    found = Components(float(np.arange(PILOT_SEEDS).std(ddof=1)) / np.sqrt(seeds), 0.0, 0.0)
    assert promise["power"] == pytest.approx(power_with(found, seeds, 50, 2.0, level))
