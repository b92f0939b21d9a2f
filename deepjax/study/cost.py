"""What an arm's network costs at the size at which it is trained: parameters and multiply-adds."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np
from flax import linen as nn

from deepjax.analysis import count_macs, count_params
from deepjax.analysis.plots import COLORS, Curve
from deepjax.study.arms import Arm
from deepjax.study.report.html import Table
from deepjax.training.build import model_from


@dataclasses.dataclass(frozen=True)
class Budget:
    """Trainable parameters, and multiply-adds of convolutions and linear layers for one image in evaluation."""

    params: int
    macs: int


def budget_of(arm: Arm) -> Budget:
    """Exact, from the traced network; auxiliary heads count among the parameters where the network has them."""
    return _counted(model_from(arm.config, arm.make), arm.config.input_shape)


@functools.cache  # a study asks for its verdicts, its figures and its tables
def _counted(model: nn.Module, shape: tuple[int, int, int]) -> Budget:
    return Budget(count_params(model, shape), count_macs(model, shape))


def budgets_of(arms: Mapping[str, Arm]) -> dict[str, Budget]:
    """Of every arm, by its name."""
    return {name: budget_of(arm) for name, arm in arms.items()}


def format_count(count: int) -> str:
    """Three digits and a letter: '67.9 k', '1.96 M'."""
    for size, letter in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if count >= size:
            return f"{count / size:.3g}{letter}"
    return str(count)


def cost_table(budgets: Mapping[str, Budget]) -> Table:
    """What each network costs, exactly."""
    rows = [[name, f"{cost.params:,}", f"{cost.macs:,}"] for name, cost in budgets.items()]
    return Table(
        "Cost of each network at the size of its images",
        ("arm", "parameters", "multiply-adds"),
        rows,
    )


def cost_lines(
    families: Mapping[str, Sequence[tuple[Budget, Sequence[float]]]], field: str
) -> list[Curve]:
    """A line a family over what its networks cost, and a dot a seed. `field`: of `Budget`.

    families: name -> (cost, errors by seed as fractions) of each network.
    """
    lines = []
    for color, (family, networks) in zip(COLORS, families.items(), strict=False):
        x = [float(getattr(cost, field)) for cost, _ in networks]
        y = np.transpose([100 * np.asarray(errors) for _, errors in networks])
        lines.append(Curve(family, x, y.tolist(), color, "o-"))
        lines.append(Curve("_seeds", x * len(y), [y.ravel().tolist()], color, "."))
    return lines
