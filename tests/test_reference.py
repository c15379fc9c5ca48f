"""Tests of the generated reference of settings and tables."""

from pathlib import Path

from vlcp_ray.config import Job
from vlcp_ray.reference import reference
from vlcp_ray.schemas import REASONS, SYNTHETIC

PAGE = Path(__file__).parents[1] / "REFERENCE.md"


def test_reference_file_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference(), "python -m vlcp_ray.reference > REFERENCE.md"


def test_reference_has_a_line_for_every_setting_column_and_reason() -> None:
    lines = reference().splitlines()
    for name, field in Job.model_fields.items():
        inner = set(getattr(field.annotation, "model_fields", {name: field})) - {"expect"}
        assert all(any(line.startswith(f"| `{setting}` |") for line in lines) for setting in inner), name
    assert all(any(line.startswith(f"| `{column}` |") for line in lines) for column in SYNTHETIC.names)
    assert all(any(line.startswith(f"| {reason} |") for line in lines) for reason in REASONS)
    section = lines.index("### [ingest.expect]")
    assert (
        sum(line.startswith(("| `train` |", "| `val` |", "| `classes` |")) for line in lines[section : section + 9])
        == 3
    )


def test_reference_shows_types_and_bounds() -> None:
    page = reference()
    assert "| `guidance_scale` | `10.0` | float, >= 1 | classifier-free guidance scale; 1: without guidance |" in page
    assert "| list of `minimax`, `rded`, `rded-stored` |" in page
    assert "| list of int |" in page
    assert "| `image` | `binary` | the file's bytes, PNG |" in page
