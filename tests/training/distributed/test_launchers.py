"""Launchers by their environment variables: joined if these suffice, otherwise refused."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from deepjax.errors import InputError, require_devices
from deepjax.training.distributed.cluster import on_tpu_host
from deepjax.training.distributed.launchers import Join, find_launcher, require_one_process

ROOT = Path(__file__).parents[3]
SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
}
KUBERNETES = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}
TORCHRUN = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500", "WORLD_SIZE": "2", "RANK": "1"}
OPEN_MPI_5 = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1", "PMIX_RANK": "1"}
OPEN_MPI_4 = OPEN_MPI_5 | {"OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1:34911"}
MPICH = {"PMI_SIZE": "2", "PMI_RANK": "1"}
# Launchers that do not give the address of process 0: variables, processes in the message.
UNKNOWN = {
    "Open MPI": (OPEN_MPI_5, "2"),
    "MPICH": (MPICH, "2"),
    "MVAPICH": ({"MV2_COMM_WORLD_SIZE": "2", "MV2_COMM_WORLD_RANK": "1"}, "2"),
    "Horovod": ({"HOROVOD_SIZE": "2", "HOROVOD_RANK": "1"}, "2"),
    "Flux": ({"FLUX_JOB_SIZE": "2", "FLUX_TASK_RANK": "1"}, "2"),
    "jsrun": ({"JSM_NAMESPACE_SIZE": "2", "JSM_NAMESPACE_RANK": "1"}, "2"),
    "PMIx": ({"PMIX_RANK": "1"}, "several"),
    "torchrun": ({"WORLD_SIZE": "2", "RANK": "1"}, "2"),
}


def launcher_of(
    environment: dict[str, str], on_tpu: bool = False, has_mpi4py: bool = False
) -> str | None:
    """The name of the launcher."""
    join = find_launcher(environment, on_tpu, has_mpi4py)
    return join and join.launcher


@pytest.mark.parametrize(
    "environment, on_tpu, launcher",
    [
        ({}, False, None),
        (SLURM, False, "SLURM"),
        (SLURM | {"SLURM_NTASKS": "1"}, False, None),  # one task has all devices to itself
        *[
            ({name: SLURM[name] for name in SLURM if name != missing}, False, None)
            for missing in SLURM
        ],
        (SLURM | {"SLURM_STEP_NODELIST": ""}, False, None),
        (KUBERNETES, False, "Kubernetes"),
        # A pod, but not of an indexed job.
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False, None),
        ({"JOB_COMPLETION_INDEX": "0"}, False, None),
        ({}, True, "TPU"),
        (SLURM | KUBERNETES, True, "SLURM"),  # jax asks in this order too
        (TORCHRUN, False, "torchrun"),
        (TORCHRUN | {"WORLD_SIZE": "1", "RANK": "0"}, False, None),
        ({"WORLD_SIZE": "2"}, False, None),  # every launcher sets a rank
        # A task of SLURM that starts torchrun: the inner launcher counts.
        (SLURM | TORCHRUN, False, "torchrun"),
        (OPEN_MPI_4, False, "Open MPI"),
        (OPEN_MPI_4 | {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"}, False, None),
        # srun --mpi=pmi2 or pmix.
        (SLURM | {"PMI_SIZE": "2", "PMI_RANK": "0", "PMIX_RANK": "0"}, False, "SLURM"),
        (MPICH | {"PMI_SIZE": "1", "PMI_RANK": "0"}, False, None),
    ],
)
def test_which_launcher_started_this_process(environment, on_tpu, launcher):
    assert launcher_of(environment, on_tpu) == launcher


@pytest.mark.parametrize(
    "files, is_host",
    [(["accel0"], True), (["vfio/4", "vfio/vfio"], True), (["vfio/vfio"], False), ([], False)],
)
def test_a_tpu_host_has_the_library_and_devices(tmp_path, monkeypatch, files, is_host):
    """/dev/vfio/vfio is VFIO's container device, which every Linux with VFIO has."""
    for name in files:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert not on_tpu_host(tmp_path)  # without the library
    monkeypatch.setenv("TPU_LIBRARY_PATH", "/opt/libtpu.so")
    assert on_tpu_host(tmp_path) == is_host


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_launcher_that_does_not_say_where_rank_0_is_is_refused_with_the_flags_to_give(name):
    environment, size = UNKNOWN[name]
    rank = next(variable for variable in environment if variable.endswith("RANK"))
    with pytest.raises(
        InputError, match=rf"rank 1 of {size} by {name} .*--hosts.process-id \${rank}"
    ) as refused:
        launcher_of(environment)
    assert "\n" not in str(refused.value)


def test_ranks_of_mpi_that_are_not_those_of_slurm_are_not_joined_as_slurm():
    """By mpirun in an allocation: SLURM's variables are of the daemon that started the ranks."""
    with pytest.raises(InputError, match="rank 1 of 2 by MPICH"):
        launcher_of(SLURM | MPICH)


def test_other_mpi_launchers_are_joined_by_mpi4py_where_it_is_installed():
    for environment in (OPEN_MPI_5, MPICH):
        assert find_launcher(environment, False, True).arguments == {
            "cluster_detection_method": "mpi4py"
        }


@pytest.mark.parametrize(
    "more, coordinator, devices",
    [
        ({}, "10.0.0.1:29501", None),
        ({"MASTER_PORT": "65535"}, "10.0.0.1:65534", None),
        ({"MASTER_ADDR": "fe80::1"}, "[fe80::1]:29501", None),
        ({"JAX_COORDINATOR_PORT": "7000"}, "10.0.0.1:7000", None),
        ({"LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "4"}, "10.0.0.1:29501", [3]),  # a process a GPU
        # All GPUs of the machine.
        ({"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}, "10.0.0.1:29501", None),
        (
            {"LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "4", "JAX_LOCAL_DEVICE_IDS": "0"},
            "10.0.0.1:29501",
            None,
        ),
    ],
)
def test_torchrun_gives_coordinator_count_and_rank(more, coordinator, devices):
    expected = {
        "coordinator_address": coordinator,
        "num_processes": 2,
        "process_id": 1,
        "cluster_detection_method": "deactivate",
    }
    expected |= {"local_device_ids": devices} if devices else {}
    assert find_launcher(TORCHRUN | more, False, False) == Join("torchrun", 2, expected)


@pytest.mark.parametrize("variable", ["SLURM_NTASKS", "WORLD_SIZE", "RANK", "MASTER_PORT"])
def test_a_value_that_is_not_a_number_is_refused(variable):
    environment = (SLURM if variable in SLURM else TORCHRUN) | {variable: "two"}
    with pytest.raises(InputError, match=f"{variable} is 'two'"):
        launcher_of(environment)


@pytest.mark.parametrize(
    "environment, launcher",
    [(SLURM, "SLURM"), (TORCHRUN, "torchrun"), (MPICH, "MPICH"), ({}, None)],
)
def test_a_study_is_for_one_process(environment, launcher):
    if launcher is None:
        require_one_process(environment, "a study")
        return
    with pytest.raises(
        InputError, match=f"a study is for one process, and this is rank . of 2 by {launcher}"
    ):
        require_one_process(environment, "a study")


def test_a_platform_that_is_there_is_not_refused():
    require_devices()


@pytest.mark.system
@pytest.mark.parametrize(
    "command",
    [
        ["experiments/train.py", "--model", "cifar_resnet20"],
        ["experiments/evaluate.py", "resnet18", "--weights", "x"],
        ["experiments/degradation.py"],
        ["-m", "deepjax.cli", "models", "googlenet"],
    ],
    ids=["train", "evaluate", "study", "models"],
)
def test_a_platform_that_is_not_there_is_one_line(command, tmp_path):
    out = [] if command[0] == "-m" else ["--output-dir", str(tmp_path / "out")]
    environment = os.environ | {
        "JAX_PLATFORMS": "cuda",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, *command, *out], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert done.stderr.startswith("error: JAX finds no device for JAX_PLATFORMS=cuda")
    # A study fails in its worker, which alone uses the device; it can be resumed in its folder.
    assert command[0].endswith("degradation.py") or not (tmp_path / "out").exists()
