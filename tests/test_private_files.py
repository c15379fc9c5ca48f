"""Tests that keys, passwords and results are never sent to a cluster, put into an image or committed."""

import re
import shutil
import subprocess
import zipfile
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from ray._private.runtime_env.packaging import create_package

from vlcp_ray.config import load_job
from vlcp_ray.engine import submit

ROOT = Path(__file__).parents[1]
JOB = str(ROOT / "jobs" / "imagenet1k.toml")
#: Names under which people keep keys and passwords.
PRIVATE = (
    ".env", ".env.local", ".envrc", "prod.env", "aws.pem", "server.key", "id_rsa", "id_rsa.old", "id_ed25519",
    "credentials", "credentials.json", "application_default_credentials.json", ".aws/credentials", ".aws/config",
    ".netrc", ".config/gcloud/access_tokens.db", ".ssh/config", "terraform.tfstate", "terraform.tfstate.backup",
    "prod.tfvars", "service-account.json", "service_account_key.json", "secrets.toml", "kaggle.json", ".pypirc",
    ".kube/config", "kubeconfig", ".docker/config.json", ".git-credentials", "auth_token", "hf.token", "cert.p12",
    ".huggingface/hub", ".boto", ".s3cfg",
)  # fmt: skip
RESULTS = ("runs/pair-0/pairs/a.parquet", ".git/config", ".git/objects/pack/a.pack")
WANTED = ("vlcp_ray/cli.py", "vlcp_ray/demo/train/tokens.py", "vlcp_ray/demo/llava/tokenizer.json", "jobs/mine.toml")
PLACES = ("", "vlcp_ray/", "jobs/", "clusters/deep/")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the project's ignore files and private files at all depths."""
    folder = tmp_path / "checkout"
    for name in (*(place + name for place in PLACES for name in PRIVATE), *RESULTS, *WANTED):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("private")
    for name in (".rayignore", ".gitignore", ".dockerignore"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.mark.parametrize("uses_gitignore", [True, False])
def test_working_dir_sends_no_private_file(checkout: Path, tmp_path: Path, uses_gitignore: bool) -> None:
    # RAY_RUNTIME_ENV_IGNORE_GITIGNORE=1 leaves .rayignore alone; no defaults of Ray's are relied on.
    create_package(str(checkout), tmp_path / "sent.zip", include_gitignore=uses_gitignore, excludes=[])
    with zipfile.ZipFile(tmp_path / "sent.zip") as packed:
        names = {info.filename for info in packed.infolist() if not info.is_dir()}
    assert names - {".rayignore", ".gitignore", ".dockerignore"} == set(WANTED)


def test_submit_packs_no_private_file(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = checkout / "vlcp_ray"
    for name in (*RESULTS, "stages/deep/.env"):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text("private")
    monkeypatch.setattr(submit, "_PACKAGE", package)
    target = tmp_path / "packed"
    target.mkdir()
    submit.pack(target, JOB, load_job(JOB))
    names = {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}
    assert names == {"vlcp_ray/cli.py", "vlcp_ray/demo/train/tokens.py", "jobs/imagenet1k.toml"}


def test_git_ignores_private_files_and_results(checkout: Path) -> None:
    subprocess.run(["git", "init", "--quiet", str(checkout / "new")], check=True)
    for place in (*PLACES, ""):
        (checkout / "new" / place).mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / ".gitignore", checkout / "new")
    asked = [place + name for place in PLACES for name in PRIVATE] + ["runs/a/b.parquet"]
    done = subprocess.run(
        ["git", "check-ignore", *asked, *WANTED], cwd=checkout / "new", capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == asked


def test_git_ignores_no_file_of_the_project() -> None:
    command = ["git", "ls-files", "--cached", "--ignored", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == ""


def test_docker_build_gets_no_private_file(checkout: Path) -> None:
    rules = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    files = [str(path.relative_to(checkout)) for path in checkout.rglob("*") if path.is_file()]
    assert {file for file in files if in_docker_build(file, rules)} == set(WANTED)


def in_docker_build(file: str, rules: list[str]) -> bool:
    """Whether `docker build` gets a file: the last rule that names it or a folder above it decides."""
    parts = file.split("/")
    above = ["/".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
    sent = True
    for rule in (line for line in rules if line and not line.startswith("#")):
        pattern = rule.removeprefix("!")
        names = [name.rpartition("/")[2] for name in above] if pattern.startswith("**/") else above
        if any(fnmatchcase(name, pattern.removeprefix("**/")) for name in names if "/" not in name or "/" in pattern):
            sent = rule.startswith("!")
    return sent


def test_all_lists_of_private_names_are_the_same() -> None:
    lists = {}
    for name in (".gitignore", ".rayignore", ".dockerignore"):
        text = (ROOT / name).read_text(encoding="utf-8")
        lists[name] = re.split(r"^# Keys and passwords.*\n", text, flags=re.MULTILINE)[1].split()
    assert lists[".rayignore"] == lists[".gitignore"] == list(submit.PRIVATE)
    assert lists[".dockerignore"] == [f"**/{name}" for name in submit.PRIVATE]
