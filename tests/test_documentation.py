"""Tests of the documentation: a heading for what people look for, links that lead somewhere, job files that load."""

import re
import subprocess
from pathlib import Path

import pytest

from vlcp_ray.config import load_job

ROOT = Path(__file__).parents[1]
#: What people look for, and the word of a heading that answers it.
QUESTIONS = {
    "README.md": ["Installation", "First run", "Your own images", "Resuming", "Citing"],
    "clusters/README.md": ["One GPU", "Costs", "AWS", "Google Cloud", "Kubernetes", "Resuming", "Troubleshooting"],
    "clusters/slurm/README.md": ["Slurm", "Troubleshooting"],
    "CONTRIBUTING.md": ["Adding a method"],
}


def _pages() -> list[Path]:
    """The pages that are, or will be, committed."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    return [ROOT / name for name in listed]


def _headings(page: Path) -> list[str]:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)


def _anchor(heading: str) -> str:
    """The anchor of a heading, by GitHub's rule."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", QUESTIONS)
def test_each_question_has_a_heading(page: str) -> None:
    headings = " | ".join(_headings(ROOT / page))
    assert [question for question in QUESTIONS[page] if question not in headings] == []


def test_links_lead_to_files_and_headings_that_exist() -> None:
    pages, broken, count = _pages(), [], 0
    for page in pages:
        for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            if "://" in link or link.startswith("mailto:"):
                continue
            name, _, anchor = link.partition("#")
            target, count = page.parent / name if name else page, count + 1
            if not target.exists() or (anchor and anchor not in map(_anchor, _headings(_readme(target)))):
                broken.append(f"{page.relative_to(ROOT)}: {link}")
    assert broken == []
    assert count > 40


def _readme(target: Path) -> Path:
    return target / "README.md" if target.is_dir() else target


def test_job_file_for_your_own_images_loads(tmp_path: Path) -> None:
    (text,) = re.findall(r"^```toml\n(.*?)^```", (ROOT / "README.md").read_text(), flags=re.MULTILINE | re.DOTALL)
    (tmp_path / "pets.toml").write_text(text)
    job = load_job(tmp_path / "pets.toml")
    assert job.name == "pets"
    assert job.ingest.source == "pets"
    assert job.model_note() == ""
    assert "know no photograph" in load_job("digits", ["ingest.source=pets"]).model_note()
