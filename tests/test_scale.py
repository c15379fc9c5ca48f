"""Tests of the scale: derived from a machine, or read strictly from a file."""

import math
from pathlib import Path

import pytest

from vlcp_ray.config import load_job
from vlcp_ray.cost.memory import memory_needs
from vlcp_ray.scale import Scale, derive, load_scale, pools
from vlcp_ray.settings import ConfigError, shipped_files
from vlcp_ray.stages import STAGES

IMAGENETTE = load_job(Path(__file__).parents[1] / "jobs" / "imagenette.toml")
CLUSTERS = sorted((Path(__file__).parents[1] / "clusters").glob("*.toml"))


@pytest.mark.parametrize("gpus", [1, 2, 8, 64])
def test_derive_streaming_pools_fit_the_gpus(gpus: int) -> None:
    scale = derive(8 * gpus, gpus)
    streaming = [scale.caption, scale.encode]
    assert sum(pool.num_workers * pool.num_gpus for pool in streaming) <= gpus
    for pool in (scale.finetune, scale.generate, scale.evaluate):
        assert 0 < pool.num_workers * pool.num_gpus <= gpus


@pytest.mark.parametrize(("cpus", "gpus"), [(2, 1), (8, 8), (4, 8), (96, 8), (1, 1)])
def test_derive_with_few_cpus_shares_them(cpus: int, gpus: int) -> None:
    scale = derive(cpus, gpus)
    room = max(cpus, gpus / 2)  # half a CPU is the least that a worker with a GPU gets
    for together in ([scale.caption, scale.encode], [scale.finetune], [scale.generate], [scale.evaluate]):
        assert sum(pool.num_workers * pool.num_cpus for pool in together) <= max(room, 2 * scale.encode.num_cpus)
    assert scale.prototype.num_cpus <= cpus


@pytest.mark.parametrize("gib", [12, 15, 16, 22.5, 24, 39.6, 45, 48, 79.6])
@pytest.mark.parametrize(("cpus", "gpus"), [(4, 1), (8, 1), (16, 1), (16, 4), (64, 8)])
def test_derive_for_a_gpu_of_any_size_fits_its_memory(gib: float, cpus: int, gpus: int) -> None:
    scale = derive(cpus, gpus, gib)
    for need in memory_needs(IMAGENETTE, list(STAGES), scale):
        available = getattr(scale, need.pool).num_gpus * 0.98 * gib - 1
        assert need.gib <= available or need.use == "caption"
        assert not math.isnan(need.gib)
    assert scale.finetune.batch_size >= 4
    assert scale.encode.batch_size >= 4


def test_derive_saves_memory_in_fine_tuning_only_where_it_must() -> None:
    saved = {gib: derive(8, 1, gib).finetune for gib in (12, 15, 16, 22.5, 24, 39.6)}
    assert {gib: (f.gradient_checkpointing, f.average_on, f.optimizer) for gib, f in saved.items()} == {
        12: (True, "cpu", "adamw8bit"),
        15: (True, "cpu", "adamw8bit"),
        16: (True, "cpu", "adamw"),
        22.5: (True, "gpu", "adamw"),
        24: (True, "gpu", "adamw"),
        39.6: (False, "gpu", "adamw"),
    }


@pytest.mark.parametrize(("cpus", "gpus"), [(4, 1), (8, 1), (16, 1), (16, 4), (16, 8), (64, 8), (8, 8)])
def test_derive_leaves_cpus_for_reads_and_writes(cpus: int, gpus: int) -> None:
    scale = derive(cpus, gpus)
    for together in ([scale.caption, scale.encode], [scale.finetune], [scale.generate], [scale.evaluate]):
        assert sum(pool.num_workers * pool.num_cpus for pool in together) <= cpus - 1


@pytest.mark.parametrize("cpus", [1, 2, 16, 96])
def test_derive_without_gpus_uses_cpus_only(cpus: int) -> None:
    scale = derive(cpus, 0)
    assert all(pool.num_gpus == 0 for pool in pools(scale).values())
    assert scale.evaluate.num_workers == cpus


@pytest.mark.parametrize("path", CLUSTERS, ids=lambda path: path.stem)
def test_load_scale_of_every_shipped_file_is_valid(path: Path) -> None:
    assert load_scale(str(path)) != Scale()


def test_load_scale_by_name_is_that_of_the_file() -> None:
    folder = CLUSTERS[0].parent
    assert set(shipped_files("clusters")) == {*(path.stem for path in CLUSTERS), "kuberay"}
    assert load_scale("aws") == load_scale(str(folder / "aws.toml"))
    assert load_scale("kuberay") == load_scale(str(folder / "kuberay" / "scale.toml"))
    with pytest.raises(ConfigError, match="azure: no such scale file; `vlcp-ray jobs` lists them"):
        load_scale("azure")


def test_load_scale_with_unknown_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "scale.toml"
    path.write_text("[caption]\nworkers = 2\n")
    with pytest.raises(ConfigError, match=r"unknown setting 'caption.workers'; did you mean 'num_workers'\?"):
        load_scale(str(path))


def test_two_core_file_equals_the_derived_scale() -> None:
    assert load_scale(str(CLUSTERS[0].parent / "two-cores.toml")) == derive(2, 0)


def test_pool_with_min_workers_starts_with_them(tmp_path: Path) -> None:
    path = tmp_path / "scale.toml"
    path.write_text("[caption]\nnum_workers = 8\nmin_workers = 2\nnum_gpus = 1\n")
    scale = load_scale(str(path))
    assert (scale.caption.required_workers, scale.encode.required_workers) == (2, 1)
    assert str(scale.caption) == "2 to 8 x 1 CPU 1 GPU, batch 32"
    path.write_text("[caption]\nnum_workers = 2\nmin_workers = 8\n")
    with pytest.raises(ConfigError, match="min_workers must be at most num_workers, 2, not 8"):
        load_scale(str(path))
