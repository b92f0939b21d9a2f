"""What auxiliary heads send into parts of a network: their share of the gradient, and whether it points the main loss's way."""

import math
from collections.abc import Mapping

import numpy as np

from deepjax.analysis import LossContributions

Part = dict[str, float | None]


def by_part(shares: LossContributions, parts: Mapping[str, tuple[str, ...]]) -> dict[str, Part]:
    """Of each part, the layers whose names start so: "share" of all heads together and their "cosine" with the main loss.

    Means over the part's layers; the cosine is None where no head's gradient arrives.
    """
    heads = [row for row in shares.layers if row.loss != "main"]
    found: dict[str, Part] = {}
    for part, starts in parts.items():
        rows = [row for row in heads if row.layer.startswith(starts)]
        cosines = [row.cosine for row in rows if not math.isnan(row.cosine)]
        share = sum(row.fraction for row in rows) / len({row.layer for row in rows})
        found[part] = {"share": share, "cosine": float(np.mean(cosines)) if cosines else None}
    return found
