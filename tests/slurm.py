"""A Slurm of a test: two nodes on this machine, with the rights of the test, in a folder of its own."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

#: Of Debian's packages slurmctld, slurmd and munge, whose slurmd allows several on one machine.
COMMANDS: Final = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")
NODES: Final = ("n1", "n2")
#: `config_overrides`: a node has the CPUs of this file, not the machine's. A job that is queued again waits for
#: `cred_expire` seconds.
CONFIGURATION: Final = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
MpiDefault=none
PartitionName=all Nodes=ALL Default=YES State=UP
"""
NODE: Final = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=4 RealMemory=8000\n"


class Slurm:
    """The commands of a Slurm."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        commands = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # those of the environment of this Python
        self.environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": commands}

    def call(self, *command: str, **variables: str) -> str:
        """Run a command, and return its output."""
        done = subprocess.run(command, env=self.environment | variables, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """What `scontrol show job` says."""
        words = self.call("scontrol", "--oneliner", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait_until(self, condition: Callable[[], object]) -> None:
        """Wait until a condition is true: a small job takes some minutes."""
        _wait_until(condition, 1200)

    def is_over(self, number: str) -> bool:
        """Whether a job has ended and is not queued again: it is in its last state for two seconds."""
        for wait in (2, 0):
            if self.job(number)["JobState"] in ("PENDING", "RUNNING", "COMPLETING"):
                return False
            time.sleep(wait)
        return True


@contextmanager
def two_nodes() -> Iterator[Slurm]:
    """A Slurm with two nodes of 4 CPUs, which ends with the context."""
    folder, processes = Path(tempfile.mkdtemp(prefix="slurm")), list[subprocess.Popen[bytes]]()
    folder.chmod(0o755)  # munge wants a socket that all users reach
    host, ports = socket.gethostname(), [_free_port() for _ in range(1 + len(NODES))]
    text = CONFIGURATION.format(host=host, port=ports[0], folder=folder, user=os.environ.get("USER", "root"))
    nodes = (NODE.format(name=name, host=host, port=port) for name, port in zip(NODES, ports[1:], strict=True))
    (folder / "slurm.conf").write_text(text.replace("PartitionName", f"{''.join(nodes)}PartitionName"))
    (folder / "munge.key").touch(0o600)
    (folder / "munge.key").write_bytes(os.urandom(128))
    kinds = ("socket", "key-file", "pid-file", "log-file", "seed-file")
    files = [f"--{kind}={folder}/munge.{kind.removesuffix('-file')}" for kind in kinds]
    slurm = Slurm(folder)

    def start(*command: str) -> None:
        with (folder / f"{len(processes)}.log").open("w") as log:
            processes.append(subprocess.Popen(command, env=slurm.environment, stdout=log, stderr=log))

    try:
        start("munged", "--foreground", "--force", *files)
        _wait_until((folder / "munge.socket").exists, 30)
        start("slurmctld", "-D")
        for name in NODES:
            (folder / f"spool-{name}").mkdir()
            start("slurmd", "-D", "-N", name)
        _wait_until(lambda: _idle(slurm) == len(NODES), 60)
        yield slurm
    finally:
        for process in reversed(processes):
            process.terminate()
            process.wait(60)
        shutil.rmtree(folder)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _idle(slurm: Slurm) -> int:
    done = subprocess.run(["sinfo", "-h", "-N", "-o", "%t"], env=slurm.environment, capture_output=True, text=True)
    return done.stdout.split().count("idle")


def _wait_until(condition: Callable[[], object], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "Slurm does not answer, or its job takes too long"
        time.sleep(0.2)
