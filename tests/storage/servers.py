"""Object stores on loopback: moto for S3, an emulator for GCS, and a proxy that injects faults.

The emulator of GCS ignores `ifGenerationMatch=0`. The proxy, through which all requests go,
enforces it as GCS does: one creation at a time, refused with 412 where the object exists. And it
loses a carriage return at the end of a multipart upload, which the proxy makes a plain one.
"""

import contextlib
import dataclasses
import http.client
import json
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HOST = "127.0.0.1"
BUCKET = "runs"
SECRETS = {"AWS_ACCESS_KEY_ID": "AKIATESTSECRET", "AWS_SECRET_ACCESS_KEY": "not-for-logs"}
COMMANDS = {
    "s3": ("moto.server", "-H", HOST, "-p"),
    "gs": ("gcp_storage_emulator", "start", f"--host={HOST}", "--in-memory",
           f"--default-bucket={BUCKET}", "--port"),
}  # fmt: skip
_CREATION = re.compile(r"/upload/storage/v1/b/(?P<bucket>[^/]+)/o\?")
_NAME = re.compile(rb"\{[^}]*\"name\"[^}]*\}")

# Whether and how a request fails, from its method and path; of GCS the name follows "#".
Fault = Callable[[str, str], str]


@dataclasses.dataclass
class Store:
    """A running object store behind its proxy."""

    scheme: str
    port: int
    """Of the proxy."""
    fault: Fault = lambda method, path: ""
    """"" or one of: "503", "429", "drop", "slow", "503 after", "drop after", "truncate"."""
    requests: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    slow_seconds: float = 0.3

    @property
    def environment(self) -> dict[str, str]:
        """What points the drivers at the proxy."""
        address = f"http://{HOST}:{self.port}"
        if self.scheme == "gs":
            # The second: gcsfs asks no metadata server of which kind the bucket is.
            return {"STORAGE_EMULATOR_HOST": address, "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}
        return {"AWS_ENDPOINT_URL": address, "AWS_DEFAULT_REGION": "us-east-1", **SECRETS}

    def url(self, name: str) -> str:
        """The URL of a folder of the bucket."""
        return f"{self.scheme}://{BUCKET}/{name}"


@contextlib.contextmanager
def running(scheme: str) -> Iterator[Store]:
    """A store with an empty bucket, until the end of the block."""
    upstream = _free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", *COMMANDS[scheme], str(upstream)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    store = Store(scheme, 0)
    proxy = _Proxy((HOST, 0), _handler(store, upstream))
    store.port = proxy.server_address[1]
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    try:
        _wait(upstream, server)
        if scheme == "s3":
            _request(upstream, "PUT", f"/{BUCKET}", b"", {})
        yield store
    finally:
        proxy.shutdown()
        server.terminate()
        server.wait()


class _Proxy(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Of clients that were killed, or gave up: no error here."""


def _handler(store: Store, upstream: int) -> type[BaseHTTPRequestHandler]:
    creating = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _pass(self) -> None:
            body = self._body()
            if body is None:  # of a client that was killed: real servers store nothing of it
                self._drop()
                return
            path = self._path_with_name(body)
            store.requests.append((self.command, path))
            fault = store.fault(self.command, path)
            if fault in ("503", "429"):
                self._answer(int(fault), [], b"")
                return
            if fault == "drop":
                self._drop()
                return
            if fault == "slow":
                time.sleep(store.slow_seconds)
            headers = {k: v for k, v in self.headers.items() if k.lower() != "transfer-encoding"}
            headers["Content-Length"] = str(len(body))
            status, answer_headers, answer = self._forward(body, headers)
            if fault == "503 after":
                self._answer(503, [], b"")
            elif fault == "drop after":
                self._drop()
            else:
                self._answer(status, answer_headers, answer, half=fault == "truncate")

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_PATCH = _pass

        def _path_with_name(self, body: bytes) -> str:
            """The path, with the name of an object that GCS has in the body alone."""
            is_creation = _CREATION.match(self.path) and "uploadType=multipart" in self.path
            return f"{self.path}#{_name_of({}, body)}" if is_creation else self.path

        def _forward(self, body: bytes, headers: dict[str, str]) -> Any:
            path, query = self.path, urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
            found = _CREATION.match(path)
            if not found:
                return _request(upstream, self.command, path, body, headers)
            name = urllib.parse.quote(_name_of(query, body), safe="")
            multipart = query.get("uploadType") == ["multipart"]
            content = _content_of(body, headers["Content-Type"]) if multipart else b""
            if content.endswith(b"\r"):
                body, headers = content, {"Content-Length": str(len(content))}
                path = f"/upload/storage/v1/b/{found['bucket']}/o?uploadType=media&name={name}"
            if query.get("ifGenerationMatch") != ["0"]:
                return _request(upstream, self.command, path, body, headers)
            with creating:
                there = f"/storage/v1/b/{found['bucket']}/o/{name}"
                if _request(upstream, "GET", there, b"", {})[0] == 200:
                    return 412, [], b'{"error": {"code": 412, "message": "conditionNotMet"}}'
                return _request(upstream, self.command, path, body, headers)

        def _body(self) -> bytes | None:
            """What the request sends, or None if its connection ends before."""
            if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
                size = int(self.headers.get("Content-Length", 0))
                found = self.rfile.read(size)
                return found if len(found) == size else None
            found = b""
            while line := self.rfile.readline():
                size = int(line.split(b";")[0], 16)
                part = self.rfile.read(size)
                end = self.rfile.readline()
                if len(part) < size or not end.endswith(b"\n"):
                    return None
                if not size:
                    return found
                found += part
            return None

        def _answer(self, status: int, headers: Any, body: bytes, half: bool = False) -> None:
            self.send_response_only(status)
            skipped = ("transfer-encoding", "connection", "content-length")
            for name, value in headers:
                if name.lower() not in skipped:
                    self.send_header(name, value)
            size = dict((k.lower(), v) for k, v in headers).get("content-length", len(body))
            self.send_header("Content-Length", str(size if self.command == "HEAD" else len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body[: len(body) // 2] if half else body)
            if half:
                self._drop()

        def _drop(self) -> None:
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

        def log_message(self, *_: Any) -> None:
            """Log nothing."""

    return Handler


def _name_of(query: dict[str, list[str]], body: bytes) -> str:
    """The name of an object that is created: in the query, or in the first part of the body."""
    return query["name"][0] if "name" in query else json.loads(_NAME.search(body)[0])["name"]


def _content_of(body: bytes, content_type: str) -> bytes:
    """The second part of a multipart body as gcsfs writes it."""
    boundary = re.search(r'boundary="?([^";]+)', content_type)[1].encode()
    part = body.partition(b"\n--" + boundary + b"\n")[2]
    return part.partition(b"\n\n")[2].removesuffix(b"\n--" + boundary + b"--")


def _request(
    port: int, method: str, path: str, body: bytes, headers: dict[str, str]
) -> tuple[int, list[tuple[str, str]], bytes]:
    connection = http.client.HTTPConnection(HOST, port, timeout=60)
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.getheaders(), answer.read()
    finally:
        connection.close()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind((HOST, 0))
        return found.getsockname()[1]


def _wait(port: int, server: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        assert server.poll() is None, "the server ended"
        with contextlib.suppress(OSError), socket.create_connection((HOST, port), 1):
            return
        time.sleep(0.1)
    raise AssertionError("the server does not answer")
