"""Knows the command line: plan, bench, run, submit, status, report, export and doctor."""

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
from typing import Any

from vlcp_ray import __version__
from vlcp_ray.config import Job, load_job
from vlcp_ray.cost.table import cost_lines
from vlcp_ray.needs import needs
from vlcp_ray.pipeline import STAGE_NAMES, STAGES, graph, preflight, run, state
from vlcp_ray.scale import load_scale
from vlcp_ray.settings import ConfigError
from vlcp_ray.store import Step, Store

_JOB_MARK = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray sets it for the driver of a submitted job
FORMS = ("imagefolder", "parquet", "webdataset", "descriptions", "model")
WORKS = ("ingest", "caption", "encode", "finetune", "prototype", "generate", "decode", "evaluate")  # of `bench`
_BAD_SETTINGS = 2  # exit code, as argparse uses it for wrong arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Returns 0, 1 where the work failed, 2 where the settings cannot be used."""
    arguments = _parser().parse_args(argv)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _interrupt)
    try:
        return int(arguments.command(arguments))
    except ConfigError as error:
        print(f"vlcp-ray: {error}", file=sys.stderr)
        return _BAD_SETTINGS
    except Exception as error:
        reason = _reason(error)
        if type(reason).__module__.partition(".")[0] == "ray":  # no error of the work, but of the machines that did it
            told = f"the cluster gave up: {str(reason).splitlines()[0]} See ray status and its logs for why"
            print(f"\nvlcp-ray: {told}; the same command goes on from here", file=sys.stderr)
            return 1
        if not isinstance(reason, ValueError):
            raise
        print(f"\nvlcp-ray: {reason}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print("\nvlcp-ray: stopped; the same command goes on from here", file=sys.stderr)
        return 128 + (stop.args[0] if stop.args else signal.SIGINT)


def _interrupt(number: int, _: object) -> None:
    """`ray job stop` and a machine that shuts down send SIGTERM: a run then ends as by Ctrl-C, everything put away."""
    raise KeyboardInterrupt(number)


def _reason(error: BaseException) -> BaseException:
    """What a worker has really raised, beneath the layers in which Ray hands it on."""
    inner = getattr(error, "cause", None) or error.__cause__
    return _reason(inner) if isinstance(inner, BaseException) else error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vlcp-ray", description="Distil a labelled image set into a tiny one.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function: Any, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=function)
        if name != "doctor":
            sub.add_argument("job", metavar="JOB", help="a job file, e.g. jobs/digits.toml")
            sub.add_argument(
                "--set", action="append", default=[], metavar="KEY=VALUE", help="e.g. generate.strength=0.5"
            )
        sub.add_argument(
            "--root", default="runs", metavar="URI", help="where artifacts lie: a folder, s3://, gs:// (runs)"
        )
        return sub

    planner = command("plan", _plan, "show the stages, their fingerprints, what will run and what it costs")
    runner = command("run", _run, "run the job, or go on where it stopped")
    sender = command("submit", _submit, "run the job on a cluster, through Ray's Jobs API")
    for sub in (runner, sender):
        sub.add_argument(
            "--to", choices=STAGE_NAMES, default=STAGE_NAMES[-1], metavar="STAGE", help="stop after a stage"
        )
    bench = command("bench", _bench, "measure how fast this machine does the job's work; `plan` then counts with it")
    bench.add_argument("--only", action="append", metavar="WORK", choices=WORKS, help="one kind of work, or several")
    bench.add_argument("--random", action="store_true", help="with random weights of the paper's sizes: no download")
    for sub in (planner, runner, sender, bench):
        sub.add_argument("--scale", metavar="FILE", help="workers, GPUs and batches per stage; default: what is there")
    sender.add_argument("--address", metavar="URL", help="of the cluster's dashboard (http://127.0.0.1:8265)")
    sender.add_argument(
        "--env",
        choices=("image", "cpu", "gpu"),
        default="image",
        help="what the machines have: everything (image), or Ray installs the dependencies of an extra there",
    )
    sender.add_argument("--detach", action="store_true", help="come back once the job is accepted")
    command("status", _status, "show rows, rejected rows and seconds of every stage")
    report = command("report", _report, "print the scores and where the report is")
    report.add_argument("--json", action="store_true", help="the scores as a list of objects")
    export = command("export", _export, "write a distilled set, the descriptions or the model as others open them")
    export.add_argument("--format", required=True, choices=FORMS, help="what, and for whom")
    export.add_argument("--to", metavar="URI", help="an empty folder, or a URI as --root takes it")
    export.add_argument("--method", default="vlcp", help="which of the job's sets (vlcp)")
    export.add_argument("--seed", type=int, help="of the set or the model (the job's first)")
    export.add_argument("--ipc", type=int, help="images per class (the job's most)")
    export.add_argument("--license", default="other", metavar="ID", help="for the card, as the hub writes it: mit")
    export.add_argument("--push-to-hub", metavar="OWNER/NAME", help="upload it to the Hugging Face hub")
    doctor = command("doctor", _doctor, "check this machine, with a cure for each problem")
    doctor.add_argument("--fix", action="store_true", help="repair a torchvision that does not fit a CPU torch")
    return parser


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
    print(*needs(job, {step.stage for step in steps}).lines(), *cost_lines(job, store, steps, scale), sep="\n")
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
    for step in run(job, store, arguments.to, scale):
        print(f"{step.title:<28} {_counts(store.artifact(step).manifest() or {})}", flush=True)
    if arguments.to == STAGE_NAMES[-1]:
        return _report(argparse.Namespace(**vars(arguments), json=False))
    return 0


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
    for step in _in_order(steps):
        artifact = store.artifact(step)
        manifest = artifact.manifest()
        print(f"{step.title:<34} {state(store, step):<9} {_counts(manifest) if manifest else ''}".rstrip())
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
        print(f"vlcp-ray: no scores yet; start with: vlcp-ray run {arguments.job}", file=sys.stderr)
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


if __name__ == "__main__":
    sys.exit(main())
