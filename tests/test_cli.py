"""Whether wrong settings end with one sentence and exit code 2, before anything starts."""

import dataclasses
import json
import shlex
import signal
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import pytest
from ray.exceptions import RaySystemError, RayTaskError, WorkerCrashedError

from vlcp_ray.cli import command_of, main
from vlcp_ray.config import load_job
from vlcp_ray.pipeline import graph
from vlcp_ray.progress import Reading
from vlcp_ray.store import StoreError

JOB = str(Path(__file__).parents[1] / "jobs" / "digits.toml")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--set", "generate.strenght=0.7"], "unknown setting 'generate.strenght'; did you mean 'strength'?"),
        (["--set", "base_model=./nowhere"], "base_model: there is no folder './nowhere'"),
        (["--set", "caption.model=/nowhere/llava"], "caption.model: there is no folder '/nowhere/llava'"),
        (["--set", "caption.source=nowhere.parquet"], "caption.source: there is no table 'nowhere.parquet'"),
        (["--root", "nope://bucket"], "--root nope://bucket"),
    ],
)
@pytest.mark.parametrize("command", ["plan", "run", "status", "report"])
def test_wrong_settings_are_one_sentence(
    command: str, wrong: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main([command, JOB, "--root", str(tmp_path / "root"), *wrong]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert len(captured.err.splitlines()) == 1
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ("ingest.source=mnist", "ingest.source: there is no mnist; give the image set's folder, file or URI"),
        ("teach.checkpoint=none.pth", "teach.checkpoint: there is no file 'none.pth'"),
        (f"caption.source={JOB}", "digits.toml cannot be read as parquet (JSON lines end in .jsonl)"),
    ],
)
def test_what_a_run_reads_is_looked_at_before_it_starts(
    wrong: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = JOB.replace("digits.toml", "digits-compare.toml")
    assert main(["plan", job, "--root", str(tmp_path), "--set", wrong]) == 0
    assert main(["run", job, "--root", str(tmp_path), "--set", wrong]) == 2
    assert sentence in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ([], "say where it goes: --to FOLDER, or --push-to-hub OWNER/NAME"),
        (["--to", "out"], "generate seed 0 ipc 5 vlcp is not made yet under"),
        (["--to", "out", "--ipc", "7"], "the job makes no set vlcp, seed 0, ipc 7; it has the methods vlcp, random"),
        (["--to", "nope://bucket"], "--to nope://bucket"),
        (["--to", "s3://bucket/x", "--push-to-hub", "me/digits"], "the hub takes a folder of this machine"),
    ],
)
def test_an_export_that_cannot_be_made_is_one_sentence(
    wrong: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["export", JOB, "--format", "parquet", *wrong]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_missing_job_file_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "jobs/nothing.toml"]) == 2
    assert "no such file" in capsys.readouterr().err


def test_plan_imports_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys; from vlcp_ray.cli import main; main(sys.argv[1:]); "
        "sys.exit(' '.join({'torch', 'ray', 'transformers', 'diffusers', 'sklearn', 'pandas'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "plan", JOB, "--root", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    assert "19 of 19 artifacts to make" in done.stdout


def test_a_report_before_any_score_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", JOB, "--root", str(tmp_path)]) == 1
    assert "start with: vlcp-ray run" in capsys.readouterr().err


def test_status_tells_how_far_another_machine_s_run_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair = next(step for step in graph(load_job(JOB)) if step.stage == "pair")
    far = Reading("pair", [pair.fingerprint], 640, 1297, "rows", 2, 35.0, "caption 1 x 1 GPU", "")
    lease = {"host": "far away", "pid": 7, "since": "24 Nov 21:00:00", "makes": {pair.fingerprint: "pair"}, "beat": 3}
    (tmp_path / "leases").mkdir()
    (tmp_path / "leases" / "one.json").write_text(
        json.dumps(lease | {"at": time.time() - 4, "reading": dataclasses.asdict(far)})
    )
    before = sorted(tmp_path.rglob("*"))
    assert main(["status", JOB, "--root", str(tmp_path)]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0].split() == ["ingest", "new"]
    assert told[1].split() == ["pair", "running"]
    assert told[-2].endswith("640 of 1,297 rows (49%) 35.0/s, 19 s left, 2 rejected, on caption 1 x 1 GPU")
    assert told[-1].startswith("a run (process 7 on far away, since 24 Nov 21:00:00) makes this")
    assert told[-1].endswith("s ago")
    assert sorted(tmp_path.rglob("*")) == before  # it only reads


def test_a_tracker_that_is_not_installed_ends_a_run_before_it_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlcp_ray.trackers.find_spec", lambda _: None)
    assert main(["run", JOB, "--root", str(tmp_path), "--track", "mlflow"]) == 2
    assert "--track mlflow: the package is not installed; pip install mlflow" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_a_run_is_asked_for_travels_with_a_submitted_job(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[list[str]] = []
    monkeypatch.setattr("vlcp_ray.flow.submit.submit", lambda _file, _job, options, **_: sent.append(options) or 0)
    assert main(["submit", JOB, "--root", "s3://bucket/runs", "--track", "wandb", "--ray-logs"]) == 0
    assert main(["submit", JOB, "--root", "s3://bucket/runs"]) == 0
    common = ["--root", "s3://bucket/runs", "--to", "report"]
    assert sent == [[*common, "--track", "wandb", "--ray-logs"], common]


def test_what_ray_cannot_survive_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lose(*_: object, **__: object) -> None:
        raise WorkerCrashedError

    monkeypatch.setattr("vlcp_ray.cli.run", lose)
    assert main(["run", JOB, "--root", "nowhere"]) == 1
    told = capsys.readouterr().err
    assert "the cluster gave up: The worker died" in told
    assert told.endswith("the same command goes on from here\n")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (PermissionError(13, "no right to write", "/data"), "PermissionError: [Errno 13] no right to write: '/data'"),
        (RayTaskError("work", "trace", ValueError("class 'cat': lower ipc")), "vlcp-ray: class 'cat': lower ipc"),
        (RayTaskError("work", "trace", OSError("disk full")), "vlcp-ray: OSError: disk full; mend that"),
        (RaySystemError(""), "the cluster gave up: "),
    ],
)
def test_what_the_work_raises_is_one_sentence(
    error: Exception, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("vlcp_ray.cli.run", fail)
    assert main(["run", JOB, "--root", "nowhere"]) == 1
    said = capsys.readouterr().err
    assert told in said
    assert len(said.strip().splitlines()) == 1


def test_a_sentence_of_ours_hides_what_it_came_from(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise StoreError("the store refuses; free space") from OSError("errno 28")

    monkeypatch.setattr("vlcp_ray.cli.run", fail)
    assert main(["run", JOB, "--root", "nowhere"]) == 1
    assert capsys.readouterr().err == "\nvlcp-ray: the store refuses; free space\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143)])
def test_a_signal_ends_a_run_in_order(number: signal.Signals, code: int, tmp_path: Path) -> None:
    run = subprocess.Popen(
        [sys.executable, "-m", "vlcp_ray.cli", "run", JOB, "--root", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert run.stdout is not None
    assert run.stdout.readline().startswith("scale")  # Ray is up
    run.send_signal(number)
    _, told = run.communicate(timeout=60)
    assert run.returncode == code
    assert "the same command goes on from here" in told
    assert "Traceback" not in told
    assert not list((tmp_path / "leases").iterdir())


def test_the_command_that_makes_the_same_again_can_be_typed() -> None:
    typed = Namespace(job="jobs/a b.toml", set=["caption.prompt=It's {class_name}"], root="s3://b/r", scale="x.toml")
    words = ["--set", "caption.prompt=It's {class_name}", "--scale", "x.toml", "--root", "s3://b/r"]
    assert shlex.split(command_of(typed)) == ["vlcp-ray", "run", "jobs/a b.toml", *words]
    plain = Namespace(job="jobs/digits.toml", set=[], root="runs", scale=None)
    assert command_of(plain) == "vlcp-ray run jobs/digits.toml"
