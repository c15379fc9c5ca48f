"""Run a real S3 server (SeaweedFS) on loopback, alone or behind a proxy that counts requests and injects faults."""

import json
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa
from pyarrow import fs as pafs

PROXY = Path(__file__).parents[2] / "shared" / "cases" / "s3_proxy.py"
SERVER = Path(sys.executable).with_name("weed")
KEY, SECRET, BUCKET = "test-key", "test-secret", "bucket"
_START = 60.0  # seconds


@dataclass(frozen=True)
class Server:
    """An S3 server with one bucket.

    Args:
        port: of the server, or of the proxy in front of it.
        folder: of its data; of a proxy: of its log and its configuration.
    """

    port: int
    folder: Path

    @property
    def query(self) -> str:
        """The options of a URI that name this server."""
        return f"endpoint_override={quote(f'http://127.0.0.1:{self.port}', safe='')}&region=us-east-1"

    def uri(self, path: str, key: str = KEY, secret: str = SECRET) -> str:
        """Return the URI of a path of the bucket, with credentials."""
        return f"s3://{key}:{secret}@{BUCKET}/{path}?{self.query}"

    def environment(self) -> dict[str, str]:
        """Return the environment in which `s3://bucket/path` alone names this server."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
        }

    def filesystem(self, **options: object) -> pafs.S3FileSystem:
        """Open the server with pyarrow, without the project's own code."""
        endpoint = f"127.0.0.1:{self.port}"
        options = {"access_key": KEY, "secret_key": SECRET, "region": "us-east-1"} | options
        return pafs.S3FileSystem(scheme="http", endpoint_override=endpoint, **options)

    def objects(self, path: str = "") -> dict[str, int]:
        """List all objects below a path of the bucket, with their bytes."""
        selector = pafs.FileSelector(f"{BUCKET}/{path}".rstrip("/"), recursive=True, allow_not_found=True)
        return {info.path: info.size for info in self.filesystem().get_file_info(selector) if info.is_file}


@dataclass(frozen=True)
class Proxy(Server):
    """A proxy in front of a server; its faults can be changed at any time.

    Args:
        processes: its process, or None while it is stopped.
        ignored: the number of earlier requests, which are not counted.
    """

    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    ignored: int = 0

    def from_now(self) -> "Proxy":
        """Return the proxy without the requests so far."""
        return replace(self, ignored=self.ignored + len(self.requests()))

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Accept connections and answer nothing."""
        self.processes[-1].send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.processes[-1].send_signal(signal.SIGCONT)

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Refuse all connections, as where no server runs."""
        _end(self.processes.pop())
        try:
            yield
        finally:
            self.start()

    def start(self, target: Server | None = None) -> None:
        """Start the process, and wait until it listens.

        Args:
            target: the server behind the proxy; by default that of the last start.
        """
        address = self.folder / "target"
        if target:
            address.write_text(str(target.port))
        parts = (PROXY, self.port, address.read_text(), self.folder / "requests.log", self.folder / "faults.json")
        log = self.folder / "proxy.log"
        self.processes.append(_start([sys.executable, *map(str, parts)], log))
        _wait_for(lambda: socket.create_connection(("127.0.0.1", self.port)).close() or True, log)

    def set_faults(self, **faults: object) -> None:
        """Set `delay` (seconds), `p503` (share that is answered SlowDown) or `deny` (status, code, message)."""
        temporary = self.folder / "faults.tmp"
        temporary.write_text(json.dumps(faults))
        temporary.rename(self.folder / "faults.json")

    def requests(self) -> list[tuple[str, str, str]]:
        """Return the status, kind and path of every request so far."""
        lines = (self.folder / "requests.log").read_text().splitlines()[self.ignored :]
        return [(status, kind, path) for _, status, kind, path, *_ in (line.split("\t") for line in lines)]

    def count(self) -> Counter[str]:
        """Count the requests so far by kind."""
        return Counter(kind for _, kind, _ in self.requests())


@contextmanager
def server(folder: Path, port: int | None = None) -> Iterator[Server]:
    """Start a server with its data in a folder, and create the bucket where it does not exist.

    Args:
        port: of a server that is started again; by default a free one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    configuration = folder / "s3.json"
    credentials = [{"accessKey": KEY, "secretKey": SECRET}]
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    configuration.write_text(
        json.dumps({"identities": [{"name": "tests", "credentials": credentials, "actions": actions}]})
    )
    port = port or free_port()
    ports = {name: free_port() for name in ("master.port", "volume.port", "filer.port")}
    grpc = {f"{name}.grpc": free_port() for name in (*ports, "s3.port")}
    options = {"ip": "127.0.0.1", "ip.bind": "127.0.0.1", "dir": folder, "s3.port": port, "s3.config": configuration}
    options |= {"master.volumeSizeLimitMB": 64, "volume.max": 100} | ports | grpc
    options |= {"s3.port.iceberg": 0, "s3.port.lance": 0}
    command = [
        str(SERVER),
        f"-logdir={folder}",
        "server",
        "-s3",
        *(f"-{key}={value}" for key, value in options.items()),
    ]
    process = _start(command, folder / "server.log")
    try:
        made = Server(port, folder)
        store = made.filesystem(allow_bucket_creation=True)
        _wait_for(lambda: store.create_dir(BUCKET) or True, folder / "server.log")
        yield made
    finally:
        _end(process)


@contextmanager
def proxy(target: Server, folder: Path) -> Iterator[Proxy]:
    """Start a proxy in front of a server."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "requests.log").touch()
    made = Proxy(free_port(), folder)
    made.set_faults()
    made.start(target)
    try:
        yield made
    finally:
        _end(made.processes.pop())


def _start(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("a") as output:
        return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=log.parent)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def _wait_for(condition: "object", log: Path) -> None:
    end = time.monotonic() + _START
    while time.monotonic() < end:
        with suppress(OSError, pa.ArrowException):
            if condition():  # type: ignore[operator]
                return
        time.sleep(0.1)
    raise TimeoutError(log.read_text()[-3000:])


def free_port() -> int:
    """Return a port of loopback that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
