"""A study with its options, preset and arms, and the directory that it works in."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deepjax.errors import InputError, unknown_name_error
from deepjax.paths import run_directory, user_path
from deepjax.study.arms.arm import TrainedArm
from deepjax.study.arms.rates import SelectedRate, packaged_rates, read_rates
from deepjax.study.preset import Preset
from deepjax.study.stats.intervals import PILOT_SEEDS
from deepjax.study.study import Options, Study, has_pilots, pilot_arms, study_seeds, trained_arms


@dataclasses.dataclass(frozen=True)
class PreparedStudy:
    """What `prepare` returns."""

    study: Study
    options: Options
    """With absolute paths."""
    preset: Preset
    arms: Mapping[str, TrainedArm]
    """Those of the pilots where these are asked for."""
    out: Path

    @property
    def title(self) -> str:
        """Of its progress."""
        what = "pilots of " * self.options.pilots + self.study.name
        return f"{what} on {self.preset.dataset}"

    @property
    def seeds(self) -> tuple[int, ...]:
        """The judged seeds, or those of the pilots."""
        return study_seeds(self.preset, self.options.pilots)

    def identity(self) -> Any:
        """What distinguishes two studies, stored as the study's config.json."""
        fields: dict[str, Any] = {
            "study": self.study.name,
            "preset": self.options.preset,
            "pilots": self.options.pilots,
            "threads": self.options.threads,
            "dataset": self.preset.dataset,
            "seeds": PILOT_SEEDS if self.options.pilots else self.preset.seeds,
            "training": dict(self.preset.training),
            "sizes": dict(self.preset.sizes),
        }
        return dataclasses.make_dataclass("Identity", list(fields), frozen=True)(**fields)


def directory_name(study: Study, options: Options) -> str:
    """The name of a study's directory."""
    return f"{study.name}-{options.preset}" + ("-pilots" if options.pilots else "")


def prepare(study: Study, options: Options) -> PreparedStudy:
    """The study with its paths, and with the seeds and arms of pilots where these are asked for.

    Raises InputError for a preset or an arm that the study does not have, and for missing rates.
    """
    if options.preset not in study.presets:
        raise unknown_name_error("preset", options.preset, study.presets)
    preset = study.presets[options.preset]
    name = directory_name(study, options)
    out = run_directory(options.output_dir or Path("runs") / name, "output_dir")
    reuse = options.reuse_runs_from and user_path(options.reuse_runs_from, "reuse_runs_from")
    options = dataclasses.replace(options, output_dir=out, reuse_runs_from=reuse)
    preset = dataclasses.replace(preset, seeds=options.seeds or preset.seeds)
    if options.pilots:
        if not has_pilots(study, preset):
            raise InputError(f"{study.name} has no pilots in preset {options.preset!r}")
        return PreparedStudy(study, options, preset, pilot_arms(study, preset), out)
    arms = trained_arms(study, preset, known_rates(study, options, preset))
    if options.arm and options.arm not in arms:
        raise unknown_name_error("arm", options.arm, arms)
    return PreparedStudy(study, options, preset, arms, out)


def rehearsal(run: PreparedStudy, rates: Mapping[str, SelectedRate]) -> PreparedStudy:
    """The judged study on the seeds of its pilots; without rates at those that are known."""
    rates = rates or known_rates(run.study, run.options, run.preset)
    arms = trained_arms(run.study, run.preset, rates, pilots=True)
    return dataclasses.replace(run, arms=arms)


def known_rates(study: Study, options: Options, preset: Preset) -> Mapping[str, SelectedRate]:
    """The rates that are given, or those that the package has."""
    if options.rates:
        return read_rates(user_path(options.rates, "rates"))
    return packaged_rates(preset.pilots or study.name, options.preset)
