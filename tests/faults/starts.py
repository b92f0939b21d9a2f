"""Starts and stops from outside: launchers, signals of schedulers, changed settings of JAX."""

import contextlib
import os
import random
import signal
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from deepjax.command_line import EXIT_INPUT, EXIT_STOPPED
from tests.faults.kills import LONG, LONG_FLAGS, MARKED, pair, together, wait_for_first_step
from tests.faults.marked import SAVED
from tests.faults.runs import complete, finish, outcome, reference, start
from tests.faults.tally import Tally

SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGXCPU, signal.SIGTERM)
SETTINGS = {  # environment of the resumed run: the name in its refusal
    "JAX_DEFAULT_PRNG_IMPL=rbg": "jax_default_prng_impl is 'rbg', there 'threefry2x32'",
    "JAX_DEFAULT_PRNG_IMPL=unsafe_rbg": "jax_default_prng_impl is 'unsafe_rbg', "
    "there 'threefry2x32'",
    "JAX_ENABLE_X64=1": "jax_enable_x64 is True, there False",
    "JAX_THREEFRY_PARTITIONABLE=0": "jax_threefry_partitionable is False, there True",
    "JAX_DEFAULT_MATMUL_PRECISION=highest": "jax_default_matmul_precision is 'highest', there None",
    "JAX_RANDOM_SEED_OFFSET=1": "jax_random_seed_offset is 1, there 0",
    "XLA_FLAGS=--xla_cpu_enable_fast_math=true": "xla_cpu_enable_fast_math is 'true', there ''",
}


def torchrun(rank: int, port: int) -> dict[str, str]:
    """The variables of a rank of two on this machine."""
    return {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port - 1),
        "WORLD_SIZE": "2",
        "RANK": str(rank),
    }


def open_mpi_4(rank: int, port: int) -> dict[str, str]:
    """The same; jax takes its port from the number of the job."""
    number = 4096 * (port % 4096)
    return open_mpi_5(rank, port) | {"OMPI_MCA_orte_hnp_uri": f"{number}.0;tcp://127.0.0.1:34911"}


def open_mpi_5(rank: int, port: int) -> dict[str, str]:
    """Without the address of the first process."""
    others = {"OMPI_COMM_WORLD_LOCAL_RANK": str(rank), "PMIX_RANK": str(rank)}
    return _ranks("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", rank) | others


def _ranks(size: str, name: str, rank: int) -> dict[str, str]:
    return {size: "2", name: str(rank)}


Variables = Callable[[int, int], Mapping[str, str]]
# Launcher -> (variables for a rank and a port, whether they give the address of process 0).
LAUNCHERS: dict[str, tuple[Variables, bool]] = {
    "torchrun": (torchrun, True),
    "Open MPI 4": (open_mpi_4, True),
    "Open MPI 5": (open_mpi_5, False),
    "MPICH": (lambda rank, port: _ranks("PMI_SIZE", "PMI_RANK", rank), False),
    "MVAPICH": (
        lambda rank, port: _ranks("MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK", rank),
        False,
    ),
    "PMIx": (lambda rank, port: {"PMIX_RANK": str(rank)}, False),
    "Horovod": (lambda rank, port: _ranks("HOROVOD_SIZE", "HOROVOD_RANK", rank), False),
    "Flux": (lambda rank, port: _ranks("FLUX_JOB_SIZE", "FLUX_TASK_RANK", rank), False),
    "jsrun": (lambda rank, port: _ranks("JSM_NAMESPACE_SIZE", "JSM_NAMESPACE_RANK", rank), False),
    "torchrun without MASTER_ADDR": (lambda rank, port: _ranks("WORLD_SIZE", "RANK", rank), False),
}


def launchers(tries: int, work: Path, seed: int = 0) -> Tally:
    """Two ranks by the variables of each launcher.

    They are joined as the run of two processes by flags, or both refused before anything is made.
    """
    tally = Tally(
        "two ranks by the variables of each launcher",
        "joined and equal to the run by --hosts, or exit 2 and no folder",
    )
    assert [code for code, _ in pair(work / "flags", 60)] == [0, 0]
    expected = outcome(work / "flags")
    for name, (variables, says_where) in list(LAUNCHERS.items())[: tries or None]:
        out, port = work / name.replace(" ", "-"), _free_port()
        ends = [
            finish(process) for process in [start(out, **variables(rank, port)) for rank in (0, 1)]
        ]
        codes, said = [code for code, _ in ends], [words.strip() for _, words in ends]
        if says_where:
            tally.count(
                codes == [0, 0] and outcome(out) == expected, f"{name}: exits {codes}; {said}"
            )
        else:
            lines = all(
                words.startswith("error: this process is rank") and "\n" not in words
                for words in said
            )
            tally.count(
                codes == [EXIT_INPUT] * 2 and lines and not out.exists(),
                f"{name}: exits {codes}; {said}",
            )
    return tally


def _free_port() -> int:
    """A port of the range that jax chooses from for Open MPI: 61440 + job modulo 4096."""
    while True:
        port = random.randrange(61440, 65535)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


def stopped(tries: int, work: Path, seed: int = 0) -> Tally:
    """Each signal of a scheduler at a random moment, every fifth time to one of two processes."""
    tally = Tally(
        "SIGUSR1, SIGUSR2, SIGHUP, SIGXCPU, SIGTERM at random moments",
        "exit 143 after saving; the resumed run bitwise equal",
    )
    expected = reference(work, LONG)
    assert [code for code, _ in pair(work / "two", 60, *LONG_FLAGS)] == [0, 0]
    of_two = outcome(work / "two")
    rng = random.Random(seed)
    turn = missed = 0
    while tally.tried < tries and missed < 3 * tries:
        number, several = SIGNALS[turn % len(SIGNALS)], turn % 5 == 4
        number = SIGNALS[turn // 5 % len(SIGNALS)] if several else number
        out = work / f"stopped-{turn}-{missed}"
        ends = _stop(out, number, rng.uniform(0.0, 0.5), several, rng.randrange(2))
        if ends is None:
            missed += 1
            continue
        codes = [code for code, _ in ends]
        if several:
            again = [code for code, _ in pair(out, 60, *LONG_FLAGS)]
            fine = codes == [EXIT_STOPPED] * 2 and again == [0, 0] and outcome(out) == of_two
        else:
            complete(out, LONG)
            fine = (
                codes == [EXIT_STOPPED]
                and f"stopped by {number.name} after step" in ends[0][1]
                and outcome(out) == expected
            )
        tally.count(
            fine,
            f"{number.name} to {len(codes)} processes: exits {codes}; "
            f"{[said.strip()[-200:] for _, said in ends]}",
        )
        turn += 1
    return tally


def _stop(
    out: Path, number: signal.Signals, seconds: float, several: bool, victim: int
) -> list[tuple[int, str]] | None:
    """Exit codes and messages after a signal to one process some seconds after its first step.

    None if everything was saved by then.
    """
    if several:
        processes = together(out, 60, *LONG_FLAGS, script=MARKED)
    else:
        processes, victim = [start(out, *LONG_FLAGS, script=MARKED)], 0
    wait_for_first_step(processes[victim])
    time.sleep(seconds)
    with contextlib.suppress(ProcessLookupError):
        os.kill(processes[victim].pid, number)
    ends = []
    saved = False
    for process in processes:
        said, errors = process.communicate(timeout=300)
        saved |= SAVED in said and process.returncode != EXIT_STOPPED
        ends.append((process.returncode, errors))
    return None if saved else ends


def settings(tries: int, work: Path, seed: int = 0) -> Tally:
    """A resume under other settings of random numbers or precision, refused by name."""
    tally = Tally(
        "other random number and precision settings on resume",
        "refused by the setting's name, exit 2, nothing touched",
    )
    out = work / "settings"
    complete(out)
    before = outcome(out)
    for changed, named in list(SETTINGS.items())[: tries or None]:
        name, value = changed.split("=", 1)
        code, said = finish(start(out, **{name: value}))
        one_line = len(said.strip().splitlines()) == 1
        tally.count(
            code == EXIT_INPUT and named in said and one_line and outcome(out) == before,
            f"{changed}: exit {code}; {said}",
        )
    return tally
