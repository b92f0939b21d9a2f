"""Several processes as one run: found by SLURM, Kubernetes or a TPU pod without arguments, or told by flags."""

import dataclasses
import importlib.util
import os
import re
from collections.abc import Mapping
from pathlib import Path

import jax

from deepjax.errors import InputError, require

_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")  # all that jax reads
_KUBERNETES = ("KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX")  # an indexed job, as those of a JobSet are


@dataclasses.dataclass(frozen=True)
class Hosts:
    """The processes of a run; without flags they are found where SLURM, a JobSet or a TPU pod started them."""

    coordinator: str = ""
    """Address and port of the first process, e.g. 127.0.0.1:9876 on one machine."""
    processes: int = 0
    """How many processes there are."""
    process_id: int = -1
    """Which of them this one is, from 0."""
    heartbeat: int = 100
    """Seconds after which a process that is silent is taken for dead, and the others end."""

    def __post_init__(self) -> None:
        given = (bool(self.coordinator), self.processes > 0, self.process_id >= 0)
        if any(given) and not all(given):
            raise InputError("hosts: give coordinator, processes and process_id together, or none of them")
        require(self.heartbeat >= 1, "heartbeat", self.heartbeat, "1 second or more")
        if all(given):
            require(self.process_id < self.processes, "process_id", self.process_id, f"0 to {self.processes - 1}")
            is_address = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^:\s]+):(\d{1,5})", self.coordinator)
            port_fits = is_address is not None and 0 < int(is_address[2]) < 2**16
            require(port_fits, "coordinator", self.coordinator, "ADDRESS:PORT, an IPv6 address in brackets, ports 1 to 65535")


def found(environment: Mapping[str, str], on_tpu: bool) -> str | None:
    """What started this process with others: "SLURM", "Kubernetes", "TPU" (a slice of one host too), or None."""
    if all(environment.get(name) for name in _SLURM):
        tasks = environment["SLURM_NTASKS"]
        require(tasks.isdecimal(), "SLURM_NTASKS", tasks, "the number of tasks, as srun sets it; unset it outside of SLURM")
        if int(tasks) > 1:
            return "SLURM"
    if all(environment.get(name) for name in _KUBERNETES):
        return "Kubernetes"
    return "TPU" if on_tpu else None


def join(hosts: Hosts) -> None:
    """Join the other processes before any device is used; alone it does nothing.

    Raises InputError when the coordinator is not reached.
    """
    told = hosts.processes > 0
    if not told and found(os.environ, _on_tpu()) is None:
        return
    # At the end the others wait while the first one draws, which may take longer than a short heartbeat.
    wait = max(60, hosts.heartbeat)
    options: dict[str, object] = {"heartbeat_timeout_seconds": hosts.heartbeat, "shutdown_timeout_seconds": wait}
    if told:
        options |= {
            "coordinator_address": hosts.coordinator,
            "num_processes": hosts.processes,
            "process_id": hosts.process_id,
            "cluster_detection_method": "deactivate",
        }
        if _is_loopback(hosts.coordinator) and hosts.process_id == 0:  # otherwise it would listen on all interfaces
            options["coordinator_bind_address"] = hosts.coordinator
    try:
        jax.distributed.initialize(**options)  # pyright: ignore[reportArgumentType]
    except (RuntimeError, ValueError) as error:
        raise InputError(f"hosts: the other processes were not reached ({str(error).splitlines()[0][:200]})") from error


def be_deterministic() -> None:
    """Have XLA choose deterministic kernels on a GPU, or refuse; before any device is used."""
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true".strip()


def _on_tpu() -> bool:
    """Whether this is a TPU host: its library and its devices are there."""
    devices = (Path("/dev/accel0"), Path("/dev/vfio/0"))
    return importlib.util.find_spec("libtpu") is not None and any(device.exists() for device in devices)


def _is_loopback(address: str) -> bool:
    host = address.rsplit(":", 1)[0].strip("[]")
    return host in ("localhost", "::1") or re.fullmatch(r"127(\.\d+){3}", host) is not None
