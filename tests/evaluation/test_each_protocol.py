"""Every protocol, one network per family, on an ImageNet-like data set.

On one device and on eight.
"""

import numpy as np
import pytest

from deepjax.data import load_split
from deepjax.evaluation import PROTOCOLS, EvalModel, compute_metrics, predict, resolve_protocol
from deepjax.evaluation.images import read_labels
from deepjax.models import create_model
from deepjax.training.distributed.sharding import Partitioner, make_mesh
from tests.data.archives import small_imagenet
from tests.evaluation.test_dense import ONE, drawn
from tests.training.distributed.test_sharding import mesh_of

NETWORKS = {
    "resnet18": (32, {"stages": ONE, "width": 4}),
    "googlenet": (64, {"width": 4}),
    "vgg11": (224, {"width": 2}),  # as convolutions its last layers need 224 pixels
}


@pytest.fixture(scope="module")
def tested(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    dataset = small_imagenet(folder, train=16, validation=5)
    return dataset, load_split(dataset, "test", str(folder))


@pytest.mark.eight_devices
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "protocol"),
    [("resnet18", name) for name in PROTOCOLS]
    + [("googlenet", name) for name in ("1-crop", "10-crop", "144-crop", "dense")]
    + [("vgg11", name) for name in ("1-crop", "dense", "multi-scale")],
)
def test_one_device_and_eight(name, protocol, tested):
    dataset, split = tested
    crop, fields = NETWORKS[name]
    model = create_model(name, **fields)
    member = EvalModel(name, "drawn", model, drawn(model, crop), dataset, crop)
    # else many shapes
    how = resolve_protocol(
        protocol, name, crop, sides=(crop, crop + 8) if protocol == "multi-scale" else ()
    )
    eight, one = (
        predict(member, split, how, Partitioner(mesh), 16) for mesh in (make_mesh(), mesh_of(1))
    )
    assert eight.shape == (5, 1000)
    np.testing.assert_allclose(np.exp(eight).sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.exp(one), np.exp(eight), atol=1e-4)
    found = compute_metrics(eight, read_labels(split), dataset)
    assert (found.images, found.counted, found.classes, found.not_finite) == (5, 5, 1000, 0)
