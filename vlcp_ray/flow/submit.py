"""Knows how a job travels to a cluster: what is packed, what it needs there, and how its log and its end come back."""

import asyncio
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Literal

from packaging.requirements import Requirement
from ray.job_submission import JobStatus, JobSubmissionClient

from vlcp_ray.config import Job
from vlcp_ray.models.folders import DEMO
from vlcp_ray.settings import ConfigError

Environment = Literal["image", "cpu", "gpu"]

_PACKAGE: Final = Path(__file__).parents[1]
_WEIGHTS: Final = ("llava", "stable_diffusion")  # the demo's, 6.6 MB of the package's 7
_PAUSES: Final = (2.0, 4.0, 8.0, 16.0, 30.0)
_OF_A_PATH: Final = ("ingest.source", "ingest.class_list", "caption.source", "teach.checkpoint")


def submit(
    job_file: str,
    job: Job,
    options: Sequence[str],
    *,
    scale: str | None = None,
    address: str | None = None,
    environment: Environment = "image",
    wait: bool = True,
) -> int:
    """Run a job on a cluster through Ray's Jobs API and tell its log until it ends.

    Args:
        job_file: its path here; it travels.
        options: what `run` is given besides: --root, --to, --set.
        scale: a scale file here; it travels.
        address: of the cluster's Jobs API; None: RAY_API_SERVER_ADDRESS, RAY_ADDRESS or this machine's.
        environment: `image` where the machines have the package's dependencies, else the extra that Ray installs there.
        wait: False comes back as soon as the job is accepted.

    Returns the exit code: 0 where the job succeeded or was only to be submitted.

    Raises:
        ConfigError: no cluster answers, or the job names a path that its machines do not see.
    """
    _check_paths(job)
    client = _connect(address)
    with tempfile.TemporaryDirectory() as folder:
        files = pack(Path(folder), job_file, job, scale)
        command = ["python", "-m", "vlcp_ray.cli", "run", files[0], *options]
        command += ["--scale", files[1]] if scale else []
        runtime: dict[str, Any] = {"working_dir": folder}
        if environment != "image":
            runtime["pip"] = requirements(environment)
        submission = _send(client, shlex.join(command), runtime)
    print(f"job {submission}; follow: ray job logs -f {submission}; stop: ray job stop {submission}", flush=True)
    return _follow(client, submission) if wait else 0


def pack(folder: Path, job_file: str, job: Job, scale: str | None = None) -> list[str]:
    """Copy what a job needs into a folder: the package, the job file, the scale file; the demo's weights if it asks.

    Returns the places of the job file and the scale file within the folder.
    """
    uses_demo = any(model.startswith(DEMO) for model in (job.base_model, job.caption.model))
    left_out = shutil.ignore_patterns("__pycache__", *(() if uses_demo else _WEIGHTS))
    shutil.copytree(_PACKAGE, folder / _PACKAGE.name, ignore=left_out)
    places = []
    for file, room in ((job_file, "jobs"), *(((scale, "clusters"),) if scale else ())):
        (folder / room).mkdir(exist_ok=True)
        shutil.copy(file, folder / room)
        places.append(f"{room}/{Path(file).name}")
    return places


def requirements(extra: str) -> list[str]:
    """What pip installs for the package with an extra: the one list of pyproject.toml, as it was installed here."""
    found = [Requirement(text) for text in metadata.requires("vlcp-ray") or ()]
    wanted = [r for r in found if r.marker is None or r.marker.evaluate({"extra": extra})]
    return [f"{r.name}{f'[{chr(44).join(sorted(r.extras))}]' if r.extras else ''}{r.specifier}" for r in wanted]


def _check_paths(job: Job) -> None:
    settings = job.model_dump()
    for name in _OF_A_PATH:
        section, key = name.split(".")
        value = settings[section][key]
        if value and "://" not in value and Path(value).exists():
            raise ConfigError(
                f"{name}: {value!r} is a path of this machine and does not travel; give a URI, or "
                f"file://{Path(value).resolve()} where all machines of the cluster have it there"
            )


def _connect(address: str | None) -> JobSubmissionClient:
    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError) as error:
        said = str(error).splitlines()[0]
        cure = (
            "set RAY_AUTH_MODE=token here and give the cluster's token (RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH)"
            if "401" in str(error) or "uthenticat" in str(error)
            else "start one (ray start --head), or name its dashboard: --address http://HOST:8265"
        )
        raise ConfigError(f"no cluster takes the job: {said}; {cure}") from error


def _send(client: JobSubmissionClient, command: str, runtime: dict[str, Any]) -> str:
    """Submit, again and again while a cluster that has just started says that it is not ready."""
    for pause in (*_PAUSES, None):
        try:
            return str(client.submit_job(entrypoint=command, runtime_env=runtime))
        except RuntimeError as error:
            starting = "No available agent" in str(error)
            if pause is None or not starting:
                cure = "; on the head's machine another Ray may hold its agent's port" if starting else ""
                raise ConfigError(f"the cluster refuses the job: {str(error).splitlines()[0]}{cure}") from error
            time.sleep(pause)
    raise AssertionError


def _follow(client: JobSubmissionClient, submission: str) -> int:
    try:
        asyncio.run(_tail(client, submission))
    except KeyboardInterrupt:
        print(f"\nthe job goes on; stop it with: ray job stop {submission}", file=sys.stderr)
        return 130
    status = client.get_job_status(submission)
    print(f"job {submission}: {status.value}", flush=True)
    return 0 if status == JobStatus.SUCCEEDED else 1


async def _tail(client: JobSubmissionClient, submission: str) -> None:
    async for lines in client.tail_job_logs(submission):
        print(lines, end="", flush=True)
