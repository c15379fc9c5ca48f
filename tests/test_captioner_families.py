"""Tests of the digits job with captioners of other families: one line of the job is changed."""

from pathlib import Path

import pyarrow as pa
import pytest

from tests.small_job import JOB, overrides, write_inputs
from tests.tiny_captioners import FAMILIES, build_captioner
from vlcp_ray.config import Job, load_job
from vlcp_ray.pipeline import check_inputs, graph, run
from vlcp_ray.scale import Pool, Scale
from vlcp_ray.settings import ConfigError
from vlcp_ray.stages.pair import ANSWERS, pairs_schema
from vlcp_ray.store.artifact import MANIFEST, Artifact, Store

pytestmark = pytest.mark.filterwarnings("default")
PAIRS = pairs_schema((4, 4, 4), (8, 4, 4), 1)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("captioners"))


def of(model: str, inputs: Path, engine: str = "transformers", per_class: int = 8) -> Job:
    """The small digits job, some of its images described by another model."""
    settings = [*overrides(inputs), f"caption.model={model}", f"caption.engine={engine}", "caption.source="]
    settings += ["caption.max_tokens=16", f"ingest.max_per_class={per_class}", "ipc=[1]", "caption.temperature=0"]
    return load_job(JOB, settings)


def scale(workers: int) -> Scale:
    pool = Pool(num_workers=workers, num_cpus=1 / workers, batch_size=12)
    return Scale(**dict.fromkeys(("ingest", "caption", "encode", "finetune", "prototype", "generate"), pool))


def pair(job: Job, store: Store) -> Artifact:
    return store.artifact(next(step for step in graph(job) if step.stage == "pair"))


def captions(artifact: Artifact) -> tuple[pa.Table, pa.Table]:
    """The captions, and the counts of their tokens."""
    rows = artifact.table("pairs", PAIRS).sort_by("image_id").select(["image_id", "caption"])
    return rows, artifact.table("answers", ANSWERS).sort_by("image_id")


@pytest.mark.faults  # half a minute for each on idle cores
@pytest.mark.parametrize(
    ("family", "engine"), [*((family, "transformers") for family in sorted(FAMILIES)), ("qwen2_5_vl", "vllm")]
)
def test_two_workers_and_a_resumed_run_write_the_captions_of_one(
    ray_session: None, family: str, engine: str, inputs: Path, tmp_path: Path
) -> None:
    job, found = of(build_captioner(family, tmp_path / "model"), inputs, engine), []
    for workers in (1, 2):
        store = Store.at(str(tmp_path / str(workers)))
        list(run(job, store, "pair", scale(workers)))
        found.append(captions(pair(job, store)))
    assert found[0] == found[1]
    rows, answers = found[0]
    assert len(rows) == len(answers) == 32
    assert len(set(rows["caption"].to_pylist())) > 16
    folder = Path(pair(job, store).path)
    (folder / MANIFEST).unlink()
    parts = sorted((folder / "pairs").iterdir())
    assert len(parts) > 1
    for part in parts[1:]:
        part.unlink()
    list(run(job, store, "pair", scale(1)))
    assert captions(pair(job, store)) == found[0]


@pytest.mark.faults
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_runs_the_digits_job_to_its_report(
    ray_session: None, family: str, inputs: Path, tmp_path: Path
) -> None:
    job, store = of(build_captioner(family, tmp_path / "model"), inputs), Store.at(str(tmp_path / "runs"))
    list(run(job, store, "report", scale(2)))
    step = next(step for step in graph(job) if step.stage == "report")
    assert Path(store.artifact(step).path, MANIFEST).is_file()


def test_an_unknown_captioner_is_refused_with_the_families_before_anything_starts(inputs: Path, tmp_path: Path) -> None:
    model = Path(build_captioner("qwen2_5_vl", tmp_path / "model"))
    config = model / "config.json"
    check_inputs(of(str(model), inputs))
    config.write_text(config.read_text().replace('"qwen2_5_vl"', '"bert"'))
    with pytest.raises(ConfigError, match=r"^caption\.model: .* 'bert', which is none .* Qwen2\.5-VL \(qwen2_5_vl\)"):
        check_inputs(of(str(model), inputs))
