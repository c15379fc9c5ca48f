"""Tests of exporting from a job: which artifact is found, its scores, the model, and the errors."""

import subprocess
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from diffusers import StableDiffusionPipeline

from tests.exports.conftest import Export
from tests.s3 import Proxy, Server
from vlcp_ray.config import Job
from vlcp_ray.exports.job import open_target, public
from vlcp_ray.pipeline import graph
from vlcp_ray.schemas import conform
from vlcp_ray.settings import ConfigError
from vlcp_ray.stages.evaluate import SCORES
from vlcp_ray.store import files
from vlcp_ray.store.artifact import Store
from vlcp_ray.store.io import AccessError, open_uri


def test_export_model_is_a_diffusers_folder(exported: Export) -> None:
    to, line = exported("model")
    assert line == "the model of finetune seed 0"
    assert StableDiffusionPipeline.from_pretrained(to, safety_checker=None).unet.config.sample_size == 4


@pytest.mark.parametrize("form", ["imagefolder", "parquet", "webdataset", "captions", "model"])
def test_export_of_any_form_lists_the_sums_of_all_its_files(exported: Export, form: str) -> None:
    to, _ = exported(form)
    listed = {line.partition("  ")[2] for line in (to / "SHA256SUMS").read_text().splitlines()}
    assert listed == {str(path.relative_to(to)) for path in to.rglob("*") if path.is_file()} - {"SHA256SUMS"}
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=to, check=True)


def test_export_to_s3_writes_the_files_of_a_local_export(exported: Export, s3: Server, tmp_path: Path) -> None:
    local, _ = exported("parquet")
    uri = s3.uri(f"export{tmp_path}")
    exported("parquet", to=uri)
    _, folder = open_uri(uri, "--to")
    names = {path[len(folder) + 1 :]: size for path, size in s3.objects(f"export{tmp_path}").items()}
    assert names == {str(path.relative_to(local)): path.stat().st_size for path in local.rglob("*") if path.is_file()}
    assert files.read(s3.filesystem(), f"{folder}/SHA256SUMS") == (local / "SHA256SUMS").read_bytes()


def test_export_card_has_the_scores_of_its_set_only(job: Job, exported: Export, tmp_path: Path) -> None:
    store = Store.at(str(tmp_path / "runs"))
    row = dict.fromkeys(SCORES.names, 0) | {
        "protocol": "minimax",
        "network": "ConvNet-3",
        "curve": [],
        "per_class": [0.0] * 6,
    }
    row |= {"outcome": "", "augmented": True}
    for step in graph(job):
        if step.stage == "evaluate" and step.key.get("method") in ("vlcp", "random"):
            trial = row | {"trial_id": step.title, "confusion": [], "top1_last": 0.25} | dict(step.key)
            store.artifact(step).write_table("scores/0.parquet", conform(pa.Table.from_pylist([trial]), SCORES))
    text = (exported("parquet")[0] / "README.md").read_text()
    assert "25.0" in text
    assert "random" not in text.split("```")[1]


def test_public_keeps_the_last_part_of_local_paths() -> None:
    assert public({"source": "/home/me/set", "model": "o/llava"}) == {"source": "set", "model": "o/llava"}
    assert (public("s3://bucket/x"), public("file:///home/me/set"), public(1)) == ("s3://bucket/x", "set", 1)


def test_export_of_a_missing_artifact_or_to_a_used_target_raises(exported: Export, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the job makes no set herding"):
        exported("parquet", method="herding")
    with pytest.raises(ConfigError, match="select seed 0 ipc 4 random does not exist yet"):
        exported("parquet", method="random")
    with pytest.raises(ConfigError, match="--seed 3: the job fine-tunes no model with it"):
        exported("model", seed=3)
    exported("parquet")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="it is a file; give an empty folder"):
        exported("parquet", to="file")
    with pytest.raises(ConfigError, match="it has files already"):
        exported("parquet")
    with pytest.raises(ConfigError, match="nope://x"):
        open_target("nope://x")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("/home/me/a.parquet", "a.parquet"),
        ("file:///home/me/a.parquet?token=SECRET", "a.parquet?token=***"),
        ("s3://KEY:SECRET@bucket/a?region=x", "s3://***@bucket/a?region=x"),
        ({"source": ("~/a", 1)}, {"source": ("~/a", 1)}),
    ],
)
def test_public_shortens_paths_and_hides_secrets(value: Any, shown: Any) -> None:
    assert public(value) == shown


def test_open_target_that_s3_refuses_names_the_fix(s3_proxy: Proxy) -> None:
    uri = s3_proxy.uri("export/refused")
    assert open_target(uri).path == "bucket/export/refused"
    s3_proxy.set_faults(deny=[400, "ExpiredToken", "old"])
    with pytest.raises(AccessError, match=r"cannot list --to bucket/.*ExpiredToken: old; .*renew the credentials"):
        open_target(uri)
