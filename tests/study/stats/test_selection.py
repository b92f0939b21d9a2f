"""The error that the choice of a learning rate leaves: closed forms and brute force."""

import numpy as np
import pytest

from deepjax.study.stats.selection import best_rate, is_interior, selection_error


def test_the_best_rate_has_the_least_mean_and_of_ties_the_highest_rate_wins():
    assert best_rate({0.1: [0.2, 0.4], 0.2: [0.25, 0.25], 0.4: [0.3, 0.4]}) == 0.2
    assert best_rate({0.1: [0.25, 0.25], 0.2: [0.2, 0.3]}) == 0.2


def test_a_rate_is_interior_between_two_others():
    assert is_interior([0.4, 0.1, 0.2], 0.2)
    assert not is_interior([0.4, 0.1, 0.2], 0.4) and not is_interior([0.1, 0.2], 0.1)


def test_a_choice_without_noise_leaves_no_error():
    """Seeds that move all rates alike are no noise between rates."""
    seeds = np.array([0.0, 0.05, -0.02])
    train = {rate: error + seeds for rate, error in ((0.1, 0.3), (0.2, 0.2), (0.4, 0.25))}
    assert selection_error(train, train) == 0


def test_a_clear_choice_leaves_next_to_none():
    """Differences of 50 times the noise of the means."""
    random = np.random.default_rng(0)
    train = {
        rate: error + 0.001 * random.standard_normal(3)
        for rate, error in ((0.1, 0.23), (0.2, 0.2), (0.4, 0.23))
    }
    assert selection_error(train, train) < 1e-3


def test_two_rates_that_cannot_be_told_apart_leave_half_of_the_variance_of_their_distance():
    """Each is the best one with 1/2: the root mean square of 0 and the distance in test error."""
    noise = np.array([0.01, -0.01, 0.0])
    train = {0.1: 0.2 + noise, 0.2: 0.2 - noise}
    test = {0.1: [0.30] * 3, 0.2: [0.34] * 3}
    assert selection_error(train, test) == pytest.approx(0.04 / np.sqrt(2), rel=0.02)


def test_it_is_at_least_the_error_of_repeated_pilots():
    """Brute force: pilots of three rates are repeated; how far is the choice from the best?"""
    random = np.random.default_rng(1)
    true = {0.1: 0.205, 0.2: 0.2, 0.4: 0.207}
    lost, estimated = [], []
    for _ in range(1000):
        seeds = 0.01 * random.standard_normal(3)
        pilots = {rate: e + seeds + 0.005 * random.standard_normal(3) for rate, e in true.items()}
        lost.append(true[best_rate(pilots)] - true[0.2])
        estimated.append(selection_error(pilots, pilots))
    happened = np.sqrt(np.mean(np.square(lost)))
    assert happened < np.sqrt(np.mean(np.square(estimated))) < 3 * happened


def test_runs_that_diverged_say_nothing_about_the_other_rates():
    pilots = {0.1: [0.21, 0.20, 0.22], 0.2: [0.20, 0.21, 0.20], 0.4: [0.24, 0.23, 0.23]}
    unstable = pilots | {0.8: [0.25, 0.90, 0.90]}
    assert selection_error(unstable, unstable) == selection_error(pilots, pilots) > 0
    others_fail = {0.1: [0.9] * 3, 0.2: [0.2, 0.21, 0.2], 0.4: [0.2, 0.9, 0.9]}
    assert selection_error(others_fail, others_fail) == 0


@pytest.mark.parametrize("train", [{0.1: [0.2, 0.3]}, {0.1: [0.2], 0.2: [0.3]}])
def test_one_rate_or_one_seed_say_nothing(train):
    with pytest.raises(ValueError, match="two rates and two pilot seeds"):
        selection_error(train, train)
