"""Tests of GPUs: their short names, and what the driver of this machine says."""

import os
from pathlib import Path

import pytest

from vlcp_ray.cost.gpus import gpu_kind, query_gpus


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", "L40S"),
        ("Tesla T4", "T4"),
        ("NVIDIA GeForce RTX 3090", "RTX 3090"),
        ("NVIDIA RTX A6000", "RTX A6000"),
        ("X", "X"),
    ],
)
def test_kind_of_a_gpu_name_is_its_short_name(name: str, kind: str) -> None:
    assert gpu_kind(name) == kind


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A command like that of NVIDIA's driver, which writes its arguments to a file."""
    command = tmp_path / "nvidia-smi"
    command.write_text(
        f'#!/bin/sh\necho "$@" > {tmp_path}/arguments\n'
        "echo 'NVIDIA GeForce RTX 3090, 24576'\necho 'NVIDIA A100, 80GB, 81920'\necho 'NVIDIA X, [N/A]'\n"
    )
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return command


def test_query_gpus_returns_names_and_memory(driver: Path) -> None:
    assert query_gpus() == [("NVIDIA GeForce RTX 3090", 24.0), ("NVIDIA A100, 80GB", 80.0)]
    assert "--id" not in (driver.parent / "arguments").read_text()


def test_query_gpus_asks_only_for_those_of_the_process(driver: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,GPU-abc")
    assert len(query_gpus()) == 2
    assert "--id=1,GPU-abc" in (driver.parent / "arguments").read_text()
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert query_gpus() == []


def test_query_gpus_without_a_working_driver_finds_none(driver: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver.write_text("#!/bin/sh\necho 'Failed to initialize NVML: Driver/library version mismatch'\nexit 18\n")
    assert query_gpus() == []
    monkeypatch.setenv("PATH", "/nowhere")
    assert query_gpus() == []
