"""What shortcuts do to the signal (He et al. 2015; Veit et al. 2016, arXiv:1605.06431; Brock et al. 2021, arXiv:2101.08692).

python experiments/residual_signal.py       # digits: about three minutes on two CPU cores; or --dataset fashion_mnist
"""

import math
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from deepjax.analysis import init_variables
from deepjax.command_line import parse, run
from deepjax.study.arms import Arm
from deepjax.study.blocks import gradient_paths, lesion_rises, responses, signal_growth, tower
from deepjax.study.report.html import Figure
from deepjax.study.report.profiles import profile_picture
from deepjax.study.stats.measured import Claim, judge_claims
from deepjax.study.stats.rules import interval_rule
from deepjax.study.stats.verdict import (
    NOT_SUPPORTED,
    Outcome,
    Verdict,
    all_above,
    all_below,
    all_within,
)
from deepjax.study.study import (
    Options,
    Preset,
    SeedContext,
    Study,
    StudyResults,
    make_arm,
    run_study,
)
from deepjax.training import open_run

# The rules, fixed before the runs. Each claim's control is the same rule where it must fail: with norm in place of without and the
# other way round; the plain network in place of the residual one and the other way round; a network as drawn without norm, where a
# branch carries as much gradient as a shortcut, so that all paths count alike; responses as drawn, which batch norm makes equal.
NETWORKS = ("resnet56", "resnet20", "plain20")
RULES = {
    "doubles": interval_rule(
        "between 1.87 and 2.14, 2 to the power of 0.9 and 1.1",
        partial(all_within, low=1.87, high=2.14),
    ),
    "linear": interval_rule("between 0.5 and 1.25", partial(all_within, low=0.5, high=1.25)),
    "gentle": interval_rule("below 10 points", partial(all_below, bound=10.0)),
    "collapse": interval_rule("above 40 points", partial(all_above, bound=40.0)),
    "short": interval_rule("below 0.75", partial(all_below, bound=0.75)),
    "smaller": interval_rule(
        "below -0.05, where responses start at 1", partial(all_below, bound=-0.05)
    ),
}
REFUTED: tuple[Outcome] = ("refuted",)
CLAIMS = (
    Claim(
        "Without norm, the signal doubles with every residual block.",
        "factor",
        ("no norm",),
        "doubles",
    ),
    Claim(
        "With batch norm it grows about linearly with depth.", "exponent", ("batch norm",), "linear"
    ),
    Claim(
        "A residual network hardly suffers from the loss of a block.",
        "rise",
        ("resnet56",),
        "gentle",
    ),
    Claim("A plain network collapses without a block.", "rise", ("plain20",), "collapse"),
    Claim(
        "The gradient of a residual network comes mostly by short paths.",
        "ratio",
        ("resnet56",),
        "short",
    ),
    Claim(
        "The layers of a residual network respond less than a plain one's.",
        "response",
        ("resnet20", "plain20"),
        "smaller",
    ),
    Claim(
        "The layers of a deeper residual network respond less.",
        "response",
        ("resnet56", "resnet20"),
        "smaller",
    ),
    Claim(
        "With batch norm, the signal doubles with every block.",
        "factor",
        ("batch norm",),
        "doubles",
        REFUTED,
    ),
    Claim(
        "Without norm it grows about linearly with depth.",
        "exponent",
        ("no norm",),
        "linear",
        REFUTED,
    ),
    Claim(
        "A plain network hardly suffers from the loss of a block.",
        "rise",
        ("plain20",),
        "gentle",
        REFUTED,
    ),
    Claim(
        "A residual network collapses without a block.", "rise", ("resnet56",), "collapse", REFUTED
    ),
    Claim(
        "As drawn without norm, the gradient comes mostly by short paths.",
        "ratio",
        ("drawn",),
        "short",
        REFUTED,
    ),
    Claim(
        "As drawn, the residual one responds less.",
        "response",
        ("resnet20, drawn", "plain20, drawn"),
        "smaller",
        NOT_SUPPORTED,
    ),
)
MEASURES = {
    "factor": (
        "Factor per block of the signal's mean square: 16 pre-activated blocks as drawn, Gaussian images of 64 x 64.",
        "",
    ),
    "exponent": ("Power of depth with which that mean square goes, from block 4 to 16.", ""),
    "rise": (
        "Rise of the test error when a block's input is passed on in its place: mean over blocks that keep shape.",
        " points",
    ),
    "ratio": (
        "Mean number of branches on a path, weighted by its gradient, over that of all paths (Veit et al. 2016).",
        "",
    ),
    "response": (
        "Deviation after batch norm, before sum and ReLU, mean over layers (He et al. 2015, Figure 7).",
        "",
    ),
}
PRESETS = {
    # One rate: in the degradation study 0.1 was the best of every network.
    "digits": Preset(
        "ResNet-110 loses a few points, VGG everything; gradient comes by 5 to 17 of 54 blocks (Veit et al. 2016, on CIFAR-10)",
        seeds=5,
        rates=(0.1,),
        training={"epochs": 12, "batch_size": 64, "width": 8, "warmup_epochs": 4.0},
        sizes={"tested": 360, "samples": 8},
    ),
    "fashion_mnist": Preset(
        "nothing: no source is known for so short a training",
        rates=(0.1,),
        training={
            "epochs": 1,
            "batch_size": 128,
            "width": 8,
            "warmup_epochs": 0.3,
            "image_size": 16,
        },
        sizes={"tested": 2000, "samples": 16},
    ),
    "cifar10": Preset(
        "as on digits; responses smaller than of plain networks, and with depth (He et al. 2015, Figure 7); not measured here",
        training={
            "epochs": 164,
            "steps": 64_000,
            "schedule": "step",
            "warmup_epochs": 0.0,
            "nesterov": False,
            "decay_norm_and_bias": True,
        },
        sizes={"tested": 10_000, "samples": 64},
    ),
}


def make_arms(options: Options, preset: Preset) -> dict[str, Arm]:
    """A deep and a shallow residual network, and a plain one."""
    return {name: make_arm(name, f"cifar_{name}", options, preset) for name in NETWORKS}


def measure(subject: SeedContext) -> dict[str, Any]:
    """Signal as drawn, on Gaussian inputs; lesions, responses and paths of what was trained."""
    key, seed, samples = jax.random.key(subject.seed), subject.seed, subject.preset.sizes["samples"]
    noise, bare = jax.random.normal(key, (8, 64, 64, 3)), tower(27, normed=False)
    small, towers = (
        noise[:4, :16, :16],
        {"no norm": tower(16, False, width=32), "batch norm": tower(16, True, width=32)},
    )
    signals = {name: signal_growth(model, key, noise) for name, model in towers.items()}
    paths = {
        "drawn": gradient_paths(
            bare,
            init_variables(bare, key, small.shape),
            (small, np.arange(len(small))),
            samples,
            seed,
        )
    }
    rises, deviations = {}, {}
    for name, path in subject.runs.items():
        trained = open_run(path, data_dir=subject.data_dir)
        model, variables, batch = trained.model, trained.variables, trained.batch(64, seed=seed)
        rises[name] = lesion_rises(
            model, variables, trained.batch(subject.preset.sizes["tested"], "test")
        )
        deviations[name] = responses(model, variables, batch)
        deviations[f"{name}, drawn"] = responses(
            model, init_variables(model, key, batch["image"].shape), batch
        )
        if name == "resnet56":
            paths[name] = gradient_paths(model, variables, batch, samples, seed)
    found = {
        kind: {name: each[kind] for name, each in signals.items()}
        for kind in ("signal", "factor", "exponent")
    }
    found |= {
        kind: {name: each[kind] for name, each in paths.items()} for kind in ("ratio", "share")
    }
    return found | {"rise": rises, "response": deviations}


def judge(evidence: StudyResults) -> list[Verdict]:
    """The signal's growth, lesions, paths and responses; then their controls."""
    return judge_claims(CLAIMS, RULES, MEASURES, evidence)


def draw(evidence: StudyResults, out: Path) -> list[Figure]:
    """Signal, lesions, paths and responses by depth; each title states the finding."""
    mean = {
        kind: {name: np.mean(evidence.values(kind, name)) for name in evidence.measured[0][kind]}
        for kind in MEASURES
    }
    signal = {name: evidence.values("signal", name) for name in ("no norm", "batch norm")}
    rise, response = (
        {name: evidence.values(kind, name) for name in NETWORKS} for kind in ("rise", "response")
    )
    share = {
        "gradient": evidence.values("share", "resnet56"),
        "paths": [[math.comb(27, k) / 2**27 for k in range(28)]],
    }
    grown = f"Without norm each block multiplies the signal by {mean['factor']['no norm']:.2f}"
    deep, shallow, worst = (
        mean["rise"]["resnet56"],
        mean["rise"]["plain20"],
        np.mean(rise["resnet56"], axis=0).max(),
    )
    lost = f"Without a block plain-20 loses {shallow:.0f} points,\nresidual-56 {deep:.1f}, and {worst:.0f} at worst"
    short = f"Residual-56: paths of the gradient are\n{mean['ratio']['resnet56']:.2f} as long as the mean path"
    smaller = "Mean response: " + ", ".join(
        f"{name} {mean['response'][name]:.2f}" for name in NETWORKS
    )
    return [
        profile_picture(out / "signal.png", grown, ("block", "mean square"), signal, y_scale="log"),
        profile_picture(
            out / "lesions.png", lost, ("block left out", "rise of the test error (points)"), rise
        ),
        profile_picture(
            out / "paths.png", short, ("branches on the path", "share"), share, start=0
        ),
        profile_picture(
            out / "responses.png", smaller, ("layer", "deviation after batch norm"), response
        ),
    ]


STUDY = Study(
    name="residual_signal",
    lecture="ResNet: the residual mapping is easier to optimise",
    title="What do shortcuts do to the signal of a network?",
    question="A residual block adds to its input. What follows for the signal, for the loss of a block, for the gradient?",
    presets=PRESETS,
    arms=make_arms,
    measure=measure,
    judge=judge,
    draw=draw,
    method=lambda evidence: [
        "To leave out a block is to pass on its input; the two blocks that change the map's shape stay."
    ],
    limits=lambda evidence: [
        "Plain-56 does not learn and is not lesioned. The mean over blocks hides the first, which matter."
    ],
)

if __name__ == "__main__":
    run(lambda: run_study(STUDY, parse(Options)))
