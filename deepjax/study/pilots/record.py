"""What the pilots of a study found: the selected rates, every error, and the power they promise."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deepjax.io import write_text
from deepjax.study.arms.arm import TrainedArm
from deepjax.study.arms.rates import SelectedRate, write_rates
from deepjax.study.claim import FAMILY, Claim, is_there
from deepjax.study.conclude import study_provenance
from deepjax.study.pilots.sweep import Errors, pilot_errors, selected_rate
from deepjax.study.preset import Preset
from deepjax.study.results import StudyResults
from deepjax.study.stats.holm import first_level
from deepjax.study.stats.intervals import LEVEL, Sample, components
from deepjax.study.stats.power import joint_power, scaled_errors
from deepjax.study.study import Study, claims_of_interest, pilot_grid

RECORD = "pilots.json"
RATES = "rates.json"


def select_rates(
    study: Study, preset_name: str, preset: Preset, arms: Mapping[str, TrainedArm], out: Path
) -> dict[str, SelectedRate]:
    """The rates that finished pilots select; written to rates.json, where there are any."""
    errors = _errors(preset, arms, out)
    found = {name: selected_rate(arms[name], each) for name, each in errors.items()}
    if found:
        (out / RATES).unlink(missing_ok=True)
        write_rates(out / RATES, f"{study.name}-{preset_name}", found)
    return found


def write_record(
    study: Study,
    preset_name: str,
    rates: Mapping[str, SelectedRate],
    arms: Mapping[str, TrainedArm],
    results: StudyResults,
    out: Path,
    seconds: float,
    hardware: str = "",
) -> dict[str, Any]:
    """Write pilots.json, and return it. arms: of the pilots; results: on the seeds of pilots.

    hardware: as for `study_provenance`.
    """
    preset = results.preset
    errors = _errors(preset, arms, out)
    record = {
        "study": study.name,
        "preset": preset_name,
        "dataset": preset.dataset,
        "pilot_seeds": len(results.seeds),
        "select": preset.select,
        "arms": {name: _arm_record(rates[name], found) for name, found in errors.items()},
        "power": promised_power(study, results),
        "wall_seconds": seconds,
    }
    record |= study_provenance(seconds, hardware)
    write_text(out / RECORD, json.dumps(record, indent=1) + "\n")
    return record


def print_pilots(rates: Mapping[str, SelectedRate], power: Mapping[str, Any]) -> None:
    """The selected rates and the promised power, on stdout."""
    for name, rate in rates.items():
        print(
            f"{name:24} rate {rate.rate:g}; its choice leaves {100 * rate.train_error:.2f} points "
            f"of training and {100 * rate.test_error:.2f} of test error open"
        )
    for claim, found in power.items():
        print(f"{100 * found['power']:3.0f} % power at {found['interest']:g}: {claim}")


def _errors(preset: Preset, arms: Mapping[str, TrainedArm], out: Path) -> dict[str, Errors]:
    return {name: pilot_errors(arm, pilot_grid(preset, name), out) for name, arm in arms.items()}


def _arm_record(rate: SelectedRate, errors: Errors) -> dict[str, Any]:
    return {
        "rate": rate.rate,
        "selection": {"train": rate.train_error, "test": rate.test_error},
        "errors": {
            split: {f"{each:g}": images.mean(1).tolist() for each, images in by_rate.items()}
            for split, by_rate in errors.items()
        },
    }


def promised_power(study: Study, results: StudyResults) -> dict[str, dict[str, float]]:
    """By claim: the power at its smallest effect of interest that results on pilot seeds promise.

    With the preset's seeds, at the level of the first of Holm's corrections for a headline claim.
    """
    found = {}
    for claim in claims_of_interest(study):
        if not is_there(claim, results):
            continue
        level = first_level(FAMILY) if claim.headline else LEVEL
        samples = [
            each.sample(results, split)
            for each in claim.quantities
            for split in (claim.sets if each.arms else claim.sets[:1])
        ]
        power = _power(claim, samples, results.preset.seeds, level)
        found[claim.text] = {"interest": claim.interest, "level": level, "power": power}
    return found


def _power(claim: Claim, samples: Sequence[Sample], seeds: int, level: float) -> float:
    """Zero where a pilot seed has no finite value."""
    first = samples[0]
    errors = [scaled_errors(components(sample), seeds / len(first.by_seed)) for sample in samples]
    images = 1 if first.by_image is None else first.by_image.shape[1]
    found = joint_power(errors, seeds, images, claim.rule.distances(claim.interest), level)
    return found if math.isfinite(found) else 0.0
