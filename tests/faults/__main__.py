"""`python -m tests.faults` injects every fault and writes docs/results/faults.md.

`--only NAME` injects one, `--share 0.1` a fraction of each. Each fault has its own process, with as
many simulated devices as it needs. Exit code 1 if a fault was lost, or not tried.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

ROOT = Path(__file__).parents[2]
# name: (module, function, tries, devices); 0 tries are as many as there are.
FAULTS = {
    "sigkill": ("kills", "sigkill", 200, 1),
    "sigterm": ("kills", "sigterm", 40, 1),
    "one-of-two": ("kills", "one_of_two", 12, 1),
    "bit-flips": ("files", "bit_flips", 2000, 1),
    "cut-files": ("files", "cut_files", 0, 1),
    "full-disk": ("files", "full_disk", 10, 1),
    "bad-batches": ("bad_batches", "bad_batches", 250, 1),
    "resumed-order": ("spread", "resumed_order", 0, 1),
    "moved": ("spread", "moved", 0, 8),
    "strategies": ("spread", "strategies", 0, 8),
    "processes": ("spread", "processes", 0, 1),
    "changed": ("inputs", "changed", 0, 1),
    "fuzz": ("inputs", "fuzz", 5000, 1),
    "launchers": ("starts", "launchers", 0, 1),
    "signals": ("starts", "stopped", 40, 1),
    "settings": ("starts", "settings", 0, 1),
    "names": ("names", "names", 500, 1),
    "double-starts": ("double_starts", "double_starts", 100, 1),
    "bucket-kills": ("buckets", "killed_in_a_bucket", 200, 1),
    "bucket-bit-flips": ("buckets", "flipped_in_a_bucket", 2000, 1),
    "bucket-failures": ("buckets", "failing_store", 0, 1),
    "bucket-pairs": ("buckets", "pairs_in_a_bucket", 12, 1),
    "controls": ("controls", "controls", 0, 1),
}
HEADER = """# Faults

Every fault injected into real runs (`cifar_plain20`, 2 filters, on the digits; 15 steps, 60 for
SIGKILL, a checkpoint every second one), by `make faults`, which wrote this page. A fault is lost
when anything of what must show does not. Kills are counted that hit between a start's first step
and its last save.

| fault | tried | survived | lost | must show |
|---|---|---|---|---|
"""


# These measure seconds, and need the machine for themselves.
ALONE = ("sigterm", "one-of-two", "signals")


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--share", type=float, default=1.0, help="share of the tries")
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        help="kinds of faults at a time, but for those that are about seconds",
    )
    parser.add_argument("--inside", nargs="*", metavar="NAME:TRIES", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        for asked in options.inside:
            name, tries = asked.split(":")
            print(json.dumps(inject(name, int(tries))), flush=True)
        return 0
    began = time.monotonic()
    tallies = []
    for tally in in_turn(options.only, options.share, options.jobs):
        tallies.append(tally)
        print(tally["row"], flush=True)
        for loss in tally["losses"][:5]:
            print(f"    lost: {loss}", flush=True)
        if options.share == 1.0:
            keep(tally)
    lost, untried = (
        sum(len(tally["losses"]) for tally in tallies),
        sum(bool(tally["untried"]) for tally in tallies),
    )
    tried = sum(tally["tried"] for tally in tallies)
    aside = f", {untried} kinds not tried" if untried else ""
    print(f"{tried} faults, {lost} lost{aside}, {(time.monotonic() - began) / 60:.1f} min")
    return int(lost + untried > 0)


def in_turn(names: Sequence[str], share: float, jobs: int) -> Iterator[dict]:
    """The tally of each kind as it finishes: several at a time, then each kind in `ALONE`."""
    with ThreadPoolExecutor(jobs) as pool:
        several = [pool.submit(apart, name, share) for name in names if name not in ALONE]
        yield from (done.result() for done in as_completed(several))
    yield from (apart(name, share) for name in names if name in ALONE)


def apart(name: str, share: float) -> dict:
    """One kind of fault in a process of its own."""
    _, _, tries, devices = FAULTS[name]
    asked = f"{name}:{max(1, round(tries * share)) if tries else 0}"
    try:
        return json.loads(inside([asked], devices)[0])
    except subprocess.CalledProcessError:
        return {
            "name": name,
            "row": f"| {name} | 1 | 0 | 1 | the harness failed |",
            "tried": 1,
            "losses": ["the harness failed, see above"],
            "untried": "",
        }


def inside(asked: Sequence[str], devices: int) -> list[str]:
    """Inject kinds, NAME:TRIES each, in a process of `devices` devices; returns a line for each."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    command = [sys.executable, "-m", "tests.faults", "--inside", *asked]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout.splitlines()[-len(asked) :]


def inject(name: str, tries: int) -> dict:
    """Inside that process: what became of the faults of one kind."""
    module, function, _, _ = FAULTS[name]
    call: Callable = getattr(__import__(f"tests.faults.{module}", fromlist=[function]), function)
    with tempfile.TemporaryDirectory(prefix="faults-") as work:
        began = time.monotonic()
        tally = call(tries, Path(work))
    minutes = (time.monotonic() - began) / 60
    tally.note = f"{tally.note} [{minutes:.1f} min]".strip()
    return {
        "name": name,
        "row": tally.row(),
        "tried": tally.tried,
        "losses": tally.losses,
        "untried": tally.untried,
    }


def keep(tally: dict) -> None:
    """Write the row into the page; those of faults that were not injected this time stay."""
    path = ROOT / "docs" / "results" / "faults.md"
    stored = path.with_suffix(".json")
    rows = json.loads(stored.read_text()) if stored.exists() else {}
    rows[tally["name"]] = {"row": tally["row"], "losses": tally["losses"]}
    stored.write_text(json.dumps(rows, indent=1) + "\n")
    lines = [rows[name]["row"] for name in FAULTS if name in rows]
    losses = [
        f"- {name}: {loss}" for name in FAULTS if name in rows for loss in rows[name]["losses"]
    ]
    path.write_text(
        HEADER
        + "\n".join(lines)
        + "\n"
        + ("\nLost:\n\n" + "\n".join(losses) + "\n" if losses else "")
    )


if __name__ == "__main__":
    sys.exit(main())
