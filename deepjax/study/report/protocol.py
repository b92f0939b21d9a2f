"""What was tested, in one line: images, size, widths, epochs, seeds, rates."""

from collections.abc import Mapping
from typing import Any

from deepjax.data import dataset_info
from deepjax.study.baselines import baseline
from deepjax.study.results import StudyResults


def protocol(results: StudyResults) -> str:
    """The protocol of a study's runs in one line."""
    preset = results.preset
    if not results.arms and not results.measured:
        return "Published and exact numbers: nothing was trained or measured."
    dataset = dataset_info(preset.dataset)
    height, width = dataset.shape[:2]
    size = preset.training.get("image_size") or 0
    parts = [
        f"{dataset.name}: {dataset.train_size:,} training and {dataset.test_size:,} test images "
        f"of {height}x{width} pixels" + (f", enlarged to {size}x{size}" if size else ""),
    ]
    if results.arms:
        parts.append(f"networks trained for {_training(preset.training)}")
    parts.append(f"{len(results.seeds)} seeds")
    if results.arms:
        rates = sorted({arm.rate for arm in results.arms.values()})
        each = ", ".join(f"{rate:g}" for rate in rates)
        parts.append(f"learning rates {each}" + ("" if preset.rate else ", selected by pilots"))
        if preset.pilots:
            parts.append(f"training runs shared with the study of {preset.pilots}")
        parts.append(_baseline_words(preset.dataset))
    return "; ".join(filter(None, parts)) + "."


def _baseline_words(dataset: str) -> str:
    found = baseline(dataset)
    return (
        f"a linear classifier has {100 * found.linear_train:.1f} % training and "
        f"{100 * found.linear_test:.1f} % test error"
    )


def _training(training: Mapping[str, Any]) -> str:
    words = {
        "epochs": "{} epochs",
        "steps": "{} steps",
        "batch_size": "batch {}",
        "width": "width {}",
    }
    known = [text.format(training[name]) for name, text in words.items() if name in training]
    others = [
        _option(name.replace("_", " "), value)
        for name, value in training.items()
        if name not in words and name != "image_size"
    ]
    return ", ".join(known + others)


def _option(name: str, value: Any) -> str:
    if value is False:
        return "no augmentation" if name == "augment" else f"no {name}"
    return f"{value:g} {name}" if name.endswith("epochs") else f"{name} {value}"
