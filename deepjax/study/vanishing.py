"""Have gradients vanished towards the input? The verdict, its picture, and a network in which they do (He et al. 2015, 4.1)."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from deepjax.analysis import cross_entropy, init_variables, kernel_norms
from deepjax.study.arms import ArmResult
from deepjax.study.networks import Stack
from deepjax.study.report.curves import Panel, format_ratio, log_ratio, norm_lines
from deepjax.study.stats.verdict import Outcome, Verdict, all_above, mean_interval

Profiles = Mapping[
    str, Sequence[Mapping[str, float]]
]  # moment -> by seed: gradient norm by layer, from input to output
MEASURE = (
    "Gradient norm by convolution: median of the third nearest the input over median of the third nearest the output, log10; "
    "mean over seeds with Student's 95 % interval."
)


def vanishing(
    claim: str, profiles: Profiles, rule: str, bound: float, control: tuple[Outcome, ...] = ()
) -> Verdict:
    """Supported if the ratio near the input over near the output is above the bound at every moment: nothing has vanished."""
    values = {
        moment: [log_ratio(dict(norms)) for norms in by_seed]
        for moment, by_seed in profiles.items()
    }
    effects = {moment: mean_interval(logs) for moment, logs in values.items()}
    found = tuple(
        f"{moment}, the gradient near the input is {format_ratio(e)} that near the output"
        for moment, e in effects.items()
    )
    outcome = all_above(list(effects.values()), float(np.log10(bound)))
    return Verdict(claim, MEASURE, rule, outcome, found, effects, values, control)


def sigmoid_norms(batch: Mapping[str, Any], seed: int, layers: int = 20) -> dict[str, float]:
    """Gradient norm by layer of a network of sigmoids at the start, whose gradients do vanish (Glorot and Bengio 2010)."""
    model = Stack((3,) * layers, width=8, activation="sigmoid", norm=False)
    params = init_variables(model, jax.random.key(seed), batch["image"].shape)["params"]

    def loss(params: Any) -> jax.Array:
        logits: Any = model.apply({"params": params}, batch["image"])
        return cross_entropy(logits, batch)

    norms = {
        layer: float(norm) for layer, norm in kernel_norms(jax.jit(jax.grad(loss))(params)).items()
    }
    return {layer: norms[layer] for layer in [*(f"conv{i}" for i in range(1, layers + 1)), "head"]}


def profile_panels(
    plain: Mapping[int, ArmResult], residual: Mapping[int, ArmResult]
) -> list[Panel]:
    """Gradient norm by layer at the first step and in the last epoch, arms by depth; titles state the deepest plain one's ratio."""
    panels, deepest = [], max(plain)
    for moment, norms in {"first step": ArmResult.first, "last epoch": ArmResult.last}.items():
        ratio = 10 ** float(np.mean([log_ratio(by_layer) for by_layer in norms(plain[deepest])]))
        lines = norm_lines(
            {f"plain, {depth} layers": arm for depth, arm in plain.items()}, norms, "-"
        )
        lines += norm_lines(
            {f"residual, {depth} layers": arm for depth, arm in residual.items()}, norms, "--"
        )
        panels.append(
            (
                f"{moment}: plain-{deepest}'s gradient\nnear the input is {ratio:.3g} times that near the output",
                lines,
            )
        )
    return panels
