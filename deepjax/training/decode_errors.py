"""The images that a run found damaged, over all its processes: each is logged once, and too many end the run."""

import json
from collections.abc import Callable, Iterable, Sequence

from deepjax.data.encoded_split import Damaged
from deepjax.errors import InputError
from deepjax.training.distributed.collectives import allgather_strings
from deepjax.training.metrics_log import Row

Found = tuple[
    int, str, int, str
]  # after how many steps, in which split, which record, what is wrong with it


class DecodeErrorLog:
    """Notes what batches say of damaged images, and writes a row of kind "damaged" for each that is new."""

    def __init__(self, rows: Iterable[Row], budget: int, say: Callable[[str], None]) -> None:
        """`rows`: those that the log has already; `budget`: how many different images of both splits there may be."""
        self._known = {
            (row["split"], row["image"]): row["step"] for row in rows if row["kind"] == "damaged"
        }
        self._budget, self._say = budget, say
        self._new: list[Found] = []

    def note(self, step: int, split: str, damaged: Sequence[Damaged]) -> None:
        """What this process found in a batch, after so many steps."""
        self._new += [
            (step, split, image, why) for image, why in damaged if (split, image) not in self._known
        ]

    def flush(self, write: Callable[[Row], None]) -> None:
        """Write what any process found since the last time; all of them call this. Raises InputError beyond the budget."""
        found = sorted(
            tuple(each)
            for words in allgather_strings(json.dumps(self._new))
            for each in json.loads(words)
        )
        self._new = []
        for step, split, image, why in found:
            if (split, image) not in self._known:
                self._known[split, image] = step
                write({"kind": "damaged", "step": step, "split": split, "image": image, "why": why})
                self._say(
                    f"{split} image {image} is damaged ({why}); {len(self._known)} of {self._budget} such images"
                )
        if len(self._known) > self._budget:
            (split, image), count = list(self._known)[-1], len(self._known)
            raise InputError(
                f"{count} images are damaged, the last found record {image} of split {split!r}; allowed: max_decode_errors, "
                f"{self._budget}; prepare the data set again, or raise max_decode_errors in a new run"
            )

    def rewind(self, step: int) -> None:
        """Forget what was found beyond a step: it will be found again."""
        self._known = {key: at for key, at in self._known.items() if at <= step}
        self._new = []
