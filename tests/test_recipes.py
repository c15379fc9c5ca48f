"""Tests of the recipes of jobs/README.md: what is reused, what a moved root still is, and that the commands exist."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from tests.housekeeping.conftest import FACTS, steps_of
from tests.s3 import Server
from tests.small_job import JOB, arguments, write_inputs
from vlcp_ray.cli import main, parser
from vlcp_ray.engine.context import identity, list_written
from vlcp_ray.store.artifact import Artifact, Store

ROOT = Path(__file__).parents[1]


@pytest.fixture
def done(tmp_path: Path) -> Path:
    """A root in which the job has made everything, with a file in each artifact."""
    store = Store.at(str(tmp_path / "runs"))
    for step in steps_of():
        artifact = store.artifact(step)
        artifact.write_bytes("table/0.parquet", step.title.encode())
        artifact.complete(identity(step) | FACTS | {"files": list_written(artifact)})
    return tmp_path / "runs"


@pytest.mark.parametrize(
    ("setting", "new"),
    [
        ("generate.strength=0.3", {"generate": 2, "evaluate": 2, "report": 1}),
        ("ipc=[1,5,10]", {"prototype": 1, "generate": 1, "select": 2, "evaluate": 3, "report": 1}),
    ],
)
def test_another_strength_or_size_makes_only_what_depends_on_it(
    setting: str, new: dict[str, int], done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(JOB), "--root", str(done), "--set", setting]) == 0
    out = capsys.readouterr().out
    made = [line.split()[0] for line in out.splitlines() if re.search(r" [0-9a-f]{12}  +new", line)]
    assert {stage: made.count(stage) for stage in made} == new
    assert f"{sum(new.values())} of " in out


def test_moved_root_is_verified_and_complete(
    done: Path, tmp_path: Path, s3: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.move(done, tmp_path / "elsewhere")
    bucket = Store.at(s3.uri(f"moved{tmp_path}"))
    for file in (path for path in (tmp_path / "elsewhere").rglob("*") if path.is_file()):
        name = file.relative_to(tmp_path / "elsewhere")
        Artifact(bucket.filesystem, bucket.path).write_bytes(str(name), file)
    for root in (str(tmp_path / "elsewhere"), s3.uri(f"moved{tmp_path}")):
        assert main(["verify", str(JOB), "--root", root]) == 0
        assert main(["plan", str(JOB), "--root", root]) == 0
        assert "0 of 19 artifacts to make" in capsys.readouterr().out


@pytest.mark.filterwarnings("default")
def test_captions_only_trains_nothing_and_names_the_files(
    ray_session: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs, root = write_inputs(tmp_path / "inputs"), tmp_path / "runs"
    job = arguments(root, inputs)
    assert main(["run", *job, "--to", "pair"]) == 0
    assert {path.name.partition("-")[0] for path in root.glob("*-*")} == {"ingest", "pair"}
    assert main(["export", *job, "--format", "captions", "--to", str(tmp_path / "captions")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "captions" / "captions.jsonl").read_text().splitlines()]
    assert len(rows) == 160
    for row in rows:
        assert (inputs / "images" / row["source"]).is_file()
        assert row["class_name"] in row["source"]
        assert row["text"]


def test_commands_of_the_recipes_exist(capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "jobs" / "README.md").read_text(encoding="utf-8")
    recipes = text[text.index("## Recipes") : text.index("## The paper's experiments")]
    commands = re.findall(r"^(?:[A-Z_]+=\S+ )*vlcp-ray (.*)$", recipes, re.MULTILINE)
    assert len(commands) >= 10
    for command in commands:
        parser().parse_args(shlex.split(command, comments=True))
