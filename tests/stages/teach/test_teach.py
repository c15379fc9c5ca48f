"""Tests of the settings of teach."""

from dataclasses import asdict
from pathlib import Path

import pytest

from vlcp_ray.config import Job, load_job
from vlcp_ray.settings import ConfigError
from vlcp_ray.stages.teach import RECIPE, STAGE, hashed_settings


def job(**teach: object) -> Job:
    settings = load_job("jobs/digits-compare.toml")
    return settings.model_copy(update={"teach": settings.teach.model_copy(update=teach)})


def test_hashed_settings_of_a_trained_teacher_are_those_of_its_training() -> None:
    expected = job().teach.model_dump() | {"network": job().teach.name, "recipe": asdict(RECIPE)}
    assert hashed_settings(job().teach) == expected
    assert hashed_settings(job(epochs=2).teach) != hashed_settings(job(epochs=3).teach)


def test_hashed_settings_of_a_checkpoint_depend_on_its_content_only(tmp_path: Path) -> None:
    one, same, other = (tmp_path / name for name in ("one.pth", "same.pth", "other.pth"))
    one.write_bytes(b"weights")
    same.write_bytes(b"weights")
    other.write_bytes(b"other weights")
    hashed = hashed_settings(job(checkpoint=str(one), epochs=2).teach)
    assert hashed == hashed_settings(job(checkpoint=str(same), epochs=3).teach)
    assert hashed != hashed_settings(job(checkpoint=str(other), epochs=2).teach)


def test_check_of_a_missing_checkpoint_is_refused(tmp_path: Path) -> None:
    STAGE.check(job())
    with pytest.raises(
        ConfigError, match=r"teach\.checkpoint: there is no file .*; name a \.pth file, or leave it out"
    ):
        STAGE.check(job(checkpoint=str(tmp_path / "missing.pth")))
