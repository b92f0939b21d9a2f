"""Files that grow, as objects, which cannot: each part has a name with its place in the file.

metrics.jsonl is NAME.parts/GENERATION.OFFSET ... while a run writes it. A generation is a complete
file: the next one begins where the file was rewritten. A reader joins the parts of the highest
generation, as far as none is missing.
"""

import re
from collections.abc import Iterable, Mapping

_PART = re.compile(r"(?P<file>.+)\.parts/(?P<generation>\d{8}-\d{6})\.(?P<offset>\d{14})")


def part_name(file: str, owner: int, rewrite: int, offset: int) -> str:
    """The name of a part; a generation is (owner of the lock, count of its rewrites)."""
    return f"{file}.parts/{owner:08d}-{rewrite:06d}.{offset:014d}"


def is_part(name: str) -> bool:
    """Whether an object is a part of a file."""
    return _PART.fullmatch(name) is not None


def current_parts(sizes: Mapping[str, int]) -> dict[str, list[str]]:
    """By file the parts of its highest generation, in order, up to the first that is missing.

    sizes: bytes of all objects by name.
    """
    files: dict[str, dict[str, list[str]]] = {}
    for name in sorted(sizes):
        if found := _PART.fullmatch(name):
            files.setdefault(found["file"], {}).setdefault(found["generation"], []).append(name)
    joined = {
        file: _joined(generations[max(generations)], sizes) for file, generations in files.items()
    }
    # Without its first part a generation is being deleted, after the complete file was written.
    return {file: parts for file, parts in joined.items() if parts}


def _joined(parts: Iterable[str], sizes: Mapping[str, int]) -> list[str]:
    found, end = [], 0
    for name in parts:
        if int(name.rpartition(".")[2]) != end:
            break
        found.append(name)
        end += sizes[name]
    return found
