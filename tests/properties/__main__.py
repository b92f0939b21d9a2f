"""`python -m tests.properties` tests every property on many generated examples.

It writes docs/results/properties.md. The examples are divided into seeds; a resumed search skips
the seeds that docs/results/properties.json lists. `--only FILE ...` searches some of the files,
`--again` ignores earlier results. Exit code 1 if a property failed.
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from tests.properties.examples import SEEDS

ROOT = Path(__file__).parents[2]
FILES = sorted(path.stem for path in Path(__file__).parent.glob("test_*.py"))
STORED = ROOT / "docs" / "results" / "properties.json"
HEADER = """# Properties

Every property that was tested on generated examples, by `python -m tests.properties`, which wrote
this page. The suite tests the same properties on fewer examples. A failed seed is repeated with
`DEEPJAX_PROPERTY_SEARCH=1 python -m pytest tests/properties/FILE.py --hypothesis-seed=SEED`.

| file | property | examples | failed seeds |
|---|---|---|---|
"""


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", choices=FILES, default=FILES, metavar="FILE")
    parser.add_argument(
        "--again", action="store_true", help="ignore seeds that were searched before"
    )
    options = parser.parse_args()
    results: dict[str, dict[str, dict]] = json.loads(STORED.read_text()) if STORED.exists() else {}
    if options.again:
        results = {file: seeds for file, seeds in results.items() if file not in options.only}
    todo = [
        (file, seed)
        for file in options.only
        for seed in range(SEEDS)
        if str(seed) not in results.get(file, {})
    ]
    began = time.monotonic()
    for done, (file, seed) in enumerate(todo):
        left = (time.monotonic() - began) / done * (len(todo) - done) if done else 0.0
        print(
            f"{file}, seed {seed} ({done + 1} of {len(todo)}; {left / 60:.0f} min left)", flush=True
        )
        results.setdefault(file, {})[str(seed)] = search(file, seed)
        write(results)
    failed = [
        f"{file}, seed {seed}"
        for file in options.only
        for seed, found in results[file].items()
        if found["failed"]
    ]
    print("\n".join([f"{len(options.only)} files, {len(failed)} failed seeds", *failed]))
    return int(bool(failed))


def search(file: str, seed: int) -> dict:
    """One seed of a file's properties: the names of those that failed, and the seconds."""
    environment = os.environ | {"DEEPJAX_PROPERTY_SEARCH": "1"}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-rf",
        f"tests/properties/{file}.py",
        f"--hypothesis-seed={seed}",
    ]
    began = time.monotonic()
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    failed = [
        line.split("::")[1].split(" ")[0]
        for line in done.stdout.splitlines()
        if line.startswith("FAILED")
    ]
    if done.returncode:
        print(done.stdout[-3000:], done.stderr[-1000:], flush=True)
        failed = failed or ["the test run itself"]
    return {"failed": failed, "seconds": round(time.monotonic() - began)}


def write(results: dict[str, dict[str, dict]]) -> None:
    """The results as JSON, and the page."""
    STORED.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    rows = [row for file, seeds in sorted(results.items()) for row in rows_of(file, seeds)]
    STORED.with_suffix(".md").write_text(HEADER + "\n".join(rows) + "\n")


def rows_of(file: str, seeds: dict[str, dict]) -> list[str]:
    """A row of the page for each property of a file."""
    rows = []
    for name, test in vars(importlib.import_module(f"tests.properties.{file}")).items():
        if name.startswith("test_") and hasattr(test, "many"):
            failed = [
                seed
                for seed, found in seeds.items()
                if any(name == each.split("[")[0] for each in found["failed"])
            ]
            count = max(1, test.many // SEEDS) * len(seeds)
            title = name.removeprefix("test_").replace("_", " ")
            rows.append(f"| {file} | {title} | {count} | {', '.join(failed) or 'none'} |")
    return rows


if __name__ == "__main__":
    sys.exit(main())
