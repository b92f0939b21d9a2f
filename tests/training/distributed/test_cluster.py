"""Processes that connect by flags: invalid flags, and a coordinator that only listens locally."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from deepjax.errors import InputError
from deepjax.training.distributed.cluster import Hosts

ROOT = Path(__file__).parents[3]
needs_proc = pytest.mark.skipif(
    not Path("/proc/net/tcp").exists(), reason="listening sockets are read from Linux's /proc"
)
LISTEN = "0A"  # the state of a listening socket, Linux's include/net/tcp_states.h
JOIN = """
import sys
from deepjax.training.distributed.cluster import Hosts, initialize_distributed
initialize_distributed(Hosts(sys.argv[1], 1, 0))
print("joined", flush=True)
sys.stdin.read()
"""


def free_port() -> int:
    """A port of this machine that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def listening(port: int) -> set[str]:
    """The addresses on which this machine listens on a port."""
    addresses = set()
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        path = Path("/proc/net") / table
        for line in path.read_text().splitlines()[1:] if path.exists() else ():
            _, local, _, state, *_ = line.split()
            address, at = local.split(":")
            if state == LISTEN and int(at, 16) == port:
                words = [
                    int(address[i : i + 8], 16).to_bytes(4, sys.byteorder)
                    for i in range(0, len(address), 8)
                ]
                # An IPv4 address on a socket of IPv6.
                addresses.add(socket.inet_ntop(family, b"".join(words)).removeprefix("::ffff:"))
    return addresses


@pytest.mark.parametrize(
    "fields, named",
    [
        ({"coordinator": "127.0.0.1:9876"}, "coordinator, processes and process_id together"),
        ({"processes": 2}, "coordinator, processes and process_id together"),
        ({"process_id": 0}, "coordinator, processes and process_id together"),
        (
            {"coordinator": "127.0.0.1:9876", "processes": 2},
            "coordinator, processes and process_id together",
        ),
        (
            {"coordinator": "127.0.0.1:9876", "processes": 2, "process_id": 2},
            "process_id is 2; allowed: 0 to 1",
        ),
        (
            {"coordinator": "127.0.0.1", "processes": 2, "process_id": 0},
            "coordinator is '127.0.0.1'; allowed: ADDRESS:PORT",
        ),
        ({"heartbeat": 0}, "heartbeat is 0; allowed: 1 second or more"),
    ],
)
def test_wrong_flags_are_refused_by_name(fields, named):
    with pytest.raises(InputError, match=named):
        Hosts(**fields)


def test_none_and_all_flags_are_taken():
    assert Hosts().processes == 0
    assert Hosts("127.0.0.1:9876", 2, 1).process_id == 1


@needs_proc
def test_listening_tells_loopback_from_all_interfaces():
    for address in ("127.0.0.1", "0.0.0.0"):  # noqa: S104  # to see that the next test could fail
        with socket.socket() as server:
            server.bind((address, 0))
            server.listen()
            assert listening(server.getsockname()[1]) == {address}


@pytest.mark.system
@needs_proc
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_local_coordinator_is_bound_to_loopback(host):
    port = free_port()
    command = [sys.executable, "-c", JOIN, f"{host}:{port}"]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout.readline() == "joined\n"
            addresses = listening(port)
        finally:
            process.communicate("")
    assert process.returncode == 0
    assert addresses and addresses <= {"127.0.0.1", "::1"}
