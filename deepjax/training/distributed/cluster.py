"""Joins several processes to one run, by their launcher or by flags."""

import dataclasses
import importlib.util
import itertools
import os
import re
from pathlib import Path

import jax

from deepjax.errors import InputError, require, require_devices
from deepjax.training.distributed.launchers import TORCHRUN, TPU, Join, find_launcher

# After "the other processes were not reached": what helps with a launcher.
_REMEDIES = {
    TORCHRUN.name: "; JAX_COORDINATOR_PORT chooses another port",
    TPU: "; give --hosts.coordinator, --hosts.processes (1 for a host alone) and "
    "--hosts.process-id",
}


@dataclasses.dataclass(frozen=True)
class Hosts:
    """The processes of a run; by default from SLURM, torchrun, Open MPI, a JobSet or a TPU pod."""

    coordinator: str = ""
    """Address and port of process 0, e.g. 127.0.0.1:9876 on one machine."""
    processes: int = 0
    """Number of processes."""
    process_id: int = -1
    """Index of this process, from 0."""
    heartbeat: int = 100
    """Seconds without a heartbeat after which a process counts as dead, and the others end."""

    def __post_init__(self) -> None:
        given = (bool(self.coordinator), self.processes > 0, self.process_id >= 0)
        if any(given) and not all(given):
            raise InputError(
                "hosts: give coordinator, processes and process_id together, or none of them"
            )
        require(self.heartbeat >= 1, "heartbeat", self.heartbeat, "1 second or more")
        if all(given):
            require(
                self.process_id < self.processes,
                "process_id",
                self.process_id,
                f"0 to {self.processes - 1}",
            )
            is_address = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^:\s]+):(\d{1,5})", self.coordinator)
            port_fits = is_address is not None and 0 < int(is_address[2]) < 2**16
            require(
                port_fits,
                "coordinator",
                self.coordinator,
                "ADDRESS:PORT, an IPv6 address in brackets, ports 1 to 65535",
            )


def initialize_distributed(hosts: Hosts) -> None:
    """Start jax.distributed, if there are several processes, and check that there is a device.

    Call it before any device is used. Raises InputError if the coordinator is not reached, if a
    launcher started several processes but does not give the address of process 0, and if the
    platform in JAX_PLATFORMS is missing.
    """
    if hosts.processes > 0:
        arguments: dict[str, object] = {
            "coordinator_address": hosts.coordinator,
            "num_processes": hosts.processes,
            "process_id": hosts.process_id,
            "cluster_detection_method": "deactivate",
        }
        _initialize(Join("--hosts", hosts.processes, arguments), hosts.heartbeat)
    elif (
        found := find_launcher(
            os.environ, on_tpu_host(), importlib.util.find_spec("mpi4py") is not None
        )
    ) is not None:
        _initialize(found, hosts.heartbeat)
    require_devices()


def _initialize(found: Join, heartbeat: int) -> None:
    # At the end the others wait for the figures of process 0, longer than a short heartbeat.
    wait = max(60, heartbeat)
    options: dict[str, object] = {
        "heartbeat_timeout_seconds": heartbeat,
        "shutdown_timeout_seconds": wait,
    } | dict(found.arguments)
    coordinator = str(options.get("coordinator_address", ""))
    if _is_loopback(coordinator) and options.get("process_id") == 0:
        # Otherwise it would listen on all interfaces.
        options["coordinator_bind_address"] = coordinator
    try:
        jax.distributed.initialize(**options)  # pyright: ignore[reportArgumentType]
    except (RuntimeError, ValueError, LookupError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0][:200]
        at = f" at {coordinator}" if coordinator else ""
        other = _REMEDIES.get(found.launcher, "")
        raise InputError(
            f"hosts: the other processes were not reached{at} by {found.launcher} ({first}){other}"
        ) from error
    if found.processes is not None and jax.process_count() != found.processes:
        raise InputError(
            f"hosts: {found.launcher} started {found.processes} processes "
            f"and jax found {jax.process_count()}; "
            "give --hosts.coordinator, --hosts.processes and --hosts.process-id"
        )


def enable_deterministic_ops() -> None:
    """Make XLA choose deterministic GPU kernels, or refuse; call it before any device is used."""
    os.environ["XLA_FLAGS"] = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true".strip()
    )


def on_tpu_host(devices: Path = Path("/dev")) -> bool:  # a constant
    """Whether this host has the TPU library, and devices of TPUs in `devices`.

    Names of the devices: accel0 up to TPU v4, then those of VFIO groups, whose numbers need not
    begin at 0.
    """
    library = "TPU_LIBRARY_PATH" in os.environ or importlib.util.find_spec("libtpu") is not None
    found = itertools.chain(devices.glob("accel[0-9]*"), devices.glob("vfio/[0-9]*"))
    return library and any(found)


def _is_loopback(address: str) -> bool:
    host = address.rsplit(":", 1)[0].strip("[]")
    return host in ("localhost", "::1") or re.fullmatch(r"127(\.\d+){3}", host) is not None
