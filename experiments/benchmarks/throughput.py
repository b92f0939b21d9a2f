"""Images per second of a training step, interleaved: deepjax, flax's layers, PyTorch.

python experiments/benchmarks/throughput.py --torch .venv/bin/python
"""

import contextlib
import dataclasses
import json
import math
import os
import platform
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from harness import (
    Server,
    contender_process,
    format_command,
    format_ratio,
    read_message,
    summary,
    time_rounds,
    write_result,
)
from throughput_task import Task

from deepjax import command_line
from deepjax.errors import InputError, require

OWN = "deepjax"
SIZES = {
    "cifar_resnet20": (32, 128, 10),
    "resnet50": (64, 32, 1000),
    "vgg16_bn": (64, 32, 1000),
    "googlenet_tv": (64, 32, 1000),
}
OTHERS = {"inception_v3": (299, 8, 1000)}  # on request
# A wrong gradient must show within a thousandth of the loss, and rounding must not. ResNet-50,
# drawn at random, has so large a gradient at 64 pixels that rates of 1e-5 and 1e-4 overshoot alike,
# and rounding changes some per cent of it.
LEARNING_RATES = {"cifar_resnet20": 1e-3, "resnet50": 1e-6}
OTHER_RATE = 1e-5
LARGE_PAGES, TWO_DEVICES = (
    (("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"),),
    (("JAX_NUM_CPU_DEVICES", "2"),),
)
LEVERS = {
    "convolutions as XLA has them": "--convolutions",
    "flax's norm": "--norm",
    "flax's max pool": "--pool",
    "no donation": "--copied",
}
# timm has no GoogLeNet, an Inception-v3 without its auxiliary head, and a fully convolutional VGG.
TIMM = ("resnet50",)
DEVICE_BATCH = 256  # on a GPU, at 224 pixels
CONCURRENT = (
    (
        "XLA_FLAGS",
        f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_command_buffer_scheduling_mode=CONCURRENT",
    ),
)


@dataclasses.dataclass(frozen=True)
class Contender:
    """A process and what it is called."""

    name: str
    python: str
    script: str
    flags: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    eager: bool = False
    """Whether it compiles nothing, and so times kernels as soon as it starts."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What is timed."""

    models: tuple[str, ...] = tuple(SIZES)
    """Networks; also inception_v3."""
    gpu: bool = False
    """A GPU's sizes, where JAX finds one."""
    size: int = 0
    """Pixels of a side; 0: 32 or 64, on a GPU 32 or 224 (299 for Inception-v3)."""
    batch_size: int = 0
    """Images of a step; 0: 128 or 32, on a GPU 256."""
    inference: bool = False
    """Apply the networks in place of training them."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of what layers compute."""
    torch: str = ""
    """The Python that has PyTorch and torchvision; empty: without them."""
    torchvision: bool = True
    """With torchvision's networks."""
    timm: bool = False
    """timm's networks too, of those that it has."""
    levers: bool = False
    """Also deepjax without each thing that makes its step faster, one at a time."""
    hosts: bool = False
    """Also everyone on large pages, and deepjax on two devices."""
    graphs: bool = False
    """Also deepjax with a GPU's kernels in parallel where they do not wait for each other."""
    flax: bool = True
    """With flax's layers and the step of its example."""
    together: bool = False
    """Compile contenders at the same time: faster, may disturb autotuning; eager ones follow."""
    compiled: bool = True
    """With torch.compile too, which takes a C++ compiler."""
    steps: int = 0
    """Steps of a block; 0: 4 or 2, on a GPU 50."""
    rounds: int = 9
    """Blocks of each contender; they take turns."""
    checked: int = 5
    """Training steps whose losses must agree before timing; in float32 to a thousandth."""
    out: Path | None = None
    """Where the result is written as JSON; nowhere by default."""


def main() -> None:
    """Print for each network images per second and the median ratio to deepjax's in each round."""
    options = command_line.parse(Options)
    check_names(options.models)
    require(options.rounds >= 3, "rounds", options.rounds, "3 or more")
    what = "inference" if options.inference else "training"
    result: dict[str, Any] = {"what": what, "tables": []}
    for name in options.models:
        result["tables"].append(measured(name, options))
        print(f"\n{one_table(result['tables'][-1], what)}", flush=True)
        write_result(result, options.out)


def table(result: dict[str, Any]) -> str:
    """In Markdown."""
    return "\n\n".join(one_table(entry, result["what"]) for entry in result["tables"])


def measured(name: str, options: Options) -> dict[str, Any]:
    """The rates of every contender on one network."""
    with tempfile.TemporaryDirectory() as folder:
        task = task_of(name, options, folder)
        with started(task, options) as (servers, said):
            check(said["losses"], options)
            rates = time_rounds(servers, options.rounds)
    rows = {contender: summary(mine, rates[OWN]) for contender, mine in rates.items()}
    run = dataclasses.asdict(options) | {
        "models": (name,),
        "out": None,
        "torch": "PYTHON" if options.torch else "",
    }
    return {"options": run, "task": dataclasses.asdict(task) | {"folder": ""}, "rows": rows} | said


def contenders(name: str, options: Options) -> list[Contender]:
    """The contenders of a network; deepjax first, which writes the weights that PyTorch reads."""
    own, theirs = (sys.executable, "throughput_jax.py"), (options.torch, "throughput_torch.py")
    chosen = [Contender(OWN, *own)]
    if options.flax:
        chosen.append(Contender("flax", *own, ("--flax",)))
    peers = (
        {"PyTorch": options.torchvision, "timm": options.timm and name in TIMM}
        if options.torch
        else {}
    )
    for peer in (peer for peer, wanted in peers.items() if wanted):
        flags = ("--timm",) if peer == "timm" else ()
        chosen.append(Contender(peer, *theirs, flags, eager=True))
        if options.compiled:
            chosen.append(Contender(peer, *theirs, (*flags, "--compiled")))
    if options.graphs:
        chosen.append(Contender(f"{OWN}, concurrent graphs", *own, (), CONCURRENT))
    if options.levers:
        chosen += [Contender(f"{OWN}, {what}", *own, (flag,)) for what, flag in LEVERS.items()]
    if options.hosts:
        chosen.append(Contender(f"{OWN}, large pages", *own, (), LARGE_PAGES))
        chosen.append(Contender(f"{OWN}, two devices", *own, (), TWO_DEVICES))
        chosen.append(
            Contender(f"{OWN}, two devices, large pages", *own, (), LARGE_PAGES + TWO_DEVICES)
        )
        chosen.append(Contender("flax, large pages", *own, ("--flax",), LARGE_PAGES))
    if options.hosts and options.torch:
        chosen.append(Contender("PyTorch, large pages,", *theirs, (), LARGE_PAGES))
    return chosen


@contextlib.contextmanager
def started(task: Task, options: Options) -> Iterator[tuple[dict[str, Server], dict[str, Any]]]:
    """Each contender's process, ready; and what they say of themselves."""
    with contextlib.ExitStack() as stack:

        def start(each: Contender) -> Server:
            line = [json.dumps(dataclasses.asdict(task)), each.name, *each.flags]
            return stack.enter_context(
                contender_process(each.python, each.script, line, dict(each.environment))
            )

        servers: dict[str, Server] = {}
        losses, versions, device = {}, [f"Python {platform.python_version()}"], ""
        chosen = sorted(
            contenders(task.model, options), key=lambda each: options.together and each.eager
        )
        begun = {each: start(each) for each in chosen if options.together and not each.eager}
        for each in chosen:
            server = begun[each] if each in begun else start(each)
            ready = read_message(server)
            servers |= dict.fromkeys(ready["names"], server)
            losses |= ready["losses"]
            versions.append(ready["versions"])
            device = device or ready["device"]
        yield (
            servers,
            {
                "losses": losses,
                "versions": "; ".join(dict.fromkeys(versions)),
                "device": f"{os.cpu_count()} cores, {device}",
            },
        )


def check(losses: dict[str, list[float]], options: Options) -> None:
    """Raise InputError where a contender computes something else."""
    tolerance = 1e-3 if options.precision == "float32" else 3e-2
    for name, mine in losses.items():
        for step, (a, b) in enumerate(zip(mine, losses[OWN], strict=True)):
            if not math.isclose(a, b, rel_tol=tolerance):
                raise InputError(
                    f"{name} computes something else: after {step} steps {a:.6g}, {OWN} {b:.6g}; "
                    "nothing was timed"
                )


def one_table(entry: dict[str, Any], what: str) -> str:
    """Of one network."""
    task = entry["task"]
    lines = [
        f"{task['model']}, {what}, {task['size']} pixels, batches of {task['batch_size']}, "
        f"{task['precision']}:",
        "",
    ]
    lines += [format_command("throughput.py", entry["options"], Options()), ""]
    lines += ["| what | images/s | ratio to deepjax |", "|---|---:|---|"]
    for name, row in entry["rows"].items():
        lines.append(
            f"| {name} | {row['images_per_second']:.1f} | "
            f"{format_ratio(row['ratio'], row['interval'])} |"
        )
    return "\n".join([*lines, "", f"{entry['device']}; {entry['versions']}"])


def check_names(models: Sequence[str]) -> None:
    """Raise InputError for a network that no sizes are known for."""
    known = SIZES | OTHERS
    require(set(models) <= set(known), "models", models, ", ".join(known))


def task_of(name: str, options: Options, folder: str) -> Task:
    """One network's, at the options' sizes or those of the place."""
    size, batch_size, classes = (SIZES | OTHERS)[name]
    small = size == SIZES["cifar_resnet20"][0]
    size = options.size or (max(size, 224) if options.gpu and not small else size)
    batch_size = options.batch_size or (DEVICE_BATCH if options.gpu else batch_size)
    rate = LEARNING_RATES.get(name, OTHER_RATE)
    steps = options.steps or (50 if options.gpu else 4 if small else 2)
    return Task(
        name,
        size,
        batch_size,
        classes,
        options.precision,
        options.inference,
        rate,
        steps,
        options.checked,
        folder,
    )


if __name__ == "__main__":
    command_line.run_command(main)
