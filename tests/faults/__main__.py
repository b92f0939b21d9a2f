"""`python -m tests.faults` injects every fault and writes docs/results/faults.md; `--only NAME` one, `--share 0.1` fewer of each.

Each fault has a process of its own, with as many simulated devices as it wants. Exit code 1 when one was lost.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
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
    "controls": ("controls", "controls", 0, 1),
}
HEADER = """# Faults

Every fault injected into real runs (`cifar_plain20`, 2 filters, on the digits; 15 steps, a checkpoint every second one), by
`make faults`, which wrote this page. A fault is lost when anything of what must show does not.

| fault | tried | survived | lost | must show |
|---|---|---|---|---|
"""


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--share", type=float, default=1.0, help="share of the tries")
    parser.add_argument("--inside", choices=FAULTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        return inject(options.inside, options.share)
    began = time.monotonic()
    tallies = {}
    for name in options.only:
        tallies[name] = apart(name, options.share)
        print(tallies[name]["row"], flush=True)
        for loss in tallies[name]["losses"][:5]:
            print(f"    lost: {loss}", flush=True)
        if options.share == 1.0:
            keep({name: tallies[name]})
    lost = sum(len(tally["losses"]) for tally in tallies.values())
    print(f"{sum(tally['tried'] for tally in tallies.values())} faults, {lost} lost, {(time.monotonic() - began) / 60:.1f} min")
    return int(lost > 0)


def apart(name: str, share: float) -> dict:
    """One kind of fault in a process of its own."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(FAULTS[name][3])}
    command = [sys.executable, "-m", "tests.faults", "--inside", name, "--share", str(share)]
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        return {"row": f"| {name} | 1 | 0 | 1 | the harness failed |", "tried": 1, "losses": ["the harness failed, see above"]}
    return json.loads(done.stdout.splitlines()[-1])


def inject(name: str, share: float) -> int:
    """Inside that process: print the tally as JSON."""
    module, function, tries, _ = FAULTS[name]
    call: Callable = getattr(__import__(f"tests.faults.{module}", fromlist=[function]), function)
    with tempfile.TemporaryDirectory(prefix="faults-") as work:
        began = time.monotonic()
        tally = call(max(1, round(tries * share)) if tries else 0, Path(work))
    minutes = (time.monotonic() - began) / 60
    tally.note = f"{tally.note} [{minutes:.1f} min]".strip()
    print(json.dumps({"row": tally.row(), "tried": tally.tried, "losses": tally.losses}))
    return 0


def keep(tallies: dict) -> None:
    """Write the rows into the page; those of faults that were not injected this time stay."""
    path = ROOT / "docs" / "results" / "faults.md"
    stored = path.with_suffix(".json")
    rows = json.loads(stored.read_text()) if stored.exists() else {}
    rows |= {name: {"row": tally["row"], "losses": tally["losses"]} for name, tally in tallies.items()}
    stored.write_text(json.dumps(rows, indent=1) + "\n")
    lines = [rows[name]["row"] for name in FAULTS if name in rows]
    losses = [f"- {name}: {loss}" for name in FAULTS if name in rows for loss in rows[name]["losses"]]
    path.write_text(HEADER + "\n".join(lines) + "\n" + ("\nLost:\n\n" + "\n".join(losses) + "\n" if losses else ""))


if __name__ == "__main__":
    sys.exit(main())
