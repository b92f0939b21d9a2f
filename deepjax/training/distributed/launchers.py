"""Detects the launcher of this process from environment variables, and how to join the others."""

import dataclasses
from collections.abc import Iterator, Mapping

from deepjax.errors import InputError, require

# The variables that jax reads.
_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
# Of an indexed job, such as those of a JobSet.
_KUBERNETES = ("KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX")
_TORCHRUN = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK")
# By which jax finds the coordinator of Open MPI 4; Open MPI 5 does not set it.
_ORTE = "OMPI_MCA_orte_hnp_uri"
TPU = "TPU"  # the launcher's name where a slice's metadata joins its hosts


@dataclasses.dataclass(frozen=True)
class Launcher:
    """A launcher of several processes, and its variables for their number and the rank."""

    name: str
    size: str
    rank: str
    is_mpi: bool = False

    def claim(self, environment: Mapping[str, str]) -> tuple[int, int] | None:
        """(number of processes, rank); None if not set, (0, rank) if the number is unknown.

        Raises InputError for a value that is not a number.
        """
        if not environment.get(self.rank) or not (environment.get(self.size) or self is PMIX):
            return None
        return _number(environment, self.size) if environment.get(self.size) else 0, _number(
            environment, self.rank
        )


OPEN_MPI = Launcher("Open MPI", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", True)
TORCHRUN = Launcher("torchrun", "WORLD_SIZE", "RANK")
# PMIx itself has no variable for the number of processes.
PMIX = Launcher("PMIx", "SLURM_STEP_NUM_TASKS", "PMIX_RANK", True)
LAUNCHERS = (
    OPEN_MPI,
    TORCHRUN,
    Launcher("MPICH", "PMI_SIZE", "PMI_RANK", True),
    Launcher("MVAPICH", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK", True),
    Launcher("Horovod", "HOROVOD_SIZE", "HOROVOD_RANK"),
    Launcher("Flux", "FLUX_JOB_SIZE", "FLUX_TASK_RANK"),
    Launcher("jsrun", "JSM_NAMESPACE_SIZE", "JSM_NAMESPACE_RANK"),
    PMIX,
)


@dataclasses.dataclass(frozen=True)
class Join:
    """How a process joins the others: arguments of `jax.distributed.initialize`."""

    launcher: str
    processes: int | None
    """None: the launcher's service knows it."""
    arguments: Mapping[str, object]


def find_launcher(environment: Mapping[str, str], on_tpu: bool, has_mpi4py: bool) -> Join | None:
    """The launcher that started this process with others, or None for one process alone.

    Open MPI 4, SLURM, Kubernetes and TPU slices (of one host too) are joined as jax does it;
    torchrun by MASTER_ADDR and a port derived from MASTER_PORT, which torchrun's store uses; other
    MPI launchers by mpi4py if it is installed. Raises InputError for a launcher that does not give
    the address of process 0, naming the flags to give.
    """
    several = dict(_several(environment))
    if OPEN_MPI in several and environment.get(_ORTE):
        return Join(OPEN_MPI.name, several[OPEN_MPI][0], {"cluster_detection_method": "ompi"})
    if TORCHRUN in several and all(environment.get(name) for name in _TORCHRUN):
        return _torchrun(environment, *several[TORCHRUN])
    slurm = _slurm(environment)
    if slurm and all(claim in (slurm, (0, slurm[1])) for claim in several.values()):
        return Join("SLURM", slurm[0], {})
    for launcher, (size, rank) in several.items():
        if launcher.is_mpi and has_mpi4py:
            return Join(launcher.name, size or None, {"cluster_detection_method": "mpi4py"})
        raise InputError(_refusal(launcher, size, rank))
    if all(environment.get(name) for name in _KUBERNETES):
        return Join("Kubernetes", None, {})
    return Join(TPU, None, {}) if on_tpu else None


def require_one_process(environment: Mapping[str, str], what: str) -> None:
    """Raise InputError if a launcher started several processes; `what` is for one process."""
    slurm = _slurm(environment)
    claims = [
        *((launcher.name, claim) for launcher, claim in _several(environment)),
        *([("SLURM", slurm)] if slurm else []),
    ]
    for name, (size, rank) in claims:
        raise InputError(
            f"{what} is for one process, and this is rank {rank} of {size or 'several'} by {name}; "
            "start it once"
        )


def _several(environment: Mapping[str, str]) -> Iterator[tuple[Launcher, tuple[int, int]]]:
    """The launchers whose variables claim several processes, or an unknown number."""
    for launcher in LAUNCHERS:
        claim = launcher.claim(environment)
        # Open MPI sets both, and knows the number.
        if launcher is PMIX and claim and OPEN_MPI.claim(environment):
            continue
        if claim is not None and claim[0] != 1:
            yield launcher, claim


def _slurm(environment: Mapping[str, str]) -> tuple[int, int] | None:
    """(tasks, task) of a step of several tasks."""
    if not all(environment.get(name) for name in _SLURM):
        return None
    tasks = environment["SLURM_NTASKS"]
    require(
        tasks.isdecimal(),
        "SLURM_NTASKS",
        tasks,
        "the number of tasks, as srun sets it; unset it outside of SLURM",
    )
    return (int(tasks), _number(environment, "SLURM_PROCID")) if int(tasks) > 1 else None


def _torchrun(environment: Mapping[str, str], size: int, rank: int) -> Join:
    """JAX's coordinator: on the port after torchrun's store, or JAX_COORDINATOR_PORT."""
    store = _number(environment, "MASTER_PORT")
    port = environment.get("JAX_COORDINATOR_PORT") or str(
        store + 1 if store < 2**16 - 1 else store - 1
    )
    address = environment["MASTER_ADDR"]
    address = f"[{address}]" if ":" in address and not address.startswith("[") else address
    arguments: dict[str, object] = {
        "coordinator_address": f"{address}:{port}",
        "num_processes": size,
        "process_id": rank,
        "cluster_detection_method": "deactivate",
    }
    if (
        environment.get("LOCAL_RANK")
        and environment.get("LOCAL_WORLD_SIZE") != "1"
        and not environment.get("JAX_LOCAL_DEVICE_IDS")
    ):
        # One GPU per process, as jax does under SLURM.
        arguments["local_device_ids"] = [_number(environment, "LOCAL_RANK")]
    return Join(TORCHRUN.name, size, arguments)


def _refusal(launcher: Launcher, size: int, rank: int) -> str:
    where = f"{launcher.rank}, {launcher.size}" if size else launcher.rank
    ways = "set MASTER_ADDR and MASTER_PORT, or give" if launcher is TORCHRUN else "give"
    count = f"${launcher.size}" if size else "N"
    return (
        f"this process is rank {rank} of {size or 'several'} by {launcher.name} ({where}), "
        "which does not say where rank 0 is; "
        f"{ways} --hosts.coordinator ADDRESS:PORT --hosts.processes {count} "
        f"--hosts.process-id ${launcher.rank}; "
        f"for one process alone unset {launcher.rank}"
    )


def _number(environment: Mapping[str, str], name: str) -> int:
    value = environment[name]
    require(
        value.isdecimal(),
        name,
        value,
        "a number, as the launcher sets it; unset it where there is none",
    )
    return int(value)
