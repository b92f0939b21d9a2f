"""The rules of a study, recorded before its first judged run, and compared afterwards."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deepjax.io import write_text
from deepjax.study.claim import Claim, Control, ExactClaim
from deepjax.study.preset import Preset
from deepjax.study.stats.intervals import LEVEL
from deepjax.study.study import Study

FILE = "rules.json"


def record_rules(study: Study, preset: Preset, out: Path) -> None:
    """Write the rules of all claims into a study directory that has none yet."""
    path = out / FILE
    if not path.exists():
        write_text(path, json.dumps(rules_of(study, preset), indent=1) + "\n")


def changed_claims(study: Study, preset: Preset, out: Path) -> set[str]:
    """The texts of claims that were added or changed since the rules were recorded."""
    path = out / FILE
    if not path.exists():
        return set()
    before: Mapping[str, Any] = json.loads(path.read_text())
    now = json.loads(json.dumps(rules_of(study, preset)))
    return {text for text, rule in now.items() if before.get(text) != rule}


def rules_of(study: Study, preset: Preset) -> dict[str, Any]:
    """By the text of each claim: everything that its verdict depends on but the runs."""
    return {claim.text: _rule(claim, preset) for claim in study.claims}


def _rule(claim: Claim | ExactClaim, preset: Preset) -> dict[str, Any]:
    if isinstance(claim, ExactClaim):
        return {"rule": claim.rule}
    return {
        "quantities": [repr(quantity.terms) for quantity in claim.quantities],
        "rule": repr(claim.rule),
        "sets": list(claim.sets),
        "interest": claim.interest,
        "gate": claim.gate,
        "measures": list(claim.measures),
        "headline": claim.headline,
        "exploratory": claim.exploratory,
        "expected": list(claim.expected) if isinstance(claim, Control) else [],
        "level": claim.level if isinstance(claim, Control) else LEVEL,
        "seeds": preset.seeds,
    }
