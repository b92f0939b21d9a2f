"""Scaling with data: the parts of the images, and the exponent of planted errors."""

import dataclasses

import numpy as np
import pytest

from deepjax.study.arms.arm import arm_config
from deepjax.study.arms.predictions import FILE
from deepjax.study.claim import judge_claim
from deepjax.study.results import StudyResults
from deepjax.study.study import SeedContext
from experiments.data_scaling import ALL, ARMS, CLAIMS, SIZES, STUDY, arm_of, exponent, measure

PRESET = STUDY.presets["small"]


def test_all_arms_have_their_part_of_the_images_and_as_many_steps():
    for images in (*SIZES, ALL):
        config = arm_config(ARMS[arm_of("resnet", images)], PRESET.dataset, PRESET.training)
        assert config.steps_per_epoch == images // 64
        assert config.total_steps == 3000


@pytest.mark.parametrize(("power", "outcome"), [(-0.2, "supported"), (-0.6, "refuted")])
def test_the_exponent_of_planted_errors_is_found(tmp_path, power, outcome):
    measured = []
    for seed in range(3):
        runs = {}
        for kind in ("plain", "resnet"):
            for images in (*SIZES, ALL):
                run = runs[arm_of(kind, images)] = tmp_path / f"{kind}{images}-{seed}"
                run.mkdir()
                count = round(8000 * (images / 2000) ** power)
                wrong = np.arange(40_000) < count + 10 * seed
                np.savez(run / FILE, train=wrong, test=wrong)
        measured.append(
            measure(SeedContext(PRESET.dataset, PRESET, seed, runs, None, lambda *_: None))
        )
    results = StudyResults(PRESET, (0, 1, 2), {}, measured)
    assert exponent("plain").sample(results).by_seed == pytest.approx([power] * 3, abs=0.01)
    claim = next(each for each in CLAIMS if each.text.startswith("From 2,000 to 16,000 images"))
    assert judge_claim(dataclasses.replace(claim, measures=()), results).outcome == outcome
