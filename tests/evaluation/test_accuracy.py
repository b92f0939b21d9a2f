"""Top-k counted by hand, ties and NaN, confidence intervals, and labels of every kind."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepjax.errors import InputError
from deepjax.evaluation.accuracy import (
    count_top_k,
    label_ranks,
    label_table,
    top_k,
    wilson_interval,
)


@pytest.mark.parametrize(("images", "classes"), [(1, 1), (1, 7), (3, 5), (13, 10), (17, 1000)])
def test_top_k_is_membership_of_the_sorted_list(images, classes):
    rng = np.random.default_rng(images)
    scores, labels = rng.standard_normal((images, classes)), rng.integers(0, classes, images)
    for k in {1, min(5, classes), classes}:
        best = [sorted(range(classes), key=lambda c, i=i: -scores[i, c])[:k] for i in range(images)]
        assert top_k(scores, labels, k).tolist() == [
            label in of for label, of in zip(labels, best, strict=True)
        ]


@given(
    st.lists(st.sampled_from([0.0, 1.0, 2.0, math.inf, -math.inf]), min_size=2, max_size=6),
    st.data(),
)
def test_of_equal_scores_the_smaller_class_is_first(scores, data):
    label = data.draw(st.integers(0, len(scores) - 1))
    order = sorted(range(len(scores)), key=lambda c: (-scores[c], c))  # a stable sort is the rule
    rank = label_ranks(np.array([scores]), np.array([label]))[0]
    assert rank == order.index(label)
    assert (rank == 0) == (np.argmax(scores) == label)


def test_a_nan_is_wrong_for_every_k():
    scores = np.array([[3.0, np.nan, 1.0], [3.0, 2.0, 1.0]])
    assert top_k(scores, np.array([0, 0]), 3).tolist() == [False, True]


@pytest.mark.parametrize("k", [0, -1, 4])
def test_k_is_a_number_of_classes(k):
    with pytest.raises(InputError, match=r"k is .*; allowed: 1 to 3"):
        top_k(np.zeros((2, 3)), np.zeros(2, int), k)


def test_several_labels_and_none():
    """ReaL: any of an image's labels is correct; one without labels is not counted (Beyer et al.

    2020).
    """
    labels = label_table([[2, 0], [], [1], 1])
    scores = np.array([[0.1, 0.7, 0.2], [1, 0, 0], [0, 1, 0], [0, 1, 0]])
    assert labels.tolist() == [[2, 0], [-1, -1], [1, -1], [1, -1]]
    assert top_k(scores, labels, 1).tolist() == [False, False, True, True]
    assert top_k(scores, labels, 2).tolist() == [True, False, True, True]
    assert count_top_k(scores, labels, 1) == (2, 3)
    assert label_table([]).shape == (0, 1)


@pytest.mark.parametrize(
    ("correct", "images"), [(0, 1), (1, 1), (3, 10), (38_065, 50_000), (50_000, 50_000)]
)
def test_wilson_solves_its_equation(correct, images):
    """The ends p are where |correct / images - p| is z times the std at p (Wilson 1927)."""
    z, accuracy = 1.959964, correct / images
    for end in wilson_interval(correct, images):
        assert abs(accuracy - end) == pytest.approx(
            z * math.sqrt(end * (1 - end) / images), abs=1e-6
        )
    assert (
        0
        <= wilson_interval(correct, images)[0]
        <= accuracy
        <= wilson_interval(correct, images)[1]
        <= 1
    )
    with pytest.raises(InputError, match="correct is 11"):
        wilson_interval(11, 10)


def test_wilson_covers():
    """Over all outcomes of 40 trials at p = 0.9, by their probability, coverage is 93 to 98 %."""
    inside = [
        low <= 0.9 <= high for low, high in (wilson_interval(right, 40) for right in range(41))
    ]
    weights = [math.comb(40, right) * 0.9**right * 0.1 ** (40 - right) for right in range(41)]
    assert 0.93 < sum(itertools.compress(weights, inside)) < 0.98
