"""Tests of NOTICE: it names all weights and data of the package, and is in the wheel and the source archive."""

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def shipped() -> list[str]:
    """All files of the package that are not Python code."""
    found = (path for path in (ROOT / "vlcp_ray").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return sorted(str(path.relative_to(ROOT)) for path in found if path.suffix != ".py")


def named() -> list[str]:
    """The patterns of NOTICE: indented lines that are a path of the package."""
    return re.findall(r"^ {4}(vlcp_ray/\S+)$", (ROOT / "NOTICE").read_text(encoding="utf-8"), re.MULTILINE)


def matches(file: str, pattern: str) -> bool:
    """Whether a pattern names a file, where `*` stands for a part of one name."""
    parts, wanted = file.split("/"), pattern.split("/")
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))


def test_notice_names_each_shipped_file_once() -> None:
    count = {file: sum(matches(file, pattern) for pattern in named()) for file in shipped()}
    assert {file: number for file, number in count.items() if number != 1} == {}
    assert {"vlcp_ray/demo/llava/model.safetensors", "vlcp_ray/sources/lists/imagenet1k.tsv"} <= count.keys()


def test_notice_names_nothing_that_is_not_shipped() -> None:
    assert [pattern for pattern in named() if not any(matches(file, pattern) for file in shipped())] == []


def test_each_part_of_the_notice_has_a_licence_or_a_source() -> None:
    text = (ROOT / "NOTICE").read_text(encoding="utf-8")
    for paths, said in re.findall(r"((?:^ {4}vlcp_ray/\S+\n)+)\n((?:^\S.*\n)+)", text, re.MULTILINE):
        assert re.search(r"Apache-2\.0|BSD|MIT|CC BY|licence of WordNet|papers? that|publishers", said), paths
    assert "Alpaydin" in text
    assert "CC BY 4.0" in text
    assert "Princeton University" in text


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """The names in the wheel and in the source archive, without their first folder in the latter."""
    folder = tmp_path_factory.mktemp("build")
    source, out = folder / "source", folder / "out"
    out.mkdir()
    shutil.copytree(ROOT / "vlcp_ray", source / "vlcp_ray", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    build = (
        "import sys; from setuptools import build_meta as b; out = sys.argv[1];b.build_wheel(out); b.build_sdist(out)"
    )
    done = subprocess.run([sys.executable, "-c", build, str(out)], cwd=source, capture_output=True, text=True)
    if "No module named 'setuptools'" in done.stderr:
        pytest.skip("setuptools is not installed")
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(next(out.glob("*.whl"))) as wheel, tarfile.open(next(out.glob("*.tar.gz"))) as sdist:
        return {
            "wheel": set(wheel.namelist()),
            "sdist": {name.partition("/")[2] for name in sdist.getnames()},
        }


def test_wheel_and_source_archive_have_the_notice(archives: dict[str, set[str]]) -> None:
    assert [name for name in archives["wheel"] if name.endswith(".dist-info/licenses/NOTICE")]
    assert {"NOTICE", "LICENSE"} <= archives["sdist"]


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_archives_have_all_files_of_the_package(kind: str, archives: dict[str, set[str]]) -> None:
    assert set(shipped()) <= archives[kind]
