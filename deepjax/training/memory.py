"""Memory, FLOPs and compile time of a step before it runs; a step that does not fit is refused."""

import dataclasses
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from deepjax.errors import InputError


@dataclasses.dataclass(frozen=True)
class StepCost:
    """The cost of one step."""

    bytes_per_device: int  # peak: arguments, results and temporaries, less what is reused
    device_memory_bytes: int | None  # memory of the device; None where it is not known
    flops: float  # of one device, as XLA counts them; 0 where it does not
    compile_seconds: float

    def __str__(self) -> str:
        there = f" of {_gib(self.device_memory_bytes)}" if self.device_memory_bytes else ""
        flops = f", {self.flops / 1e9:.3g} GFLOPs" if self.flops else ""
        memory = f"{_gib(self.bytes_per_device)}{there} of memory"
        return f"compiled in {self.compile_seconds:.1f} s; a step takes {memory}{flops} a device"


def compile_step(
    step: Any, *arguments: Any, advice: str = "a smaller batch"
) -> tuple[Any, StepCost]:
    """Compile a jitted step for arguments (arrays or their shapes) and measure its cost.

    Raises InputError, with the advice, if the compiler finds that the step does not fit the device
    (on GPU and TPU).
    """
    began = time.perf_counter()
    lowered = step.lower(*arguments)
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        first = str(error).splitlines()[0][:200]
        raise InputError(
            f"a step takes more memory than a device has ({first}); try {advice}"
        ) from error
    seconds = time.perf_counter() - began
    memory = compiled.memory_analysis()
    peak = 0
    if memory is not None:
        peak = (
            memory.argument_size_in_bytes
            + memory.output_size_in_bytes
            + memory.temp_size_in_bytes
            - memory.alias_size_in_bytes
        )
    costs = compiled.cost_analysis() or {}
    return compiled, StepCost(
        peak, device_memory(), max(0.0, float(costs.get("flops", 0.0))), seconds
    )


def largest_cost(costs: Sequence[StepCost]) -> StepCost:
    """The cost of the step that needs the most memory, with the time to compile all of them."""
    largest = max(costs, key=lambda cost: cost.bytes_per_device)
    return dataclasses.replace(largest, compile_seconds=sum(cost.compile_seconds for cost in costs))


def check_fits(cost: StepCost, advice: str) -> None:
    """Raise InputError, with the advice, if a step needs more memory than a device has."""
    if cost.device_memory_bytes is None or cost.bytes_per_device <= cost.device_memory_bytes:
        return
    needs, has = _gib(cost.bytes_per_device), _gib(cost.device_memory_bytes)
    raise InputError(f"a step takes {needs} of memory a device, which has {has}; try {advice}")


def memory_hint(batch_size: int, accumulate: int, remat: str) -> str:
    """Advice that reduces the memory of a step with these settings."""
    ways = [f"a smaller batch_size than {batch_size}", f"grad_accum_steps above {accumulate}"]
    ways += {"none": ["remat='convolutions' or 'blocks'"], "convolutions": ["remat='blocks'"]}.get(
        remat, []
    )
    return f"{', or '.join(ways)}, or more devices (with fsdp where parameters are the most of it)"


def device_memory() -> int | None:
    """Bytes of a device's memory; on CPU the host's memory divided by the number of devices."""
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return _host_memory() // len(jax.local_devices())
    stats = device.memory_stats() or {}
    return stats.get("bytes_limit")


def _host_memory() -> int:
    """The memory of the machine, or the limit of a container, SLURM job or service."""
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_cgroup_limits()])


def _cgroup_limits(
    root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> list[int]:
    """memory.max of this process's cgroup (Linux, v2) and of its parents, in bytes, if limited."""
    try:
        inside = next(
            (line[3:] for line in own.read_text().splitlines() if line.startswith("0::")), ""
        )
    except OSError:
        return []
    group = root / inside.lstrip("/")
    limits = []
    for folder in (group, *group.parents):
        if folder.is_relative_to(root) and (folder / "memory.max").is_file():
            limits.append((folder / "memory.max").read_text().strip())
    return [int(limit) for limit in limits if limit.isdigit()]


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**27 else f"{size / 2**20:.1f} MiB"
