"""Selecting a learning rate from pilots, and the error that the selection leaves behind."""

import functools
from collections.abc import Mapping, Sequence

import numpy as np

HOPELESS = 0.1
"""A rate that is so much worse cannot be the best; the noise of its runs, some of which may have
diverged, says nothing about the others."""
SAMPLES = 4000  # of the pilots' means, for the probability that another rate is the best


def best_rate(train_errors: Mapping[float, Sequence[float]]) -> float:
    """The rate of the least mean training error over pilot seeds; of ties the highest rate."""
    return min(train_errors, key=lambda rate: (float(np.mean(train_errors[rate])), -rate))


def is_interior(rates: Sequence[float], best: float) -> bool:
    """Whether the best rate has a lower and a higher neighbour on the grid."""
    return min(rates) < best < max(rates)


def selection_error(
    train_errors: Mapping[float, Sequence[float]], errors: Mapping[float, Sequence[float]]
) -> float:
    """Standard deviation of an error that comes from the choice of the rate.

    Each rate is the truly best one with a probability that follows from the pilots: their means of
    the training error, with the noise that their seeds show (paired: the seeds' common part cancels
    between rates), sampled by a multivariate t of the noise's degrees of freedom. The result is the
    root mean square of the distance in `errors` (training or test) from the selected rate to the
    truly best. Both arguments: by rate, seed by seed, fractions. A rate whose mean is worse than
    the best one's by `HOPELESS` is left out.
    """
    if len(train_errors) < 2 or min(map(len, train_errors.values())) < 2:
        raise ValueError("the selection error needs two rates and two pilot seeds or more")
    chosen = best_rate(train_errors)
    most = float(np.mean(train_errors[chosen])) + HOPELESS
    rates = sorted(rate for rate, each in train_errors.items() if np.mean(each) <= most)
    if len(rates) < 2:
        return 0.0
    train = np.array([train_errors[rate] for rate in rates], np.float64)
    means = train.mean(1)
    rest = train - train.mean(1, keepdims=True) - train.mean(0, keepdims=True) + train.mean()
    freedom = (train.shape[0] - 1) * (train.shape[1] - 1)
    noise = np.sqrt((rest**2).sum() / freedom / train.shape[1])
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
