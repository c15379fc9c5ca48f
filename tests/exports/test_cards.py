"""Tests of the cards: metadata for the hub, what they state about an export, and no paths of this machine."""

import ast
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import load_dataset
from huggingface_hub import DatasetCard, ModelCard
from markdown_it import MarkdownIt

from tests.exports import conftest
from tests.exports.conftest import PIXELS, Export, exporter
from vlcp_ray.config import Job
from vlcp_ray.exports.dataset import WRITERS

every_form = pytest.mark.parametrize("form", WRITERS)


@every_form
def test_dataset_card_states_origin_and_no_local_path(form: str, exported: Export) -> None:
    to, _ = exported(form, license="mit", command="vlcp-ray run x.toml")
    card = DatasetCard.load(to / "README.md")
    assert (card.data.license, card.data.size_categories) == ("mit", ["n<1K"])
    assert "4 per class, generated from the 6 training images" in card.text.replace("\n", " ")
    assert "a a/b, number 0003" in card.text
    assert "No classifier has been trained on it yet" in card.text
    assert "`vlcp-ray run x.toml`" in card.text
    assert "/home/someone" not in card.text
    assert "captions.parquet" in card.text
    assert "@inproceedings" in card.text


@every_form
def test_dataset_card_with_a_teacher_describes_its_soft_labels(
    form: str, job_with_teacher: Job, tmp_path: Path
) -> None:
    text = (exporter(job_with_teacher, tmp_path)(form)[0] / "README.md").read_text()
    assert "the protocol `rded` learns from" in text
    assert "every view of every step" in text.replace("\n", " ")
    assert "top-1 75.0 %" in text


def test_captions_card_of_saved_captions_names_their_file_and_no_prompt(exported: Export, job: Job) -> None:
    card = DatasetCard.load(exported("captions")[0] / "README.md")
    assert card.data.task_categories == ["image-to-text"]
    assert "6 captions, one for each training image of `digits`, read from `captions.parquet`." in card.text
    assert f"> {job.caption.prompt}" not in card.text


def test_captions_card_names_captioner_and_prompt(job_with_teacher: Job, tmp_path: Path) -> None:
    text = DatasetCard.load(exporter(job_with_teacher, tmp_path)("captions")[0] / "README.md").text
    assert "6 captions, one for each training image of `digits`, by `demo/llava` for the prompt:" in text
    assert f"> {job_with_teacher.caption.prompt}" in text


def test_model_card_states_training(exported: Export) -> None:
    card = ModelCard.load(exported("model")[0] / "README.md")
    assert card.data.library_name == "diffusers"
    assert "with the UNet fine-tuned on 6 images" in card.text
    assert "4 epochs, learning rate 0.0003, seed 0" in card.text
    assert "LoRA" not in card.text
    assert "stable-diffusion" in card.data.tags


def test_model_card_of_an_xl_that_was_tuned_by_lora_says_so_and_its_code_loads_it(
    job: Job, tiny_family: str, tmp_path: Path
) -> None:
    tuned = job.finetune.model_copy(update={"lora_rank": 4, "snr_gamma": 5.0})
    to, _ = exporter(job.model_copy(update={"finetune": tuned}), tmp_path, tiny_family)("model")
    card = ModelCard.load(to / "README.md")
    assert "fine-tuned by LoRA of rank 4, which is merged into it, on 6 images" in card.text
    assert "| LoRA rank | 4 |\n| min-SNR gamma | 5.0 |\n| learning rate | 0.0003 |" in card.text
    is_xl = (to / "text_encoder_2").exists()
    assert ("stable-diffusion-xl" in card.data.tags) is is_xl
    (block,) = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    loading = block.rpartition("image = ")[0].replace("FOLDER", str(to))
    found: dict[str, Any] = {}
    exec(loading, found)
    assert type(found["pipeline"]).__name__ == f"StableDiffusion{'XL' * is_xl}Pipeline"


#: Class names that would add metadata, headings, HTML or Python, and leave or merge folders.
HOSTILE = (
    'x\n---\nlicense: evil\ntags: [evil]\n---\n\n# Evil\n\n<script>alert("1")</script>',
    '"); import os; os.system("evil")  # ```\n```\n![evil](http://evil/i.png)',
    "../../evil",
)
TAGS = ("html_block", "html_inline", "image", "link_open")


@pytest.fixture
def hostile(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Export:
    """Exports of a set whose class names, captions and texts are hostile."""
    monkeypatch.setattr(conftest, "NAMES", list(HOSTILE))
    return exporter(job, tmp_path)


@pytest.mark.parametrize("form", [*WRITERS, "captions", "model"])
def test_card_of_hostile_names_has_its_own_metadata_headings_and_code_only(form: str, hostile: Export) -> None:
    to, _ = hostile(form, license="mit", command="vlcp-ray run 'a`b`.toml'")
    kind = ModelCard if form == "model" else DatasetCard
    card = kind.load(to / "README.md")
    assert card.data.license == "mit"
    assert "evil" not in str(card.data.get("tags"))
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(card.text)
    flat = [inner for token in tokens for inner in (token, *(token.children or ()))]
    headings = [tokens[place + 1].content for place, token in enumerate(tokens) if token.type == "heading_open"]
    assert not [heading for heading in headings if "vil" in heading]
    found = [
        t
        for t in flat
        if t.type in TAGS and t.content.strip() not in ("<details><summary>All settings</summary>", "</details>")
    ]
    assert found == []
    for block in (token for token in tokens if token.type == "fence" and token.info == "python"):
        calls = [node for node in ast.walk(ast.parse(block.content)) if isinstance(node, ast.Call)]
        assert len(calls) == 2
        assert not [node for node in ast.walk(ast.parse(block.content)) if isinstance(node, ast.Import)]


@pytest.mark.parametrize("form", ["imagefolder", "parquet"])
def test_set_of_hostile_names_opens_in_datasets_and_stays_in_its_folder(
    form: str, hostile: Export, tmp_path: Path
) -> None:
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    to, _ = hostile(form)
    assert all(to in path.parents for path in set(tmp_path.rglob("*")) - before if path.is_file())
    data = load_dataset(str(to), split="train", cache_dir=str(tmp_path / "cache"))
    assert data.features["label"].names == list(HOSTILE)
    assert data["class_name"][:] == conftest.synthetic()["class_name"].to_pylist()
    pixels = np.stack([np.asarray(image) for image in data["image"]])
    assert np.array_equal(pixels, PIXELS.reshape(-1, 8, 8, 3))
