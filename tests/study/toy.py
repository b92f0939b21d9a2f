"""A study of seconds: two stacks of convolutions, a measurement, a claim and its control."""

from functools import partial
from pathlib import Path
from typing import Any

from deepjax.study.networks import Stack
from deepjax.study.report.html import Figure
from deepjax.study.report.plots import rows_figure
from deepjax.study.stats.claims import compare_errors
from deepjax.study.stats.rules import Rule, all_above
from deepjax.study.stats.verdict import NOT_SUPPORTED, Verdict
from deepjax.study.study import Preset, SeedContext, Study, StudyResults, make_arm
from deepjax.training import TrainConfig, open_run

TRAINING = {"epochs": 1, "batch_size": 240, "warmup_epochs": 0.0}
DIVERGES = TrainConfig(
    "own/shallow", momentum=0.999, weight_decay=0.99, **TRAINING | {"epochs": 40}
)
MAKERS = {
    name: partial(Stack, kernels, width=4)
    for name, kernels in {"deep": (3, 3), "shallow": (3,)}.items()
}


def make_arms(options: Any, preset: Preset) -> dict[str, Any]:
    return {
        name: make_arm(name, f"own/{name}", options, preset, make) for name, make in MAKERS.items()
    }


def measure(context: SeedContext) -> dict[str, Any]:
    """What a study reads from its runs: the steps that each has behind it."""
    context.progress(0, 2)
    return {
        "steps": {
            name: open_run(run, make=MAKERS[name]).step for name, run in context.runs.items()
        },
        "seed": context.seed,
    }


def judge(results: StudyResults) -> list[Verdict]:
    deep, shallow = (("deep", results.arms["deep"]), ("shallow", results.arms["shallow"]))
    rule = Rule("Supported above 0.", partial(all_above, bound=0.0))
    above = partial(compare_errors, rule=rule)
    return [
        above("Deep is worse.", deep, shallow),
        above("Deep is worse than itself.", deep, deep, control=NOT_SUPPORTED),
    ]


def draw(results: StudyResults, out: Path) -> list[Figure]:
    rows = {name: arm.final("test_error") for name, arm in results.arms.items()}
    return [
        Figure(
            rows_figure([("Two stacks", "test error", rows)], out / "rows.png"),
            "Seeds, means, intervals.",
        )
    ]


STUDY = Study(
    name="toy",
    lecture="a toy",
    title="Is two more than one?",
    question="Is it?",
    presets={"digits": Preset("nothing", seeds=2, rates=(0.1, 0.03), training=TRAINING)},
    judge=judge,
    draw=draw,
    method=lambda results: ["Little was done."],
    limits=lambda results: ["Nothing is shown."],
    arms=make_arms,
    measure=measure,
)
