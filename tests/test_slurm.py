"""Tests of the files for Slurm, without Slurm: syntax, options, commands in them, messages, and the end of a job."""

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from vlcp_ray.cli import parser
from vlcp_ray.config import load_job

ROOT = Path(__file__).parents[1]
SLURM = ROOT / "clusters" / "slurm"
BATCH = [SLURM / "one-node.sbatch", SLURM / "many-nodes.sbatch"]
SCRIPTS = [*BATCH, SLURM / "job.sh", SLURM / "node.sh"]
LINES = [line for line in (SLURM / "array.txt").read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
#: How a stand-in for vlcp-ray ends on SIGTERM: as the real one does.
RUN = 'trap "exit 143" TERM; echo "$@" >>"$LOG"; echo "$RAY_TMPDIR $CUDA_VISIBLE_DEVICES" >>"$LOG"; '


def name(path: Path) -> str:
    return path.name


@pytest.mark.parametrize("script", SCRIPTS, ids=name)
def test_script_has_no_syntax_error(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("script", SCRIPTS, ids=name)
def test_script_passes_shellcheck(script: Path) -> None:
    subprocess.run(["shellcheck", "--external-sources", str(script)], check=True, cwd=ROOT)


def options(script: Path) -> dict[str, str]:
    """The options of sbatch in a file."""
    found = re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", script.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(found) == script.read_text(encoding="utf-8").count("#SBATCH")
    return dict(found)


@pytest.mark.parametrize("script", BATCH, ids=name)
def test_batch_file_ends_in_time_and_is_queued_again(script: Path) -> None:
    assert (
        options(script).items()
        >= {
            "signal": "B:TERM@120",  # 80 s for the run and some for Ray, before Slurm kills the job
            "requeue": "",
            "open-mode": "append",  # the output of the earlier attempts is kept
            "gres": "gpu:1",
            "time": "24:00:00",
        }.items()
    )
    assert {"cpus-per-task", "mem", "nodes"} <= options(script).keys()
    assert (
        not {"partition", "account", "output", "export"} & options(script).keys()
    )  # they are a site's, or Slurm's own


@pytest.mark.parametrize("file", [path for path in SLURM.iterdir() if path.is_file()], ids=name)
def test_files_name_no_machine_and_no_user(file: Path) -> None:
    text = file.read_text(encoding="utf-8").replace("/home/ray", "")  # of Ray's image
    assert not re.search(r"/(home|root|Users|work|scratch|mnt|gpfs|lustre)\b", text)
    assert not re.search(r"\b\d{1,3}(\.\d{1,3}){3}\b", text.replace("127.0.0.1", ""))


def commands() -> Iterator[list[str]]:
    """The arguments of all commands `vlcp-ray` and `sbatch` in the README, the latter as those of `vlcp-ray run`."""
    text = (SLURM / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    (where,) = re.findall(r'^WHERE="(.*)"$', text, re.MULTILINE)
    text = text.replace("$WHERE", where)
    yield from (line.split() for line in re.findall(r"^vlcp-ray (.*)$", text, re.MULTILINE))
    for line in re.findall(r"^(?:\w+=\$\()?sbatch .*?\.sbatch (.*?)\)?$", text, re.MULTILINE):
        job, *more = line.split()
        for words in (one.split() for one in (LINES if job == "@clusters/slurm/array.txt" else [job])):
            yield ["run", *words, *more]


def test_commands_in_the_files_are_valid() -> None:
    found = list(commands())
    assert [arguments[0] for arguments in found] == ["fetch", "plan", "status", *["run"] * (4 + 2 * len(LINES))]
    for arguments in found:
        parsed = parser().parse_args(arguments)
        assert (ROOT / parsed.job).is_file()
        load_job(str(ROOT / parsed.job), parsed.set)


class Node:
    """A folder with stand-ins for the commands of a node, and the variables that Slurm sets."""

    def __init__(self, folder: Path) -> None:
        self.bin, self.log = folder / "bin", folder / "log"
        self.bin.mkdir()
        for tool in ("bash", "cat", "grep", "hostname", "ls", "mkdir", "rm", "sed", "sleep"):
            (self.bin / tool).symlink_to(str(shutil.which(tool)))
        self.write("squeue", "echo RUNNING")
        self.write("scontrol", 'echo "scontrol $*" >>"$LOG"')
        self.variables = {
            "PATH": str(self.bin),  # and no vlcp-ray, apptainer or Slurm of this machine
            "LOG": str(self.log),
            "SLURM_SUBMIT_DIR": str(ROOT),
            "SLURM_JOB_ID": f"{os.getpid()}",
        }

    def write(self, command: str, script: str) -> None:
        (self.bin / command).write_text(f"#!/bin/bash\n{script}\n")
        (self.bin / command).chmod(0o755)

    def start(self, *arguments: str, script: Path = BATCH[0], **variables: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", str(script), *arguments],
            env=self.variables | variables,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, *arguments: str, script: Path = BATCH[0], **variables: str) -> tuple[int, str]:
        """Run a batch file to its end, and return the exit code and the errors."""
        process = self.start(*arguments, script=script, **variables)
        _, errors = process.communicate()
        return process.returncode, errors

    def stop(self, *arguments: str, **variables: str) -> int:
        """Start a job, send SIGTERM when the run is under way, and return the exit code."""
        process = self.start(*arguments, **variables)
        self.wait_for_line("run ")
        process.send_signal(signal.SIGTERM)
        process.communicate()
        return process.returncode

    def wait_for_line(self, text: str) -> None:
        end = time.monotonic() + 30
        while not self.log.exists() or text not in self.log.read_text():
            assert time.monotonic() < end
            time.sleep(0.02)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "variables", "expected"),
    [
        ([], {}, "name a job file"),
        (["jobs/digits.toml"], {}, "no command vlcp-ray: activate the environment"),
        (["jobs/digits.toml"], {"VLCP_IMAGE": "/none.sif"}, "VLCP_IMAGE=/none.sif: .* cannot read it; build it"),
        (["jobs/digits.toml"], {"VLCP_IMAGE": "/bin/sh"}, "no command apptainer: load its module"),
        (["jobs/digits.toml"], {"SLURM_ARRAY_TASK_ID": "1"}, "all tasks of the array would run the same job"),
        (["@clusters/slurm/array.txt"], {}, "say which of its lines to run"),
        (["@clusters/slurm/none.txt"], {"SLURM_ARRAY_TASK_ID": "1"}, "cannot read clusters/slurm/none.txt"),
        (["@clusters/slurm/array.txt"], {"SLURM_ARRAY_TASK_ID": "99"}, "it has no line 99"),
        (["jobs/digits.toml"], {"SLURM_SUBMIT_DIR": "/"}, "call sbatch in the project's folder"),
    ],
)
@pytest.mark.parametrize("script", BATCH, ids=name)
def test_job_with_wrong_settings_ends_with_the_fix(
    node: Node, script: Path, arguments: Sequence[str], variables: dict[str, str], expected: str
) -> None:
    code, errors = node.run(*arguments, script=script, **variables)
    assert re.search(expected, errors)
    assert code == 2


@pytest.mark.parametrize(("local", "expected"), [("/tmp/" + 40 * "x", "set a shorter path"), ("/none", "cannot make")])
def test_job_with_unusable_local_folder_ends_with_the_fix(node: Node, local: str, expected: str) -> None:
    node.write("vlcp-ray", "")
    code, errors = node.run("jobs/digits.toml", VLCP_LOCAL=local)
    assert re.search(f"VLCP_LOCAL={local}: .*{expected}", errors)
    assert code == 2


@pytest.mark.parametrize("code", [0, 1, 2])
def test_job_ends_with_the_exit_code_of_the_run_and_leaves_no_folder(node: Node, code: int) -> None:
    node.write("vlcp-ray", f"{RUN} exit {code}")
    assert node.run("jobs/digits.toml", "--root", "two words")[0] == code
    ran, folder = node.log.read_text().splitlines()
    assert ran == "run jobs/digits.toml --root two words"
    assert folder == f"/tmp/v{os.getpid()} "  # no GPU, as Slurm has allocated none
    assert not Path(folder.strip()).exists()


def test_job_removes_the_folder_of_an_attempt_that_was_killed(node: Node) -> None:
    node.write("vlcp-ray", "ls -A $TMPDIR >>$LOG")
    folder = Path(f"/tmp/v{os.getpid()}")
    folder.mkdir()
    (folder / "session").touch()
    assert node.run("jobs/digits.toml")[0] == 0
    assert node.log.read_text() == ""


def test_job_runs_in_the_image(node: Node, tmp_path: Path) -> None:
    (tmp_path / "image.sif").touch()
    node.write("apptainer", 'echo "$PYTHONNOUSERSITE $*" >>"$LOG"')
    assert node.run("jobs/digits.toml", VLCP_IMAGE=f"{tmp_path}/image.sif")[0] == 0
    folders = f"{ROOT},/tmp/v{os.getpid()}"
    assert node.log.read_text() == f"1 exec --nv --bind {folders} {tmp_path}/image.sif vlcp-ray run jobs/digits.toml\n"


def test_job_uses_the_gpus_that_slurm_has_allocated(node: Node) -> None:
    node.write("vlcp-ray", RUN)
    node.run("jobs/digits.toml", SLURM_GPUS_ON_NODE="2", CUDA_VISIBLE_DEVICES="0,1")
    assert node.log.read_text().splitlines()[1].endswith(" 0,1")


def test_array_task_runs_its_line(node: Node) -> None:
    node.write("vlcp-ray", RUN)
    variables = {"SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_JOB_ID": "7"}
    node.run("@clusters/slurm/array.txt", "--root", "runs", **variables)
    assert node.log.read_text().splitlines()[0] == f"run {LINES[1]} --root runs"


@pytest.mark.parametrize(
    ("variables", "queued"),
    [
        ({}, f"scontrol requeue {os.getpid()}"),
        ({"SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_JOB_ID": "7"}, "scontrol requeue 7_2"),
    ],
    ids=["job", "task of an array"],
)
def test_job_whose_time_is_over_ends_the_run_and_is_queued_again(
    node: Node, variables: dict[str, str], queued: str
) -> None:
    node.write("vlcp-ray", RUN + "while :; do sleep 0.1; done")
    arguments = ["@clusters/slurm/array.txt"] if variables else ["jobs/digits.toml"]
    assert node.stop(*arguments, **variables) == 143
    assert node.log.read_text().splitlines()[2:] == [queued]


def test_cancelled_job_is_not_queued_again(node: Node) -> None:
    node.write("vlcp-ray", RUN + "while :; do sleep 0.1; done")
    node.write("squeue", "echo COMPLETING")
    assert node.stop("jobs/digits.toml") == 143
    assert "scontrol" not in node.log.read_text()


def test_run_that_ends_well_at_the_last_moment_is_not_queued_again(node: Node) -> None:
    node.write("vlcp-ray", RUN.replace("143", "0") + "while :; do sleep 0.1; done")
    assert node.stop("jobs/digits.toml") == 0
    assert "scontrol" not in node.log.read_text()


def test_apptainer_image_is_that_of_the_dockerfile() -> None:
    docker = (ROOT / "clusters" / "Dockerfile").read_text(encoding="utf-8")
    definition = (SLURM / "apptainer.def").read_text(encoding="utf-8")
    (base,) = re.findall(r"^FROM (\S+)@sha256:\$\{DIGEST\}$", docker, re.MULTILINE)
    assert definition.startswith(f"Bootstrap: docker\nFrom: {base}@sha256:{{{{ DIGEST }}}}\n")
    installed = r"pip install (--no-cache-dir --constraint constraints.txt '\.\[gpu\]')"
    assert re.findall(installed, definition) == re.findall(installed, docker) != []
    assert definition.count("pip install") == 1
    copied = {word for line in re.findall(r"^COPY --\S+ (.*) \S+$", docker, re.MULTILINE) for word in line.split()}
    files = dict(re.findall(r"^    (\S+) /opt/vlcp_ray/(\S+)$", definition, re.MULTILINE))
    assert files == {word: word for word in copied - {"jobs", "clusters"}}  # those are read in the project's folder
