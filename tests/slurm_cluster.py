"""A SLURM of its own on this machine, which a test starts and ends."""

import contextlib
import dataclasses
import os
import random
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.training.distributed.test_cluster import free_port

ROOT = Path(__file__).parents[1]
COMMANDS = (
    "munged",
    "slurmctld",
    "slurmd",
    "sbatch",
    "srun",
    "squeue",
    "scancel",
    "scontrol",
    "sinfo",
)
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
CONFIG = """\
ClusterName=deepjax
SlurmctldHost=localhost(127.0.0.1)
SlurmUser=root
SlurmctldPort={ctld_port}
SlurmdPort={slurmd_port}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SwitchType=switch/none
MpiDefault=none
FirstJobId={first_job}
SlurmdParameters=config_overrides
NodeName=localhost NodeAddr=127.0.0.1 CPUs=2
PartitionName=test Nodes=localhost Default=YES
"""

needs_slurm = pytest.mark.skipif(
    not all(map(shutil.which, COMMANDS)) or os.geteuid() != 0,
    reason="needs SLURM and munge (slurm-wlm, munge), and root",
)


@dataclasses.dataclass(frozen=True)
class Slurm:
    """A SLURM of this test alone."""

    folder: Path
    environment: dict[str, str]

    def run(self, *command: str) -> str:
        """What one of SLURM's commands says."""
        done = subprocess.run(
            command, env=self.environment, cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout.strip()

    def idle(self) -> bool:
        """Whether nothing runs on the node."""
        return self.run("sinfo", "-h", "-o", "%T") == "idle"

    def job(self, number: str) -> dict[str, str]:
        """What SLURM knows of a job."""
        return dict(
            fact.split("=", 1)
            for fact in self.run("scontrol", "show", "job", number).split()
            if "=" in fact
        )

    def log(self, number: str) -> str:
        """What a job and its tasks said."""
        return (self.folder / f"{number}.log").read_text()

    def wait(self, number: str) -> None:
        """Until the job has ended with exit code 0."""
        until(lambda: self.job(number)["JobState"] in ENDED, f"job {number} has ended", 300)
        assert (self.job(number)["JobState"], self.job(number)["ExitCode"]) == (
            "COMPLETED",
            "0:0",
        ), self.log(number)


def until(true: Callable[[], bool], what: str, seconds: float) -> None:
    """Wait until something is true."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < seconds, f"not within {seconds:g} s: {what}"
        time.sleep(0.2)


@contextlib.contextmanager
def daemon(folder: Path, environment: dict[str, str], *command: str) -> Iterator[None]:
    """A program in the foreground of its own, ended with the block."""
    with (folder / f"{command[0]}.log").open("w") as log:
        process = subprocess.Popen(
            command, env=environment, cwd=folder, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextlib.contextmanager
def slurm_cluster(folder: Path) -> Iterator[Slurm]:
    """Its daemons, with everything that they write in a folder."""
    for name in ("state", "spool"):
        (folder / name).mkdir()
    (folder / "munge.key").write_bytes(secrets.token_bytes(64))
    (folder / "munge.key").chmod(0o400)
    # Determines the coordinator's port, which another test on this machine may use.
    first_job = random.randrange(1, 4000)
    config = CONFIG.format(
        folder=folder, ctld_port=free_port(), slurmd_port=free_port(), first_job=first_job
    )
    (folder / "slurm.conf").write_text(config)
    # This test may itself be a task of a job.
    outside = ("SLURM", "SBATCH", "SRUN", "SALLOC", "JAX_")
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(outside)
    }
    environment |= {"SLURM_CONF": str(folder / "slurm.conf"), "JAX_PLATFORMS": "cpu"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    made = Slurm(folder, environment)
    munge = [f"--{kind}-file={folder}/munge.{kind}" for kind in ("key", "pid", "log", "seed")]
    with contextlib.ExitStack() as stack:
        stack.enter_context(
            daemon(
                folder,
                environment,
                "munged",
                "--foreground",
                "--force",
                f"--socket={folder}/munge.socket",
                *munge,
            )
        )
        until((folder / "munge.socket").exists, "munged listens", 30)
        stack.enter_context(daemon(folder, environment, "slurmctld", "-D"))
        stack.enter_context(daemon(folder, environment, "slurmd", "-D", "-N", "localhost"))
        until(made.idle, "the node is idle", 60)
        try:
            yield made
        finally:
            made.run("scancel", "--user", "root")
            until(lambda: made.run("squeue", "-h") == "", "no job is left", 60)
