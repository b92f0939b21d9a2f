"""The grid of pilots, on planted error curves: extended until the best rate is interior."""

import dataclasses

import numpy as np
import pytest

from deepjax.data import dataset_info
from deepjax.errors import InputError
from deepjax.study.arms.arm import arm_config
from deepjax.study.pilots import sweep
from deepjax.study.pilots.sweep import missing_rates, pilot_errors, run_pilots, selected_rate
from deepjax.study.stats.selection import selection_error
from deepjax.training.config import replace_options
from tests.study import toy
from tests.study.pilots.planted import planted_runner
from tests.study.toy import trained_arm

GRID = (0.05, 0.1, 0.2)


@pytest.fixture
def pilots(monkeypatch, tmp_path):
    """Runs the pilots of the shallow arm on a planted curve, and returns the arm and directory."""
    arm = trained_arm("shallow", seeds=(1000, 1001, 1002))

    def run(curve, grid=GRID):
        monkeypatch.setattr(sweep, "Runner", planted_runner(curve))
        run_pilots(arm, grid, tmp_path, None, lambda *_: None)
        return arm, tmp_path

    return run


def valley(at):
    """An error of 10 % at so many octaves from 0.1, and 2 points more an octave away."""
    return lambda octave: 0.1 + 0.02 * abs(octave - at)


@pytest.mark.parametrize(
    ("at", "tried"),
    [
        (0, GRID),
        (1, (*GRID, 0.4)),
        (2.2, (*GRID, 0.4, 0.8)),
        (-3, (0.00625, 0.0125, 0.025, *GRID)),
    ],
)
def test_it_is_extended_by_factors_of_2_until_the_best_rate_has_both_neighbours(pilots, at, tried):
    arm, out = pilots(valley(at))
    errors = pilot_errors(arm, GRID, out)
    assert tuple(errors["train"]) == tuple(errors["test"]) == tried
    assert missing_rates(arm, GRID, out) == []
    found = selected_rate(arm, errors)
    assert found.rate == 0.1 * 2 ** round(at)
    assert found.train_error == 0  # the planted seeds move all rates alike


def test_diverged_rates_guess_and_are_not_selected(pilots):
    arm, out = pilots(lambda octave: 2.0 if octave > 0 else 0.1 - 0.01 * octave)
    errors = pilot_errors(arm, GRID, out)
    assert errors["test"][0.2].mean() == pytest.approx(0.9)
    assert selected_rate(arm, errors).rate == 0.1


def test_what_the_choice_leaves_is_that_of_training_errors_at_test_errors(pilots):
    arm, out = pilots(valley(0.4))
    errors = pilot_errors(arm, GRID, out)
    by_split = {
        split: {rate: wrong.mean(1).tolist() for rate, wrong in by_rate.items()}
        for split, by_rate in errors.items()
    }
    found = selected_rate(arm, errors)
    assert found.train_error == selection_error(by_split["train"], by_split["train"])
    assert found.test_error == selection_error(by_split["train"], by_split["test"])


def test_held_out_images_select_where_the_runs_are_tested_on_them(pilots, monkeypatch):
    arm, out = pilots(valley(0))
    validated = dataclasses.replace(
        arm, validation=True, config=arm_config(toy.ARMS["shallow"], "digits", toy.TRAINING, True)
    )
    assert dataset_info(validated.config.dataset).test_split == f"train[{1437 - 1437 // 8}:]"
    assert (
        validated.run_dir(out, 0.1, 1000) == out / "validation_runs" / "shallow" / "lr0.1-seed1000"
    )
    on_validated = {rate: np.full((3, 2), rate) for rate in GRID}
    errors = pilot_errors(arm, GRID, out) | {"test": on_validated}
    assert selected_rate(arm, errors).rate == 0.1
    assert selected_rate(validated, errors).rate == 0.05


def test_a_curve_without_an_optimum_is_refused_at_the_end_of_all_rates(pilots):
    with pytest.raises(InputError, match=r"arm 'shallow' is best at 12\.8, the end of all"):
        pilots(lambda octave: 0.5 - 0.01 * octave)


def test_pilots_that_are_interrupted_need_what_is_missing(pilots, tmp_path):
    arm, out = pilots(valley(1))
    for seed in arm.seeds[1:]:
        path = arm.run_dir(out, 0.4, seed)
        path.rename(tmp_path / f"moved{seed}")
    assert missing_rates(arm, GRID, out) == [0.4]
    arm.run_dir(out, 0.1, 1000).rename(tmp_path / "moved")
    assert missing_rates(arm, GRID, out) == [0.1]


def test_pilots_of_another_configuration_are_refused(pilots):
    arm, out = pilots(valley(0))
    other = dataclasses.replace(arm, config=replace_options(arm.config, momentum=0.5))
    for use in (missing_rates, pilot_errors):
        with pytest.raises(InputError, match="is a run of another configuration"):
            use(other, GRID, out)
