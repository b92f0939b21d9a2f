"""`python -m tests.first_hour`: three users type what README and the pages of docs say.

A student of the lecture in a fresh clone, a researcher with the wheel in a fresh environment, and
an engineer with images of their own; then a reader of each tutorial. Prints a line for each command
and each block of Python: outcome, seconds, user, page and line. What is not run is named with the
reason. Exit code 1 if something failed. Needs Python and make alone, and about 4 GB of disk.
"""

import argparse
import shutil
import sys
import time
from pathlib import Path

from tests.first_hour.player import ROOT, make_environment, play
from tests.first_hour.users import USERS, tutorials


def main() -> int:
    """Play all users, or those that were named; 1 if something failed."""
    pages = sorted(f"{path.relative_to(ROOT)}" for path in ROOT.glob("docs/tutorials/*.md"))
    # The student last, because they change the code.
    users = {user.name: user for user in (*USERS[1:], *tutorials(pages), USERS[0])}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("users", nargs="*", help=f"of {', '.join(users)}; default: all")
    parser.add_argument("--work-dir", type=Path, default=ROOT / "build" / "first_hour")
    options = parser.parse_args()
    if unknown := sorted({*options.users} - {*users}):
        parser.error(f"unknown users {unknown}; allowed: {', '.join(users)}")
    out = options.work_dir.resolve()
    shutil.rmtree(out, ignore_errors=True)
    chosen = [users[name] for name in options.users or users]
    programs = {}
    for kind in dict.fromkeys(user.environment for user in chosen):
        begin = time.monotonic()
        programs[kind] = make_environment(kind, out)
        print(f"a fresh {kind} in {time.monotonic() - begin:.0f} s", flush=True)
    steps = [step for user in chosen for step in play(user, out, programs[user.environment])]
    failed = [step for step in steps if step.outcome == "FAILED"]
    not_run = [step for step in steps if step.outcome == "not run"]
    seconds = sum(step.seconds for step in steps)
    print(f"\n{len(steps)} steps in {seconds:.0f} s: {len(failed)} failed, {len(not_run)} not run")
    for step in failed:
        print(f"failed: {step.user}, {step.place}: {step.text.strip().splitlines()[0]}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
