"""The results of a study, which claims and figures read."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from deepjax.study.arms.arm import TrainedArm
from deepjax.study.arms.result import ArmResult
from deepjax.study.cost import NetworkCost, network_cost
from deepjax.study.preset import Preset
from deepjax.study.stats.verdict import Verdict


def value_at(measured: Any, path: Sequence[Any]) -> Any:
    """The value at a path: measured["slope"]["plain"] at ("slope", "plain")."""
    return functools.reduce(lambda part, key: part[key], path, measured)


@dataclasses.dataclass(frozen=True)
class StudyResults:
    """Arms, measured values and, once judged, verdicts."""

    preset: Preset
    seeds: tuple[int, ...]
    arms: Mapping[str, ArmResult]
    measured: Sequence[Mapping[str, Any] | None] = ()
    """By seed: what the study's `measure` returned; None where that was not possible."""
    trained: Mapping[str, TrainedArm] = dataclasses.field(default_factory=dict)
    """The arms as they were trained."""
    verdicts: Sequence[Verdict] = ()

    @functools.cached_property
    def costs(self) -> dict[str, NetworkCost]:
        """Parameters and multiply-adds of every arm's network."""
        return {name: network_cost(arm) for name, arm in self.trained.items()}

    def values(self, *path: Any) -> list[Any]:
        """A measured value by seed, without diverged ones: results.values("slope", "plain")."""
        return [value_at(seed, path) for seed in self.measured if seed is not None]

    def lacks(self, name: str) -> bool:
        """Whether a measured value belongs to arms that the preset leaves out."""
        return bool(self.preset.arms) and not any(name in (seed or {}) for seed in self.measured)

    def verdict(self, claim: str) -> Verdict:
        """The verdict of a claim, by its text or the beginning of it."""
        return next(each for each in self.verdicts if each.claim.startswith(claim))
