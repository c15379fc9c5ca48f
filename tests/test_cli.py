"""Whether wrong settings end with one sentence and exit code 2, before anything starts."""

import shlex
import signal
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
from ray.exceptions import WorkerCrashedError

from vlcp_ray.cli import command_of, main

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


def test_what_ray_cannot_survive_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lose(*_: object) -> None:
        raise WorkerCrashedError

    monkeypatch.setattr("vlcp_ray.cli.run", lose)
    assert main(["run", JOB, "--root", "nowhere"]) == 1
    told = capsys.readouterr().err
    assert "the cluster gave up: The worker died" in told
    assert told.endswith("the same command goes on from here\n")


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
