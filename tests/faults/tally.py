"""What became of the faults of one kind."""

import dataclasses
from collections.abc import Callable


@dataclasses.dataclass
class Tally:
    """How many faults were tried, and each that was lost with what went wrong."""

    fault: str
    shows: str
    tried: int = 0
    losses: list[str] = dataclasses.field(default_factory=list)
    note: str = ""
    untried: str = ""  # why it could not be tried here

    def count(self, survived: bool, what: str) -> None:
        """One more try."""
        self.tried += 1
        if not survived:
            self.losses.append(what)

    def attempt(self, what: str, check: Callable[[], bool]) -> None:
        """One more try, lost too when the check raises."""
        try:
            self.count(check(), what)
        except Exception as error:  # any error at all is a loss, and is told
            self.count(False, f"{what}: {type(error).__name__}: {error}"[:300])

    def row(self) -> str:
        """The line of the table."""
        if self.untried:
            return f"| {self.fault} | not tried: {self.untried} | | | {self.shows} |"
        survived, lost = self.tried - len(self.losses), len(self.losses)
        return f"| {self.fault} | {self.tried} | {survived} | {lost} | {self.shows} {self.note} |"
