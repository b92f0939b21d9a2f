"""Log of images that could not be decoded: each is logged once, and too many end the run."""

import json
from collections.abc import Callable, Iterable, Sequence

from deepjax.data import EncodedSplit, Split
from deepjax.data.encoded_split import Undecodable
from deepjax.errors import InputError
from deepjax.training.distributed.collectives import allgather_strings
from deepjax.training.metrics.writer import Row

Found = tuple[int, str, int, str]  # steps done, split, record, reason


class DecodeErrorLog:
    """Collects decode errors and writes a row of kind "damaged" for each image not logged before.

    Does nothing for splits that hold arrays, and where a decode error ends the run at once.
    """

    def __init__(
        self, split: Split | EncodedSplit, rows: Iterable[Row], say: Callable[[str], None]
    ) -> None:
        """`split`: has the policy and the budget for both splits; `rows`: those logged before."""
        self._logged = {
            (row["split"], row["image"]): row["step"] for row in rows if row["kind"] == "damaged"
        }
        self._enabled = isinstance(split, EncodedSplit) and split.on_decode_error == "skip"
        self._budget = split.budget if isinstance(split, EncodedSplit) else 0
        self._say = say
        self._new: list[Found] = []

    def note(self, done: int, split: str, errors: Sequence[Undecodable]) -> None:
        """Collect the errors that this process found in a batch, after so many steps."""
        self._new += [
            (done, split, image, reason)
            for image, reason in errors
            if (split, image) not in self._logged
        ]

    def note_train(self, done: int, errors: Sequence[Undecodable]) -> None:
        """`note` for a batch of the training."""
        self.note(done, "train", errors)

    def flush(self, write: Callable[[Row], None]) -> None:
        """Write what any process has found since the last flush; called by all processes.

        Raises InputError if more images than the budget could not be decoded.
        """
        if not self._enabled:
            return
        found = sorted(
            tuple(each)
            for words in allgather_strings(json.dumps(self._new))
            for each in json.loads(words)
        )
        self._new = []
        for done, split, image, reason in found:
            if (split, image) not in self._logged:
                self._logged[split, image] = done
                write(
                    {"kind": "damaged", "step": done, "split": split, "image": image, "why": reason}
                )
                self._say(
                    f"{split} image {image} is corrupt ({reason}); "
                    f"{len(self._logged)} of {self._budget} such images"
                )
        if len(self._logged) > self._budget:
            (split, image), count = list(self._logged)[-1], len(self._logged)
            raise InputError(
                f"{count} images are corrupt, the last found record {image} of split {split!r}; "
                f"allowed: max_decode_errors, {self._budget}; "
                "prepare the data set again, or raise max_decode_errors in a new run"
            )

    def rewind(self, done: int) -> None:
        """Forget what was found after a step: a resumed run will find it again."""
        self._logged = {key: at for key, at in self._logged.items() if at <= done}
        self._new = []
