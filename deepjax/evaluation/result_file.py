"""The description of an evaluation in result.json, and the check of an existing result."""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deepjax.errors import InputError
from deepjax.evaluation.predict import EvalModel
from deepjax.evaluation.protocols import Protocol

RESULT_FILE = "result.json"


def evaluation_spec(
    members: Sequence[EvalModel], protocols: Sequence[Protocol], precision: str
) -> list[dict[str, Any]]:
    """What is tested, and how: what distinguishes one evaluation from another."""
    return [
        {
            "model": member.name,
            "weights": member.source,
            "ema": member.averaged,
            "crop": list(member.stored) if member.stored else member.crop,
            "interpolation": member.interpolation,
            "mean": [value / 255 for value in member.dataset.mean],
            "precision": precision,
            "assumed": member.assumed,
            "protocol": dataclasses.asdict(protocol),
        }
        for member, protocol in zip(members, protocols, strict=True)
    ]


def result_text(result: Mapping[str, Any]) -> str:
    """result.json: a list of numbers, such as a row of a confusion table, is one line."""
    text = json.dumps(result, indent=2, allow_nan=False, ensure_ascii=False)
    return re.sub(r"\[[\d\s,.e+-]*\]", lambda found: " ".join(found[0].split()), text) + "\n"


def check_result_folder(out: Path, about: list[dict[str, Any]], names: Sequence[str]) -> None:
    """Raise InputError where a folder has another evaluation's result, or a corrupt one."""
    try:
        there = (
            json.loads((out / RESULT_FILE).read_text()) if (out / RESULT_FILE).exists() else None
        )
    except (OSError, ValueError) as error:
        raise InputError(
            f"output_dir is {str(out)!r}; "
            f"allowed: a folder without a corrupt {RESULT_FILE} ({error})"
        ) from error
    same = (json.loads(json.dumps(about)), list(names))
    if (
        there is not None
        and (there.get("evaluation"), [each.get("dataset") for each in there.get("sets", ())])
        != same
    ):
        raise InputError(
            f"{out / RESULT_FILE} is of another evaluation; "
            "choose another --output-dir, or remove it"
        )
