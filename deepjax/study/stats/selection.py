"""Selecting a learning rate from pilots, and the error that the selection leaves behind."""

import functools
from collections.abc import Mapping, Sequence

import numpy as np

HOPELESS = 0.1
"""A rate that is so much worse cannot be the best; the noise of its runs, some of which may have
diverged, says nothing about the others."""
SAMPLES = 4000  # of the pilots' means, for the probability that another rate is the best


def best_rate(selected_by: Mapping[float, Sequence[float]]) -> float:
    """The rate of the least mean error over pilot seeds; of ties the highest rate."""
    return min(selected_by, key=lambda rate: (float(np.mean(selected_by[rate])), -rate))


def is_interior(rates: Sequence[float], best: float) -> bool:
    """Whether the best rate has a lower and a higher neighbour on the grid."""
    return min(rates) < best < max(rates)


def selection_error(
    selected_by: Mapping[float, Sequence[float]], errors: Mapping[float, Sequence[float]]
) -> float:
    """Standard deviation of an error that comes from the choice of the rate.

    Each rate is the truly best one with a probability that follows from the pilots: their means of
    `selected_by`, with the noise that their seeds show (paired: the seeds' common part cancels
    between rates), sampled by a multivariate t of the noise's degrees of freedom. The result is the
    root mean square of the distance in `errors` from the selected rate to the truly best. Both
    arguments: by rate, seed by seed, fractions. A rate whose mean is worse than
    the best one's by `HOPELESS` is left out.
    """
    if len(selected_by) < 2 or min(map(len, selected_by.values())) < 2:
        raise ValueError("the selection error needs two rates and two pilot seeds or more")
    chosen = best_rate(selected_by)
    most = float(np.mean(selected_by[chosen])) + HOPELESS
    rates = sorted(rate for rate, each in selected_by.items() if np.mean(each) <= most)
    if len(rates) < 2:
        return 0.0
    found = np.array([selected_by[rate] for rate in rates], np.float64)
    means = found.mean(1)
    rest = found - found.mean(1, keepdims=True) - found.mean(0, keepdims=True) + found.mean()
    freedom = (found.shape[0] - 1) * (found.shape[1] - 1)
    noise = np.sqrt((rest**2).sum() / freedom / found.shape[1])
    sampled = means + noise * _samples(freedom, len(rates))
    chances = np.bincount(sampled.argmin(1), minlength=len(rates)) / SAMPLES
    at = np.array([np.mean(errors[rate]) for rate in rates])
    return float(np.sqrt((chances * (at - at[rates.index(chosen)]) ** 2).sum()))


@functools.lru_cache(maxsize=16)
def _samples(freedom: int, count: int) -> np.ndarray:
    """Samples of a multivariate t of independent components, (SAMPLES, count)."""
    random = np.random.default_rng(0)
    scale = 1 / np.sqrt(random.chisquare(freedom, (SAMPLES, 1)) / freedom)
    return scale * random.standard_normal((SAMPLES, count))
