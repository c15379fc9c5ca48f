"""Tests of the settings of pair, its schema, and the settings that determine PAIRS."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from vlcp_ray.config import Job
from vlcp_ray.settings import ConfigError, build
from vlcp_ray.stages.pair import STAGE, Caption, check_captioner, check_pairs, hashed_settings, pairs_schema


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt": "Describe it."}, r"prompt must contain \{class_name\}"),
        ({"max_tokens": 2048}, "max_tokens must be smaller than max_model_len"),
        ({"missing": "describe"}, 'missing = "describe" is for images that a table lacks; set source too'),
        ({"precision": "8bit"}, 'precision = "8bit" needs engine = "transformers"; set it too'),
    ],
)
def test_caption_settings_that_cannot_work_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(Caption, settings, "caption")


def test_settings_and_packages_that_a_captioner_lacks_are_refused(tmp_path: Path) -> None:
    check_captioner(Caption(model="demo/llava", image_aspect_ratio="crop"))
    config = tmp_path / "config.json"
    config.write_text('{"model_type": "qwen2_vl"}')
    check_captioner(Caption(model=str(tmp_path)))
    crop = {"model": str(tmp_path), "image_aspect_ratio": "crop"}
    job = build(Job, {"name": "x", "caption": crop}, "x")
    with pytest.raises(ConfigError, match=r"^caption\.image_aspect_ratio is of LLaVA-1\.5 only; leave it out"):
        STAGE.check(job)
    table = tmp_path / "captions.csv"
    table.write_text("image_id,caption\na,b\n")
    STAGE.check(build(Job, {"name": "x", "caption": crop | {"source": str(table)}}, "x"))  # no model is used


def test_captioner_whose_processor_lacks_a_package_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "smolvlm"}')
    monkeypatch.setattr("vlcp_ray.stages.pair.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"^caption\.model: .* needs the package num2words: pip install num2words"):
        check_captioner(Caption(model=str(tmp_path)))


def test_pairs_schema_has_the_shapes_of_its_tensors() -> None:
    schema = pairs_schema((4, 8, 8), (8, 4, 4), views=1)
    assert schema.field("latent").type == pa.fixed_shape_tensor(pa.float16(), (4, 8, 8))
    assert schema.field("train_moments").type == pa.fixed_shape_tensor(pa.float16(), (1, 8, 4, 4))


def test_hashed_settings_with_saved_captions_ignore_the_model(tmp_path: Path) -> None:
    table = tmp_path / "captions.jsonl"
    table.write_text('{"image_id": "a", "caption": "one"}')

    def hashed(**caption: object) -> dict[str, Any]:
        return hashed_settings(build(Job, {"name": "x", "caption": caption}, "x"), "base")

    assert hashed(temperature=0) != hashed(temperature=1)
    before = hashed(source=str(table))
    assert before == hashed(source=str(table), temperature=1)
    table.write_text('{"image_id": "a", "caption": "two"}')
    assert before != hashed(source=str(table))
    described = hashed(source=str(table), missing="describe")
    assert described != hashed(source=str(table))
    assert described != hashed(source=str(table), missing="describe", temperature=1)


def test_hashed_settings_have_max_pixels_only_where_it_is_set() -> None:
    """Captions of versions that did not have the setting stay valid."""

    def hashed(**caption: object) -> dict[str, Any]:
        return dict(hashed_settings(build(Job, {"name": "x", "caption": caption}, "x"), "base")["caption"])

    assert "max_pixels" not in hashed()
    assert hashed(max_pixels=0) == hashed()
    assert hashed(max_pixels=500)["max_pixels"] == 500


def test_check_pairs_names_a_class_that_lost_its_captions() -> None:
    images = {"class_names": ["cat", "cow", "dog"], "train": [9, 8, 7]}
    check_pairs({"train": [5, 5, 5]}, images, 5)
    check_pairs({}, images, 7)  # of an earlier version, which did not count
    message = r"class 'cow' has 0 of its 8 training images left in PAIRS, fewer than ipc = 5 \(and 1 more classes\): "
    with pytest.raises(ConfigError, match=message):
        check_pairs({"train": [5, 0, 4]}, images, 5)
