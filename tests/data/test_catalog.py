"""What the catalog promises of its sets, against tfds's own definitions, and sets of one's own."""

import dataclasses

import pytest
import tensorflow_datasets as tfds

from deepjax.data import Dataset, catalog, dataset_info, list_datasets, register
from deepjax.errors import InputError


@pytest.fixture(autouse=True)
def _forgets(monkeypatch):
    monkeypatch.setattr(catalog, "_CATALOG", dict(catalog._CATALOG))


@pytest.mark.parametrize("name", [name for name in list_datasets() if name != "digits"])
def test_names_and_entries_are_those_of_tfds(name, tmp_path):
    """Imagenette and the tests after ImageNet are labelled in tfds's own space of classes; `label` is an entry of the record."""
    dataset = dataset_info(name)
    builder = tfds.builder(dataset.builder, data_dir=tmp_path)
    label = builder.info.features[dataset.label]
    assert getattr(label, "feature", label).num_classes == dataset.num_classes
    shape = builder.info.features["image"].shape
    assert shape == ((None, None, 3) if dataset.encoded else dataset.shape)


def test_imagenet_is_normalised_as_torchvision_does():
    """torchvision.transforms' documentation: mean (0.485, 0.456, 0.406), deviation (0.229, 0.224, 0.225) of pixels in [0, 1]."""
    dataset = dataset_info("imagenet2012")
    assert dataset.mean == pytest.approx((123.675, 116.28, 103.53))
    assert dataset.std == pytest.approx((58.395, 57.12, 57.375))
    assert (dataset.train_size, dataset.test_size, dataset.test_split) == (1_281_167, 50_000, "validation")


def test_a_set_of_ones_own_is_known_by_its_name():
    mine = dataclasses.replace(dataset_info("imagenet2012"), name="mine", train_size=64)
    assert register(mine) is mine and register(dataclasses.replace(mine)) == mine
    assert dataset_info("mine").builder == "imagenet2012" and "mine" in list_datasets()


def test_a_name_that_is_taken_is_refused():
    with pytest.raises(InputError, match="dataset 'cifar10' is another one already"):
        register(dataclasses.replace(dataset_info("cifar10"), test_size=1))


def test_the_builder_is_the_name_where_none_is_given():
    assert Dataset("x", (8, 8, 1), 2, 1, 1, (0.0,), (1.0,), False, 0, "here").builder == "x"
