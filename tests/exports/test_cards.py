"""Tests of the cards: metadata for the hub, what they state about an export, and no paths of this machine."""

from pathlib import Path

import pytest
from huggingface_hub import DatasetCard, ModelCard

from tests.exports.conftest import Export, exporter
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
    assert "4 epochs, learning rate 0.0001, seed 0" in card.text
