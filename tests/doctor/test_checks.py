"""Tests of the doctor's checks, on real processes, folders and imports."""

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from vlcp_ray.doctor import checks
from vlcp_ray.doctor.checks import Finding
from vlcp_ray.settings import ConfigError


def test_storage_of_a_writable_root_is_ok_and_leaves_no_file(tmp_path: Path) -> None:
    for root in (str(tmp_path / "new"), (tmp_path / "uri").as_uri()):
        assert next(checks.storage(root)).state == "ok"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_storage_of_an_unwritable_root_is_wrong_and_names_the_option(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for root in (str(tmp_path / "file" / "runs"), "nowhere://bucket/runs"):
        (finding,) = checks.storage(root)
        assert finding.state == "wrong"
        assert "--root" in finding.fix


def test_main_exits_1_after_one_wrong_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(checks, "IMPORTS", {"json": "import json"})  # the large ones take half a minute
    monkeypatch.setattr(checks, "_TORCH", "print('none')")
    monkeypatch.setattr(checks, "versions", lambda: iter(()))  # this environment may lack packages of an extra
    assert checks.main(str(tmp_path / "runs")) == 0
    (tmp_path / "file").touch()
    assert checks.main(str(tmp_path / "file" / "runs")) == 1
    assert "-> give a --root" in capsys.readouterr().out


def test_pinned_compares_the_installed_version_with_the_pin() -> None:
    version = metadata.version("torch")
    assert checks.pinned("torch", version).state == "ok"
    assert checks.pinned("torch", version.partition("+")[0]).state == "ok"
    assert "make setup" in checks.pinned("torch", "1.0").fix
    assert checks.pinned("no-such-package", "1.0").found == "not installed"
    assert all(finding.name and finding.found for finding in checks.versions())


def test_imports_after_a_crash_tries_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    crash = "import os; os.kill(os.getpid(), 11)"
    imports = {"first": "import json", "crash": crash, "missing": "import no_such_module", "last": "import csv"}
    monkeypatch.setattr(checks, "IMPORTS", imports)
    findings = list(checks.imports())
    assert [(f.name, f.state) for f in findings] == [
        ("import first", "ok"),
        ("import crash", "wrong"),
        ("import missing", "wrong"),
        ("import last", "ok"),
    ]
    assert findings[2].found == "ModuleNotFoundError: No module named 'no_such_module'"


def test_table_aligns_columns_and_marks_hints() -> None:
    lines = checks.table([Finding("a", "1"), Finding("longer", "2", "do this", hint=True)]).splitlines()
    assert lines == ["ok     a       1", "hint   longer  2", "               -> do this"]


@pytest.mark.parametrize(
    ("mode", "found"), [(0o600, None), (0o644, "can be read by others"), (0o666, "can be changed")]
)
def test_token_that_others_read_is_a_hint(
    mode: int, found: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "auth_token"
    file.write_text("0" * 64)
    file.chmod(mode)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(file))
    findings = list(checks.token())
    assert [finding.state for finding in findings] == (["hint"] if found else [])
    assert all(str(found) in finding.found and f"chmod 600 {file}" in finding.fix for finding in findings)


@pytest.mark.parametrize(
    ("cuda", "driver", "fix"),
    [
        ("13.0", "580.65.06", ""),
        ("13.0", "570.124.06", "a torch for CUDA 13.0 needs NVIDIA's driver 580 or newer: install it"),
        ("12.8", "570.124.06", ""),
        ("12.8", "470.223.02", "needs NVIDIA's driver 525 or newer"),
        ("none", "470.223.02", ""),
    ],
)
def test_torch_build_compares_the_driver_with_cuda(
    cuda: str, driver: str, fix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "version"
    file.write_text(
        f"NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {driver}  Release Build\n"
        "GCC version:  gcc version 12.3.0 (Ubuntu 12.3.0-1ubuntu1)\n"
    )
    monkeypatch.setattr(checks, "DRIVER", file)
    monkeypatch.setattr(checks, "_TORCH", f"print('{cuda};NVIDIA L4')")
    build, found, gpus = checks.torch_build()
    assert (found.name, found.found, found.state) == ("NVIDIA driver", driver, "wrong" if fix else "ok")
    assert fix in found.fix
    assert (gpus.found, build.state) == ("NVIDIA L4", "ok")


def test_torch_build_names_a_gpu_that_torch_does_not_find(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "DRIVER", tmp_path / "missing")
    monkeypatch.setattr(checks, "GPU_DEVICE", tmp_path)
    monkeypatch.setattr(checks, "_TORCH", "print('none')")
    assert [finding.name for finding in checks.torch_build()] == ["torch build", "GPUs"]
    assert "EXTRA=gpu" in list(checks.torch_build())[-1].fix


def write_packages(folder: Path, cuda: str, links: bytes) -> None:
    (folder / "torch").mkdir()
    (folder / "torch" / "version.py").write_text(f"debug = False\ncuda: Optional[str] = {cuda}\nhip = None\n")
    (folder / "torchvision").mkdir()
    (folder / "torchvision" / "_C.so").write_bytes(b"\x7fELF" + links + b"\0libc.so.6\0")


@pytest.mark.parametrize(
    ("cuda", "links", "repaired", "wrong"),
    [
        ("None", b"libtorch_cuda.so", False, True),
        ("None", b"libtorch_cuda.so", True, False),
        ("None", b"libtorch_cpu.so", False, False),
        ("'13.0'", b"libtorch_cuda.so", False, False),
    ],
    ids=["foreign build", "repaired", "build for CPUs", "build for CUDA"],
)
def test_check_run_refuses_a_torchvision_of_another_build(
    cuda: str, links: bytes, repaired: bool, wrong: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_packages(tmp_path, cuda, links)
    (tmp_path / checks.START).write_text("") if repaired else None
    monkeypatch.setattr(checks, "_package_folder", lambda name: tmp_path / name)
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"purelib": str(tmp_path)})
    monkeypatch.setattr(checks, "DRIVER", tmp_path / "missing")
    monkeypatch.setattr(checks, "GPU_DEVICE", tmp_path / "missing")
    if wrong:
        with pytest.raises(ConfigError, match=r"^torchvision: a build for CUDA, .*; run `vlcp-ray doctor --fix`$"):
            list(checks.check_run([]))
    else:
        assert not [line for line in checks.check_run([]) if line.startswith(("torchvision", "GPUs"))]


def test_check_run_names_missing_packages_and_other_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ConfigError, match=r"^no_such_package: not installed in the environment of .*; run `make setup`$"
    ):
        list(checks.check_run(["json", "no_such_package"]))
    monkeypatch.setattr(checks, "versions", lambda: [checks.pinned("numpy", "0.1"), checks.pinned("no-such", "1")])
    (line,) = (line for line in checks.check_run(["json"]) if "versions" in line)
    assert line == f"not the tested versions: numpy {metadata.version('numpy')}; run `make setup`"


def test_check_run_of_this_environment_is_quick_and_imports_nothing() -> None:
    code = (
        "import sys, time; from vlcp_ray.doctor.checks import check_run; start = time.process_time(); "
        "list(check_run(['ray', 'torch', 'transformers', 'diffusers'])); "
        "print(time.process_time() - start, *sorted({'ray', 'torch', 'transformers', 'diffusers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, *imported = done.stdout.split()
    assert imported == []
    assert float(seconds) < 0.5
