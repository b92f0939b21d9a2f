"""The data that a trained network is tested on: with no image of its training."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from deepjax.data import Dataset, dataset_info, own_dataset
from deepjax.data.own.fingerprint import current_fingerprint
from deepjax.data.own.index import open_index
from deepjax.data.splits import images_trained_on
from deepjax.errors import InputError
from deepjax.training.config import TrainConfig
from deepjax.training.run_directory.data_identity import read_fingerprint, run_dataset


@dataclasses.dataclass(frozen=True)
class TrainedOn:
    """The data that a network was trained on."""

    network: str
    """Where the network is, for messages."""
    dataset: Dataset
    fingerprint: str = ""
    """"" where none is known."""

    @property
    def is_own(self) -> bool:
        """Whether these are the user's own data; those of an exported network have no path."""
        return bool(self.dataset.path) or self.dataset.test_fraction > 0


def trained_on(out: Path, config: TrainConfig) -> TrainedOn:
    """The data of a run directory."""
    return TrainedOn(str(out), run_dataset(out, config), read_fingerprint(out))


def data_of_training(dataset: Dataset, networks: Sequence[TrainedOn]) -> Dataset | None:
    """The user's own data as they were for the training of a network, wherever they are now.

    None where no network was trained on them, and where the name says which split is meant.
    """
    same = _trained_on_same(dataset, networks) if dataset.name == dataset.path else None
    return same and dataclasses.replace(same.dataset, name=dataset.name, path=dataset.path)


def tested_data(name: str, networks: Sequence[TrainedOn]) -> tuple[Dataset, str]:
    """The data set of a name for tests of networks, and a warning or "".

    The user's own data that a network was trained on, wherever they are now, have the test split of
    that training. Of others without a test split all images are tested, unless the name says which.
    """
    described = {each.dataset.name: each.dataset for each in networks if each.dataset.path}
    dataset = described.get(name) or dataset_info(name)
    if not dataset.path or dataset.name != dataset.path:
        return dataset, ""
    if same := data_of_training(dataset, networks):
        return same, ""
    if "test" in open_index(dataset.path).splits:
        return dataset, ""
    return own_dataset(dataset.path, test_fraction=1), (
        f"{name} has no test split: all of its images are tested, so none of them may be one that "
        "the network was trained on"
    )


def require_not_trained_on(dataset: Dataset, network: TrainedOn, data_dir: str | None) -> None:
    """Raise InputError where test images of a data set are, or may be, training images."""
    theirs = network.dataset
    if dataset.path:
        if _trained_on_same(dataset, [network]) is None:
            _require_not_changed(dataset, network)
            return
    elif network.is_own or theirs.builder != dataset.builder:
        return
    if found := images_trained_on(theirs, dataset, data_dir):
        raise InputError(
            f"{network.network} was trained on images that {dataset.name!r} has for tests "
            f"({found}); test it on the test split of {theirs.name!r}, or on other images"
        )


def _trained_on_same(dataset: Dataset, networks: Sequence[TrainedOn]) -> TrainedOn | None:
    """The first network that was trained on the user's own data, as they are now."""
    own = [each for each in networks if each.is_own and each.fingerprint]
    if not own or not dataset.path:
        return None
    now = current_fingerprint(dataset.path)
    return next((each for each in own if each.fingerprint == now), None)


def _require_not_changed(dataset: Dataset, network: TrainedOn) -> None:
    """Raise InputError for other data without a test split where those of the training were."""
    theirs = network.dataset.path or network.dataset.name.partition("[")[0]
    here = [os.path.abspath(os.path.expanduser(path)) for path in (theirs, dataset.path)]
    if not network.is_own or here[0] != here[1] or "test" in open_index(dataset.path).splits:
        return
    raise InputError(
        f"dataset {dataset.name!r} has changed since {network.network} was trained on it, and has "
        "no test split of its own: its images for tests may be those of the training; give it as "
        "it was, or other images at another path"
    )
