"""Tests of the licences on cards, and of publishing real images."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import DatasetCard, ModelCard

from tests.exports.conftest import Export, exporter
from tests.small_job import JOB
from vlcp_ray.cli import main
from vlcp_ray.config import Job, load_job
from vlcp_ray.exports import job as exports
from vlcp_ray.exports.dataset import WRITERS
from vlcp_ray.exports.job import Choice, check_push
from vlcp_ray.exports.licences import (
    APACHE,
    DIGITS,
    IMAGENET,
    LIKE_IMAGENET,
    LLAMA2,
    OPENRAIL,
    bound,
    of_images,
    of_model,
)
from vlcp_ray.methods import METHODS
from vlcp_ray.pipeline import graph
from vlcp_ray.settings import ConfigError
from vlcp_ray.stages.ingest import CLASSES
from vlcp_ray.store.artifact import Store

PAPER = "benjamin-paine/stable-diffusion-v1-5"
RESTRICTIONS = 11


@pytest.fixture
def paper(tmp_path: Path) -> Callable[..., Export]:
    """Exports of a job with the models of the paper, and a teacher of torchvision."""

    def make(*overrides: str) -> Export:
        models = [f"base_model={PAPER}", "caption.model=llava-hf/llava-1.5-7b-hf", "ipc=[1,4]"]
        return exporter(load_job(JOB, [*models, *overrides]), tmp_path)

    return make


def text_of(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("form", [*WRITERS, "model"])
def test_card_of_what_stable_diffusion_made_has_its_use_restrictions_in_full(
    form: str, paper: Callable[..., Export]
) -> None:
    text = text_of(paper()(form)[0])
    full = OPENRAIL.full_text()
    restrictions = full[full.index("You agree not to use") :].strip()
    assert restrictions.count("\n- ") == RESTRICTIONS
    assert f"in full:\n\n```\nAttachment A\n\nUse Restrictions\n\n{restrictions}\n```" in text
    assert "No use of them may contravene" in text or "no use of them may contravene" in text
    for licence in (OPENRAIL, LLAMA2, DIGITS, APACHE):
        assert licence.name in text
    assert "It claims no rights in what it makes" in text


def test_model_export_has_a_copy_of_the_licence_and_says_what_was_changed(paper: Callable[..., Export]) -> None:
    folder, _ = paper()("model")
    assert (folder / "LICENSE.txt").read_text(encoding="utf-8") == OPENRAIL.full_text()
    card = ModelCard.load(folder / "README.md")
    assert (card.data.license, card.data.base_model) == ("creativeml-openrail-m", PAPER)
    assert "The folder `unet` was changed by fine-tuning" in card.text
    assert "LICENSE.txt" in (folder / "SHA256SUMS").read_text()


def test_captions_card_names_the_captioner_and_not_the_base_model(paper: Callable[..., Export]) -> None:
    text = text_of(paper()("captions")[0])
    assert LLAMA2.name in text
    assert OPENRAIL.name not in text


def test_card_of_the_packaged_models_has_no_restrictions(exported: Export) -> None:
    text = text_of(exported("model")[0])
    assert "Attachment A" not in text
    assert ModelCard.load(exported("model", to="again")[0] / "README.md").data.license == "apache-2.0"
    assert DatasetCard.load(exported("parquet")[0] / "README.md").data.license == "other"


def test_card_states_hashes_that_the_files_have(exported: Export, job: Job) -> None:
    import hashlib

    folder, _ = exported("imagefolder")
    lines = [line for line in (folder / "SHA256SUMS").read_text().splitlines() if not line.endswith(" README.md")]
    assert hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest() in text_of(folder)
    (pair,) = [step for step in graph(job) if step.stage == "pair"]
    assert pair.folder in text_of(folder)
    assert pair.settings["base_model"] in text_of(folder)


@pytest.mark.parametrize(
    ("settings", "keys", "terms"),
    [
        ([], ["0"], DIGITS),
        (["ingest.source=hf://datasets/ILSVRC/imagenet-1k/data"], [], IMAGENET),
        (["ingest.source=/data/photos", "ingest.classes=imagewoof"], [], IMAGENET),
        (["ingest.source=/data/photos", "ingest.class_list=imagenet1k"], [], IMAGENET),
        (["ingest.source=/data/photos"], ["n01440764", "n02102040"], LIKE_IMAGENET),
    ],
)
def test_terms_of_the_image_set(settings: list[str], keys: list[str], terms: Any) -> None:
    assert of_images(load_job(JOB, settings), keys) == terms


def test_terms_of_an_unknown_set_of_the_hub_name_its_page() -> None:
    found = of_images(load_job(JOB, ["ingest.source=hf://datasets/uoft-cs/cifar10@main/plain_text"]), ["cat"])
    assert (found.id, found.link) == ("other", "https://huggingface.co/datasets/uoft-cs/cifar10")
    assert of_images(load_job(JOB, ["ingest.source=/data/photos"]), ["cat", "n01440764"]).link == ""


@pytest.mark.parametrize(
    ("stated", "id"),
    [("license: mit", "mit"), ("license: creativeml-openrail-m", OPENRAIL.id), ("license: bsd", "bsd")],
)
def test_licence_of_a_folder_is_what_its_card_states(stated: str, id: str, tmp_path: Path) -> None:
    assert of_model(str(tmp_path)).name == "not known to vlcp-ray"
    (tmp_path / "README.md").write_text(f"---\n{stated}\n---\n# A model\n")
    assert of_model(str(tmp_path)).id == id
    (tmp_path / "README.md").write_text("# A model without metadata\n")
    assert of_model(str(tmp_path)).id == "other"


def test_licence_of_an_unknown_model_of_the_hub_names_its_page() -> None:
    assert of_model("some/model@v1").link == "https://huggingface.co/some/model"
    assert of_model(f"{PAPER}@main") == OPENRAIL
    assert of_model("Qwen/Qwen2.5-VL-7B-Instruct") == APACHE
    assert "Non-commercial" in of_model("Qwen/Qwen2.5-VL-3B-Instruct@main").terms


def test_parts_that_bind_are_those_that_were_used() -> None:
    job = load_job(JOB, ["caption.source=c.parquet", "teach.checkpoint=torchvision", "teach.network=ResNet-18"])
    everything = bound(job, [], uses_model=True, uses_captions=True, uses_teacher=True)
    assert [one.part for one in everything] == ["image set", "base model", "captions", "teacher", "tool"]
    dit = bound(job, [], uses_model=False, uses_captions=False, uses_teacher=False, uses_dit=True)
    assert [(one.part, one.licence.id) for one in dit if one.part == "DiT"] == [("DiT", "cc-by-nc-4.0")]
    nothing = bound(job, [], uses_model=False, uses_captions=False, uses_teacher=False)
    assert [one.part for one in nothing] == ["image set", "tool"]


@pytest.mark.parametrize("method", [name for name, one in METHODS.items() if one.form != "train split"])
def test_sets_of_real_pixels_are_not_pushed_without_the_right(method: str, tmp_path: Path) -> None:
    job = load_job(JOB, ["ingest.source=/data/imagenet", f"compare.methods=['{method}']"])
    store, steps = Store.at(str(tmp_path)), graph(job)
    choice = Choice("parquet", method)
    is_generated = METHODS[method].form in ("generation", "prototypes", "labels")
    if not is_generated and METHODS[method].optimised_from != "noise":
        with pytest.raises(
            ConfigError, match=r"--push-to-hub: the images of .* are real .* Non-commercial .*--i-have-the"
        ):
            check_push(job, store, steps, choice, has_right=False)
    else:
        check_push(job, store, steps, choice, has_right=False)
    check_push(job, store, steps, choice, has_right=True)
    check_push(job, store, steps, Choice("captions"), has_right=False)


def test_terms_are_known_from_the_classes_that_ingest_recorded(tmp_path: Path) -> None:
    job = load_job(JOB, ["ingest.source=/data/photos"])
    store, steps = Store.at(str(tmp_path)), graph(job)
    store.artifact(steps[0]).write_bytes(CLASSES, b'[["n01440764"], ["tench"]]')
    with pytest.raises(ConfigError, match=r"ImageNet's terms of access, where the images are ImageNet's"):
        check_push(job, store, steps, Choice("parquet", "random"), has_right=False)


@pytest.mark.parametrize("target", [["--push-to-hub", "me/digits"], ["--to", "hf://datasets/me/digits"]])
def test_export_of_random_images_to_the_hub_exits_2_before_anything_is_written(
    target: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("exported")

    monkeypatch.setattr(exports, "export", fail)
    command = ["export", str(JOB), "--root", str(tmp_path), "--format", "parquet", "--method", "random", *target]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "Creative Commons Attribution 4.0" in error
    assert len(error.splitlines()) == 1
