"""Run studies in turn, and write the page of their verdicts, docs/results/README.md.

    python experiments/run_studies.py                          # the lecture, on the small preset
    python experiments/run_studies.py --studies beyond
    python experiments/run_studies.py --studies degradation small_filters --preset gpu
    python experiments/run_studies.py --preset quick           # no verdicts, nothing is published
    python experiments/run_studies.py --studies all --pilots   # select learning rates first
    python experiments/run_studies.py --executor slurm --executor-options partition=gpu time=60
    export XLA_FLAGS=--xla_cpu_max_isa=SSE4_2  # sums in another order
    python experiments/run_studies.py --runs second --results second/results; unset XLA_FLAGS
    python experiments/run_studies.py --publish-only --second-runs second

The last three run the lecture once more with other rounding, and publish where verdicts differ.
A finished study is only judged and drawn again. Exit code 1 if one fails; the others are still run.
"""

import dataclasses
import importlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from deepjax.command_line import parse, run_command
from deepjax.errors import InputError, require, unknown_name_error
from deepjax.paths import run_directory, user_path
from deepjax.study.arms.rates import PACKAGED, read_rates, write_rates
from deepjax.study.claim import Control
from deepjax.study.pilots.record import RATES, RECORD
from deepjax.study.report.page import write_page
from deepjax.study.report.pilots_page import write_pilots_page
from deepjax.study.report.published import RESULT, SECOND, DeclaredStudy, is_repetition
from deepjax.study.study import Study, has_pilots

# Names of the scripts, in the order of the lecture.
STUDIES = (
    "imagenet_history",
    "receptive_field",
    "small_filters",
    "inception_module",
    "parameter_efficiency",
    "auxiliary_heads",
    "degradation",
    "optimization",
    "residual_signal",
    "shattered_gradients",
)
BEYOND = (
    "normalizer_free",
    "stochastic_depth",
    "depth_or_width",
    "data_scaling",
    "trained_networks",
    "gradient_noise",
)
SETS = {"lecture": STUDIES, "beyond": BEYOND, "all": (*STUDIES, *BEYOND)}
SHARED = ("degradation",)  # run first, since others reuse its runs
REPORT = "report.html"
ROOT = Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True)
class Options:
    """Run studies and write the page of their verdicts."""

    studies: tuple[str, ...] = ("lecture",)
    """lecture, beyond, all, or names of studies."""
    preset: Literal["quick", "small", "gpu"] = "small"
    """quick: no verdicts, nothing is published; small: the embedded Fashion-MNIST, on a CPU;
    gpu: the complete Fashion-MNIST in bfloat16."""
    pilots: bool = False
    """Run the pilots of those studies that have their own, and store the rates that they select."""
    threads: int = 1
    """Threads of each worker; another number rounds differently."""
    executor: Literal["local", "slurm", "kubernetes"] = "local"
    """local: worker processes of this machine; slurm: a job for each run and measurement, followed
    until they end (needs the extra `cluster`); kubernetes: print a manifest of Jobs."""
    executor_options: tuple[str, ...] = ()
    """Of SLURM: long options of sbatch, such as partition=gpu time=4:00:00 gpus=1 mem=16G; of
    Kubernetes: image=IMAGE claim=CLAIM, and mount, namespace, cpu, memory, gpu=VALUE."""
    retries: int = 3
    """How often a job is submitted again that hung or was killed; not after invalid input."""
    runs: Path = Path("runs")
    """Parent of the study directories NAME-PRESET."""
    results: Path = Path("docs/results")
    """Where results, figures, reports and the page are published."""
    publish_only: bool = False
    """Run nothing; publish the present results."""
    second_runs: Path | None = None
    """Parent of the study directories of a second complete run with other rounding: verdicts that
    differ are published as unstable."""

    def __post_init__(self) -> None:
        for name in self.studies:
            if name not in (*SETS, *SETS["all"]):
                raise unknown_name_error("study", name, (*SETS, *SETS["all"]))
        require(self.threads >= 1, "threads", self.threads, "1 or more")
        require(self.retries >= 0, "retries", self.retries, "0 or more")
        given = self.executor_options if self.executor == "local" else ()
        require(not given, "executor_options", given, "none, with --executor local")
        printed = self.executor == "kubernetes"
        follows = printed and (self.pilots or self.publish_only)
        require(not follows, "executor", self.executor, "local or slurm, with these options")
        quick = self.preset == "quick" and (self.publish_only or self.second_runs is not None)
        require(not quick, "preset", self.preset, "small or gpu, to publish")
        require(not (self.pilots and self.second_runs), "second_runs", self.second_runs, "none")


def main(options: Options) -> None:
    """Run, publish, and list the studies that failed."""
    began = time.monotonic()
    runs = run_directory(options.runs, "runs")
    results = user_path(options.results, "results")
    second = options.second_runs and user_path(options.second_runs, "second_runs")
    names = run_order(options.studies)
    if options.pilots:
        names = [name for name in names if is_piloted(name, options.preset)]
        require(bool(names), "preset", options.preset, "one that has pilots")
    if options.executor == "kubernetes":
        _print_manifests(names, options)
        return
    is_page = not options.pilots and options.preset != "quick"
    studies = (declared(STUDIES), declared(BEYOND)) if is_page else ()
    failed = []
    for i, name in enumerate(names, 1):
        out = runs / study_folder(name, options)
        if not options.publish_only:
            print(f"\n[{i}/{len(names)}] {out.name}", flush=True)
            if not run_script(name, out, runs, options):
                failed.append(name)
                continue
        if options.pilots:
            publish_pilots(out, results / "pilots")
        elif is_page:
            publish(out, results / out.name)
            if second is not None:
                publish_second(second / out.name, results / out.name)
    done = f"{(time.monotonic() - began) / 60:.1f} min in all."
    if options.pilots:
        done += f" Read {write_pilots_page(results / 'pilots')}"
    else:
        page = write_page(results, *studies) if is_page else runs / "NAME-quick" / REPORT
        done += f" Read {page}"
    print(f"\n{done}")
    if failed:
        sys.exit(
            f"failed: {', '.join(failed)}; the message of each is above, "
            "and the same command tries again"
        )


def run_order(names: Sequence[str]) -> list[str]:
    """The studies of names and sets of names; first those whose runs others reuse."""
    found = dict.fromkeys(study for name in names for study in SETS.get(name, (name,)))
    return sorted(found, key=lambda name: name not in SHARED)


def study_folder(name: str, options: Options) -> str:
    """The name of a study directory, as the scripts choose it."""
    return f"{name}-{options.preset}" + "-pilots" * options.pilots


def declaration(name: str) -> Study:
    """The study that a script declares."""
    if str(ROOT) not in sys.path:  # for a command there is the folder of the scripts alone
        sys.path.append(str(ROOT))
    return importlib.import_module(f"experiments.{name}").STUDY


def is_piloted(name: str, preset: str) -> bool:
    """Whether a study has a preset with pilots."""
    study = declaration(name)
    return preset in study.presets and has_pilots(study, study.presets[preset])


def declared(names: Sequence[str]) -> list[DeclaredStudy]:
    """What the page needs of studies without results."""
    found = []
    for name in names:
        study = declaration(name)
        claims = [
            claim
            for claim in study.claims
            if not isinstance(claim, Control) and not getattr(claim, "expected", ())
        ]
        texts = [claim.text for claim in claims]
        headline = [claim.text for claim in claims if claim.headline]
        found.append(DeclaredStudy(name, study.title, study.lecture, texts, headline))
    return found


def run_script(name: str, out: Path, runs: Path, options: Options) -> bool:
    """Run a study's script in a process of its own; whether it succeeded."""
    given = ["--output-dir", str(out), "--reuse-runs-from", str(runs)]
    command = script_command(name, options, given)
    return subprocess.run(command, check=False).returncode == 0  # noqa: S603  # our own scripts


def script_command(name: str, options: Options, given: Sequence[str] = ()) -> list[str]:
    """The command of a study's script with those options that the scripts have too."""
    arguments = {
        "--preset": options.preset,
        "--threads": str(options.threads),
        "--executor": options.executor,
        "--retries": str(options.retries),
    }
    command = [sys.executable, str(Path(__file__).with_name(f"{name}.py"))]
    command += [each for pair in arguments.items() for each in pair]
    if options.executor_options:
        command += ["--executor-options", *options.executor_options]
    return [*command, *["--pilots"] * options.pilots, *given]


def _print_manifests(names: Sequence[str], options: Options) -> None:
    """Print the Kubernetes Jobs of the studies, one document after the other."""
    for name in names:
        if subprocess.run(script_command(name, options), check=False).returncode:  # noqa: S603
            sys.exit(f"failed: {name}; the message is above")


def publish(out: Path, target: Path) -> None:
    """Copy a study's result, figures and report to where they are published."""
    if not (out / RESULT).exists():
        return
    record = json.loads((out / RESULT).read_text())
    target.mkdir(parents=True, exist_ok=True)
    for path in target.glob("*.png"):
        path.unlink()
    for path in (out / RESULT, out / REPORT, *(out / each["file"] for each in record["figures"])):
        shutil.copy(path, target / path.name)
    second = target / SECOND
    if second.exists() and not is_repetition(json.loads(second.read_text()), record):
        second.unlink()


def publish_second(out: Path, target: Path) -> None:
    """Copy the result of a second run.

    Raises InputError for a run of another protocol, and for one that rounded as the first.
    """
    if not (out / RESULT).exists() or not (target / RESULT).exists():
        return
    record, first = (json.loads((each / RESULT).read_text()) for each in (out, target))
    if not is_repetition(record, first):
        raise InputError(
            f"{out} is no second run of {target.name}: study, preset, seeds or protocol differ"
        )
    if record["arms"] and record["arms"] == first["arms"]:
        raise InputError(
            f"{out} rounded as the first run: every error of every network is equal; run it with "
            "XLA_FLAGS=--xla_cpu_max_isa=SSE4_2, or another number of --threads"
        )
    shutil.copy(out / RESULT, target / SECOND)


def publish_pilots(out: Path, target: Path) -> None:
    """Copy the record of pilots, and store the rates that they selected in the package."""
    if not (out / RECORD).exists():
        return
    name = out.name.removesuffix("-pilots")
    if (out / RATES).exists():
        write_rates(PACKAGED, name, read_rates(out / RATES))
    target.mkdir(parents=True, exist_ok=True)
    shutil.copy(out / RECORD, target / f"{name}.json")


if __name__ == "__main__":
    run_command(lambda: main(parse(Options)))
