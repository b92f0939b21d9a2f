"""Made-up result.json files with every kind of outcome, as `deepjax.study.conclude` writes them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deepjax.study.report.published import RESULT, SECOND, DeclaredStudy
from deepjax.study.stats.verdict import Effect, Outcome, Verdict


def effect(
    mean: float,
    half: float,
    name: str = "test error, a less b",
    unit: str = " points",
    seeds: float = 0.7,
) -> Effect:
    """An effect with symmetric intervals; seeds: the half width over seeds by that over all."""
    bounds = [(mean - part * half, mean + part * half) for part in (seeds, 1.0)]
    return Effect(name, unit, mean, bounds[0], bounds[1], (mean, mean))


def verdict(
    claim: str,
    outcome: Outcome,
    p: float | None,
    headline: bool = True,
    effects: Sequence[Effect] = (effect(2.0, 1.0),),
    **others: Any,
) -> Verdict:
    """A verdict of a measured claim on errors."""
    rule = "Supported if the 95 % interval lies above 0 points; refuted if not; else inconclusive."
    return Verdict(claim, rule, outcome, effects, p=p, headline=headline, **others)


def exact(claim: str, headline: bool = True) -> Verdict:
    """A verdict of an exact claim."""
    counts = ["138,357,544 | 124 M"]
    return Verdict(
        claim, "Exact: supported if so.", "supported", (), counts, headline=headline, exact=True
    )


def control(claim: str, outcome: Outcome, expected: Sequence[Outcome]) -> Verdict:
    """A control with the outcomes that are expected of it."""
    return verdict(claim, outcome, 0.5, headline=False, control=tuple(expected))


def record(name: str, verdicts: Sequence[Verdict], **others: Any) -> dict[str, Any]:
    """A result.json with one figure, whose title is the first claim."""
    return {
        "study": name,
        "preset": "small",
        "title": f"What about {name}?",
        "lecture": f"the lecture on {name}",
        "beyond": False,
        "method": "Two networks were compared.",
        "limits": "Not that this holds elsewhere.",
        "protocol": "fashion_mnist_small: 16,000 training and 4,000 test images; 6 seeds.",
        "seeds": [100, 101, 102, 103, 104, 105],
        "verdicts": [each.as_dict() for each in verdicts],
        "figures": [{"file": "error.png", "caption": "Errors.", "claim": verdicts[0].claim}],
        "tables": [],
        "arms": {},
        "wall_seconds": 90.0,
        "command": f"python experiments/{name}.py --preset small",
        "hardware": "1 x cpu",
    } | others


def write(results: Path, made: dict[str, Any], file: str = RESULT) -> None:
    """Publish a result in a folder of results."""
    folder = results / f"{made['study']}-{made['preset']}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / file).write_text(json.dumps(made))


def declared(*names: str) -> list[DeclaredStudy]:
    """Declarations with a headline claim and another one."""
    return [
        DeclaredStudy(
            name,
            f"What about {name}?",
            f"the lecture on {name}",
            [f"Claim of {name}.", f"Other claim of {name}."],
            [f"Claim of {name}."],
        )
        for name in names
    ]


ALL_KINDS = [
    verdict("Strong.", "supported", 1e-6, power="95 % power at 2 points"),
    verdict("Weak.", "supported", 0.03, settles="80 % power at 2 points needs 14 seeds"),
    verdict("Opposite.", "refuted", 1e-5, effects=[effect(-2.0, 1.0)]),
    verdict(
        "Open.",
        "inconclusive",
        0.4,
        effects=[effect(0.1, 1.0, "training error, a"), effect(0.2, 1.0)],
        settles="80 % power at 2 points needs 14 seeds",
    ),
    verdict("Bad.", "not trained", 1.0, findings=["not trained: a has 20.00 % test error"]),
    verdict("Hint.", "supported", 2e-5, exploratory="too little power"),
    exact("Counted."),
    exact("Counted too.", headline=False),
    verdict(
        "Measured.",
        "supported",
        0.01,
        headline=False,
        effects=[effect(1.9, 0.1, "exponent", "", seeds=1.0)],
    ),
    control("The same network is worse.", "inconclusive", ["inconclusive"]),
    control("Planted defect.", "inconclusive", ["supported"]),
]

__all__ = ["ALL_KINDS", "SECOND", "control", "declared", "effect", "exact", "record", "verdict"]
