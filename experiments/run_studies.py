"""Every study, one after the other, and the page of all verdicts.

    python experiments/run_studies.py                                 # all on the digits: docs/results/README.md
    python experiments/run_studies.py --dataset fashion_mnist --only degradation shattered_gradients

A study that was done is only judged and drawn again. Exit code 1 when one fails; the others run all the same.
"""

import dataclasses
import shutil
import subprocess
import sys
import time
from pathlib import Path

from deepjax.command_line import parse, run
from deepjax.errors import unknown_name_error
from deepjax.paths import run_directory, user_path
from deepjax.study.report.index import write_page

# In the order of the lecture.
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
    """Which studies."""
    dataset: str = "digits"
    """On which data set."""
    runs: Path = Path("runs")
    """Where the studies work: runs/NAME-DATASET."""
    results: Path = Path("docs/results")
    """Where result.json, figures and the page are published."""
    publish_only: bool = False
    """Run nothing; publish what is there."""

    def __post_init__(self) -> None:
        for name in self.only:
            if name not in STUDIES:
                raise unknown_name_error("study", name, STUDIES)


def main(options: Options) -> None:
    """Run, publish, and list what failed."""
    began, failed = time.monotonic(), []
    runs, results = run_directory(options.runs, "runs"), user_path(options.results, "results")
    for i, name in enumerate(options.only, 1):
        work = runs / f"{name}-{options.dataset}"
        if not options.publish_only:
            print(f"\n[{i}/{len(options.only)}] {name} on {options.dataset}", flush=True)
            command = [
                sys.executable,
                str(Path(__file__).with_name(f"{name}.py")),
                "--dataset",
                options.dataset,
                "--output-dir",
                str(work),
                "--reuse-runs-from",  # degradation, optimization and residual_signal train the same networks
                str(runs),
            ]
            if subprocess.run(command, check=False).returncode:  # noqa: S603  # our own scripts
                failed.append(name)
                continue
        publish(work, results / work.name)
    page = write_page(results, STUDIES, DATASETS)
    print(f"\n{(time.monotonic() - began) / 60:.1f} min in all. Read {page}")
    if failed:
        sys.exit(
            f"failed: {', '.join(failed)}; the message of each stands above, and the same command tries again"
        )


def publish(work: Path, place: Path) -> None:
    """Copy result.json and figures to where they are published."""
    if (work / "result.json").exists():
        place.mkdir(parents=True, exist_ok=True)
        for path in [work / "result.json", *work.glob("*.png")]:
            shutil.copy(path, place / path.name)


if __name__ == "__main__":
    run(lambda: main(parse(Options)))
