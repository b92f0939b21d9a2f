"""The description of an evaluation in result.json, and the check of an existing result."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from deepjax.data import Split
from deepjax.data.encoded_split import EncodedSplit
from deepjax.errors import InputError, describe_error
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
            "sha256": _sha256_of_variables(member.variables),
            "ema": member.averaged,
            "crop": list(member.stored) if member.stored else member.crop,
            "interpolation": member.interpolation,
            "mean": [value / 255 for value in member.dataset.mean],
            "std": [value / 255 for value in member.dataset.std],
            "precision": precision,
            "assumed": member.assumed,
            "protocol": dataclasses.asdict(protocol),
        }
        for member, protocol in zip(members, protocols, strict=True)
    ]


def set_spec(name: str, split: Split | EncodedSplit) -> dict[str, Any]:
    """Which images are tested. The fingerprint is "" for data that have none."""
    return {"dataset": name, "images": len(split), "fingerprint": split.fingerprint}


def _sha256_of_variables(variables: Any) -> str:
    """Of paths, types, shapes and numbers, whatever file or checkpoint they are from."""
    total = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        array = np.asarray(leaf)
        total.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        total.update(array.tobytes())
    return total.hexdigest()


def result_text(result: Mapping[str, Any]) -> str:
    """result.json: a list of numbers, such as a row of a confusion table, is one line."""
    text = json.dumps(result, indent=2, allow_nan=False, ensure_ascii=False)
    return re.sub(r"\[[\d\s,.e+-]*\]", lambda found: " ".join(found[0].split()), text) + "\n"


def check_result_folder(
    out: Path, about: Sequence[Mapping[str, Any]], sets: Sequence[Mapping[str, Any]]
) -> None:
    """Raise InputError where a folder has another evaluation's result, or a corrupt one.

    about: from `evaluation_spec`. sets: from `set_spec`.
    """
    path = out / RESULT_FILE
    if not path.exists():
        return
    mine = json.loads(json.dumps(list(about)))
    try:
        there = json.loads(path.read_text())
        changed = _changed(mine, there["evaluation"], "networks")
        changed += _changed(sets, there["sets"], "data sets")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"output_dir is {str(out)!r}; "
            f"allowed: a folder without a corrupt {RESULT_FILE} ({describe_error(error)})"
        ) from error
    if changed:
        raise InputError(
            f"{path} is of another evaluation (other {', '.join(changed)}); "
            "choose another --output-dir, or remove it"
        )


def _changed(
    mine: Sequence[Mapping[str, Any]], there: Sequence[Mapping[str, Any]], what: str
) -> list[str]:
    """The entries that differ, or the number of `what`."""
    if len(mine) != len(there):
        return [f"number of {what}"]
    pairs = zip(mine, there, strict=True)
    names = [name for one, other in pairs for name in one if one[name] != other.get(name)]
    return list(dict.fromkeys(names))
