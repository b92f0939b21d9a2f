"""The training step compiled for an H200 on a machine without one, and the bytes it moves.

pip install "jax[cuda13]"  # CUDA's compiler and libraries; no GPU is needed
python experiments/benchmarks/gpu_program.py --models resnet50 vgg16_bn googlenet_tv inception_v3
"""

import collections
import dataclasses
import importlib.metadata
import math
import re
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import throughput
from harness import format_command, write_result
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec
from throughput_jax import own_state, own_step

from deepjax import command_line
from deepjax.errors import InputError

COPY_RATE = 4.28e12  # bytes a second, read and written, of a copy on an H200: measured
# Of NVIDIA's data sheet and the CUDA programming guide's table for compute capability 9.0.
H200 = """
gpu_device_info {
  cuda_compute_capability { major: 9 } core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  memory_bandwidth: 4800000000000 device_memory_size: 151397597184 l2_cache_size: 52428800
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 \
shared_memory_per_core: 233472
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 19 }
runtime_version { major: 13 }
device_description_str: "NVIDIA H200"
"""
BYTES = {
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "bf16": 2,
    "f16": 2,
    "s32": 4,
    "u32": 4,
    "f32": 4,
    "s64": 8,
    "u64": 8,
    "f64": 8,
}
FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast")


@dataclasses.dataclass(frozen=True)
class Options:
    """What is compiled."""

    models: tuple[str, ...] = ("resnet50",)
    """Networks."""
    batch_size: int = 256
    """Images of a step."""
    largest: int = 0
    """Also the kernels that move most, so many of them."""
    out: Path | None = None
    """Where the result is written as JSON; nowhere by default."""


@dataclasses.dataclass(frozen=True)
class Kernel:
    """An instruction: its kind, what it writes, and the bytes that it reads and writes."""

    kind: str
    result: str
    moved: int
    of: str


def main() -> None:
    """Print a table of the networks' kernels by kind."""
    options = command_line.parse(Options)
    throughput.check_names(options.models)
    jax.config.update("jax_platforms", "cpu")  # else JAX looks for the GPU
    found = [summary(name, kernels(program(name, options)), options) for name in options.models]
    result = {
        "options": dataclasses.asdict(options) | {"out": None},
        "versions": f"jaxlib {importlib.metadata.version('jaxlib')}",
        "networks": found,
    }
    print(table(result))
    write_result(result, options.out)


def program(name: str, options: Options) -> str:
    """The step's program for an H200 as text; convolutions by cuDNN's default algorithm."""
    given = throughput.Options(gpu=True, batch_size=options.batch_size, precision="bfloat16")
    task = throughput.task_of(name, given, "")
    try:
        there = topologies.get_topology_desc("", "cuda", target_config=H200, topology="1x1x1")
    except NotImplementedError as error:
        raise InputError(
            'JAX has no CUDA here; install it with: pip install "jax[cuda13]"'
        ) from error
    where = NamedSharding(topologies.make_mesh(there, (1,), ("data",)), PartitionSpec())
    with mock.patch.object(jax, "default_backend", lambda: "gpu"):  # where layers take a GPU's form
        model, optimizer, step = own_step(task)
        state = jax.eval_shape(lambda: own_state(task, model, optimizer))
        batch = {
            "image": jax.ShapeDtypeStruct((task.batch_size, task.size, task.size, 3), jnp.uint8),
            "label": jax.ShapeDtypeStruct((task.batch_size,), jnp.int32),
        }
        lowered = jax.jit(step, donate_argnums=0, in_shardings=where, out_shardings=where).lower(
            state, batch
        )
    return str(lowered.compile(compiler_options={"xla_gpu_autotune_level": "0"}).as_text())


def kernels(text: str) -> list[Kernel]:
    """The instructions of a program's entry computation, without loop and branch bodies."""
    types: dict[str, str] = {}
    found = []
    for line in text.partition("ENTRY ")[2].splitlines():
        match = re.match(r"\s*(?:ROOT )?%([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)", line)
        if match is None:
            continue
        name, result, operation, rest = match.groups()
        types[name] = result
        if operation in FREE:
            continue
        read = sum(
            size(types.get(argument, ""))
            for argument in re.findall(r"%([\w.\-]+)", rest.split(")")[0])
        )
        target, kind = (
            re.search(rf"{key}=\"?([\w$]+)", line) for key in ("custom_call_target", "kind")
        )
        word = target or kind
        of = re.search(r'op_name="([^"]*)"', line)
        found.append(
            Kernel(
                word.group(1) if word else operation,
                result,
                read + size(result),
                of.group(1) if of else "",
            )
        )
    return found


def size(type_: str) -> int:
    """Bytes of an array or a tuple of arrays, as HLO writes its type.

    >>> size("(bf16[2,3]{1,0}, f32[])")
    16
    """
    arrays = re.findall(r"(\w+)\[([\d,]*)\]", type_)
    return sum(
        BYTES.get(kind, 0) * math.prod(int(extent) for extent in extents.split(",") if extent)
        for kind, extents in arrays
    )


def summary(name: str, found: list[Kernel], options: Options) -> dict[str, Any]:
    """Counts and megabytes an image by kind, float32 maps, and the kernels that move most."""
    counts, moved = collections.Counter(kernel.kind for kernel in found), collections.Counter[str]()
    for kernel in found:
        moved[kernel.kind] += kernel.moved
    maps = [
        kernel
        for kernel in found
        if re.search(rf"f32\[{options.batch_size},(\d\d+|[5-9]),\1,\d+\]", kernel.result)
    ]
    largest = sorted(found, key=lambda kernel: -kernel.moved)[: options.largest]
    return {
        "model": name,
        "kinds": {
            kind: (counts[kind], moved[kind] / options.batch_size / 1e6)
            for kind, _ in moved.most_common()
        },
        "kernels": len(found),
        "megabytes": sum(moved.values()) / options.batch_size / 1e6,
        "float32_maps": len(maps),
        "largest": [
            (kernel.moved / options.batch_size / 1e6, kernel.kind, kernel.result, kernel.of)
            for kernel in largest
        ],
    }


def table(result: dict[str, Any]) -> str:
    """In Markdown."""
    lines = [format_command("gpu_program.py", result["options"], Options()), ""]
    lines += [
        "| network | kernels | MB an image | images/s at a copy's rate | convolutions | maps kept "
        "in float32 |"
    ]
    lines += ["|---|---:|---:|---:|---:|---:|"]
    for each in result["networks"]:
        convolutions = sum(
            count for kind, (count, _) in each["kinds"].items() if kind.startswith("__cudnn$conv")
        )
        cells = (
            each["kernels"],
            f"{each['megabytes']:.0f}",
            f"{COPY_RATE / each['megabytes'] / 1e6:,.0f}",
            convolutions,
        )
        lines.append(
            f"| {each['model']} | {' | '.join(map(str, cells))} | {each['float32_maps']} |"
        )
    for each in result["networks"]:
        lines += [
            "",
            f"{each['model']}: "
            + ", ".join(f"{kind} {n} ({mb:.1f} MB)" for kind, (n, mb) in each["kinds"].items()),
        ]
        lines += [f"- {mb:.2f} MB {kind} {what} {of}" for mb, kind, what, of in each["largest"]]
    return "\n".join([*lines, "", result["versions"]])


if __name__ == "__main__":
    command_line.run_command(main)
