"""Tests of the command line: exit codes and one-sentence errors."""

import dataclasses
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from argparse import Namespace
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray
from ray.exceptions import RaySystemError, RayTaskError, WorkerCrashedError

from tests.image_sets import picture, write_files
from tests.s3 import Proxy, Server
from tests.stages.report.test_scores import scores, trials
from vlcp_ray.cli import format_command, main
from vlcp_ray.config import load_job
from vlcp_ray.engine.context import list_written
from vlcp_ray.engine.streaming import RowWork, stream
from vlcp_ray.engine.writing import WriteRows
from vlcp_ray.monitoring.progress import ProgressSnapshot
from vlcp_ray.pipeline import graph
from vlcp_ray.scale import Pool
from vlcp_ray.schemas import IMAGES
from vlcp_ray.settings import SHIPPED, ConfigError, shipped_files
from vlcp_ray.stages import STAGES, works
from vlcp_ray.store.artifact import Store
from vlcp_ray.store.io import AccessError, StoreError

ROOT = Path(__file__).parents[1]
JOB = str(ROOT / "jobs" / "digits.toml")
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--set", "generate.strenght=0.7"], "unknown setting 'generate.strenght'; did you mean 'strength'?"),
        (["--set", "base_model=./nowhere"], "base_model: there is no folder './nowhere'"),
        (["--set", "caption.model=/nowhere/llava"], "caption.model: there is no folder '/nowhere/llava'"),
        (["--set", "caption.source=nowhere.parquet"], "caption.source: there is no table 'nowhere.parquet'"),
        (["--set", f"caption.source={Path(JOB).parent}"], "jobs' has no parquet files; give a table's folder"),
        (
            ["--set", f"caption.model={Path(JOB).parent}"],
            "is no vision-language model: it lacks config.json, tokenizer_config.json",
        ),
        (["--set", f"base_model={Path(JOB).parent}"], "is no Stable Diffusion in the format of diffusers: it lacks mo"),
        (["--set", f"teach.checkpoint={Path(JOB).parent}"], "jobs' is a folder; name a .pth file in it"),
        (["--root", "nope://bucket"], "--root nope://bucket"),
    ],
)
@pytest.mark.parametrize("command", ["plan", "run", "status", "report"])
def test_main_with_wrong_settings_exits_2_with_one_sentence(
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
        (f"caption.source={JOB}", "digits.toml cannot be read as parquet (JSON lines end in .jsonl, CSV in .csv)"),
    ],
)
def test_run_with_unreadable_input_exits_2_before_anything_is_written(
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
        ([], "name the target: --to FOLDER, or --push-to-hub OWNER/NAME"),
        (["--to", "out"], "generate seed 0 ipc 5 vlcp does not exist yet under"),
        (["--to", "out", "--ipc", "7"], "the job makes no set vlcp, seed 0, ipc 7; it has the methods vlcp, random"),
        (["--to", "nope://bucket"], "--to nope://bucket"),
        (["--to", "s3://bucket/x", "--push-to-hub", "me/digits"], "the hub takes a folder of this machine"),
    ],
)
def test_export_that_is_impossible_exits_2_with_one_sentence(
    wrong: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["export", JOB, "--format", "parquet", *wrong]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["plan", "inspect", "status"])
@pytest.mark.parametrize("field", ["base_model", "caption.model", "caption.source", "teach.checkpoint"])
def test_no_command_hashes_a_folder_that_is_no_model(
    command: str, field: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large folder was read for minutes."""
    (tmp_path / "photographs").mkdir()
    (tmp_path / "photographs" / "0.jpg").write_bytes(b"0")

    def fail(path: str) -> None:
        assert "photographs" not in path, path

    monkeypatch.setattr("vlcp_ray.store.io.content_hash", fail)
    root = [] if command == "inspect" else ["--root", str(tmp_path / "root")]
    code = main([command, JOB, "--set", f"{field}={tmp_path}/photographs", *root])
    assert code == (0 if command == "inspect" else 2)


def test_jobs_lists_every_job_and_scale_file_with_its_first_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["jobs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    listed = dict(line.split(maxsplit=1) for line in lines if line.startswith("  "))
    assert listed.keys() == {name for folder in SHIPPED for name in shipped_files(folder)}
    assert listed["digits"].startswith("The embedded digits, distilled to 1 and 5 images per class")
    assert all(len(text) > 30 for text in listed.values())


def test_help_names_the_stages_and_the_kinds_of_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "300")  # lines are not broken within a name
    for arguments, names in ((["--help"], (*STAGES, *works())), (["run", "-h"], STAGES), (["bench", "-h"], works())):
        with pytest.raises(SystemExit):
            main(arguments)
        out = capsys.readouterr().out
        assert all(name in out for name in names)


@pytest.mark.parametrize(
    ("typed", "wanted"),
    [
        (["ru"], {"run"}),
        (["run", "imagen"], {"imagenet100", "imagenet1k", "imagenette"}),
        (["run", "own"], {"own.toml"}),
        (["plan", "digits", "--scale", "a"], {"aws"}),
        (["run", "digits", "--to", "e"], {"evaluate"}),
        (["bench", "digits", "--only", "cap"], {"caption"}),
    ],
)
def test_completion_in_bash_completes_commands_jobs_and_values(
    typed: list[str], wanted: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["--print-completion", "bash"])
    (tmp_path / "completion.sh").write_text(capsys.readouterr().out)
    (tmp_path / "own.toml").touch()
    words = shlex.join(["vlcp-ray", *typed])
    script = f"source completion.sh; COMP_WORDS=({words}); COMP_CWORD={len(typed)}; _shtab_vlcp_ray; "
    script += 'printf "%s\\n" "${COMPREPLY[@]}"'
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == wanted


def test_run_with_missing_job_file_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "jobs/nothing.toml"]) == 2
    assert "no such file" in capsys.readouterr().err


def test_plan_imports_no_heavy_library(tmp_path: Path) -> None:
    code = (
        "import sys; from vlcp_ray.cli import main; main(sys.argv[1:]); "
        "sys.exit(' '.join({'torch', 'ray', 'transformers', 'diffusers', 'sklearn', 'pandas'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "plan", JOB, "--root", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    assert "19 of 19 artifacts to make" in done.stdout


def test_report_without_scores_names_the_run_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", JOB, "--root", str(tmp_path)]) == 1
    assert "start with: vlcp-ray run" in capsys.readouterr().err


def test_plan_and_status_on_s3_list_once_and_read_each_manifest_once(
    s3_proxy: Proxy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = [JOB, "--set", "seeds=[0,1,2,3,4]", "--root", s3_proxy.uri(f"plan{tmp_path}")]
    store = Store.at(job[-1])
    steps = graph(load_job(job[0], [job[2]]))
    facts = {"rows_in": 1, "rows": 1, "rejected": 0, "seconds": 1.0, "splits": {"train": 9, "val": 9}, "files": {}}
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda step: store.artifact(step).complete(facts | {"class_names": ["0"]}), steps))
    assert len(steps) > 60
    for command, more in (("plan", {"GET": 1}), ("status", {"LIST": 1})):  # rates of bench; leases
        before = s3_proxy.count()
        assert main([command, *job]) == 0
        assert s3_proxy.count() - before == Counter({"LIST": 1, "GET": len(steps)}) + Counter(more)
        assert capsys.readouterr().out.count(" done") >= len(steps)


def test_verify_lists_changed_files_and_run_refuses_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, (step, *_) = Store.at(str(tmp_path)), graph(load_job(JOB))
    artifact = store.artifact(step)
    artifact.write_bytes("classes.json", b"[0]")
    facts = {"rows_in": 0, "rows": 0, "rejected": 0, "seconds": 1.0, "splits": {}, "class_names": []}
    artifact.complete(facts | {"files": list_written(artifact)})
    job = [JOB, "--root", str(tmp_path)]
    assert main(["verify", *job]) == 0
    assert "1 files        0.0 MiB  ok" in capsys.readouterr().out
    Path(artifact.path, "classes.json").write_bytes(b"[]")
    assert main(["verify", *job]) == 1
    output = capsys.readouterr()
    assert f"changed  {artifact.path}/classes.json" in output.out
    assert "remove the folders of damaged artifacts" in output.err
    Path(artifact.path, "x\x1b[2J").write_bytes(b"")
    assert main(["verify", *job]) == 1
    assert "x\\x1b[2J" in capsys.readouterr().out
    Path(artifact.path, "x\x1b[2J").unlink()
    assert main(["run", *job, "--to", "ingest"]) == 2
    assert f"remove {artifact.path} and re-run" in capsys.readouterr().err


def test_status_of_a_run_on_another_machine_shows_its_progress(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = next(step for step in graph(load_job(JOB)) if step.stage == "pair")
    far = ProgressSnapshot("pair", [pair.fingerprint], 640, 1297, "rows", 2, 35.0, "caption 1 x 1 GPU", "")
    lease = {"host": "far away", "pid": 7, "since": "24 Nov 21:00:00", "makes": {pair.fingerprint: "pair"}, "beat": 3}
    (tmp_path / "leases").mkdir()
    (tmp_path / "leases" / "one.json").write_text(
        json.dumps(lease | {"at": time.time() - 4, "progress": dataclasses.asdict(far)})
    )
    before = sorted(tmp_path.rglob("*"))
    assert main(["status", JOB, "--root", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["ingest", "new"]
    assert lines[1].split() == ["pair", "running"]
    assert lines[-2].endswith("640 of 1,297 rows (49%) 35.0/s, 19 s left, 2 rejected, on caption 1 x 1 GPU")
    assert lines[-1].startswith("a run (process 7 on far away, since 24 Nov 21:00:00) makes these")
    assert lines[-1].endswith("s ago")
    assert sorted(tmp_path.rglob("*")) == before  # it only reads


def test_status_reads_the_manifests_of_s3_at_the_same_time(s3_proxy: Proxy, tmp_path: Path) -> None:
    job = [JOB, "--set", "seeds=[0,1,2]", "--root", s3_proxy.uri(f"parallel{tmp_path}")]
    store, steps = Store.at(job[-1]), graph(load_job(job[0], [job[2]]))
    facts = {"rows_in": 1, "rows": 1, "rejected": 0, "seconds": 1.0, "files": {}}
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda step: store.artifact(step).complete(facts), steps))
    s3_proxy.set_faults(delay=0.3)
    start = time.monotonic()
    assert main(["status", *job]) == 0
    assert time.monotonic() - start < 0.5 * 0.3 * len(steps)  # one after the other they take more than twice as long


@pytest.mark.parametrize("command", ["run", "plan", "status", "verify", "report"])
def test_command_on_an_s3_that_refuses_exits_2_at_once_with_one_sentence(
    command: str, s3: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    start = time.monotonic()
    assert main([command, JOB, "--root", s3.uri("refused", secret="wrong")]) == 2
    assert time.monotonic() - start < 5
    output = capsys.readouterr().err
    assert "the secret key does not fit the access key: check AWS_SECRET_ACCESS_KEY" in output
    assert len(output.splitlines()) == 1


def test_run_with_missing_tracker_exits_2_before_it_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlcp_ray.monitoring.trackers.find_spec", lambda _: None)
    assert main(["run", JOB, "--root", str(tmp_path), "--track", "mlflow"]) == 2
    assert "--track mlflow: the package is not installed; install the extra" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_submit_passes_the_options_of_run(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[list[str]] = []
    monkeypatch.setattr("vlcp_ray.engine.submit.submit", lambda _file, _job, options, **_: sent.append(options) or 0)
    assert main(["submit", JOB, "--root", "s3://bucket/runs", "--track", "wandb", "--ray-logs"]) == 0
    assert main(["submit", JOB, "--root", "s3://bucket/runs"]) == 0
    common = ["--root", "s3://bucket/runs", "--to", "report"]
    assert sent == [[*common, "--track", "wandb", "--ray-logs"], common]


class FailingEngine:
    """A row-wise class whose model cannot be loaded."""

    def __init__(self) -> None:
        raise LookupError("no weights in folder x")

    def __call__(self, rows: pa.Table) -> pa.Table:
        return rows


def fail_to_work(rows: pa.Table) -> pa.Table:
    raise ArithmeticError("no image for row 3")


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("work", "options", "message"),
    [
        (FailingEngine, {"concurrency": 1}, "LookupError: no weights in folder x"),
        (fail_to_work, {}, "ArithmeticError: no image for row 3"),
    ],
)
def test_main_after_a_failed_plan_prints_the_error_of_its_worker(
    work: Any,
    options: dict[str, int],
    message: str,
    ray_session: None,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object, **__: object) -> None:
        ray.data.range(3).map_batches(work, batch_format="pyarrow", **options).take_all()

    monkeypatch.setattr("vlcp_ray.api.run", fail)
    assert main(["run", JOB, "--root", "nowhere"]) == 1
    error = capfd.readouterr().err
    assert error.strip().startswith(f"vlcp-ray: the cluster failed: {message}; see")
    assert len(error.strip().splitlines()) == 1


class UnimportableEngine:
    """A row-wise class whose library is missing where the worker runs."""

    def __init__(self) -> None:
        import no_such_library  # noqa: F401


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("name", "needs", "reason"),
    [
        (f"{__name__}:UnimportableEngine", __name__, "ModuleNotFoundError: No module named 'no_such_library'"),
        ("tests.no_such_module:Engine", "tests.no_such_module", "ModuleNotFoundError: No module named 'tests.no_such_"),
    ],
)
def test_main_after_a_worker_that_cannot_import_exits_2_with_one_sentence(
    name: str,
    needs: str,
    reason: str,
    ray_session: None,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object, **__: object) -> None:
        list(stream(ray.data.range(3), [RowWork(name, {}, Pool(num_cpus=0.5))], WriteRows({}, "", "", IMAGES), 3))

    monkeypatch.setattr("vlcp_ray.api.run", fail)
    assert main(["run", JOB, "--root", "nowhere"]) == 2
    error = capfd.readouterr().err.strip()
    assert re.match(f"vlcp-ray: a worker on .* cannot import what {needs} needs [(]{reason}", error)
    assert "run `vlcp-ray doctor` in its environment" in error
    assert len(error.splitlines()) == 1


def test_main_after_a_crashed_worker_prints_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def crash_worker(*_: object, **__: object) -> None:
        raise WorkerCrashedError

    monkeypatch.setattr("vlcp_ray.api.run", crash_worker)
    assert main(["run", JOB, "--root", "nowhere"]) == 1
    error = capsys.readouterr().err
    assert "the cluster failed: The worker died" in error
    assert error.endswith("re-run the same command to resume\n")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError(13, "no right to write", "/data"), "PermissionError: [Errno 13] no right to write: '/data'"),
        (RayTaskError("work", "trace", ValueError("class 'cat': lower ipc")), "vlcp-ray: class 'cat': lower ipc"),
        (RayTaskError("work", "trace", OSError("disk full")), "vlcp-ray: OSError: disk full; fix this and re-run"),
        (RaySystemError(""), "the cluster failed: "),
    ],
)
def test_main_after_an_error_prints_one_sentence(
    error: Exception, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("vlcp_ray.api.run", fail)
    assert main(["run", JOB, "--root", "nowhere"]) == 1
    output = capsys.readouterr().err
    assert message in output
    assert len(output.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (AccessError("s3://b: the token has expired; renew it"), "s3://b: the token has expired; renew it"),
        (ConfigError("a: wrong; fix"), "a: wrong; fix"),
        (
            ModuleNotFoundError("No module named 'vllm'"),
            "a package cannot be imported (No module named 'vllm'); run `vlcp-ray doctor` here and on the workers",
        ),
    ],
)
def test_main_after_unusable_settings_met_by_a_worker_exits_2_with_their_sentence(
    error: Exception, sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RayTaskError("work", "Traceback of the worker", error).as_instanceof_cause()

    monkeypatch.setattr("vlcp_ray.api.run", fail)
    assert main(["run", JOB, "--root", "nowhere"]) == 2
    assert capsys.readouterr().err == f"vlcp-ray: {sentence}\n"


def test_main_after_a_store_error_hides_its_cause(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise StoreError("the store is full; free space") from OSError("errno 28")

    monkeypatch.setattr("vlcp_ray.api.run", fail)
    assert main(["run", JOB, "--root", "nowhere"]) == 1
    assert capsys.readouterr().err == "\nvlcp-ray: the store is full; free space\n"


@pytest.mark.parametrize(
    ("numbers", "code"),
    [
        ([signal.SIGTERM], 143),
        ([signal.SIGINT], 130),
        ([signal.SIGINT] * 2, 130),
        ([signal.SIGTERM, signal.SIGINT], 143),
    ],
    ids=["SIGTERM", "Ctrl-C", "Ctrl-C twice", "SIGTERM and Ctrl-C"],
)
def test_run_after_signals_ends_in_order_and_removes_its_lease(
    numbers: list[signal.Signals], code: int, tmp_path: Path
) -> None:
    # A shell's background jobs ignore Ctrl-C, and so do their children.
    ctrl_c = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)"
    call = f"{ctrl_c}; from vlcp_ray.cli import main; sys.exit(main(sys.argv[1:]))"
    run = subprocess.Popen(
        [sys.executable, "-c", call, "run", JOB, "--root", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert run.stdout is not None
    assert any(line.startswith("scale") for line in iter(run.stdout.readline, ""))  # Ray is up
    for number in numbers:
        run.send_signal(number)
        time.sleep(0.3)
    _, error = run.communicate(timeout=60)
    assert run.returncode == code
    assert ("stopping, in some seconds" in error) == (len(numbers) > 1)
    assert "re-run the same command to resume" in error
    assert "Traceback" not in error
    assert not list((tmp_path / "leases").iterdir())


@pytest.mark.parametrize("arguments", [["jobs"], ["plan", JOB], ["--print-completion", "bash"]], ids=lambda one: one[0])
def test_output_that_nobody_reads_any_more_ends_the_command_silently(arguments: list[str], tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "vlcp_ray", *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


def test_command_of_quotes_its_arguments() -> None:
    typed = Namespace(job="jobs/a b.toml", set=["caption.prompt=It's {class_name}"], root="s3://b/r", scale="x.toml")
    words = ["--set", "caption.prompt=It's {class_name}", "--scale", "x.toml", "--root", "s3://b/r"]
    assert shlex.split(format_command(typed)) == ["vlcp-ray", "run", "jobs/a b.toml", *words]
    plain = Namespace(job="jobs/digits.toml", set=[], root="runs", scale=None)
    assert format_command(plain) == "vlcp-ray run jobs/digits.toml"


def test_inspect_of_a_source_and_of_a_job_prints_the_same_set(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "digits"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("digits is the embedded handwritten digits, 10 classes\n1,297 train and 500 val images\n")
    for job in (JOB, "digits-seeds"):
        assert main(["inspect", job]) == 0
        assert capsys.readouterr().out == text
    assert main(["inspect", "digits", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["train"] for one in found["classes"]][:2] == [128, 131]


def test_inspect_of_a_set_that_a_run_refuses_exits_2_and_writes_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_files(tmp_path / "set", {"cat/1.png": picture(1, "PNG"), "dog/2.png": picture(2, "PNG")})
    page = tmp_path / "page.html"
    assert main(["inspect", str(tmp_path / "set"), "--to", str(page)]) == 2
    assert "problem: ingest.source: " in capsys.readouterr().out
    assert page.read_text().count("<img") == 2
    assert main(["inspect", str(tmp_path / "set"), "--set", "ingest.val_fraction=0.5"]) == 0
    assert main(["inspect", str(tmp_path / "set"), "--set", "ipc=[1]"]) == 2
    assert "of an image set only ingest.* can be set" in capsys.readouterr().err


def test_plan_of_a_sample_shows_its_cost_and_that_of_the_whole_job(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", JOB, "--root", str(tmp_path), "--sample", "4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "sample      4 train and 4 val images of each class at most" in lines
    assert any(line.startswith("images      40 train + 40 val, 10 classes") for line in lines)
    sample, whole = (line for line in lines if line.startswith("all "))
    assert lines[lines.index(whole) - 1] == "without --sample:"
    assert float(sample.split()[5]) < float(whole.split()[5])
    with pytest.raises(SystemExit):
        main(["plan", JOB, "--sample", "0"])
    assert "'0' is no number above 0" in capsys.readouterr().err


def test_report_of_several_jobs_prints_them_side_by_side_in_every_format(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, other = Store.at(str(tmp_path)), str(Path(JOB).parent / "digits-seeds.toml")
    for name, top1 in ((JOB, 0.5), (other, 0.75)):
        step = next(step for step in graph(load_job(name)) if step.title == "evaluate seed 0 ipc 5 random")
        store.artifact(step).write_table("scores/0.parquet", scores(trials("random", 5, (top1,))))
    both = ["report", JOB, other, "--root", str(tmp_path)]
    assert main(both) == 0
    assert "50.0 (1)" in (text := capsys.readouterr().out)
    assert "75.0 (1)" in text
    assert text.split()[5:7] == ["digits", "digits-seeds"]
    assert main([*both, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["jobs"]
    assert [found[name]["trials"][0]["top1_last"] for name in ("digits", "digits-seeds")] == [0.5, 0.75]
    for form, start in (("csv", "job,protocol"), ("latex", "% top-1"), ("markdown", "| protocol |")):
        assert main([*both, f"--{form}"]) == 0
        assert capsys.readouterr().out.startswith(start)
    assert main(["report", JOB, "--root", str(tmp_path), "--csv"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert main(["report", JOB, JOB, "--root", str(tmp_path)]) == 2
    assert "a job is given twice" in capsys.readouterr().err
    assert main(["report", JOB, other, "--root", str(tmp_path / "new"), "--csv"]) == 1
    assert "no scores yet" in capsys.readouterr().err
