"""TensorBoard's event files, read as TensorBoard does."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tensorboardX.proto.event_pb2 import Event, SessionLog


def _events(folder: Path) -> Iterator[Event]:
    """TFRecords: length, its checksum, data, their checksum."""
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            yield Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]


def logged_values(folder: Path) -> dict[str, list[tuple[int, Any]]]:
    """(step, value) by tag: a number, or a histogram.

    A start of a session at a step drops what was logged from that step on: the rule of
    TensorBoard's EventAccumulator, _CheckForRestartAndMaybePurge.
    """
    found: dict[str, list[tuple[int, Any]]] = {}
    for event in _events(folder):
        if event.session_log.status == SessionLog.START:
            found = {
                tag: [(step, value) for step, value in points if step < event.step]
                for tag, points in found.items()
            }
        for value in event.summary.value:
            point = value.histo if value.HasField("histo") else value.simple_value
            found.setdefault(value.tag, []).append((event.step, point))
    return found
