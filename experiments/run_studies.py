"""Run every study in turn, and write the page of all verdicts.

    python experiments/run_studies.py                     # on the digits: docs/results/README.md
    python experiments/run_studies.py --dataset fashion_mnist --only degradation shattered_gradients

A finished study is only judged and drawn again. Exit code 1 if one fails; the others are still run.
"""

import dataclasses
import shutil
import subprocess
import sys
import time
from pathlib import Path

from deepjax.command_line import parse, run_command
from deepjax.errors import unknown_name_error
from deepjax.paths import run_directory, user_path
from deepjax.study.report.index import write_page

# Names of the scripts, in the order of the lecture.
STUDIES = (
    "receptive_field",
    "small_filters",
    "inception_module",
    "parameter_efficiency",
    "auxiliary_heads",
    "degradation",
    "optimization",
    "residual_signal",
    "shattered_gradients",
    "normalizer_free",
    "imagenet_history",
    "gradient_noise",
    "stochastic_depth",
    "depth_or_width",
)
DATASETS = ("digits", "fashion_mnist")


@dataclasses.dataclass(frozen=True)
class Options:
    """Run studies and write the page of their verdicts."""

    only: tuple[str, ...] = STUDIES
    """Names of the studies."""
    dataset: str = "digits"
    """Data set; every study has a preset for it."""
    runs: Path = Path("runs")
    """Parent of the study directories NAME-DATASET."""
    results: Path = Path("docs/results")
    """Where result.json, the figures and the page are published."""
    publish_only: bool = False
    """Run nothing; publish the present results."""

    def __post_init__(self) -> None:
        for name in self.only:
            if name not in STUDIES:
                raise unknown_name_error("study", name, STUDIES)


def main(options: Options) -> None:
    """Run, publish, and list the studies that failed."""
    began, failed = time.monotonic(), []
    runs, results = run_directory(options.runs, "runs"), user_path(options.results, "results")
    for i, name in enumerate(options.only, 1):
        out = runs / f"{name}-{options.dataset}"
        if not options.publish_only:
            print(f"\n[{i}/{len(options.only)}] {name} on {options.dataset}", flush=True)
            if not run_script(name, options.dataset, out, runs):
                failed.append(name)
                continue
        publish(out, results / out.name)
    page = write_page(results, STUDIES, DATASETS)
    print(f"\n{(time.monotonic() - began) / 60:.1f} min in all. Read {page}")
    if failed:
        sys.exit(
            f"failed: {', '.join(failed)}; the message of each is above, "
            "and the same command tries again"
        )


def run_script(name: str, dataset: str, out: Path, runs: Path) -> bool:
    """Run a study's script in a process of its own; whether it succeeded.

    It reuses runs: degradation, optimization and residual_signal train the same networks.
    """
    script = str(Path(__file__).with_name(f"{name}.py"))
    where = ["--output-dir", str(out), "--reuse-runs-from", str(runs)]
    command = [sys.executable, script, "--dataset", dataset, *where]
    return subprocess.run(command, check=False).returncode == 0  # noqa: S603  # our own scripts


def publish(out: Path, target: Path) -> None:
    """Copy result.json and figures to where they are published."""
    if (out / "result.json").exists():
        target.mkdir(parents=True, exist_ok=True)
        for path in [out / "result.json", *out.glob("*.png")]:
            shutil.copy(path, target / path.name)


if __name__ == "__main__":
    run_command(lambda: main(parse(Options)))
