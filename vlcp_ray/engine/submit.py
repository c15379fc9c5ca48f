"""Submit a job to a cluster through Ray's Jobs API, and follow its log until it ends."""

import asyncio
import logging
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Literal

import tenacity
from packaging.requirements import Requirement
from ray.exceptions import RayError
from ray.job_submission import JobStatus, JobSubmissionClient

from vlcp_ray.config import Job
from vlcp_ray.engine.join import AUTHENTICATION_FIX, asks_for_token
from vlcp_ray.models.pretrained import DEMO
from vlcp_ray.monitoring.printable import printable
from vlcp_ray.settings import SHIPPED, ConfigError
from vlcp_ray.store.uris import public, redact

Environment = Literal["image", "cpu", "gpu"]

_PACKAGE: Final = Path(__file__).parents[1]
_WEIGHTS: Final = ("llava", "stable_diffusion", "dit")  # folders of the demo's weights
#: Files that may hold keys or passwords: never sent, wherever they lie. The same names are in .rayignore.
PRIVATE: Final = (
    ".env*",
    "*.env",
    "*.pem",
    "*.key",
    "*.p12",
    "*.pfx",
    "*.ppk",
    "*.jks",
    "*.keystore",
    "*.gpg",
    "*.kdbx",
    "*.token",
    "*.tfstate*",
    "*.tfvars*",
    "id_rsa*",
    "id_dsa*",
    "id_ecdsa*",
    "id_ed25519*",
    "auth_token*",
    "credentials*",
    "*credentials.json",
    "service[-_]account*.json",
    "secrets*",
    "kaggle.json",
    "kubeconfig*",
    ".aws",
    ".azure",
    ".boto",
    ".config",
    ".docker",
    ".git-credentials",
    ".gnupg",
    ".huggingface",
    ".kube",
    ".netrc",
    "_netrc",
    ".pgpass",
    ".pypirc",
    ".s3cfg",
    ".secrets*",
    ".ssh",
    ".terraform*",
)
#: While a new cluster starts: 2 s, then twice as long each time, up to 30 s; six attempts in a minute.
_WAIT: Final = tenacity.wait_exponential(multiplier=2, max=30)
_STOP: Final = tenacity.stop_after_delay(60)
#: They log uploads and closed connections.
_NOISY_LOGGERS: Final = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
_COLOUR: Final = re.compile(r"\x1b\[[0-9;]*m")  # with which Ray marks the lines of workers
#: Settings whose value may be a path, which the machines of the cluster must see.
PATH_SETTINGS: Final = ("ingest.source", "ingest.class_list", "caption.source", "teach.checkpoint")


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
    """Run a job on a cluster through Ray's Jobs API and print its log until it ends.

    Args:
        job_file: path on this machine; the file is sent.
        options: further options of `run`: --root, --to, --set.
        scale: path of a scale file on this machine; the file is sent.
        address: of the cluster's Jobs API; None: RAY_API_SERVER_ADDRESS, RAY_ADDRESS or this machine's.
        environment: `image` where the machines have the package's dependencies, else the extra that Ray installs there.
        wait: False returns as soon as the job is accepted.

    Returns the exit code: 0 where the job succeeded, or was accepted and is not waited for.

    Raises:
        ConfigError: no cluster answers, it refuses the job, or the job names a path that its machines do not see.
    """
    _check_paths(job)
    _check_secrets(job, options)
    for file in (job_file, scale):
        _check_text(file)
    client = _connect(address)
    if "--ray-logs" not in options:
        for name in _NOISY_LOGGERS:
            logging.getLogger(name).setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        files = pack(Path(folder), job_file, job, scale)
        command = ["python", "-m", "vlcp_ray.engine.job", "run", files[0], *options]
        command += ["--scale", files[1]] if scale else []
        runtime: dict[str, Any] = {"working_dir": folder}
        if environment != "image":
            runtime["pip"] = requirements(environment)
        submission = _send(client, shlex.join(command), runtime)
    print(f"job {submission}; follow: ray job logs -f {submission}; stop: ray job stop {submission}", flush=True)
    return _follow(client, submission) if wait else 0


def pack(folder: Path, job_file: str, job: Job, scale: str | None = None) -> list[str]:
    """Copy the package, the job file and the scale file into a folder; the demo's weights only if the job uses them.

    Returns the paths of the job file and the scale file within the folder.
    """
    models = (job.base_model, job.caption.model, job.compare.minimax.model)
    uses_demo = any(model.startswith(DEMO) for model in models)
    ignore = shutil.ignore_patterns("__pycache__", ".git", "runs", *SHIPPED, *PRIVATE, *(() if uses_demo else _WEIGHTS))
    shutil.copytree(_PACKAGE, folder / _PACKAGE.name, ignore=ignore)
    paths = []
    for file, folder_name in ((job_file, "jobs"), *(((scale, "clusters"),) if scale else ())):
        (folder / folder_name).mkdir(exist_ok=True)
        shutil.copy(file, folder / folder_name)
        paths.append(f"{folder_name}/{Path(file).name}")
    return paths


def requirements(extra: str) -> list[str]:
    """List the requirements of the package with an extra, as pyproject.toml declares them."""
    declared = [Requirement(text) for text in metadata.requires("vlcp-ray") or ()]
    wanted = [r for r in declared if r.marker is None or r.marker.evaluate({"extra": extra})]
    return [f"{r.name}{f'[{chr(44).join(sorted(r.extras))}]' if r.extras else ''}{r.specifier}" for r in wanted]


def _check_paths(job: Job) -> None:
    settings = job.model_dump()
    for name in PATH_SETTINGS:
        section, key = name.split(".")
        value = settings[section][key]
        if value and "://" not in value and Path(value).exists():
            raise ConfigError(
                f"{name}: {value!r} is a path of this machine, which the cluster does not see; give a URI, or "
                f"file://{Path(value).resolve()} where all machines of the cluster have it at that path"
            )


def _check_secrets(job: Job, options: Sequence[str]) -> None:
    """Refuse secrets in a job: its command and its files can be read by everybody who sees Ray's dashboard."""
    values = [("command", text) for text in options]
    for section, value in job.model_dump().items():
        values += [(f"{section}.{key}", str(one)) for key, one in value.items()] if isinstance(value, dict) else []
    for name, text in [("base_model", job.base_model), *values]:
        if public(text) != text:
            raise _secret_error(f"{name}: {public(text)}")


def _check_text(file: str | None) -> None:
    """Refuse secrets anywhere in a file that is sent, also in a comment or in a setting that an option replaces."""
    for number, line in enumerate(Path(file).read_text(encoding="utf-8").splitlines() if file else (), 1):
        if redact(line) != line:
            raise _secret_error(f"{file}, line {number}")


def _secret_error(what: str) -> ConfigError:
    return ConfigError(
        f"{what} has a password, key or token, which a submitted job shows in Ray's dashboard; leave it out, and give "
        "the machines a role, or keys in their environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
        "GOOGLE_APPLICATION_CREDENTIALS, HF_TOKEN)"
    )


def _connect(address: str | None) -> JobSubmissionClient:
    try:
        return JobSubmissionClient(address)
    except (RayError, OSError, RuntimeError, ValueError) as error:
        message = " ".join(str(error).split())
        if asks_for_token(error):
            raise ConfigError(f"cannot submit the job: {AUTHENTICATION_FIX}") from error
        fix = "start a cluster (ray start --head), or name its dashboard: --address http://HOST:8265"
        raise ConfigError(f"cannot submit the job: {message.rstrip('.')}; {fix}") from error


def _send(client: JobSubmissionClient, command: str, runtime: dict[str, Any]) -> str:
    """Submit the job, and retry for a minute while a new cluster has no agent that takes jobs.

    Returns the id of the submission.

    Raises:
        ConfigError: the cluster refuses the job.
    """
    attempts = tenacity.Retrying(retry=tenacity.retry_if_exception(_is_starting), wait=_WAIT, stop=_STOP, reraise=True)
    try:
        return str(attempts(client.submit_job, entrypoint=command, runtime_env=runtime))
    except RuntimeError as error:
        fix = "; another Ray on the head's machine may use the port of its agent" if _is_starting(error) else ""
        raise ConfigError(f"the cluster refuses the job: {str(error).splitlines()[0]}{fix}") from error


def _is_starting(error: BaseException) -> bool:
    return "No available agent" in str(error)


def _follow(client: JobSubmissionClient, submission: str) -> int:
    try:
        asyncio.run(_tail(client, submission))
    except KeyboardInterrupt:
        print(f"\nthe job keeps running; stop it with: ray job stop {submission}", file=sys.stderr)
        return 130
    status = client.get_job_status(submission)
    print(f"job {submission}: {status.value}", flush=True)
    return 0 if status == JobStatus.SUCCEEDED else 1


async def _tail(client: JobSubmissionClient, submission: str) -> None:
    async for lines in client.tail_job_logs(submission):
        print(printable(_COLOUR.sub("", lines), keep="\n\t"), end="", flush=True)
