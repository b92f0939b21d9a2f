"""The embedded digits against scikit-learn's copy: every pixel and every label."""

import numpy as np
from sklearn.datasets import load_digits

from deepjax.data import dataset_info, load_split
from deepjax.data.embedded import EMBEDDED


def test_every_pixel_and_label_equals_scikit_learn():
    pixels, labels = load_digits(return_X_y=True)
    train, test = (load_split(dataset_info("digits"), split) for split in ("train", "test"))
    assert (len(train), len(test)) == (1437, 360)
    np.testing.assert_array_equal(
        np.concatenate([train.images, test.images]).reshape(1797, 64), pixels
    )
    np.testing.assert_array_equal(np.concatenate([train.labels, test.labels]), labels)


def test_it_is_smaller_than_a_megabyte():
    assert sum(path.stat().st_size for path in EMBEDDED["digits"].iterdir()) < 1_000_000
