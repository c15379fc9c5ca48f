"""Knows the commands: plan, bench, run, submit, status, report, export and doctor."""

import argparse
import json
import os
import shlex
import signal
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from vlcp_ray import trackers
from vlcp_ray.arguments import parser
from vlcp_ray.config import Job, load_job
from vlcp_ray.cost.table import cost_lines
from vlcp_ray.lease import signs
from vlcp_ray.logs import place
from vlcp_ray.needs import needs
from vlcp_ray.pipeline import STAGE_NAMES, STAGES, graph, preflight, run, state
from vlcp_ray.scale import load_scale
from vlcp_ray.settings import ConfigError
from vlcp_ray.store import Step, Store

_JOB_MARK = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray sets it for the driver of a submitted job
_BAD_SETTINGS = 2  # exit code, as argparse uses it for wrong arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Returns 0, 1 where the work failed, 2 where the settings cannot be used."""
    arguments = parser(_COMMANDS).parse_args(argv)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _interrupt)
    try:
        return int(arguments.command(arguments))
    except ConfigError as error:
        print(f"vlcp-ray: {error}", file=sys.stderr)
        return _BAD_SETTINGS
    except Exception as error:
        reason = _reason(error)
        if _is_rays(reason):  # no error of the work, but of the machines that did it
            said = (str(reason).strip() or type(reason).__name__).splitlines()[0]
            told = f"the cluster gave up: {said} See ray status and its logs for why"
            print(f"\nvlcp-ray: {told}; the same command goes on from here{place(error)}", file=sys.stderr)
            return 1
        if not isinstance(reason, ValueError | OSError):
            raise
        told = str(reason)
        if isinstance(reason, OSError):
            said = " ".join(told.split())
            told = f"{type(reason).__name__}: {said}; mend that, and the same command goes on from here"
        print(f"\nvlcp-ray: {told}{place(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nvlcp-ray: stopped; the same command goes on from here", file=sys.stderr)
        return 128 + _stopped_by[-1]


_stopped_by: list[int] = [signal.SIGINT]


def _interrupt(number: int, _: object) -> None:
    """`ray job stop` and a machine that shuts down send SIGTERM: a run then ends as by Ctrl-C, everything put away."""
    _stopped_by.append(number)  # Ray's waiting raises an exception of its own, which does not say by what
    raise KeyboardInterrupt


def _reason(error: BaseException) -> BaseException:
    """What a worker has really raised, beneath the layers in which Ray hands it on; what that came from is no news."""
    if not _is_rays(error):
        return error
    inner = getattr(error, "cause", None) or error.__cause__
    return _reason(inner) if isinstance(inner, BaseException) else error


def _is_rays(error: BaseException) -> bool:
    return type(error).__module__.partition(".")[0] == "ray"


def _open(arguments: argparse.Namespace) -> tuple[Job, Store, tuple[Step, ...]]:
    job = load_job(arguments.job, arguments.set)
    preflight(job)
    try:
        store = Store.at(arguments.root)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return job, store, graph(job)


def _plan(arguments: argparse.Namespace) -> int:
    scale = load_scale(arguments.scale) if arguments.scale else None
    job, store, steps = _open(arguments)
    does = {stage.name: stage.does for stage in STAGES}
    told: set[str] = set()
    print(f"{'artifact':<34} {'fingerprint':<14} {'state':<9}")
    for step in _in_order(steps):
        note = "" if step.stage in told else does[step.stage]
        told.add(step.stage)
        print(f"{step.title:<34} {step.fingerprint:<14} {state(store, step):<9} {note}".rstrip())
    todo = sum(state(store, step) != "done" for step in steps)
    print(f"\n{todo} of {len(steps)} artifacts to make under {store.path}")
    print(*needs(job, steps).lines(), *cost_lines(job, store, steps, scale), sep="\n")
    return 0


def _bench(arguments: argparse.Namespace) -> int:
    from vlcp_ray.flow import bench

    scale = load_scale(arguments.scale) if arguments.scale else None
    job, store, steps = _open(arguments)
    return bench.bench(job, store, {step.stage for step in steps}, scale, arguments.only, arguments.random)


def _run(arguments: argparse.Namespace) -> int:
    if _JOB_MARK in os.environ:
        _check_root(arguments.root)
    scale = load_scale(arguments.scale) if arguments.scale else None
    job, store, _ = _open(arguments)
    from vlcp_ray import live

    trackers.check(arguments.track)
    with live.view(plain=arguments.ray_logs) as view:
        told = {"view": view, "track": arguments.track, "ray_logs": arguments.ray_logs}
        for step in run(job, store, arguments.to, scale, command=command_of(arguments), **told):
            view.say(step.title, _counts(store.artifact(step).manifest() or {}))
    if arguments.to == STAGE_NAMES[-1]:
        return _report(argparse.Namespace(**vars(arguments), json=False))
    return 0


def command_of(arguments: argparse.Namespace) -> str:
    """What a person types to have the same again."""
    parts = ["vlcp-ray", "run", arguments.job]
    parts += [part for override in arguments.set for part in ("--set", override)]
    parts += ["--scale", arguments.scale] if arguments.scale else []
    return shlex.join([*parts, *(["--root", arguments.root] if arguments.root != "runs" else [])])


def _check_root(root: str) -> None:
    if "://" not in root:
        raise ConfigError(
            f"--root {root}: a job runs on other machines, in a folder that is thrown away; give a URI that they all "
            "reach: s3://bucket/runs, gs://bucket/runs, or file:///shared/runs for a folder that they share"
        )


def _submit(arguments: argparse.Namespace) -> int:
    from vlcp_ray.flow import submit

    _check_root(arguments.root)
    job = load_job(arguments.job, arguments.set)
    preflight(job)
    if arguments.scale:
        load_scale(arguments.scale)
    options = ["--root", arguments.root, "--to", arguments.to]
    options += [part for override in arguments.set for part in ("--set", override)]
    options += (["--track", arguments.track] if arguments.track else []) + ["--ray-logs"] * arguments.ray_logs
    return submit.submit(
        arguments.job,
        job,
        options,
        scale=arguments.scale,
        address=arguments.address,
        environment=arguments.env,
        wait=not arguments.detach,
    )


def _status(arguments: argparse.Namespace) -> int:
    _, store, steps = _open(arguments)
    mine = [sign for sign in signs(store) if sign.makes & {step.fingerprint for step in steps}]
    at_work = {made for sign in mine if sign.fresh and sign.reading for made in sign.reading.makes}
    for step in _in_order(steps):
        manifest = store.artifact(step).manifest()
        now = state(store, step)
        shown = "running" if now != "done" and step.fingerprint in at_work else now
        print(f"{step.title:<34} {shown:<9} {_counts(manifest) if manifest else ''}".rstrip())
    for sign in mine:
        print(f"\n{sign}")
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from vlcp_ray.schemas import SCORES
    from vlcp_ray.scores import score_table, scores_json

    _, store, steps = _open(arguments)
    import pyarrow as pa

    scores = pa.concat_tables([store.artifact(s).table("scores", SCORES) for s in steps if s.stage == "evaluate"])
    if arguments.json:
        print(json.dumps(scores_json(scores), indent=2))
        return 0
    if not len(scores):
        print(
            f"vlcp-ray: no scores yet under {_shown(store.path)}; start with: vlcp-ray run {arguments.job}",
            file=sys.stderr,
        )
        return 1
    print(f"\n{score_table(scores)}")
    page = store.artifact(steps[-1])
    if page.manifest() is not None:
        print(f"\nreport: {_shown(page.path)}/index.html")
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from vlcp_ray.exports import job as exports

    if not arguments.to and not arguments.push_to_hub:
        raise ConfigError("say where it goes: --to FOLDER, or --push-to-hub OWNER/NAME")
    job, store, steps = _open(arguments)
    parts = [text.partition("=") for text in arguments.set]
    sets = "".join(f" --set {shlex.quote(f'{key}={exports.public(value)}')}" for key, _, value in parts)
    choice = exports.Choice(
        arguments.format,
        arguments.method,
        arguments.seed,
        arguments.ipc,
        arguments.license,
        f"vlcp-ray run {exports.public(arguments.job)}{sets}",
    )
    with tempfile.TemporaryDirectory() as folder:
        to = arguments.to or folder
        if arguments.push_to_hub and "://" in to:
            raise ConfigError(f"--to {to}: the hub takes a folder of this machine; leave --to out")
        print(f"{exports.export(job, store, steps, choice, exports.opened(to))}{f': {to}' if arguments.to else ''}")
        if arguments.push_to_hub:
            print(exports.push(to, arguments.push_to_hub, arguments.format))
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from vlcp_ray import doctor

    return doctor.main(arguments.root, arguments.fix)


def _in_order(steps: Sequence[Step]) -> list[Step]:
    return sorted(steps, key=lambda step: STAGE_NAMES.index(step.stage))


def _counts(manifest: dict[str, Any]) -> str:
    counts = f"{manifest['rows_in']:>7,} in = {manifest['rows']:,} out + {manifest['rejected']:,} rejected"
    return f"{counts:<44} {manifest['seconds']:7.1f} s"


def _shown(path: str) -> str:
    """A path as a person would type it from here."""
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except ValueError:
        return path


_COMMANDS: Final = {
    "plan": _plan,
    "bench": _bench,
    "run": _run,
    "submit": _submit,
    "status": _status,
    "report": _report,
    "export": _export,
    "doctor": _doctor,
}


if __name__ == "__main__":
    sys.exit(main())
