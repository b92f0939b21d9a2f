"""Errors by class and confusion, compared with loops over the images."""

import numpy as np
import pytest

from deepjax.data import dataset_info
from deepjax.evaluation.accuracy import label_table
from deepjax.evaluation.class_errors import class_errors, class_errors_row, format_class_errors
from deepjax.evaluation.predict import log_softmax


def scores_of(images, classes, seed=0):
    rng = np.random.default_rng(seed)
    return log_softmax(rng.standard_normal((images, classes)).astype(np.float32))


@pytest.mark.parametrize(("dataset", "classes"), [("digits", 10), ("imagenet_a", 1000)])
def test_a_loop_over_the_images(dataset, classes):
    """With unlabelled images and a NaN; of ImageNet-A only classes that occur are predicted."""
    rng, scores = np.random.default_rng(1), scores_of(120, classes)
    labels = rng.choice([-1, 2, 3, 5, 7], 120)
    scores[np.flatnonzero(labels == 5)[0], 1] = np.nan
    allowed = {2, 3, 5, 7} if dataset == "imagenet_a" else set(range(classes))
    images, errors = [0] * classes, [0] * classes
    confusion = [[0] * classes for _ in range(classes)]
    for row, label in zip(scores, labels, strict=True):
        if label < 0:
            continue
        images[label] += 1
        predicted = max(allowed, key=lambda c, row=row: row[c])
        if np.isnan(row).any() or predicted != label:
            errors[label] += 1
        if not np.isnan(row).any():
            confusion[label][predicted] += 1
    names = [f"name {i}" for i in range(classes)]
    found = class_errors(scores, label_table(labels.tolist()), dataset_info(dataset), names)
    assert found is not None
    row = class_errors_row(found)
    assert [each["label"] for each in row["classes"]] == names
    assert [each["images"] for each in row["classes"]] == images
    assert [each["errors"] for each in row["classes"]] == errors
    assert row["classes"][3]["error"] == errors[3] / images[3]
    assert row["classes"][0]["error"] == 0
    assert row.get("confusion") == (confusion if classes == 10 else None)


def test_the_five_classes_of_the_greatest_error_are_printed():
    """Of ten images a class, class i is misclassified i times: 7 to 3."""
    labels, predicted = np.repeat(np.arange(8), 10), np.repeat(np.arange(8), 10)
    for label in range(8):
        predicted[10 * label : 11 * label] = 9
    scores = np.log(np.eye(10, dtype=np.float32)[predicted] + np.float32(1e-6))
    names = "abcdefghij"
    table = label_table(labels.tolist())
    found = class_errors(scores, table, dataset_info("digits"), names)
    assert found is not None
    assert format_class_errors(found) == [
        "  classes with the greatest error: h 70.0 % of 10, g 60.0 % of 10, f 50.0 % of 10, "
        "e 40.0 % of 10, d 30.0 % of 10"
    ]
    right = class_errors(np.eye(10, dtype=np.float32)[labels], table, dataset_info("digits"), names)
    assert right is not None and format_class_errors(right) == []


def test_images_of_several_labels_belong_to_no_one_class():
    labels = label_table([[1, 2], [3]])
    assert class_errors(scores_of(2, 10), labels, dataset_info("digits"), "abcdefghij") is None
