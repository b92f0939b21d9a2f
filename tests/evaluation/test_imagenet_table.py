"""The generated ImageNet page is up to date, and shows what was measured and what was not."""

import dataclasses
import json

import pytest

from deepjax.evaluation.protocols import resolve_protocol
from experiments.benchmarks.imagenet_table import RESULTS, render


def test_the_page_is_current():
    assert (RESULTS / "imagenet.md").read_text() == render(RESULTS), (
        "run: python experiments/benchmarks/imagenet_table.py"
    )


def lines_of(page, name):
    return [line for line in page.splitlines() if line.startswith(f"| `{name}` |")]


def test_cells_without_a_measurement_say_so(tmp_path):
    """He et al. 2015, Table 1 and the authors' release; torchvision's V2 weights.

    80.858 and 95.434 %.
    """
    page = render(tmp_path)
    (first, *_) = lines_of(page, "resnet50_v1")
    assert (
        first == "| `resnet50_v1` | 25,557,032 | 3.86 G | 24.70 / 7.80 (1-crop) | none known | "
        "not measured | not measured |"
    )
    assert "19.14 / 4.57 (torchvision IMAGENET1K_V2)" in lines_of(page, "resnet50")[0]
    assert "| `googlenet` | 144-crop | 224 | 256, 288, 320, 352 | - / 7.89 | not measured |" in page
    assert "cifar" not in page


def record_of(images=50_000, members=1, sides=(256,), crop=224, average="probabilities"):
    protocol = dataclasses.asdict(
        resolve_protocol("10-crop", "resnet50_v1", crop, sides=sides, average=average)
    )
    member = {"model": "resnet50_v1", "weights": "caffe.npz", "crop": crop, "protocol": protocol}
    found = {
        "dataset": "imagenet2012",
        "images": images,
        "top1_error": 0.2291,
        "top5_error": 0.0675,
    }
    return {"evaluation": [member] * members, "sets": [found]}


def rendered(record, folder):
    (folder / "r50").mkdir()
    (folder / "r50" / "result.json").write_text(json.dumps(record))
    return lines_of(render(folder), "resnet50_v1")


@pytest.mark.parametrize(
    ("images", "members", "shown"), [(50_000, 1, True), (49_999, 1, False), (50_000, 2, False)]
)
def test_complete_sets_and_single_networks_are_shown(images, members, shown, tmp_path):
    """Part of the set is no measurement of it; an ensemble is no network."""
    speed = {"model": "resnet50_v1", "images_per_second": 2400.4, "what": "training on one X"}
    first, *rest = rendered(record_of(images, members) | {"throughput": [speed]}, tmp_path)
    assert ("[22.91 / 6.75](r50/result.json) (10-crop; caffe.npz)" in first) == shown
    beside = "| 10-crop | 224 | 256 | 22.85 / 6.71 | [22.91 / 6.75](r50/result.json) (caffe.npz) |"
    assert any(beside in line for line in rest) == shown
    assert first.endswith("| 2,400 (training on one X) |")


@pytest.mark.parametrize(
    ("other", "how"),
    [
        ({"sides": (288,)}, "10-crop at 288"),
        ({"crop": 192}, "10-crop of 192 at 256"),
        ({"average": "logits"}, "10-crop, mean of logits"),
    ],
)
def test_measured_and_published_protocols_match(other, how, tmp_path):
    first, *rest = rendered(record_of(**other), tmp_path)
    assert f"[22.91 / 6.75](r50/result.json) ({how}; caffe.npz)" in first
    assert not any("22.91" in line for line in rest)
