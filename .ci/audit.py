"""`python .ci/audit.py LOCK`: pip-audit over a lock file, which says when nothing was looked up.

Exit codes: 0 if every package was looked up and none is vulnerable, 1 if some are, 3 if not every
package could be looked up.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def main(lock: str) -> int:
    """Run pip-audit and print what it found."""
    tool = Path(sys.executable).with_name("pip-audit")
    command = [
        str(tool),
        "--requirement",
        lock,
        "--require-hashes",
        "--disable-pip",
        "--format",
        "json",
        "--progress-spinner",
        "off",
    ]
    done = subprocess.run(command, capture_output=True, text=True)  # noqa: S603  # own tool, file
    code, lines = judge(done.stdout, done.stderr)
    print("\n".join(lines))
    return code


def judge(report: str, messages: str) -> tuple[int, list[str]]:
    """Exit code and lines from what pip-audit printed: its JSON, and its log where it failed."""
    try:
        packages: list[dict[str, Any]] = json.loads(report)["dependencies"]
    except (ValueError, KeyError):
        reason = messages.strip().splitlines()[-1:] or ["no message"]
        return 3, [
            "audit: nothing was looked up: "
            f"pip-audit or its vulnerability service failed ({reason[0][:300]})"
        ]
    skipped = [package for package in packages if "skip_reason" in package]
    found = [(package, each) for package in packages for each in package.get("vulns", [])]
    lines = [
        f"{p['name']} {p['version']}: {v['id']}, "
        f"mended in {', '.join(v['fix_versions']) or 'no version'}"
        for p, v in found
    ]
    looked_up = f"{len(packages) - len(skipped)} of {len(packages)} packages were looked up"
    if skipped:
        unknown = (
            "of the others nothing is known: "
            "the vulnerability service was not reached, or lacks them"
        )
        lines.append(f"audit: {looked_up}, {len(found)} vulnerabilities; {unknown}")
    else:
        lines.append(f"audit: {looked_up}, {len(found)} vulnerabilities")
    return (1 if found else 3 if skipped else 0), lines


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
