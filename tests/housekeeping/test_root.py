"""Tests of what is listed under a root: runs with their artifacts, sizes, states and dates, and few requests."""

import os
import socket
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.housekeeping.conftest import STRONGER, steps_of, write, write_log
from tests.s3 import Proxy
from vlcp_ray.housekeeping.root import artifact_table, find_runs, read_root, table
from vlcp_ray.store.artifact import Store
from vlcp_ray.store.lease import acquire_lease


def lines(store: Store, artifacts: bool = False) -> dict[str, str]:
    """The lines of the table by their first word."""
    root = read_root(store)
    return {line.split()[0]: line for line in table(root, find_runs(root), artifacts) if line}


def test_table_has_a_line_for_each_run_and_counts_shared_artifacts_once_in_the_sum(tmp_path: Path) -> None:
    store, steps, others = Store.at(str(tmp_path)), steps_of(), steps_of(STRONGER)
    for step in {step.fingerprint: step for step in (*steps, *others)}.values():
        write(store, step)
    root = read_root(store)
    runs = find_runs(root)
    assert sorted(run.report for run in runs) == sorted([steps[-1].folder, others[-1].folder])
    assert {run.needs for run in runs} == {frozenset(step.folder for step in some) for some in (steps, others)}
    shown = list(table(root, runs))
    assert [line.split()[:4] for line in shown[1:3]] == [["digits", "19", "of", "19"]] * 2
    assert all("complete" in line for line in shown[1:3])
    count = len({step.fingerprint for step in (*steps, *others)})
    assert shown[3].split()[:3] == ["all", "artifacts", str(count)]
    assert shown[3].split()[5:7] == [str(count), "complete"]


def test_table_states_what_is_missing_running_and_in_no_run(tmp_path: Path) -> None:
    store, steps = Store.at(str(tmp_path)), steps_of()
    made = [step for step in steps if step.stage in ("ingest", "pair", "report")]
    for step in made:
        write(store, step)
    write(store, steps_of("seeds=[7]")[2], complete=False)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "pair-not-a-fingerprint").mkdir()
    (tmp_path / "pair-not-a-fingerprint" / "x").write_text("mine")
    shown = lines(store)
    assert "3 of 19" in shown["digits"]
    assert "16 artifacts missing" in shown["digits"]
    assert "1 started" in shown["in"]
    assert "2 " in shown["other"]
    assert "notes.txt, pair-not-a-fingerprint" in shown["other"]
    with acquire_lease(store, [made[1]]):
        assert " running " in lines(store)["digits"]
    by_name = lines(store, artifacts=True)
    assert by_name[made[0].folder].endswith("digits")
    assert len(list(artifact_table(read_root(store), [], []))) == 1


def test_find_runs_names_a_run_without_a_report_by_its_logs(tmp_path: Path) -> None:
    store, steps, others = Store.at(str(tmp_path)), steps_of(), steps_of(STRONGER)
    for step in steps[:2]:
        write(store, step)
    write_log(tmp_path, "digits", [steps[0]])
    write_log(tmp_path, "digits", [steps[1], steps[2]])  # of which the second has no folder
    (tmp_path / "logs" / "digits" / "pair" / "odd.log").write_bytes(b'\xff: {"makes": [1]}\n')
    (run,) = find_runs(read_root(store))
    assert (run.name, run.report, run.needs) == ("digits", "", {steps[0].folder, steps[1].folder})
    assert "no report yet" in lines(store)["digits"]

    for step in steps:  # logs that are older than the report tell nothing new
        write(store, step)
    for log in (tmp_path / "logs").rglob("*.log"):
        os.utime(log, (1, 1))
    (run,) = find_runs(read_root(store))
    assert run.report == steps[-1].folder
    generated = [step for step in others if step.stage == "generate"]
    write(store, generated[0], complete=False)
    write_log(tmp_path, "digits", generated)  # then another strength is begun
    assert find_runs(read_root(store))[1:] == [type(run)("digits", "", frozenset([generated[0].folder]))]


def test_damaged_manifest_of_a_report_is_no_run(tmp_path: Path) -> None:
    store, steps = Store.at(str(tmp_path)), steps_of()
    manifest = Path(write(store, steps[-1]).path) / "manifest.json"
    for content in ("{", "{}", '{"inputs": ["a"], "settings": {}}', '{"inputs": {}, "settings": "digits"}'):
        manifest.write_text(content)
        assert find_runs(read_root(store)) == []
        assert "1 complete" in lines(store)["in"]


def test_ls_of_s3_lists_the_root_and_reads_the_reports_only(s3_proxy: Proxy, tmp_path: Path) -> None:
    store, steps = Store.at(s3_proxy.uri(f"ls{tmp_path}")), steps_of("seeds=[0,1,2]")
    local = Store.at(str(tmp_path))
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda step: write(store, step), steps))
    for step in steps:
        write(local, step)
    before = s3_proxy.count()
    root = read_root(store)
    shown = list(table(root, find_runs(root)))
    assert s3_proxy.count() - before == Counter({"LIST": 2, "GET": 1})  # the root and its leases; one report
    root = read_root(local)
    assert [line.split()[:6] for line in shown] == [line.split()[:6] for line in table(root, find_runs(root))]


def test_read_root_knows_what_live_runs_make_and_read(tmp_path: Path) -> None:
    store, (first, second, *_) = Store.at(str(tmp_path)), steps_of()
    with acquire_lease(store, [second], reads=[first]):
        root = read_root(store)
        assert (root.running, root.read) == ({second.fingerprint}, {first.fingerprint})
        (lease,) = (tmp_path / "leases").glob("*.json")
        text = lease.read_text().replace(f'"pid": {os.getpid()}', '"pid": 999999999')
        assert socket.gethostname() in text
        lease.write_text(text)
        assert read_root(store).running == frozenset()
        lease.write_text(text.replace("999999999", str(os.getpid())))
