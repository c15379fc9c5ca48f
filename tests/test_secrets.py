"""A run with secrets in its settings and environment: none is in what it writes, prints or gives to Ray."""

import gzip
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from tests.small_job import JOB, SETTINGS, write_inputs
from vlcp_ray import cli
from vlcp_ray.cli import main
from vlcp_ray.config import load_job
from vlcp_ray.pipeline import graph

ROOT = Path(__file__).parents[1]
VARIABLES = (
    "HF_TOKEN",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AZURE_STORAGE_KEY",
    "GOOGLE_API_KEY",
    "WANDB_API_KEY",
)
PLANTED = "planted"


def settings(inputs: Path) -> list[str]:
    images, captions = inputs / "images", inputs / "captions.parquet"
    planted = (
        *SETTINGS,
        "ipc=[1]",
        "compare.methods=['vlcp']",
        "evaluate.repeats=1",
        f"ingest.source=file://{images}?token={PLANTED}-source",
        f"caption.source=file://{captions}?secret_key={PLANTED}-captions",
    )
    return [part for text in planted for part in ("--set", text)]


def planted_environment(folder: Path) -> dict[str, str]:
    secrets = {name: f"{PLANTED}-{name}" for name in VARIABLES}
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    folders = {"RAY_TMPDIR": str(folder), "HOME": str(folder / "home"), "WANDB_DIR": str(folder)}
    return environment | secrets | folders | {"WANDB_MODE": "offline"}


def texts(file: Path) -> bytes:
    """The bytes of a file, those that a gzip or a parquet file hides, and its name."""
    content = file.read_bytes()
    if content[:2] == b"\x1f\x8b":
        content += gzip.decompress(content)
    if file.suffix == ".parquet":
        table = parquet.ParquetFile(file)
        columns = [n for n in table.schema_arrow.names if pa.types.is_string(table.schema_arrow.field(n).type)]
        content += repr([table.read(columns).to_pylist(), table.schema_arrow.metadata]).encode()
    return content + str(file).encode()


def leaks(folder: Path) -> list[str]:
    return [str(file) for file in folder.rglob("*") if file.is_file() and PLANTED.encode() in texts(file)]


def vlcp_ray(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / "home").mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, "-m", "vlcp_ray", *arguments],
        cwd=ROOT,
        env=planted_environment(folder),
        capture_output=True,
        text=True,
    )


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """A folder for Ray and a home, whose path is short enough for sockets."""
    folder = Path(tempfile.mkdtemp(prefix="v"))
    yield folder
    shutil.rmtree(folder)


@pytest.mark.timeout(900)
@pytest.mark.faults  # a whole run; tests/test_pipeline.py looks for the keys of S3 in the output of its own
def test_run_with_secrets_everywhere_writes_and_prints_none(tmp_path: Path, ray_folder: Path) -> None:
    inputs, runs = write_inputs(tmp_path / "inputs"), tmp_path / "runs"
    root = ["--root", f"file://{runs}?sig={PLANTED}-root"]
    done = vlcp_ray("run", str(JOB), *root, *settings(inputs), "--track", "wandb", folder=ray_folder)
    assert done.returncode == 0, done.stderr
    exported = vlcp_ray(
        "export", str(JOB), *root, *settings(inputs), "--format", "imagefolder", "--to", str(tmp_path / "set"),
        folder=ray_folder,
    )  # fmt: skip
    assert exported.returncode == 0, exported.stderr
    for one in (done, exported):
        assert PLANTED not in one.stdout + one.stderr
    (page,) = runs.glob("report-*/index.html")
    assert "token=***" in page.read_text()
    assert len(list(runs.rglob("*.parquet"))) > 10
    assert leaks(runs) + leaks(tmp_path / "set") + leaks(ray_folder) == []


def test_new_keys_change_no_fingerprint(tmp_path: Path) -> None:
    uris = ("s3://bucket/set?region=x", "s3://KEYKEY:SECRET@bucket/set?region=x", "s3://OTHER:KEY@bucket/set?region=x")
    jobs = [load_job(JOB, [f"ingest.source={uri}", f"caption.source={uri}"]) for uri in uris]
    prints = [[step.fingerprint for step in graph(job)] for job in jobs]
    assert prints[0] == prints[1] == prints[2]


@pytest.mark.parametrize(
    "arguments",
    [
        ("--root", f"s3://KEY:{PLANTED}@bucket?secret=1"),
        ("--root", f"nosuch://user:{PLANTED}@bucket/a"),
        ("--root", f"s3://KEY:{PLANTED}@"),
        ("--set", f"ingest.source=https://user:{PLANTED}@host/a"),
        ("--set", f"ingest.nothing=s3://KEY:{PLANTED}@bucket"),
        ("--set", f"ipc=s3://KEY:{PLANTED}@bucket"),
        ("--set", f"s3://KEY:{PLANTED}@bucket"),
        ("--scale", f"s3://KEY:{PLANTED}@bucket/scale.toml"),
    ],
)
@pytest.mark.parametrize("command", ["plan", "run", "submit"])
def test_error_about_a_uri_shows_no_secret(
    command: str, arguments: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = () if arguments[0] == "--root" else ("--root", f"file://{tmp_path}")
    to = ("--to", "ingest") if command == "run" else ()
    main([command, str(JOB), *root, *arguments, *to])
    shown = capsys.readouterr()
    assert PLANTED not in shown.out + shown.err


@pytest.mark.parametrize(
    "arguments",
    [
        ("--root", f"s3://KEY:{PLANTED}@bucket/runs"),
        ("--root", "s3://bucket/runs", "--set", f"ingest.source=s3://KEY:{PLANTED}@bucket/set"),
        ("--root", f"s3://KEY:a,b/{PLANTED}@bucket/runs"),
        ("--root", "s3://bucket/runs", "--set", f"caption.source=https://host/a?token={PLANTED}"),
    ],
)
def test_submit_refuses_secrets_and_names_the_fix(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", str(JOB), *arguments]) == 2
    error = capsys.readouterr().err
    assert "shows in Ray's dashboard; leave it out, and give the machines a role" in error
    assert PLANTED not in error


def test_submit_refuses_secrets_in_the_files_that_it_sends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job, scale = tmp_path / "job.toml", tmp_path / "scale.toml"
    job.write_text(f"# s3://KEY:{PLANTED}@bucket/set\n{JOB.read_text()}")
    scale.write_text(f"rows_per_block = 64\n# s3://KEY:{PLANTED}@bucket\n")
    for arguments, place in (((job,), f"{job}, line 1"), ((JOB, "--scale", scale), f"{scale}, line 2")):
        assert main(["submit", *map(str, arguments), "--root", "s3://bucket/runs"]) == 2
        error = capsys.readouterr().err
        assert f"{place} has a password, key or token" in error
        assert PLANTED not in error


@pytest.mark.faults
def test_failed_run_on_an_object_store_shows_no_secret_and_no_noise(tmp_path: Path, ray_folder: Path) -> None:
    root = f"s3://KEY:{PLANTED}-root@bucket/a?endpoint_override=http://127.0.0.1:9&scheme=http"
    done = vlcp_ray("run", str(JOB), "--root", root, folder=ray_folder)
    assert done.returncode == 1
    assert PLANTED not in done.stdout + done.stderr
    assert done.stderr.strip().startswith("vlcp-ray: cannot ")
    assert len(done.stderr.strip().splitlines()) == 1


def test_unexpected_error_is_printed_in_full_without_secrets(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def fail(job: object) -> None:
        raise RuntimeError(f"at s3://KEY:{PLANTED}@bucket")

    monkeypatch.setattr(cli, "check_inputs", fail)
    assert main(["plan", str(JOB), "--root", str(tmp_path)]) == 1
    assert capsys.readouterr().err.endswith("RuntimeError: at s3://***@bucket\n")
