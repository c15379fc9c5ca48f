"""Tests of the pipeline: the graph, and the whole chain run, skipped, resumed and run by other workers."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import fs as pafs

from tests.image_sets import picture, write_files
from tests.monitoring.test_tensorboard import scalars
from tests.s3 import BUCKET, KEY, SECRET, Server
from tests.small_job import JOB, SETTINGS, arguments, job
from vlcp_ray.cli import main
from vlcp_ray.config import Job, load_job
from vlcp_ray.housekeeping import deletion
from vlcp_ray.pipeline import graph, largest_ipc, run, state
from vlcp_ray.scale import Pool, Scale, pools
from vlcp_ray.schemas import IMAGES, SYNTHETIC, tensors
from vlcp_ray.settings import ConfigError, build
from vlcp_ray.stages import STAGES
from vlcp_ray.stages.evaluate import SCORES
from vlcp_ray.stages.pair import pairs_schema
from vlcp_ray.stages.prototype import MEMBERS, prototypes_schema
from vlcp_ray.store.artifact import Step, Store
from vlcp_ray.store.files import read
from vlcp_ray.store.verify import compare_all

SCHEMAS = {
    "images": IMAGES,
    "pairs": pairs_schema((4, 4, 4), (8, 4, 4), 1),
    "prototypes": prototypes_schema((4, 4, 4)),
    "members": MEMBERS,
    "synthetic": SYNTHETIC,
    "scores": SCORES,
}


def test_graph_has_models_and_sets_for_each_seed() -> None:
    settings = {"name": "x", "base_model": "o/sd", "caption": {"model": "o/llava"}, "ipc": [1, 5], "seeds": [0, 1, 2]}
    steps = graph(build(Job, settings, "x"))
    count = {name: sum(step.stage == name for step in steps) for name in STAGES}
    assert count == {
        "ingest": 1,
        "pair": 1,
        "finetune": 3,
        "prototype": 6,
        "generate": 6,
        "teach": 0,
        "rank": 0,
        "select": 12,
        "evaluate": 19,
        "report": 1,
    }
    assert len({step.fingerprint for step in steps}) == len(steps)
    positions = {step.fingerprint: i for i, step in enumerate(steps)}
    assert all(positions[used.fingerprint] < i for i, step in enumerate(steps) for used in step.inputs.values())


@pytest.mark.parametrize(
    ("section", "change", "changed"),
    [
        (
            "ingest",
            {"val_fraction": 0.1},
            {"ingest", "pair", "finetune", "prototype", "generate", "select", "evaluate"},
        ),
        ("caption", {"temperature": 0.0}, {"pair", "finetune", "prototype", "generate", "select", "evaluate"}),
        ("finetune", {"epochs": 9}, {"finetune", "generate", "evaluate"}),
        ("prototype", {"n_words": 7}, {"prototype", "generate", "select", "evaluate"}),
        ("generate", {"strength": 0.6}, {"generate", "evaluate"}),
        ("evaluate", {"repeats": 4}, {"evaluate"}),
    ],
)
def test_graph_setting_changes_only_what_depends_on_it(section: str, change: dict, changed: set[str]) -> None:
    settings = {"name": "x", "base_model": "o/sd", "caption": {"model": "o/llava"}}
    before = {step.fingerprint for step in graph(build(Job, settings, "x"))}
    section_settings = {**settings.get(section, {}), **change}
    after = graph(build(Job, {**settings, section: section_settings}, "x"))
    assert {step.stage for step in after if step.fingerprint not in before} == changed | {"report"}


def test_largest_ipc_is_of_the_sets_that_are_made() -> None:
    base = {"name": "x", "base_model": "o/sd", "caption": {"model": "o/llava"}, "ipc": [1, 5]}
    assert largest_ipc(build(Job, base, "x")) == 5
    assert largest_ipc(build(Job, base | {"compare": {"methods": ["full"]}}, "x")) == 1


def rows(store: Store, step: Step, table: str) -> pa.Table:
    made = store.artifact(step).table(table, SCHEMAS[table])
    return made.sort_by(made.column_names[0])


def steps_of_stage(inputs: Path, stage: str) -> list[Step]:
    return [step for step in graph(job(inputs)) if step.stage == stage]


@pytest.mark.filterwarnings("default")
def test_run_writes_the_exact_rows_of_every_stage(completed_run: tuple[Path, Path]) -> None:
    root, inputs = completed_run
    store, steps = Store.at(str(root)), graph(job(inputs))
    assert {state(step, store.manifests(steps)) for step in steps} == {"done"}
    (images,), (pairs,) = steps_of_stage(inputs, "ingest"), steps_of_stage(inputs, "pair")
    assert len(rows(store, images, "images")) == 240
    assert len(rows(store, pairs, "pairs")) == 160
    for step in steps_of_stage(inputs, "prototype"):
        assert len(rows(store, step, "prototypes")) == 4 * step.key["ipc"]
        members = rows(store, step, "members")
        assert len(members) == 160
        assert 4 <= sum(cluster == -1 for cluster in members["cluster"].to_pylist()) <= 12  # 5 % of 160 is 8
    for step in [*steps_of_stage(inputs, "generate"), *steps_of_stage(inputs, "select")]:
        made = rows(store, step, "synthetic")
        assert len(made) == 4 * step.key["ipc"]
        assert set(made["label"].to_pylist()) == set(range(4))


@pytest.mark.filterwarnings("default")
def test_run_writes_a_log_and_peak_memory_for_every_stage(completed_run: tuple[Path, Path]) -> None:
    root, inputs = completed_run
    store = Store.at(str(root))
    for step in graph(job(inputs)):
        (log,) = (root / "logs" / "digits" / step.stage).iterdir()
        text = log.read_text()
        assert step.fingerprint in text.splitlines()[0]
        assert text.rstrip().endswith(f"{step.stage}: done")
        manifest = store.artifact(step).manifest()
        assert manifest is not None
        assert 50 < manifest["peak_memory"] < 20_000, step.title


@pytest.mark.filterwarnings("default")
def test_run_writes_curves_for_tensorboard(completed_run: tuple[Path, Path]) -> None:
    root, inputs = completed_run
    board = root / "tensorboard" / "digits"
    (tuned,) = steps_of_stage(inputs, "finetune")
    files = sorted((root / f"finetune-{tuned.fingerprint}" / "progress").iterdir())
    epochs = [json.loads(file.read_text()) for file in files]
    names = ("loss", "images_per_second", "learning_rate", "gradient_norm")
    expected = [(epoch["step"], name, np.float32(epoch[name])) for epoch in epochs for name in names]
    assert len(epochs) == 1
    assert scalars(board / "finetune" / f"seed-0-{tuned.fingerprint}") == expected
    store = Store.at(str(root))
    trials = [row for step in steps_of_stage(inputs, "evaluate") for row in rows(store, step, "scores").to_pylist()]
    assert len(trials) == len(list((board / "evaluate").iterdir()))
    for row in trials:
        (folder,) = (board / "evaluate").glob(f"{row['trial_id']}-*")
        curve = [value for _, name, value in scalars(folder) if name == "top1"]
        assert curve == row["curve"]
        assert (row["epochs"], "top1_last", row["top1_last"]) in scalars(folder)


@pytest.mark.filterwarnings("default")
def test_run_again_changes_no_file(completed_run: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    root, inputs = completed_run
    files = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}
    assert main(["run", *arguments(root, inputs)]) == 0
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()} == files
    out = capsys.readouterr().out
    assert "vlcp" in out
    assert "index.html" in out


@pytest.mark.filterwarnings("default")
def test_run_on_s3_with_other_workers_and_batches_gives_the_same_tables(
    completed_run: tuple[Path, Path], s3: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    """The image set, the captions and the root are on a real S3 server, with the keys in their URIs."""
    root, inputs = completed_run
    pafs.copy_files(str(inputs), f"{BUCKET}/inputs", destination_filesystem=s3.filesystem())
    sources = {"ingest.source": s3.uri("inputs/images"), "caption.source": s3.uri("inputs/captions.parquet")}
    remote = load_job(JOB, [*SETTINGS, *(f"{name}={uri}" for name, uri in sources.items())])
    other = Store.at(s3.uri("root"))
    (tuned,), (local_tuned,) = (
        [step for step in graph(one) if step.stage == "finetune"] for one in (remote, job(inputs))
    )
    # SYNTHETIC is compared for the same model.
    other.artifact(tuned).put_folder(Path(Store.at(str(root)).artifact(local_tuned).path), "")
    two = Pool(num_workers=2, num_cpus=0.5, batch_size=17)
    scale = Scale(rows_per_block=64, **dict.fromkeys(pools(Scale()), two))
    steps = list(run(remote, other, "generate", scale))
    local_steps = {(step.stage, str(step.key)): step for step in graph(job(inputs))}

    def both(stage: str, table: str) -> Iterator[tuple[pa.Table, pa.Table]]:
        for step in steps:
            if step.stage == stage:
                mine = local_steps[stage, str(step.key)]
                yield rows(Store.at(str(root)), mine, table), rows(other, step, table)

    ((first, second),) = both("ingest", "images")
    assert first.equals(second)
    ((first, second),) = both("pair", "pairs")
    assert first.select(["image_id", "label", "caption"]).equals(second.select(["image_id", "label", "caption"]))
    # The kernels of a batch of 17 round differently from those of 50: half a unit of float16 at the size of a latent.
    np.testing.assert_allclose(tensors(first["latent"]), tensors(second["latent"]), atol=4e-3)
    generated = list(both("generate", "synthetic"))
    assert len(generated) == 2
    for first, second in generated:
        assert first.drop_columns("image").equals(second.drop_columns("image"))
    compared = list(compare_all(other, steps, other.manifests(steps), contents=True))
    assert [line for one in compared for line in one.lines()] == []
    assert sum(one.count for one in compared) == len(s3.objects("root")) - len(steps) - len(s3.objects("root/logs"))
    assert not s3.objects("root/leases")
    shown = (
        b"".join(read(other.filesystem, path) for path in s3.objects("root")) + "".join(capsys.readouterr()).encode()
    )
    assert b"is an image folder with train and val" in shown
    assert SECRET.encode() not in shown
    assert KEY.encode() not in shown


@pytest.mark.filterwarnings("default")
def test_report_json_lists_every_trial(completed_run: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    root, inputs = completed_run
    assert main(["report", *arguments(root, inputs), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    scores = found["trials"]
    pairs = {(method, ipc) for method in ("vlcp", "random", "centroid") for ipc in (1, 2)}
    assert {(row["method"], row["ipc"]) for row in found["sets"]} == pairs
    cpu_seconds = {(row["method"], row["ipc"]): row["cpu_seconds"] for row in found["sets"]}
    assert all(cpu_seconds["vlcp", ipc] > cpu_seconds["centroid", ipc] > cpu_seconds["random", ipc] for ipc in (1, 2))
    assert {row["gpu_seconds"] for row in found["sets"]} == {0}
    assert all(0 <= row[name] <= 1 for row in found["sets"] for name in ("coverage", "redundancy"))
    assert {row["to_real"] for row in found["sets"] if row["method"] == "random"} == {0}  # they are real images
    assert {(row["method"], row["ipc"]) for row in found["differences"]} < pairs  # of what has learned
    assert len(scores) == 2 * 2 * 3 + 1
    assert {score["method"] for score in scores} == {"vlcp", "random", "centroid", "full"}
    assert set(scores[0]) == set(SCORES.names)
    assert all(0 <= score["top1_last"] <= score["top1_best"] <= 1 for score in scores)


@pytest.mark.filterwarnings("default")
def test_seconds_of_sets_that_are_made_at_once_are_shares_by_their_images(completed_run: tuple[Path, Path]) -> None:
    root, inputs = completed_run
    store, steps = Store.at(str(root)), graph(job(inputs))
    seconds: dict[str, dict[int, float]] = {}
    for step in steps:
        if "synthetic" in STAGES[step.stage].tables:
            seconds.setdefault(step.key["method"], {})[step.key["ipc"]] = (store.artifact(step).manifest() or {})[
                "seconds"
            ]
    assert set(seconds) == {"vlcp", "random", "centroid"}
    assert all(of[2] == pytest.approx(2 * of[1]) for of in seconds.values())
    (pairs,) = (store.artifact(step).manifest() or {} for step in steps if step.stage == "pair")
    assert "caption" not in pairs["scale"]  # captions are from a table
    assert "encode" in pairs["scale"]


def test_every_file_of_a_run_is_of_a_name_that_its_stage_lists(completed_run: tuple[Path, Path]) -> None:
    found = deletion.plan(Store.at(str(completed_run[0])), frozenset())
    assert list(found.kept) == []
    assert len(found.deletions) == 19


@pytest.mark.filterwarnings("default")
def test_status_and_plan_show_what_is_complete(
    completed_run: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    root, inputs = completed_run
    assert main(["status", *arguments(root, inputs)]) == 0
    out = capsys.readouterr().out
    assert "240 images in = 240 out + 0 rejected" in out
    trials = [line.split()[-4] for line in out.splitlines() if line.startswith("evaluate") and "trial" in line]
    assert sum(map(int, trials)) == 2 * 2 * 3 + 1
    assert "18 artifacts read" in " ".join(out.split())
    assert main(["plan", *arguments(root, inputs), "--set", "generate.strength=0.6"]) == 0
    out = capsys.readouterr().out
    assert "5 of 19 artifacts to make" in out
    assert ": 160 train and 80 val images in 4 classes\n" in out


@pytest.mark.filterwarnings("default")
def test_run_with_too_small_a_class_is_refused_before_it_starts(
    completed_run: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    root, inputs = completed_run
    assert main(["run", *arguments(root, inputs), "--set", "ipc=[200]", "--to", "prototype"]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("vlcp-ray: ipc: class 'digit one' has only 40 usable training images, fewer than ipc = 200")


@pytest.mark.filterwarnings("default")
def test_run_with_a_class_without_images_is_refused(
    ray_session: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = {f"train/{name}/{i}.png": picture(i, "PNG") for name in ("cat", "dog") for i in range(4)}
    write_files(tmp_path / "set", good | {"val/cat/1.png": picture(9, "PNG"), "train/cow/1.heic5": b"x"})
    job = [str(JOB), "--root", str(tmp_path / "root"), "--set", f"ingest.source={tmp_path}/set", "--set"]
    assert main(["run", *job, "ipc=[1]", "--to", "prototype"]) == 2
    assert "class 'cow' has no usable training images, fewer than ipc = 1" in (error := capsys.readouterr().err)
    assert "(not read were 1 .heic5 file)" in error
    assert not (tmp_path / "root").exists()  # names of files told it
    (tmp_path / "set/train/cow/1.png").write_bytes(b"no picture")
    assert main(["run", *job, "ipc=[1]", "--set", "ingest.max_rejected=0.2", "--to", "prototype"]) == 2
    assert "class 'cow' has no usable training images, fewer than ipc = 1" in capsys.readouterr().err
    assert list((tmp_path / "root").glob("ingest-*/manifest.json"))  # only decoding told it
    assert main(["run", *job, 'ingest.classes=["cat", "dog"]', "--set", "ipc=[1]", "--to", "ingest"]) == 0
    assert main(["run", *job, 'ingest.classes=["cat", "dog"]', "--set", "ipc=[1]"]) == 2
    assert "class 'dog' of train has no usable val images" in capsys.readouterr().err


@pytest.mark.filterwarnings("default")
def test_run_with_a_class_without_captions_is_refused_before_fine_tuning(
    ray_session: None, tiny_stable_diffusion: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"train/{name}/{i}.png" for name in ("cat", "cow", "dog") for i in range(3)]
    write_files(tmp_path / "set", {name: picture(number, "PNG") for number, name in enumerate(names)})
    rows = [{"image_id": name, "caption": "an animal"} for name in names if "cow" not in name]
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    job = [str(JOB), "--root", str(tmp_path / "root"), "--set", f"ingest.source={tmp_path}/set"]
    job += ["--set", f"caption.source={tmp_path}/captions.jsonl", "--set", f"base_model={tiny_stable_diffusion}"]
    for _ in range(2):  # after pair, and where PAIRS is complete
        assert main(["run", *job, "--set", "ipc=[1]", "--to", "prototype"]) == 2
        error = capsys.readouterr().err
        assert "class 'cow' has 0 of its 3 training images left in PAIRS, fewer than ipc = 1" in error
    assert not list((tmp_path / "root").glob("finetune-*/manifest.json"))


@pytest.mark.filterwarnings("default")
def test_run_of_a_sample_shows_both_estimates_and_reads_the_sample(
    ray_session: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(JOB), "--root", str(tmp_path), "--sample", "4", "--to", "ingest"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "estimate with --sample, and without:"
    sample, whole = (float(line.split()[5]) for line in lines[1:3])
    assert 0 < sample < whole
    assert any("; used are 4 train and 4 val images of each class at most" in line for line in lines)
    assert any("80 images in = 80 out + 0 rejected" in line for line in lines)


def test_complete_with_lost_rows_is_refused(tmp_path: Path) -> None:
    from vlcp_ray.engine.context import Context

    step = Step("pair", 1, {})
    context = Context(build(Job, {"name": "x"}, "x"), Scale(), Store.at(str(tmp_path)))
    with pytest.raises(RuntimeError, match="pair: 3 rows in, but 1 out and 1 rejected"):
        context.complete(step, rows_in=3, rows=1, rejected=1, seconds=1.0)
    assert state(step, context.store.manifests([step])) == "new"


@pytest.mark.filterwarnings("default")
def test_run_with_fp16_without_a_gpu_is_refused_before_it_starts(ray_session: None, tmp_path: Path) -> None:
    wanted = load_job(JOB, ["finetune.mixed_precision=fp16"])
    with pytest.raises(ConfigError, match=r"finetune\.mixed_precision: fp16 needs a GPU, .* set it to no or bf16"):
        list(run(wanted, Store.at(str(tmp_path)), "report", Scale()))
    assert not list(tmp_path.rglob("*.parquet"))
