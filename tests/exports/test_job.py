"""Whether what is exported opens in the libraries that people use, whole, in order and with what it means."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from datasets import ClassLabel, Image, List, Value, load_dataset
from diffusers import StableDiffusionPipeline
from huggingface_hub import DatasetCard, ModelCard
from safetensors.torch import save

from tests.small_job import JOB
from vlcp_ray.config import Ingest, Job, load_job
from vlcp_ray.exports.dataset import folder_names
from vlcp_ray.exports.job import Choice, Form, export, opened, public
from vlcp_ray.exports.soft_labels import labeller
from vlcp_ray.images import encode_png
from vlcp_ray.models.folders import folder
from vlcp_ray.pipeline import graph
from vlcp_ray.protocols.images import LabelledImages
from vlcp_ray.protocols.teacher import teach
from vlcp_ray.schemas import SCORES, SYNTHETIC, TEACHER, conform, pairs_schema, prototypes_schema, tensor_array
from vlcp_ray.settings import ConfigError
from vlcp_ray.sources.layouts import open_source
from vlcp_ray.stages.caption import CarryCaptions
from vlcp_ray.store import Step, Store

NAMES = ["cat", "dog", "a/b"]
IPC = 4
PER_CLASS = [f"{number:04d}" for number in range(IPC)]
PIXELS = np.random.default_rng(0).integers(0, 256, (len(NAMES), IPC, 8, 8, 3), dtype=np.uint8)
Export = Callable[..., tuple[Path, str]]


def synthetic() -> pa.Table:
    rows = [
        {
            "image_id": f"synthetic-{label:04d}-{cluster}",
            "label": label,
            "class_name": NAMES[label],
            "split": "train",
            "image": encode_png(PIXELS[label, int(cluster)]),
            "prototype_id": f"{label:04d}-{cluster}",
            "text": f"a {NAMES[label]}, number {cluster}",
            "seed": label,
        }
        for label in range(len(NAMES))
        for cluster in PER_CLASS
    ]
    return conform(pa.Table.from_pylist(rows), SYNTHETIC)


def prototypes() -> pa.Table:
    rows = synthetic()
    clusters = [int(name[-4:]) for name in rows["prototype_id"].to_pylist()]
    columns = {name: rows[name] for name in ("prototype_id", "label", "class_name", "text")}
    latents = tensor_array(np.zeros((len(rows), 1, 1, 1), np.float32))
    told = {"cluster": clusters, "size": [5] * len(rows), "latent": latents}
    told |= {"text_image_id": ["x"] * len(rows), "words": [["w"]] * len(rows)}
    return conform(pa.table(columns | told), prototypes_schema((1, 1, 1)))


def pairs() -> pa.Table:
    ids = [f"train/{NAMES[row % 2]}/{row:02d}.jpg" for row in range(6)]
    columns: dict[str, Any] = {"image_id": ids, "label": [row % 2 for row in range(6)]}
    columns |= {
        "class_name": [NAMES[row % 2] for row in range(6)],
        "caption": [f"Ein Tier, No. {row} é" for row in range(6)],
    }
    columns["latent"] = tensor_array(np.zeros((6, 1, 1, 1), np.float16))
    columns["train_moments"] = tensor_array(np.zeros((6, 2, 1, 1, 1), np.float16))
    return conform(pa.table(columns), pairs_schema((1, 1, 1), (1, 1, 1)))


@pytest.fixture
def job() -> Job:
    return load_job(JOB, [f"ipc=[1,{IPC}]", "caption.source=/home/someone/said.parquet"])


@pytest.fixture
def exported(job: Job, tmp_path: Path) -> Export:
    return exporter(job, tmp_path)


def exporter(job: Job, tmp_path: Path) -> Export:
    """A job with one distilled set, its files out of order, and a function that exports of it."""
    store, steps = Store.at(str(tmp_path / "runs")), graph(job)

    def find(stage: str, **key: Any) -> Step:
        return next(
            s for s in steps if s.stage == stage and all(s.key.get(name) == value for name, value in key.items())
        )

    made = find("generate", ipc=IPC)
    shuffled = synthetic().take(np.random.default_rng(1).permutation(len(synthetic())))
    for number in range(3):
        store.artifact(made).write_table(f"synthetic/{number}.parquet", shuffled.slice(number * 4, 4))
    store.artifact(made.inputs["prototypes"]).write_table("prototypes/0.parquet", prototypes())
    store.artifact(find("pair")).write_table("pairs/1.parquet", pairs().slice(0, 3))
    store.artifact(find("pair")).write_table("pairs/0.parquet", pairs().slice(3))
    store.artifact(find("finetune")).put_folder(Path(folder("demo/stable_diffusion")), "model")
    ingested = {"class_names": NAMES, "splits": {"train": 6, "val": 2}, "rows": 8}
    for step, facts in ((find("ingest"), ingested), (made, {"rows": 12}), (find("pair"), {}), (find("finetune"), {})):
        store.artifact(step).seal(facts)

    for step in steps:
        if step.stage == "teach":
            train = LabelledImages(PIXELS.reshape(-1, 8, 8, 3).transpose(0, 3, 1, 2), np.repeat(np.arange(3), IPC))
            state = teach(train, train, NAMES, job.teach, 0, "cpu").state
            store.artifact(step).write_bytes(TEACHER, save(state))
            store.artifact(step).seal({"top1": 0.75})

    def write(form: Form, to: str = "", **options: Any) -> tuple[Path, str]:
        to = tmp_path / (to or form)
        choice = Choice(form, **options)
        return to, export(job, store, steps, choice, opened(str(to)))

    return write


@pytest.mark.parametrize("form", ["imagefolder", "parquet"])
def test_datasets_opens_it_as_it_is(form: Form, exported: Export, tmp_path: Path) -> None:
    to, told = exported(form)
    assert told == "12 images of 3 classes, generate seed 0 ipc 4 vlcp"
    data = load_dataset(str(to), split="train", cache_dir=str(tmp_path / "cache"))
    assert "soft_label" not in data.features
    assert data.features["label"] == ClassLabel(names=NAMES)
    assert isinstance(data.features["image"], Image)
    assert data["image_id"][:] == synthetic()["image_id"].to_pylist()
    assert data["label"][:] == synthetic()["label"].to_pylist()
    assert data["text"][:] == synthetic()["text"].to_pylist()
    pixels = np.stack([np.asarray(image) for image in data["image"]])
    assert np.array_equal(pixels, PIXELS.reshape(-1, 8, 8, 3))


def test_datasets_opens_the_webdataset(exported: Export, tmp_path: Path) -> None:
    to, _ = exported("webdataset")
    data = load_dataset(str(to), split="train", cache_dir=str(tmp_path / "cache"))
    assert data["cls"][:] == synthetic()["label"].to_pylist()
    assert [row["text"] for row in data["json"]] == synthetic()["text"].to_pylist()
    assert np.array_equal(np.stack([np.asarray(image) for image in data["png"]]), PIXELS.reshape(-1, 8, 8, 3))
    assert (to / "classes.txt").read_text().splitlines() == NAMES


def test_the_readmes_loader_trains_on_it_as_it_is(exported: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    to, _ = exported("parquet")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(to.parent / "cache"))
    code = (JOB.parents[1] / "README.md").read_text(encoding="utf-8").partition("## Take it away")[2]
    made: dict[str, Any] = {}
    exec(code.partition("```python\n")[2].partition("```")[0].replace("FOLDER", str(to)), made)
    assert (made["net"](made["x"]).argmax(1) == made["y"]).float().mean() > 0.9
    assert made["y"].tolist() == synthetic()["label"].to_pylist()


@pytest.mark.parametrize("form", ["imagefolder", "parquet", "webdataset"])
def test_a_distilled_set_is_a_data_set(form: Form, exported: Export) -> None:
    source = open_source(Ingest(source=str(exported(form)[0]), val_fraction=0.25))
    rows = pa.concat_tables([table for part in source.parts() for table in source.read(part, set())])
    names = ["0002 a_b" if form == "imagefolder" and name == "a/b" else name for name in NAMES]
    assert sorted(source.classes.names) == sorted(names)
    assert len(set(rows["image_id"].to_pylist())) == len(synthetic())
    assert set(rows["reason"].to_pylist()) == {""}
    assert sorted(rows["class_key"].to_pylist()) == sorted(name for name in names for _ in range(IPC))


@pytest.mark.parametrize("form", ["imagefolder", "parquet", "webdataset"])
def test_soft_labels_travel_with_the_images(form: Form, tmp_path: Path) -> None:
    settings = ["network='ConvNet-3'", "width=8", "input_size=8", "epochs=2", "batch_size=4"]
    sets = [f"ipc=[1,{IPC}]", "evaluate.protocols=['minimax','rded']", "evaluate.input_size=8"]
    job = load_job(JOB, [*sets, *(f"teach.{setting}" for setting in settings)])
    to, _ = exporter(job, tmp_path)(form)
    data = load_dataset(str(to), split="train", cache_dir=str(tmp_path / "cache"))
    if form == "webdataset":
        said = np.array([row["soft_label"] for row in data["json"]], np.float32)
    else:
        assert data.features["soft_label"] == List(Value("float32"), length=len(NAMES))
        said = np.array(data["soft_label"][:], np.float32)
    (teacher,) = [step for step in graph(job) if step.stage == "teach"]
    label = labeller(Store.at(str(tmp_path / "runs")).artifact(teacher), job.teach)
    told = np.stack(label(synthetic()).to_numpy(zero_copy_only=False))
    assert np.array_equal(said, told)  # nine digits of text are the same float32 again
    card = (to / "README.md").read_text()
    assert "every\nview of every step" in card
    assert "top-1 75.0 %" in card


def test_an_image_folder_has_a_folder_for_each_class(exported: Export) -> None:
    to, _ = exported("imagefolder")
    assert {path.name for path in (to / "train").iterdir()} == {"cat", "dog", "0002 a_b", "metadata.jsonl"}
    assert len(list((to / "train").rglob("*.png"))) == len(synthetic())
    assert folder_names(["crane", "crane", "x"]) == ["0000 crane", "0001 crane", "x"]


@pytest.mark.parametrize("form", ["imagefolder", "parquet", "webdataset"])
def test_the_card_says_what_it_is_and_names_no_machine(form: Form, exported: Export) -> None:
    to, _ = exported(form, license="mit", command="vlcp-ray run x.toml")
    card = DatasetCard.load(to / "README.md")
    assert (card.data.license, card.data.size_categories) == ("mit", ["n<1K"])
    assert "4 a class, that stand for the 6 training images" in card.text.replace("\n", " ")
    assert "a a/b, number 0003" in card.text
    assert "No classifier was trained on it yet" in card.text
    assert "`vlcp-ray run x.toml`" in card.text
    assert "/home/someone" not in card.text
    assert "said.parquet" in card.text
    assert "@inproceedings" in card.text


def test_descriptions_are_read_again(exported: Export) -> None:
    to, told = exported("descriptions")
    assert told == "6 descriptions"
    lines = [json.loads(line) for line in (to / "descriptions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["text"] for line in lines] == pairs().sort_by("image_id")["caption"].to_pylist()
    for table in (load_dataset_table(to), pa.Table.from_pylist(lines)):
        again = CarryCaptions(table)(pairs().select(["image_id", "class_name"]))
        assert again["caption"].to_pylist() == pairs()["caption"].to_pylist()
        assert set(again["reason"].to_pylist()) == {""}


def load_dataset_table(to: Path) -> pa.Table:
    return pa.parquet.read_table(to / "descriptions.parquet")


def test_the_model_is_a_diffusers_folder(exported: Export) -> None:
    to, told = exported("model")
    assert told == "the model of finetune seed 0"
    assert StableDiffusionPipeline.from_pretrained(to, safety_checker=None).unet.config.sample_size == 4
    card = ModelCard.load(to / "README.md")
    assert card.data.library_name == "diffusers"
    assert "4 epochs, learning rate 0.0001, seed 0" in card.text


def test_scores_are_those_of_the_set(job: Job, exported: Export, tmp_path: Path) -> None:
    store = Store.at(str(tmp_path / "runs"))
    row = dict.fromkeys(SCORES.names, 0) | {"protocol": "minimax", "network": "ConvNet-3", "curve": [], "per_class": []}
    for step in graph(job):
        if step.stage == "evaluate" and step.key.get("method") in ("vlcp", "random"):
            trial = row | {"trial_id": step.title, "confusion": [], "top1_last": 0.25} | dict(step.key)
            store.artifact(step).write_table("scores/0.parquet", conform(pa.Table.from_pylist([trial]), SCORES))
    text = (exported("parquet")[0] / "README.md").read_text()
    assert "25.0" in text
    assert "random" not in text.split("```")[1]


def test_a_card_tells_of_paths_the_last_part_alone() -> None:
    assert public({"source": "/home/me/set", "model": "o/llava"}) == {"source": "set", "model": "o/llava"}
    assert (public("s3://bucket/x"), public("file:///home/me/set"), public(1)) == ("s3://bucket/x", "set", 1)


def test_what_cannot_be_exported_is_one_sentence(exported: Export, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the job makes no set herding"):
        exported("parquet", method="herding")
    with pytest.raises(ConfigError, match="select seed 0 ipc 4 random is not made yet"):
        exported("parquet", method="random")
    with pytest.raises(ConfigError, match="--seed 3: the job fine-tunes no model with it"):
        exported("model", seed=3)
    exported("parquet")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="it is a file; give an empty folder"):
        exported("parquet", to="file")
    with pytest.raises(ConfigError, match="it holds files already"):
        exported("parquet")
    with pytest.raises(ConfigError, match="nope://x"):
        opened("nope://x")
