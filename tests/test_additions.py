"""Tests that CONTRIBUTING.md is right about what an addition touches: each is made once, in a copy of the package."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

PACKAGE = Path(__file__).parents[1] / "vlcp_ray"

METHOD = '''"""first: the first images of every class, by id."""

import pyarrow as pa

from vlcp_ray.methods.method import Method


def first_ids(index: pa.Table, seed: int, ipc: int) -> list[str]:
    rows = index.sort_by("image_id").to_pylist()
    names = sorted({row["class_name"] for row in rows})
    return [row["image_id"] for name in names for row in [r for r in rows if r["class_name"] == name][:ipc]]


METHOD = Method("first", "the first images", "a test", "ids", ("images",), code="vlcp_ray.methods.first:first_ids")
'''

LAYOUT = '''"""The layout `labels`: images beside a file `labels.csv` with a line `file,split,class` for each."""

from pyarrow import fs as pafs

from vlcp_ray.sources.classes import load_glossary, resolve
from vlcp_ray.sources.layout import Layout
from vlcp_ray.sources.reader import Listing, Part, Row, tables


class Labels:
    layout = "labels"
    description = "images with labels.csv"
    splits = frozenset(("train", "val"))

    def __init__(self, filesystem, path, settings):
        self.filesystem, self.path = filesystem, path
        lines = self.bytes_of("labels.csv").decode().split()
        self.rows = [line.split(",") for line in lines]
        self.classes = resolve([row[2] for row in self.rows], settings.classes, load_glossary(""))

    def bytes_of(self, name):
        with self.filesystem.open_input_stream(f"{self.path}/{name}") as stream:
            return stream.read()

    def parts(self):
        return [Part("labels.csv", split) for split in ("train", "val")]

    def images(self, part, skipped=None, ids=False):
        for name, split, key in self.rows:
            if split == part.split:
                yield Listing(split, key, name, f"{split}/{name}")

    def read(self, part, done, skipped=None):
        yield from tables(
            Row(f"{split}/{name}", key, split, name, self.bytes_of(name))
            for name, split, key in self.rows
            if split == part.split and name not in done
        )


def detects(filesystem, path):
    return filesystem.get_file_info(f"{path}/labels.csv").type == pafs.FileType.File


LAYOUT = Layout("labels", "labels.csv", detects, Labels)
'''

PROTOCOL = '''"""The protocol `short`: one epoch of minimax."""

from dataclasses import replace

from vlcp_ray.protocols import minimax

PROTOCOL = replace(
    minimax.PROTOCOL, name="short", summary="one epoch", epochs=lambda settings, ipc, classes: 1, settings=()
)
'''

STAGE = '''"""tally: IMAGES -> the number of images."""

from vlcp_ray.stages.stage import Stage

STAGE = Stage("tally", version=1, summary="IMAGES -> a number")
'''

RUN = '''"""tally: count the images."""

import time

from vlcp_ray.schemas import IMAGES


def run(context, steps):
    (step,) = steps
    start = time.monotonic()
    count = len(context.input(step, "images").table("images", IMAGES, ["image_id"]))
    context.artifact(step).write_bytes("count.txt", str(count).encode())
    context.complete(step, rows_in=1, rows=1, seconds=time.monotonic() - start)
'''

JOB = """
ipc = [2]

[ingest]
source = "{source}"

[evaluate]
protocols = ["short"]
networks = ["ConvNet-2"]
width = 4
input_size = 32
repeats = 1

[compare]
methods = ["first"]
"""


def insert(file: Path, anchor: str, line: str) -> None:
    """Put a line before the first one that holds the anchor."""
    text = file.read_text(encoding="utf-8")
    found = next(candidate for candidate in text.splitlines() if anchor in candidate)
    file.write_text(text.replace(found, f"{line}\n{found}", 1), encoding="utf-8")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the package to which one of everything was added as CONTRIBUTING.md says."""
    folder = tmp_path_factory.mktemp("additions")
    copy = folder / "vlcp_ray"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
    for name, text, record in (
        ("methods/first.py", METHOD, "METHOD"),
        ("sources/labels.py", LAYOUT, "LAYOUT"),
        ("protocols/short.py", PROTOCOL, "PROTOCOL"),
    ):
        (copy / name).write_text(text)
        package, module = name.removesuffix(".py").split("/")
        insert(copy / package / "__init__.py", "from ", f"import vlcp_ray.{package}.{module} as {module}")
        anchor = {"methods": "vlcp.METHOD,", "sources": "digits.LAYOUT,", "protocols": "minimax.PROTOCOL,"}[package]
        insert(copy / package / "__init__.py", anchor, f"        {module}.{record},")
    smallest = '{"instance": 4, "batch": 4}'
    row = f'        Network("ConvNet-2", "vlcp_ray.models.classifiers:conv_net", {smallest}, poolings=2),'
    insert(copy / "models" / "networks.py", "*map(_conv_net", row)
    stage = copy / "stages" / "tally"
    stage.mkdir()
    (stage / "__init__.py").write_text(STAGE)
    (stage / "run.py").write_text(RUN)
    insert(copy / "stages" / "__init__.py", "from ", "import vlcp_ray.stages.tally as tally")
    insert(copy / "stages" / "__init__.py", "pair.STAGE,", "        tally.STAGE,")
    insert(
        copy / "pipeline.py", "# One report over everything.", '    scores.append(_step("tally", {}, images=images))'
    )
    return folder


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job over twelve images of two classes in the added layout."""
    source = tmp_path_factory.mktemp("set")
    lines = []
    for number in range(12):
        split, key = ("val" if number % 3 == 2 else "train"), ("cat", "dog")[number % 2]
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(source / f"{number:02d}.png")
        lines.append(f"{number:02d}.png,{split},{key}")
    (source / "labels.csv").write_text("\n".join(lines))
    file = tmp_path_factory.mktemp("job") / "added.toml"
    file.write_text(JOB.format(source=source))
    return file


def call(package: Path, *arguments: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(package)}
    command = [sys.executable, "-m", *arguments]
    done = subprocess.run(command, cwd=package, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_additions_run_through_the_whole_chain(package: Path, job: Path, tmp_path: Path) -> None:
    out = call(package, "vlcp_ray", "run", str(job), "--root", str(tmp_path))
    assert "is images with labels.csv" in out
    (scores,) = [line.split() for line in out.splitlines() if line.startswith("short ")]
    assert scores[:5] == ["short", "ConvNet-2", "2", "first", "1"]
    (selected,) = tmp_path.glob("select-*/synthetic")
    ids = [row for file in selected.iterdir() for row in pq.read_table(file)["image_id"].to_pylist()]
    assert sorted(ids) == [f"train/{number:02d}.png" for number in (0, 1, 3, 4)]
    (count,) = tmp_path.glob("tally-*/count.txt")
    assert count.read_text() == "12"
    (page,) = tmp_path.glob("report-*/index.html")
    text = page.read_text()
    assert "first" in text
    assert "tally" in text
    (trial,) = tmp_path.glob("evaluate-*/scores/*.parquet")
    assert pq.read_table(trial)["epochs"].to_pylist() == [1]


def test_additions_appear_in_plan_and_reference(package: Path, job: Path, tmp_path: Path) -> None:
    lines = call(package, "vlcp_ray", "plan", str(job), "--root", str(tmp_path)).splitlines()
    assert [line.split()[0] for line in lines[1:6]] == ["ingest", "tally", "select", "evaluate", "report"]
    page = call(package, "vlcp_ray.reference")
    for name in ("first", "labels", "short", "tally"):
        assert f"| `{name}` |" in page
    assert "`ConvNet-2`, `ConvNet-3`" in page
