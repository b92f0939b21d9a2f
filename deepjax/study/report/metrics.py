"""Tables of arms: their final errors, and the cost of their networks."""

from collections.abc import Mapping

from deepjax.html_page import Table
from deepjax.study.arms.result import ArmResult
from deepjax.study.cost import NetworkCost


def final_error_table(arms: Mapping[str, ArmResult]) -> Table:
    """Final errors of every arm, mean and by seed."""
    rows = []
    for name, arm in arms.items():
        label = name
        if arm.diverged:
            label += f" ({arm.diverged} of {len(arm.rows)} diverged, and guess)"
        errors = []
        for split in ("train", "test"):
            each = ", ".join(f"{100 * error:.2f}" for error in arm.errors(split))
            errors.append(f"{100 * arm.error(split):.2f} % ({each})")
        rows.append([label, f"{arm.rate:g}", *errors])
    header = ("arm", "rate", "training", "test")
    return Table("Final error: mean (seed by seed)", header, rows)


def cost_table(costs: Mapping[str, NetworkCost]) -> Table:
    """The exact cost of each network."""
    rows = [[name, f"{cost.params:,}", f"{cost.macs:,}"] for name, cost in costs.items()]
    return Table(
        "Cost of each network at the size of its images",
        ("arm", "parameters", "multiply-adds"),
        rows,
    )
