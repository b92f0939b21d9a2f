"""What the pilots of a study found: the selected rates, every error, and the power they promise."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deepjax.io import write_text
from deepjax.study.arms.arm import TrainedArm
from deepjax.study.arms.rates import SelectedRate, write_rates
from deepjax.study.arms.result import ArmResult
from deepjax.study.claim import FAMILY, Claim, Control
from deepjax.study.pilots.sweep import Errors, pilot_errors, selected_rate
from deepjax.study.preset import Preset
from deepjax.study.report.provenance import provenance
from deepjax.study.results import StudyResults
from deepjax.study.stats.holm import first_level
from deepjax.study.stats.intervals import LEVEL, PILOT_SEEDS, components
from deepjax.study.stats.power import power_with, scaled_errors
from deepjax.study.study import Study, pilot_grid

RECORD = "pilots.json"
RATES = "rates.json"


def conclude_pilots(
    study: Study,
    preset_name: str,
    preset: Preset,
    arms: Mapping[str, TrainedArm],
    out: Path,
    seconds: float,
) -> dict[str, SelectedRate]:
    """Select the rates, and write them and the record of all pilots. Returns the rates."""
    import jax

    errors = {name: pilot_errors(arm, pilot_grid(preset, name), out) for name, arm in arms.items()}
    rates = {name: selected_rate(found) for name, found in errors.items()}
    (out / RATES).unlink(missing_ok=True)
    write_rates(out / RATES, f"{study.name}-{preset_name}", rates)
    record = {
        "study": study.name,
        "preset": preset_name,
        "dataset": preset.dataset,
        "pilot_seeds": PILOT_SEEDS,
        "arms": {name: _arm_record(rates[name], found) for name, found in errors.items()},
        "power": promised_power(study, preset, rates, errors, arms),
        "wall_seconds": seconds,
    }
    record |= provenance(seconds, f"{jax.device_count()} x {jax.devices()[0].device_kind}")
    write_text(out / RECORD, json.dumps(record, indent=1) + "\n")
    return rates


def print_rates(rates: Mapping[str, SelectedRate]) -> None:
    """The selected rates, on stdout."""
    for name, rate in rates.items():
        print(
            f"{name:24} rate {rate.rate:g}; its choice leaves {100 * rate.train_error:.2f} points "
            f"of training and {100 * rate.test_error:.2f} of test error open"
        )


def _arm_record(rate: SelectedRate, errors: Errors) -> dict[str, Any]:
    return {
        "rate": rate.rate,
        "selection": {"train": rate.train_error, "test": rate.test_error},
        "errors": {
            split: {f"{each:g}": images.mean(1).tolist() for each, images in by_rate.items()}
            for split, by_rate in errors.items()
        },
    }


def promised_power(
    study: Study,
    preset: Preset,
    rates: Mapping[str, SelectedRate],
    errors: Mapping[str, Errors],
    arms: Mapping[str, TrainedArm],
) -> dict[str, dict[str, float]]:
    """By claim on errors: the power at its smallest effect of interest that the pilots promise.

    With the preset's seeds, at the level of the first of Holm's corrections for a headline claim;
    the standard deviation is that of the pilot seeds.
    """
    results = {
        name: ArmResult(
            rates[name].rate,
            [],
            {split: found[split][rates[name].rate] for split in found},
            arms[name].config.dataset,
            name,
            {"train": rates[name].train_error, "test": rates[name].test_error},
        )
        for name, found in errors.items()
    }
    seeds = arms[next(iter(arms))].seeds
    of_pilots = StudyResults(preset, seeds, results)
    found = {}
    for claim in study.claims:
        if not isinstance(claim, Claim) or isinstance(claim, Control) or not claim.interest:
            continue
        if not all(each.arms and set(each.arms) <= set(results) for each in claim.quantities):
            continue
        level = first_level(FAMILY) if claim.headline else LEVEL
        samples = [
            each.sample(of_pilots, split) for each in claim.quantities for split in claim.sets
        ]
        least = min(
            power_with(
                scaled_errors(components(sample), preset.seeds / PILOT_SEEDS),
                preset.seeds,
                1 if sample.by_image is None else sample.by_image.shape[1],
                claim.interest,
                level,
            )
            for sample in samples
        )
        found[claim.text] = {"interest": claim.interest, "level": level, "power": least}
    return found
