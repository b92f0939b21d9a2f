"""Options under their names of version 0.1.0, in command lines and in config.json."""

from collections.abc import Collection, Sequence
from typing import Any

RENAMED_OPTIONS = {
    "accumulate": "grad_accum_steps",
    "beside": "reuse_runs_from",
    "clip": "grad_clip_norm",
    "crop_area": "min_crop_area",
    "damage_budget": "max_decode_errors",
    "decay_all": "decay_norm_and_bias",
    "decode": "resize_backend",
    "ema": "ema_decay",
    "lighting": "pca_lighting_std",
    "on_bad": "on_nonfinite",
    "on_damaged": "on_decode_error",
    "out": "output_dir",
    "repeats": "repeated_augmentation",
    "shorter_sides": "resize_shorter_side",
    "skip_budget": "max_skipped_steps",
    "trace_every": "probe_every",
    "trace_tier": "probe",
    "train_sizes": "progressive_sizes",
    "watchdog": "step_timeout",
}
RENAMED_VALUES = {
    ("probe", "business"): "layers",
    ("probe", "economy"): "top",
    ("resize_backend", "exact"): "pillow",
    ("resize_backend", "fast"): "opencv",
}


def rename_option(name: str, value: Any) -> tuple[str, Any]:
    """An option and its value under their names of today."""
    new = RENAMED_OPTIONS.get(name, name)
    return new, RENAMED_VALUES.get((new, value), value) if isinstance(value, str) else value


def has_renamed_flag(arguments: Sequence[str]) -> bool:
    """Whether a command line may have an old flag."""
    return any(_option(argument.partition("=")[0]) in RENAMED_OPTIONS for argument in arguments)


def rename_flags(arguments: Sequence[str], flags: Collection[str]) -> tuple[list[str], list[str]]:
    """A command line with the new flags and values, and a line for each flag that was renamed.

    flags: those of the command. An old name that is one of them, or whose new name is not, stays.
    """
    renamed: list[str] = []
    notes: list[str] = []
    option = ""
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if not argument.startswith("--"):
            renamed.append(rename_option(option, argument)[1])
            continue
        option, old = _option(flag), flag
        new = RENAMED_OPTIONS.get(option, "")
        prefix = "--no-" if flag.startswith("--no-") else "--"
        new_flag = prefix + new.replace("_", "-")
        if new and flag.replace("_", "-") not in flags and new_flag in flags:
            option, flag = new, new_flag
            notes.append(f"{old} is called {flag} now; the old name goes with the next release")
        else:
            option = ""
        renamed.append(f"{flag}{equals}{rename_option(option, value)[1]}")
    return renamed, notes


def _option(flag: str) -> str:
    name = flag.removeprefix("--").removeprefix("no-") if flag.startswith("--") else ""
    return name.replace("-", "_")
