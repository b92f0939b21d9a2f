"""Comparison of a run's evaluation with the metrics that the run logged at its end."""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from deepjax.data import EncodedSplit, Split
from deepjax.errors import InputError
from deepjax.evaluation.metrics import ClassificationMetrics
from deepjax.evaluation.predict import EvalModel
from deepjax.evaluation.protocols import Protocol
from deepjax.training.checkpoint.run_copy import name_of_run
from deepjax.training.metrics.metrics_log import read_rows
from deepjax.training.metrics.writer import Row
from deepjax.training.run_directory.config_file import read_config
from deepjax.training.run_directory.data_identity import (
    read_description,
    read_fingerprint,
    run_dataset,
)

LOGIT_ROUNDING = {"float32": 2e-3, "bfloat16": 2e-2}
"""How much rounding may change a logit, relative to the range of its image's logits, by dtype.

Other batches, devices and hardware sum in another order. GPUs multiply float32 with 11 significant
bits (TF32), TPUs with 8, as bfloat16 has: units of 5e-4 and 4e-3, which accumulate over the layers.
On one CPU float32 changes by about 1e-6.
"""


def final_row(path: Path) -> Row | None:
    """The final row of metrics.jsonl; None where the run has not ended.

    Raises InputError for a corrupt log.
    """
    rows = read_rows(path / "metrics.jsonl")
    if not rows or rows[-1]["kind"] != "final":
        return None
    if missing := [
        name for name in ("test_error", "test_loss", "test_images") if name not in rows[-1]
    ]:
        raise InputError(
            f"the final row of {path / 'metrics.jsonl'} has no {missing[0]}; allowed: a row as "
            "training wrote it"
        )
    return rows[-1]


def evaluation_differences(
    path: Path,
    final: Row,
    member: EvalModel,
    protocol: Protocol,
    precision: str,
    split: Split | EncodedSplit,
) -> list[str]:
    """The differences between an evaluation of a run and that of its final row; empty where none.

    precision: dtype of the evaluation's activations, or "expected": the run's.
    """
    config = read_config(path)
    own, (height, width, _) = run_dataset(path, config), config.eval_shape
    precision = config.precision if precision == "expected" else precision
    pairs: dict[str, tuple[Any, Any]] = {
        "protocol": (protocol.name, "1-crop"),
        "precision": (precision, config.precision),
        "mean and std": ((member.dataset.mean, member.dataset.std), (own.mean, own.std)),
        "step": (member.step, final["step"]),
        "use of averages": (member.averaged, config.ema_decay > 0),
        "number of images": (len(split), final["test_images"]),
        # of a run that began without one: nothing to compare
        "fingerprint of the data set": (
            split.fingerprint,
            read_fingerprint(path) or split.fingerprint,
        ),
    }
    if isinstance(split, EncodedSplit):
        pairs |= {
            "crop": (member.crop, height),
            "shorter side": (protocol.sides, (round(height / config.data.eval_crop),)),
            "interpolation": (member.interpolation, "bilinear"),
        }
    else:
        pairs["size of images"] = (member.stored or (member.crop, member.crop), (height, width))
    mine = json.loads(json.dumps(dataclasses.asdict(own)))
    pairs |= {
        f"{field} of the data set": (mine[field], value)
        for field, value in read_description(path).items()
    }
    return [
        f"{what} is {here}, in the run {there}"
        for what, (here, there) in pairs.items()
        if here != there
    ]


def compare_with_final_row(
    path: Path,
    final: Row,
    found: ClassificationMetrics,
    scores: np.ndarray,
    labels: np.ndarray,
    different: Sequence[str],
) -> str:
    """A line on whether an evaluation agrees with the run's final row, or is not comparable.

    scores: log-probabilities (images, classes) of all images; labels: (images, 1); different: from
    `evaluation_differences`. Raises InputError where nothing is different, and yet top-k errors or
    loss differ by more than rounding explains. If every logit changed by `LOGIT_ROUNDING` of its
    image's range, scores would change by up to twice that: so only images whose label's score is
    that close to the best other one may change. The mean loss may change by a tenth of it, or by 1
    / sqrt(images) where that is more, since rounding errors of images have random signs.
    """
    pairs = {"test error": (found.top1_error, final["test_error"], 1)}
    if found.top5_error is not None and "test_top5_error" in final:
        pairs["top-5 error"] = (found.top5_error, final["test_top5_error"], 5)
    loss = _loss(found), float(final["test_loss"])
    here, there = (
        ", ".join(
            [
                *(f"{what} {100 * pair[i]:.2f} %" for what, pair in pairs.items()),
                f"loss {loss[i]:.4g}",
            ]
        )
        for i in (0, 1)
    )
    both, named = f"{here}; the row has {there}", name_of_run(path)
    if different:
        return f"not the evaluation of the final row of {named} ({'; '.join(different)}): {both}"
    fraction = LOGIT_ROUNDING[
        "bfloat16" if jax.default_backend() == "tpu" else read_config(path).precision
    ]
    near = {k: count_borderline(scores, labels, k, fraction) for _, _, k in pairs.values()}
    off = [round(abs(one - other) * found.counted) for one, other, _ in pairs.values()]
    allowed = 2 * fraction * float(np.mean(_ranges(scores))) * max(0.1, len(scores) ** -0.5) + 1e-6
    same_loss = (
        abs(loss[0] - loss[1]) <= allowed if math.isfinite(loss[1]) else not math.isfinite(loss[0])
    )
    if same_loss and all(
        count <= near[k] for count, (_, _, k) in zip(off, pairs.values(), strict=True)
    ):
        within = (
            f" within rounding ({max(off)} of {max(near.values())} borderline images judged "
            "otherwise)"
            if any(off)
            else ""
        )
        return f"agrees with the final row of {named}{within}: {both}"
    raise InputError(
        f"the evaluation does not agree with the final row of {named}: {both}; rounding "
        f"explains {near[1]} images and {allowed:.2g} of loss; was the data set, the code of the "
        "network or the run's config.json changed since?"
    )


def count_borderline(scores: np.ndarray, labels: np.ndarray, k: int, fraction: float) -> int:
    """How many images' top-k result may flip if every score changes by `fraction` of its range."""
    own = np.take_along_axis(scores, labels.astype(np.intp), axis=1)[:, 0]
    others = scores.copy()
    np.put_along_axis(others, labels.astype(np.intp), -np.inf, axis=1)
    rival = np.partition(others, -k, axis=1)[:, -k]
    return int(np.sum(np.abs(own - rival) <= 2 * fraction * _ranges(scores)))


def _ranges(scores: np.ndarray) -> np.ndarray:
    """Maximum minus minimum score of each image; 0 where one is not finite."""
    ranges = np.ptp(scores.astype(np.float64), axis=1)
    return np.where(np.isfinite(ranges), ranges, 0.0)


def _loss(found: ClassificationMetrics) -> float:
    """The mean loss as in training: not finite where that of an image is not."""
    return math.nan if found.nll is None or found.not_finite else found.nll
