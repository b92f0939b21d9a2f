"""What grows with processes and with data: measure parts, then write docs/results/scale.md.

python experiments/benchmarks/scale.py --part devices memory
"""

import dataclasses
import datetime
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from harness import write_result

from deepjax import command_line
from deepjax.errors import InputError, unknown_name_error
from deepjax.io import write_text
from deepjax.progress import counter

HERE = Path(__file__).parent
RESULTS = HERE.parents[1] / "docs" / "results"
COUNTS = (2, 4, 8, 16)  # of devices, and of processes
SIZES = (10_000, 100_000, 1_280_000)  # records
SHARDS = (1, 10, 100, 1000)
Row = dict[str, Any]


def main() -> None:
    """Measure the parts that are asked for, then write the page of all parts."""
    options = command_line.parse(Options)
    for name in options.part:
        if name not in PARTS:
            raise unknown_name_error("part", name, PARTS)
    for name in () if options.render_only else options.part:
        print(PARTS[name].title, flush=True)
        result = machine() | {"rows": PARTS[name].measure()}
        write_result(result, options.results / "scale" / f"{name}.json")
    write_text(options.results / "scale.md", render(options.results))
    print(f"read {options.results / 'scale.md'}")


def machine() -> dict[str, str]:
    """The date, the hardware, and how busy it is before a part is measured."""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    busy = "the machine was busy with other work" if load > 0.5 else "nothing else was running"
    return {
        "date": datetime.date.today().isoformat(),
        "hardware": f"{cores} CPU cores ({platform.machine()})",
        "load": f"load average {load:.1f} before the start: {busy}",
    }


def devices() -> list[Row]:
    """The train step of one process with simulated devices, data-parallel and with FSDP."""
    ways = [(count, flags) for flags in ([], ["--fsdp"]) for count in COUNTS]
    with counter("compiling", len(ways), "step", 10.0) as advance:
        rows = []
        for count, flags in ways:
            row = run("scale_collectives.py", "--devices", str(count), *flags)
            rows.append(row | {"fsdp": bool(flags)})
            advance(1)
    return rows


def processes() -> list[Row]:
    """The same step of several processes with one device each, as each of them compiles it."""
    rows = []
    with counter("compiling", sum(COUNTS), "program", 10.0) as advance:
        for count in COUNTS:
            found = together("scale_collectives.py", count)
            advance(count)
            counted = [{key: row[key] for key in ("collectives", "megabytes")} for row in found]
            if any(each != counted[0] for each in counted):
                raise InputError(f"the {count} processes compiled different programs: {counted}")
            rows.append(found[0])
    return rows


def memory() -> list[Row]:
    """Reading an epoch alone, and as one of 16 processes, of data sets of three sizes."""
    rows = []
    with counter("reading", 2 * len(SIZES), "epoch", 10.0) as advance:
        for size in SIZES:
            with tempfile.TemporaryDirectory(prefix="deepjax-scale-") as folder:
                data = ("--records", str(size), "--shards", "128", "--data-dir", folder)
                run("scale_data.py", *data, "--steps", "1")  # writes the files
                for place in ((), ("--processes", "16", "--process", "3")):
                    rows.append(run("scale_data.py", *data, *place))
                    advance(1)
    return rows


def shards() -> list[Row]:
    """The first batch of 400 of 100,000 records in so many files."""
    rows = []
    with counter("reading", len(SHARDS), "data set", 10.0) as advance:
        for count in SHARDS:
            with tempfile.TemporaryDirectory(prefix="deepjax-scale-") as folder:
                flags = ("--records", "100000", "--shards", str(count), "--data-dir", folder)
                run("scale_data.py", *flags, "--steps", "1")  # writes the files
                tries = [run("scale_data.py", *flags, "--steps", "1") for _ in range(3)]
                rows.append(sorted(tries, key=lambda row: row["first_batch_s"])[1])
            advance(1)
    return rows


def start(script: str, *flags: str) -> subprocess.Popen[str]:
    """A script of this folder in a process of its own."""
    line = [sys.executable, str(HERE / script), *flags]
    return subprocess.Popen(line, stdout=subprocess.PIPE, text=True)  # noqa: S603  # our scripts


def answer(process: subprocess.Popen[str]) -> Row:
    """The JSON that it prints last. Raises InputError if it fails."""
    text, _ = process.communicate()
    if process.returncode:
        code = process.returncode
        raise InputError(f"a process ended with {code}; its message stands above")
    return json.loads(text.splitlines()[-1])


def run(script: str, *flags: str) -> Row:
    """What one process measures."""
    return answer(start(script, *flags))


def together(script: str, count: int) -> list[Row]:
    """What several processes measure that are started at once."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    hosts = ["--hosts.coordinator", address, "--hosts.processes", str(count)]
    started = [start(script, *hosts, "--hosts.process-id", str(i)) for i in range(count)]
    return [answer(process) for process in started]


def collectives_table(rows: Sequence[Row]) -> list[str]:
    """The numbers of collectives of a step, and the bytes of their results on a device."""
    lines = ["| processes | devices | parameters | all-reduce | all-gather | MB a device |"]
    lines.append("|---:|---:|---|---:|---:|---:|")
    for row in rows:
        parameters = "sharded (`--fsdp`)" if row.get("fsdp") else "replicated"
        counts = [row["collectives"].get(kind, 0) for kind in ("all-reduce", "all-gather")]
        lines.append(
            f"| {row['processes']} | {row['devices']} | {parameters} | {counts[0]} | {counts[1]} | "
            f"{row['megabytes']:.3f} |"
        )
    return lines


def memory_table(rows: Sequence[Row]) -> list[str]:
    """What a process adds to its memory from opening a data set to the end of an epoch."""
    lines = ["| records | process | read here | in the exact order | MB from files | MiB added |"]
    lines.append("|---:|---|---:|---|---:|---:|")
    for row in rows:
        given = row["options"]
        lines.append(
            f"| {given['records']:,} | {given['process'] + 1} of {given['processes']} | "
            f"{row['records_read']:,} | {'yes' if row['in_order'] else 'no'} | "
            f"{row['bytes_read'] / 1e6:,.0f} | {added(row) / 2**20:.1f} |"
        )
    alone = [row for row in rows if row["options"]["processes"] == 1]
    few, many = alone[0], alone[-1]
    more = many["options"]["records"] - few["options"]["records"]
    slope = (added(many) - added(few)) / more
    return [*lines, "", f"From the first size to the last, alone: {slope:.0f} bytes a record."]


def added(row: Row) -> int:
    """Resident bytes that a process has more at the end than before it opened the data set."""
    return row["resident_after"] - row["resident_before"]


def shards_table(rows: Sequence[Row]) -> list[str]:
    """Seconds until the first batch, and the files that are then open."""
    lines = ["| shards | opening, s | first batch, s | open files | MiB added |"]
    lines.append("|---:|---:|---:|---:|---:|")
    for row in rows:
        lines.append(
            f"| {row['options']['shards']:,} | {row['open_s']:.2f} | {row['first_batch_s']:.2f} | "
            f"{row['open_files']:,} | {added(row) / 2**20:.1f} |"
        )
    return lines


def bucket() -> list[Row]:
    """Saves of two networks to a disk and to emulated buckets, while they train."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "rows.json"
        command = [sys.executable, HERE / "scale_bucket.py", "--output", output]
        subprocess.run(command, check=True)  # noqa: S603  # our own script
        return json.loads(output.read_text())["rows"]


def bucket_table(rows: Sequence[Row]) -> list[str]:
    """One column for each entry of the rows."""
    names = list(rows[0])
    lines = [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
    return [*lines, *(f"| {' | '.join(str(row[name]) for name in names)} |" for row in rows)]


@dataclasses.dataclass(frozen=True)
class Part:
    """A table of the page."""

    title: str
    measure: Callable[[], list[Row]]
    table: Callable[[Sequence[Row]], list[str]]


PARTS = {
    "devices": Part("Collectives by simulated devices of one process", devices, collectives_table),
    "processes": Part("Collectives by processes", processes, collectives_table),
    "memory": Part("Memory by the size of the data set", memory, memory_table),
    "shards": Part("Time to the first batch by shards", shards, shards_table),
    "bucket": Part("Saves to a bucket", bucket, bucket_table),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """What is measured."""

    part: tuple[str, ...] = tuple(PARTS)
    """Parts to measure; the page keeps the others' results."""
    render_only: bool = False
    """Measure nothing; write the page from the stored results."""
    results: Path = RESULTS
    """Where scale.md and scale/ lie."""


def render(results: Path) -> str:
    """The page: what was found, by hand, then each part's table with its command and machine."""
    folder = results / "scale"
    lines = ["# Scale: what grows with processes and with data", ""]
    lines += [(folder / "notes.md").read_text().strip(), ""]
    for name, part in PARTS.items():
        path = folder / f"{name}.json"
        lines += [f"## {part.title}", ""]
        if not path.exists():
            lines += ["Not measured.", ""]
            continue
        result = json.loads(path.read_text())
        lines += [
            f"`python experiments/benchmarks/scale.py --part {name}`, {result['date']}, "
            f"{result['hardware']}, {result['load']}.",
            "",
            *part.table(result["rows"]),
            "",
        ]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    command_line.run_command(main)
