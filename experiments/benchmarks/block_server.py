"""A contender's process: runs the block named on stdin and answers with its images per second."""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Block = Callable[[], int]  # runs once over its images and returns how many there were


def input_arguments() -> tuple[Path, int, int, int]:
    """Folder, cores, size and batch size from input.py; restricts the process to the cores."""
    folder, cores, size, batch_size = sys.argv[1:]
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(cores)])
    return Path(folder), int(cores), int(size), int(batch_size)


def serve(
    blocks: dict[str, Block], versions: str, before: dict[str, Block] | None = None, **said: Any
) -> None:
    """Announce the blocks, warm each up once, then run them by name until stdin ends.

    before: what runs untimed before a block; said: other facts for the driver, as JSON.
    """
    for block in blocks.values():
        block()
    answer = os.fdopen(os.dup(1), "w")
    print(json.dumps({"names": list(blocks), "versions": versions} | said), file=answer, flush=True)
    for line in sys.stdin:
        name = line.strip()
        (before or {}).get(name, lambda: 0)()
        began = time.perf_counter()
        count = blocks[name]()
        print(json.dumps(count / (time.perf_counter() - began)), file=answer, flush=True)
