"""The runs at or below a folder or a URL, for commands."""

from pathlib import Path

from deepjax.errors import InputError
from deepjax.training.checkpoint.run_copy import urls_of_runs
from deepjax.training.run_directory.run_summary import require_runs


def runs_below(place: Path | str) -> list[str]:
    """Paths or URLs, in order, of the runs at or below a validated path or URL.

    Raises InputError where there is none.
    """
    if isinstance(place, Path):
        return list(map(str, require_runs(place)))
    found = sorted(urls_of_runs(place))
    if not found:
        raise InputError(
            f"{place} holds no training run; allowed: the --output-dir of one, or above"
        )
    return found
