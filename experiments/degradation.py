"""Is a deeper plain network worse, and does the residual one repair it? (He et al. 2015, arXiv:1512.03385, Figures 1 and 6)

    python experiments/degradation.py                         # digits: about two minutes on two CPU cores
    python experiments/degradation.py --dataset fashion_mnist --out runs/degradation-fashion
    python experiments/degradation.py --arm plain56           # one arm alone, for a cluster's scheduler; then the first line

Plain and residual networks of equal parameters at two or more depths, each at the best of the same learning rates, several seeds.
"""

import dataclasses
import json
import time
from pathlib import Path
from typing import Literal

import numpy as np

from deepjax.analysis.plots import depth_profile, error_curves, save
from deepjax.command import parse, run
from deepjax.data import dataset_info
from deepjax.errors import require, unknown
from deepjax.models import model_info
from deepjax.study.figures import error_lines, final_lines, log_ratio, norm_lines, percent, plain_values, times
from deepjax.study.report import Page, Picture, Table, percent_points, provenance, render
from deepjax.study.study import Arm, ArmResult, collect, default_jobs, run_arms
from deepjax.study.verdict import Interval, Verdict, all_above, all_below, coverage, difference_interval, mean_interval
from deepjax.training.config import TrainConfig, claim_directory, write_text
from deepjax.training.display import display

Kind = Literal["plain", "resnet"]
Results = dict[str, ArmResult]
Depths = tuple[int, ...]
Evidence = tuple[dict[str, Interval], dict[str, list[float]], tuple[str, ...]]  # effects, values by seed, sentences

# The rules, fixed before the runs.
# MARGIN is under half of the 5.1 points that 20 -> 56 layers without shortcuts cost on CIFAR-10 (Li et al. 2018: 8.18 -> 13.31 %).
# VANISHED is far above what vanishing would give: a factor of 0.9 a layer, over the 36 layers between the thirds, gives 0.02.
MARGIN = 0.02
VANISHED = 0.1


@dataclasses.dataclass(frozen=True)
class Preset:
    """How the study is run on a data set, and what is expected."""

    epochs: int
    batch_size: int
    rates: tuple[float, ...]
    expected: str
    steps: int = 0
    width: int = 0
    schedule: Literal["cosine", "step"] = "cosine"
    warmup_epochs: float = 1.0
    nesterov: bool = True
    decay_all: bool = False


PRESETS = {
    # Two minutes on two CPU cores. Expected: a prototype with one seed, 15 epochs: plain-56 75 %, plain-20 2.4 % training error,
    # residual networks about 1 %.
    # Warm-up over a third of the training was chosen on seeds 1000 and 1001 of the residual networks.
    # He et al. warm up at 110 layers.
    "digits": Preset(
        12, 64, (0.1, 0.03, 0.01), "plain-56 near 75 %, plain-20 near 2.4 %, residual 20 and 56 near 1 % training error",
        width=8, warmup_epochs=4.0,
    ),
    # Cut to what two CPU cores finish in a quarter of an hour: 100 steps, four filters, two rates.
    "fashion_mnist": Preset(
        1, 128, (0.1, 0.03), "nothing: no source is known for so short a training", steps=100, width=4, warmup_epochs=0.07
    ),
    # The paper's recipe (section 4.2): 64k iterations, batch 128, 0.1 divided by ten at 32k and 48k, decay 1e-4 on everything.
    "cifar10": Preset(
        164, 128, (0.1, 0.03, 0.01),
        "test error of residual 20 / 56: 8.75 / 6.97 % (He et al., Table 6); plain 20 / 56: 8.18 / 13.31 % (Li et al. 2018); "
        "not measured here",
        steps=64_000, schedule="step", warmup_epochs=0.0, nesterov=False, decay_all=True,
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Options:
    """Is a deeper plain network worse on training and test images, and does the residual one repair it?"""

    dataset: str = "digits"
    """Data set: digits, fashion_mnist, cifar10."""
    seeds: int = 3
    """Seeds of each arm; the first also chooses the learning rate."""
    depths: tuple[int, ...] = (20, 56)
    """Depths, of the form 6n + 2; the verdicts compare the first with the last."""
    out: Path = Path("runs/degradation")
    """Directory of the study: result.json, report.html, figures, runs/."""
    jobs: int = 0
    """Processes at a time; 0 means one a CPU core, or one in all on an accelerator."""
    arm: str = ""
    """Run this arm alone, e.g. plain56; the study is finished by the same command without it."""
    data_dir: str | None = None
    """Where prepared data sets live; default $TFDS_DATA_DIR or ~/tensorflow_datasets."""

    def __post_init__(self) -> None:
        if self.dataset not in PRESETS:
            raise unknown("dataset", self.dataset, PRESETS)
        require(2 <= self.seeds <= 1000, "seeds", self.seeds, "2 to 1000 (an interval needs two)")
        rising = len(self.depths) >= 2 and list(self.depths) == sorted(set(self.depths))
        require(rising, "depths", self.depths, "two or more, rising, such as 20 56")
        require(self.jobs >= 0, "jobs", self.jobs, "0 (one a CPU core) or more")
        for depth in self.depths:
            model_info(f"cifar_plain{depth}")


@dataclasses.dataclass(frozen=True)
class Identity:
    """What makes two studies the same, stored as the study's config.json."""

    dataset: str
    seeds: int
    depths: tuple[int, ...]
    preset: Preset


def make_arms(options: Options) -> dict[str, Arm]:
    """The arms by name, deepest first: plain56, resnet56, plain20, resnet20."""
    preset = PRESETS[options.dataset]
    shared = {field: getattr(preset, field) for field in ("epochs", "steps", "batch_size", "schedule", "warmup_epochs")}
    shared |= {field: getattr(preset, field) for field in ("nesterov", "decay_all", "width")}
    arms = {}
    for depth in reversed(options.depths):
        for kind in ("plain", "resnet"):
            config = TrainConfig(model=f"cifar_{kind}{depth}", dataset=options.dataset, **shared)
            # A run of a few hundred steps is repeated faster than it is saved and restored; longer ones are saved as they go.
            every = min(config.total_steps, 2000)
            arms[f"{kind}{depth}"] = Arm(f"{kind}{depth}", config, preset.rates, tuple(range(options.seeds)), every)
    return arms


def compare(results: Results, kind: Kind, depths: Depths) -> Evidence:
    """Error of the deepest less the error of the shallowest, on both sets."""
    shallow, deep = results[f"{kind}{depths[0]}"], results[f"{kind}{depths[-1]}"]
    effects, values, findings = {}, {}, []
    for name, label in (("train", "training"), ("test", "test")):
        a, b = deep.final(f"{name}_error"), shallow.final(f"{name}_error")
        effects[name] = difference_interval(a, b)
        values |= {f"{kind}{depths[-1]} {name}": a, f"{kind}{depths[0]} {name}": b}
        means = f"{depths[-1]} layers {percent(a)}, {depths[0]} layers {percent(b)}"
        findings.append(f"{label} error: {means}, difference {percent_points(effects[name])}")
    return effects, values, tuple(findings)


def judge(results: Results, depths: Depths) -> list[Verdict]:
    """The three verdicts."""
    first, last = depths[0], depths[-1]
    how = (
        "Final error in evaluation mode over every training and every test image, mean over seeds; "
        "difference with its 95 % bootstrap interval."
    )
    effects, values, findings = compare(results, "plain", depths)
    plain = Verdict(
        claim=f"The plain network of {last} layers is worse than that of {first} on training and on test images.",
        measure=how,
        rule="Supported if both intervals lie above 0; refuted if one lies below it; else inconclusive.",
        outcome=all_above(list(effects.values()), 0.0),
        findings=findings,
        effects=effects,
        values=values,
    )
    effects, values, findings = compare(results, "resnet", depths)
    residual = Verdict(
        claim=f"The residual network of {last} layers is not worse than that of {first} on training and on test images.",
        measure=how,
        rule=f"Supported if both intervals lie below a margin of +{100 * MARGIN:g} points (under half of the 5.1 points that depth "
        "costs plain networks on CIFAR-10 in Li et al. 2018); refuted if one lies above it; else inconclusive.",
        outcome=all_below(list(effects.values()), MARGIN),
        findings=findings,
        effects=effects,
        values=values,
    )
    return [plain, residual, judge_gradients(results[f"plain{last}"], last)]


def judge_gradients(arm: ArmResult, depth: int) -> Verdict:
    """Have the gradients of the deepest plain network vanished towards the input? (He et al. 2015, section 4.1)"""
    moments = {"at the first step": arm.first(), "in the last epoch": arm.last()}
    values = {moment: [log_ratio(norms) for norms in by_seed] for moment, by_seed in moments.items()}
    effects = {moment: mean_interval(logs) for moment, logs in values.items()}
    findings = [
        f"{moment}, the gradient near the input is {times(effect)} that near the output" for moment, effect in effects.items()
    ]
    return Verdict(
        claim=f"The gradients of the plain network of {depth} layers have not vanished.",
        measure="Gradient norm by convolution: median of the third nearest the input over median of the third nearest the output, "
        "log10, mean over seeds with its 95 % bootstrap interval; at the first step and as the mean of the last epoch.",
        rule=f"Supported if both ratios lie above {VANISHED:g}; refuted if one lies below it; else inconclusive.",
        outcome=all_above(list(effects.values()), float(np.log10(VANISHED))),
        findings=tuple(findings),
        effects=effects,
        values=values,
    )


def draw(results: Results, depths: Depths, out: Path, dataset: str) -> list[Picture]:
    """Both figures, from the rows; each title states the finding."""
    plain, residual = ({f"{depth} layers": results[f"{kind}{depth}"] for depth in depths} for kind in ("plain", "resnet"))
    arms_by_name = {"Plain": plain, "Residual": residual}
    curves = {name: error_lines(arms) for name, arms in arms_by_name.items()}
    x_label, how = "epoch", "by epoch: training dashed (running, on augmented images), test solid"
    if len(curves["Plain"][0].x) < 3:
        curves = {name: final_lines(dict(zip(depths, arms.values(), strict=True))) for name, arms in arms_by_name.items()}
        x_label, how = "layers", "at the end, by depth: training dashed, test solid, both in evaluation mode"
    panels = [(error_title(name, arms), curves[name]) for name, arms in arms_by_name.items()]
    profiles = []
    for moment, norms in {"first step": ArmResult.first, "last epoch": ArmResult.last}.items():
        deepest = norms(results[f"plain{depths[-1]}"])
        ratio = 10 ** float(np.mean([log_ratio(by_layer) for by_layer in deepest]))
        title = f"{moment}: plain-{depths[-1]}'s gradient\nnear the input is {ratio:.3g} times that near the output"
        lines = norm_lines({f"plain, {label}": arm for label, arm in plain.items()}, norms, "-")
        lines += norm_lines({f"residual, {label}": arm for label, arm in residual.items()}, norms, "--")
        profiles.append((title, lines))
    return [
        Picture(
            save(error_curves(panels, x_label), out / "error.png"),
            f"Error on {dataset} {how}; mean over seeds, band from the best to the worst seed. "
            "Circles: final error in evaluation mode. After He et al. 2015, Fig. 6.",
        ),
        Picture(
            save(depth_profile(profiles, "gradient norm of the layer's kernel"), out / "gradients.png"),
            "Norm of the loss's gradient by layer; geometric mean over seeds, band from least to greatest.",
        ),
    ]


def error_title(name: str, arms: Results) -> str:
    """The final training error of the deepest and of the shallowest."""
    errors = {label: percent(arm.final("train_error")) for label, arm in arms.items()}
    shallow, *_, deep = errors
    return f"{name}: {deep} end at {errors[deep]}\ntraining error, {shallow} at {errors[shallow]}"


def tables(results: Results, rates: tuple[float, ...]) -> list[Table]:
    """Every final error by seed, and the sweep."""
    finals = []
    for name, arm in results.items():
        errors = [arm.final("train_error"), arm.final("test_error")]
        cells = [f"{percent(each)} ({', '.join(f'{100 * error:.2f}' for error in each)})" for each in errors]
        last = arm.rows[0][-1]
        finals.append([name, f"{arm.rate:g}", *cells, f"{last['train_images']:,}", f"{last['test_images']:,}"])
    sweep = [
        [name, *[percent([arm.sweep[r]]) if np.isfinite(arm.sweep[r]) else "not finite" for r in rates]]
        for name, arm in results.items()
    ]
    header = ("arm", "rate", "training", "test", "training images", "test images")
    return [
        Table("Final error: mean (seed by seed)", header, finals),
        Table(
            "Training error by learning rate, on the first seed; the best rate is used", ("arm", *[f"{r:g}" for r in rates]), sweep
        ),
    ]


def method(options: Options) -> list[str]:
    """The paragraphs that explain the study to a reader who knows nothing of it."""
    preset, dataset = PRESETS[options.dataset], dataset_info(options.dataset)
    length = f"{preset.steps} steps" if preset.steps else f"{preset.epochs} epochs"
    kinds = (
        "A residual network adds to the output of every two layers their input; the plain one does not. Both have equal parameters."
    )
    return [
        "If a deeper network only overfitted, it would do better on the training images and worse on the test images. If it is "
        f"worse on both, it was not trained well: the problem is optimisation. {kinds}",
        f"Data: {dataset.name} ({dataset.source}), {dataset.train_size:,} training and {dataset.test_size:,} test images of "
        f"{dataset.shape[0]}x{dataset.shape[1]} pixels. Networks: the 6n+2 layers of He et al. 2015, section 4.2, "
        f"{preset.width or 16} filters in the first stage. Training: {length}, batches of {preset.batch_size}, "
        f"{'Nesterov' if preset.nesterov else 'classical'} momentum 0.9, decay 1e-4, {preset.schedule} schedule, "
        f"random crops{' and flips' if dataset.flip else ''}.",
        f"Each network is trained once at each of the rates {', '.join(map(str, preset.rates))}; the rate of the lowest "
        f"final training error is repeated to make {options.seeds} seeds. So no network suffers from a rate that suits another.",
        f"Expected beforehand: {preset.expected}.",
    ]


def limits(options: Options) -> list[str]:
    """What a reader must not take from it."""
    texts = [
        f"With {options.seeds} seeds a 95 % bootstrap interval is too narrow: for normal values it holds the truth in "
        f"{100 * coverage(options.seeds):.0f} % of simulated cases. For a claim of your own use more --seeds.",
        "The first seed both chooses the rate and is reported, which flatters every network a little.",
        "The intervals are over seeds; the images are the same for all, so the finite test set is not in them.",
        "Per-channel mean and deviation are used, where the paper subtracts the mean of each pixel.",
    ]
    if options.dataset != "cifar10":
        texts.append(f"{options.dataset} at this width and length is not CIFAR-10: the sizes of the effects are its own.")
    return texts


def conclude(options: Options, results: Results, seconds: float) -> list[Verdict]:
    """result.json, figures and report.html from the finished runs."""
    import jax

    verdicts = judge(results, options.depths)
    origin = provenance(seconds, f"{jax.device_count()} x {jax.devices()[0].device_kind}")
    record = {"study": "degradation", "verdicts": [verdict.as_dict() for verdict in verdicts], "arms": plain_values(results)}
    write_text(options.out / "result.json", json.dumps(record | {"wall_seconds": seconds} | origin, indent=2) + "\n")
    page = Page(
        title="Does depth hurt a plain network, and does the residual one repair it?",
        question=f"A network of {options.depths[-1]} layers can be any network of {options.depths[0]}: the layers beyond need only "
        "pass on what they are given. So it should never do worse on the images that it is trained on. Does it?",
        verdicts=verdicts,
        method=method(options),
        pictures=draw(results, options.depths, options.out, options.dataset),
        tables=tables(results, PRESETS[options.dataset].rates),
        limits=limits(options),
        provenance=origin,
    )
    write_text(options.out / "report.html", render(page))
    return verdicts


def main(options: Options) -> None:
    """Run what is missing, judge, draw, and print the verdicts."""
    began = time.monotonic()
    arms = make_arms(options)
    if options.arm and options.arm not in arms:
        raise unknown("arm", options.arm, arms)
    claim_directory(options.out, Identity(options.dataset, options.seeds, options.depths, PRESETS[options.dataset]))
    missing = [arm for arm in arms.values() if collect(arm, options.out) is None and options.arm in ("", arm.name)]
    if missing:
        with display(f"degradation on {options.dataset}", {arm.name: arm.total_steps for arm in missing}) as report:
            run_arms(missing, options.out, options.jobs or default_jobs(), options.data_dir, report)
    if options.arm:
        print(f"arm {options.arm} is done in {options.out}; the same command without --arm concludes the study")
        return
    seconds = wall_seconds(options.out, time.monotonic() - began, bool(missing))
    results = {name: result for name in sorted(arms) if (result := collect(arms[name], options.out)) is not None}
    verdicts = conclude(options, results, seconds)
    if not missing:
        print("was done already; judged and drawn again from its rows")
    for verdict in verdicts:
        print(f"{verdict.outcome.upper():13} {verdict.claim}")
        for finding in verdict.findings:
            print(f"{'':13} - {finding}")
    print(f"\n{seconds:.0f} s in all. Read {options.out / 'report.html'}; figures and result.json beside it.")


def wall_seconds(out: Path, now: float, ran: bool) -> float:
    """Wall time of the invocation that ran something; one that only draws again keeps what was recorded."""
    path = out / "result.json"
    return now if ran or not path.exists() else float(json.loads(path.read_text())["wall_seconds"])


if __name__ == "__main__":
    run(lambda: main(parse(Options)))
