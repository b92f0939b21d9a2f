"""Metrics of each kind of data set: several labels, none, 200 of the classes; and their text."""

import dataclasses
import json

import numpy as np
import pytest

from deepjax.data import dataset_info
from deepjax.errors import InputError
from deepjax.evaluation.accuracy import label_table
from deepjax.evaluation.images import read_labels
from deepjax.evaluation.metrics import compute_metrics, format_metrics, metrics_row
from deepjax.evaluation.paper_results import PAPER_RESULTS, find_paper_results
from deepjax.evaluation.predict import log_softmax
from deepjax.models import list_models
from experiments.imagenet_history import RESNET
from tests.data.photographs import crops
from tests.evaluation.reference import DATASET, split_of

REAL = dataclasses.replace(DATASET, name="real", label="real_label")


def log_probabilities(images, classes):
    return log_softmax(
        np.random.default_rng(images).standard_normal((images, classes)).astype(np.float32)
    )


def test_by_hand():
    """Class 0 has the rest: correct with 0.7, 0.62 and 0.55, wrong with 0.62, in the same bin of
    15.
    """
    own = np.array([0.7, 0.62, 0.55, 0.38])
    scores = np.full((4, 12), 1e-12)
    scores[:, 0], scores[range(4), [1, 2, 3, 4]] = 1 - own, own
    found = compute_metrics(np.log(scores), label_table([1, 2, 3, 4]), DATASET)
    assert (found.images, found.counted, found.classes, found.not_finite) == (4, 4, 12, 0)
    assert found.top1_error == 0.25 and found.top5_error == 0.0
    assert found.ece == pytest.approx((0.3 + abs(1 - 2 * 0.62) + 0.45) / 4)
    assert found.nll == pytest.approx(-np.mean(np.log(own)))
    assert found.brier == pytest.approx(np.mean(2 * (1 - own) ** 2))


def test_images_without_a_label_do_not_count_and_any_of_several_is_right():
    """ReaL; the records hold lists, as tfds's imagenet2012_real."""
    split = split_of(crops(4, shortest=8, longest=12), [[3, 5], [], [0], [1, 2]])
    split = dataclasses.replace(
        split, dataset=REAL, records=[r | {"real_label": r["label"]} for r in split.records]
    )
    labels = read_labels(split)
    assert labels.tolist() == [[3, 5], [-1, -1], [0, -1], [1, 2]]
    scores = np.full((4, 12), -10.0, np.float32)
    scores[range(4), [5, 0, 1, 2]] = 0  # right, uncounted, wrong, right
    found = compute_metrics(log_softmax(scores), labels, REAL)
    assert (found.images, found.counted, found.top1_error) == (4, 3, pytest.approx(1 / 3))
    assert found.nll is None and found.brier is None
    assert "3 of 4 images of 12 classes" in format_metrics(found, [])[0]


def test_of_imagenet_a_and_r_the_classes_that_occur_are_guessed_among():
    """Six classes of ten; the others' probabilities are ignored (Hendrycks et al. 2019)."""
    dataset = dataclasses.replace(DATASET, name="few", builder="imagenet_r")
    labels = np.arange(40) % 6 * 2
    scores = log_probabilities(40, 12)
    scores[:, 1] = 5.0
    found = compute_metrics(log_softmax(scores), labels[:, None], dataset)
    assert found.classes == 6
    best = np.array([max((row[c], -c) for c in range(0, 12, 2))[1] for row in scores])
    assert found.top1_error == np.mean(-best != labels)
    assert compute_metrics(log_softmax(scores), labels[:, None], DATASET).top1_error == 1.0
    assert found.top5_error is None  # five of six guesses


def test_an_image_with_a_nan_is_wrong_and_reported():
    scores = log_probabilities(5, 12)
    labels = scores.argmax(axis=1)[:, None]
    scores[2, 3] = np.nan
    found = compute_metrics(scores, labels, DATASET)
    assert found.top1_error == found.top5_error == pytest.approx(0.2)
    assert found.not_finite == 1 and "NOT FINITE: 1 images" in format_metrics(found, [])[0]
    others = compute_metrics(np.delete(scores, 2, axis=0), np.delete(labels, 2, axis=0), DATASET)
    for name in ("ece", "ece_adaptive", "nll", "brier"):
        assert getattr(found, name) == getattr(others, name)


def test_where_nothing_is_finite_no_number_is_made_up():
    found = compute_metrics(np.full((3, 12), np.nan), np.zeros((3, 1), int), DATASET)
    assert (found.top1_error, found.ece, found.nll, found.brier, found.not_finite) == (
        1.0,
        None,
        None,
        None,
        3,
    )
    json.dumps(metrics_row(found), allow_nan=False)
    assert "ECE 0" not in format_metrics(found, [])[0]


def test_a_set_without_labels_is_refused():
    with pytest.raises(
        InputError,
        match="dataset is 'photographs'; allowed: one with labels; none of its 3 images has any",
    ):
        compute_metrics(log_probabilities(3, 12), np.full((3, 1), -1), DATASET)


def test_published_numbers():
    """Consistent with each other and the papers' texts.

    VGG, ResNet Tables 3 and 4, GoogLeNet Table 3.
    """
    assert {row.model for row in PAPER_RESULTS} <= set(list_models())
    by = {(row.model, row.protocol, row.sides, row.note): row.top5 for row in PAPER_RESULTS}
    assert len(by) == len(PAPER_RESULTS)
    assert all(row.top1 is None or row.top5 is None or row.top5 < row.top1 for row in PAPER_RESULTS)
    (ten,), (scales,) = (
        find_paper_results("resnet152_v1", "10-crop"),
        find_paper_results("resnet152_v1", "multi-scale"),
    )
    assert ten.top5 == RESNET["one network, 10 crops, validation images"]
    assert scales.top5 == RESNET["one network, several scales, validation images"]
    assert [row.top5 for row in find_paper_results("googlenet", "144-crop")] == [7.89]
    assert (
        find_paper_results("vgg16", "dense")[0].top1 == 27.0
        and len(find_paper_results("vgg16", "dense")) == 3
    )
    (asp,) = (row for row in find_paper_results("resnetv2_200", "1-crop") if row.note)
    assert (asp.crop, asp.top1, asp.top5) == (320, 20.1, 4.8)  # He et al. 2016, Table 5


def test_published_results_are_printed():
    found = compute_metrics(
        log_probabilities(50, 1000), np.arange(50)[:, None], dataset_info("imagenet2012")
    )
    told = format_metrics(found, find_paper_results("googlenet", "10-crop"))
    assert told[0].startswith("imagenet2012: 50 images of 1000 classes; top-1 error ")
    assert (
        told[1] == "  published: top-1 / top-5 error - / 9.15 % (Szegedy et al. 2014, Table 3; "
        "10-crop of 224 at 256)"
    )
