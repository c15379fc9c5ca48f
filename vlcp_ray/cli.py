"""The command line: jobs, inspect, caption, plan, bench, run, submit, status, report, score, export, and the rest."""

import argparse
import json
import math
import os
import re
import select
import shlex
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, redirect_stdout, suppress
from pathlib import Path
from typing import Final

import shtab

from vlcp_ray import __version__, api
from vlcp_ray.config import Job, load_caption, load_ingest, load_job, sample_overrides
from vlcp_ray.cost.flops import too_long_note
from vlcp_ray.cost.memory import check_memory
from vlcp_ray.cost.requirements import requirements
from vlcp_ray.cost.table import cost_lines, this_machine
from vlcp_ray.engine import JOB_MARK
from vlcp_ray.exports import FORMATS
from vlcp_ray.methods.vlcp import METHOD
from vlcp_ray.monitoring import trackers
from vlcp_ray.monitoring.logfiles import log_note
from vlcp_ray.monitoring.printable import printable
from vlcp_ray.pipeline import check_inputs, graph, image_set_lines, largest_ipc, state
from vlcp_ray.scale import Scale, load_scale
from vlcp_ray.scoring.scales import NORMALISATIONS, ZCA
from vlcp_ray.settings import SHIPPED, ConfigError, find_file, shipped_files
from vlcp_ray.stages import STAGES, pair, works
from vlcp_ray.stages.ingest import STAGE as INGEST
from vlcp_ray.store.artifact import Step, Store
from vlcp_ray.store.lease import active_leases
from vlcp_ray.store.uris import public, redact

_RAISED: Final = re.compile(r"[A-Za-z_][\w.]*(Error|Exception|Interrupt|Exit): ")  # the last line of a traceback
_BAD_SETTINGS: Final = 2  # exit code, as argparse uses it for wrong arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Returns 0, 1 if the work failed, 2 for unusable settings, 128 + signal if interrupted."""
    try:
        arguments = parser().parse_args(argv)
        _handle_signals()
        return _call(arguments)
    except Exception as error:
        _end_if_output_is_closed()
        cause = _cause(error)  # Ray's error of a worker is an instance of the class of its cause, too
        if sentence := _unusable(error, cause):
            print(f"vlcp-ray: {printable(redact(sentence))}", file=sys.stderr)
            return _BAD_SETTINGS
        if _is_from_ray(cause):  # an error of the machines, not of the work
            message = (
                f"the cluster failed: {_cluster_line(error, cause).rstrip('.')}; see `ray status` and Ray's logs, then "
                "re-run the same command to resume"
            )
        elif isinstance(cause, OSError):
            line = " ".join(str(cause).split())
            message = f"{type(cause).__name__}: {line}; fix this and re-run the same command to resume"
        elif isinstance(cause, ValueError):
            message = str(cause)
        else:
            _print_traceback(error)
            return 1
        print(f"\nvlcp-ray: {printable(redact(f'{message}{log_note(error)}'))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nvlcp-ray: stopped; re-run the same command to resume", file=sys.stderr)
        return 128 + next(iter(_signals), signal.SIGINT)
    finally:
        _end_if_output_is_closed()


def _end_if_output_is_closed() -> None:
    """End silently, with the exit code of SIGPIPE, where nobody reads the output any more (`vlcp-ray ls | head`)."""
    if sys.__stdout__ is None or sys.stdout is not sys.__stdout__:  # redirected within Python, as by contextlib
        return
    with suppress(BrokenPipeError):
        sys.stdout.flush()
    output = select.poll()
    output.register(1, 0)
    if any(event & select.POLLERR for _, event in output.poll(0)):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python flushes once more when it ends
        raise SystemExit(128 + signal.SIGPIPE)


def _call(arguments: argparse.Namespace) -> int:
    if getattr(arguments, "sample", 0) and isinstance(arguments.job, str):
        arguments.whole = arguments.set
        whole = load_job(arguments.job, arguments.set)
        arguments.set = [*arguments.set, *sample_overrides(whole, arguments.sample)]
    return int(arguments.command(arguments))


def _print_traceback(error: Exception) -> None:
    """Print an error that nobody expects in full, without secrets."""
    text = redact("".join(traceback.format_exception(error)))
    print(printable(text, keep="\n\t"), end="", file=sys.stderr)


#: Those that this command has got.
_signals: list[int] = []
_SHOW_CURSOR: Final = b"\x1b[?25h"


def _handle_signals() -> None:
    _signals.clear()
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as of a shell's background jobs
                signal.signal(number, _interrupt)


def _interrupt(number: int, _: object) -> None:
    """End a run in order: on Ctrl-C, and on SIGTERM, which `ray job stop` and a machine that shuts down send.

    The second signal says that this is under way, the third one ends the process at once.
    """
    _signals.append(number)  # Ray may replace the exception by one without the signal
    if len(_signals) == 1:
        raise KeyboardInterrupt
    if len(_signals) == 2:
        os.write(2, b"\nvlcp-ray: stopping, in some seconds; Ctrl-C once more ends it at once\n")
        return
    if os.isatty(1):
        os.write(1, _SHOW_CURSOR)
    os._exit(128 + _signals[0])


def _cause(error: BaseException) -> BaseException:
    """Return the error that a worker raised, without the layers in which Ray wraps it."""
    if not _is_from_ray(error):
        return error
    inner = getattr(error, "cause", None) or error.__cause__
    is_mark = type(inner).__module__ == "ray.data.exceptions"  # not a cause: says only where the error is from
    return _cause(inner) if isinstance(inner, BaseException) and not is_mark else error


def _unusable(error: BaseException, cause: BaseException) -> str:
    """Return the sentence of an error in the settings or the environment; empty for any other error."""
    if _is_from_ray(cause):  # an actor that could not start: Ray has the text of its error only
        kind, _, text = _cluster_line(error, cause).partition(": ")
        return text if kind.rpartition(".")[2] == ConfigError.__name__ else ""
    if isinstance(cause, ImportError):
        return f"a package cannot be imported ({cause}); run `vlcp-ray doctor` here and on the workers"
    return str(cause) if isinstance(cause, ConfigError) else ""


def _cluster_line(error: BaseException, cause: BaseException) -> str:
    """Return the line of an error of Ray that says what happened.

    Where an actor could not start, or a batch failed, that is the error at the end of the worker's traceback.
    """
    lines = str(cause).strip().splitlines() or [type(cause).__name__]
    if "creation task" in lines[0] or lines[0].startswith("UDF failed"):
        raised = [line for line in str(error).splitlines() if _RAISED.match(line)]
        return next((line for line in reversed(raised) if "UserCodeException" not in line), lines[0])
    return lines[0].strip()


def _is_from_ray(error: BaseException) -> bool:
    return type(error).__module__.partition(".")[0] == "ray"


def _open(arguments: argparse.Namespace) -> tuple[Job, Store, tuple[Step, ...]]:
    job = load_job(arguments.job, arguments.set)
    return job, *api.open_store(job, arguments.root)


def _jobs(_: argparse.Namespace) -> int:
    """List the jobs and the scale files of the package."""
    for folder, what in SHIPPED.items():
        files = shipped_files(folder)
        print(f"{what}s{', for --scale' if folder != 'jobs' else ''}:")
        for name, file in files.items():
            first = file.read_text(encoding="utf-8").partition("\n")[0].removeprefix("#").strip()
            print(f"  {name:<{max(map(len, files))}}  {first}")
    return 0


def _plan(arguments: argparse.Namespace) -> int:
    """Show the artifacts, their fingerprints, what will run and what it costs."""
    scale = load_scale(arguments.scale) if arguments.scale else None
    job, store, steps = _open(arguments)
    explained, manifests = set[str](), store.manifests(steps)
    print(f"{'artifact':<34} {'fingerprint':<14} {'state':<9}")
    for step in _in_order(steps):
        note = "" if step.stage in explained else STAGES[step.stage].summary
        explained.add(step.stage)
        print(f"{step.title:<34} {step.fingerprint:<14} {state(step, manifests):<9} {note}".rstrip())
    todo = sum(state(step, manifests) != "done" for step in steps)
    print(f"\n{todo} of {len(steps)} artifacts to make under {store.path}")
    print(*(printable(redact(line)) for line in image_set_lines(job, steps, manifests)), sep="\n")
    captions = [step for step in steps if step.stage == pair.STAGE.name and state(step, manifests) != "done"]
    if captions and (note := too_long_note(job)):
        print(printable(redact(note)))
    used = scale or this_machine()[0]
    print(*requirements(job, steps, used).lines(), *cost_lines(job, graph, store, steps, manifests, scale), sep="\n")
    if arguments.sample:
        print(f"\nwithout --sample:\n{_total(load_job(arguments.job, arguments.whole), store, scale)}")
    stages = dict.fromkeys(step.stage for step in steps if state(step, manifests) != "done")
    check_memory(job, list(stages), used)
    return 0


def _total(job: Job, store: Store, scale: Scale | None) -> str:
    """Return the last line of the estimate of a job of which nothing is made yet."""
    lines = cost_lines(job, graph, store, graph(job), {}, scale)
    return next((line for line in lines if line.startswith("all ")), "unknown, without ingest.expect")


def _inspect(arguments: argparse.Namespace) -> int:
    """Show what an image set is before a run: layout, classes with their counts, pictures, problems."""
    from vlcp_ray.inspection.inspect import COUNTING, inspect

    is_job = arguments.what in shipped_files("jobs") and not Path(arguments.what).exists()
    if is_job or arguments.what.endswith(".toml"):
        job = load_job(arguments.what, arguments.set)
        settings, ipc = job.ingest, largest_ipc(job)
    else:
        settings, ipc = load_ingest(arguments.what, arguments.set), 1
    found = inspect(settings, ipc, seconds=math.inf if arguments.all else COUNTING)
    if arguments.json:
        print(json.dumps(found.as_json(), indent=2))
    else:
        print(*found.lines(), sep="\n")
    if arguments.to:
        from vlcp_ray.inspection.page import render

        Path(arguments.to).write_text(render(found), encoding="utf-8")
    return _BAD_SETTINGS if found.is_refused else 0


def _caption(arguments: argparse.Namespace) -> int:
    """Describe the training images of a set with a vision-language model, without a job."""
    from vlcp_ray.captioning import command

    return command.caption(*load_caption(arguments.what, arguments.set), arguments.to or "", arguments.preview)


def _bench(arguments: argparse.Namespace) -> int:
    """Measure how fast this machine does the job's work, for the estimate of `plan`."""
    from vlcp_ray.bench import command

    scale = load_scale(arguments.scale) if arguments.scale else None
    job, store, steps = _open(arguments)
    return command.bench(job, store, {step.stage for step in steps}, scale, arguments.only, arguments.random)


def _run(arguments: argparse.Namespace) -> int:
    """Run the job, or resume it where it stopped."""
    if JOB_MARK in os.environ:
        _check_root(arguments.root)
    job = load_job(arguments.job, arguments.set)
    if arguments.sample:
        scale, store = load_scale(arguments.scale) if arguments.scale else None, api.open_store(job, arguments.root)[0]
        whole = load_job(arguments.job, arguments.whole)
        print(f"estimate with --sample, and without:\n{_total(job, store, scale)}\n{_total(whole, store, scale)}")
    options = {name: getattr(arguments, name) for name in ("root", "to", "scale", "track", "ray_logs")}
    api.run(job, **options, command=format_command(arguments))
    if arguments.to == api.LAST:
        return _report(
            argparse.Namespace(**{**vars(arguments), "job": [arguments.job], "sample": 0}, json=False, form="")
        )
    return 0


def format_command(arguments: argparse.Namespace) -> str:
    """Return the command line that repeats this run, quoted for a shell, without secrets."""
    parts = ["vlcp-ray", "run", arguments.job]
    parts += [part for override in arguments.set for part in ("--set", override)]
    parts += ["--scale", arguments.scale] if arguments.scale else []
    parts += ["--root", arguments.root] if arguments.root != api.ROOT else []
    return shlex.join(public(parts))


def _check_root(root: str) -> None:
    if "://" not in root:
        raise ConfigError(
            f"--root {root}: a job runs on other machines, in a temporary folder; give a URI that they all "
            "reach: s3://bucket/runs, gs://bucket/runs, or file:///shared/runs for a folder that they share"
        )


def _submit(arguments: argparse.Namespace) -> int:
    """Run the job on a cluster, through Ray's Jobs API."""
    from vlcp_ray.engine import submit

    _check_root(arguments.root)
    job = load_job(arguments.job, arguments.set)
    check_inputs(job)
    if arguments.scale:
        load_scale(arguments.scale)
    scale = str(find_file(arguments.scale, "clusters")) if arguments.scale else None
    options = ["--root", arguments.root, "--to", arguments.to]
    options += [part for override in arguments.set for part in ("--set", override)]
    options += (["--track", arguments.track] if arguments.track else []) + ["--ray-logs"] * arguments.ray_logs
    return submit.submit(
        str(find_file(arguments.job, "jobs")),
        job,
        options,
        scale=scale,
        address=arguments.address,
        environment=arguments.env,
        wait=not arguments.detach,
    )


def _status(arguments: argparse.Namespace) -> int:
    """Show state, rows, rejected rows and seconds of every artifact."""
    _, store, steps = _open(arguments)
    leases = [lease for lease in active_leases(store) if lease.makes & {step.fingerprint for step in steps}]
    running = {made for lease in leases if lease.is_alive and lease.progress for made in lease.progress.makes}
    manifests = store.manifests(steps)
    for step in _in_order(steps):
        manifest, now = manifests.get(step.fingerprint), state(step, manifests)
        shown = "running" if now != "done" and step.fingerprint in running else now
        print(
            f"{step.title:<34} {shown:<9} {printable(api.format_counts(step, manifest)) if manifest else ''}".rstrip()
        )
    for lease in leases:
        print(f"\n{lease}")
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    """Read all files of the job again and compare them with the manifests."""
    from vlcp_ray.store.verify import compare_all

    _, store, steps = _open(arguments)
    damaged = False
    for found in compare_all(store, _in_order(steps), store.manifests(steps), contents=True):
        summary = f"{found.count:>6,} files {found.bytes / 2**20:>10,.1f} MiB" if found.count else "lists no files"
        print(f"{found.title:<34} {summary}  {'DAMAGED' if found.is_damaged else 'ok'}")
        print("".join(f"  {printable(line)}\n" for line in found.lines()), end="")
        damaged = damaged or found.is_damaged
    if damaged:
        print(
            "vlcp-ray: remove the folders of damaged artifacts and re-run the job to make them again", file=sys.stderr
        )
    return int(damaged)


def _report(arguments: argparse.Namespace) -> int:
    """Print the scores and where the report is; of several jobs side by side."""
    from vlcp_ray.stages.report.scores import score_table

    if len(arguments.job) > 1 or arguments.form:
        return _report_several(arguments)
    arguments = _of_job(arguments, arguments.job[0])
    _, store, steps = _open(arguments)
    scores = api.read_trials(store, steps)
    page = store.artifact(steps[-1])
    if arguments.json:
        print(json.dumps(_scores_json(store, steps), indent=2))
        return 0
    if not len(scores):
        print(
            f"vlcp-ray: no scores yet under {_relative(store.path)}; start with: vlcp-ray run {arguments.job}",
            file=sys.stderr,
        )
        return 1
    print(f"\n{printable(score_table(scores), keep=chr(10))}")
    if page.manifest() is not None:
        print(f"\nreport: {_relative(page.path)}/index.html")
    return 0


def _of_job(arguments: argparse.Namespace, job: str) -> argparse.Namespace:
    """Return the arguments of `report` for one of its jobs, as those of the other commands."""
    chosen = {**vars(arguments), "job": job}
    if arguments.sample:
        chosen["set"] = [*arguments.set, *sample_overrides(load_job(job, arguments.set), arguments.sample)]
    return argparse.Namespace(**chosen)


def _scores_json(store: Store, steps: Sequence[Step]) -> dict[str, object]:
    from vlcp_ray.stages.report.cross_architecture import cells_json
    from vlcp_ray.stages.report.scores import differences_json, rounded, scores_json

    scores, sets = api.read_trials(store, steps), rounded(api.read_measures(store, steps))
    found = {"trials": scores_json(scores), "differences": differences_json(scores), "sets": sets}
    return found | {"cross_architecture": cells_json(scores)}


def _report_several(arguments: argparse.Namespace) -> int:
    """Print the scores of jobs side by side, or of one in another format."""
    from vlcp_ray.exports import side_by_side

    names: list[str] = arguments.job
    opened = {name: _open(_of_job(arguments, name)) for name in names}
    if len(opened) < len(names):
        raise ConfigError("report: a job is given twice; name each once")
    jobs = [job.name for job, _, _ in opened.values()]
    titles = dict(zip(opened, jobs if len({*jobs}) == len(jobs) else map(public, names), strict=True))
    if arguments.json:
        found = {titles[name]: _scores_json(store, steps) for name, (_, store, steps) in opened.items()}
        print(json.dumps({"jobs": found}, indent=2))
        return 0
    columns = [
        side_by_side.Column(
            titles[name],
            api.read_trials(store, steps),
            next(step.fingerprint for step in steps if step.stage == INGEST.name),
        )
        for name, (_, store, steps) in opened.items()
    ]
    if not any(len(column.trials) for column in columns):
        print(f"vlcp-ray: no scores yet; start with: vlcp-ray run {names[0]}", file=sys.stderr)
        return 1
    write = side_by_side.FORMATS[arguments.form] if arguments.form else side_by_side.text
    print(printable(write(columns), keep=chr(10)))
    return 0


def _score(arguments: argparse.Namespace) -> int:
    """Score distilled sets that were made elsewhere, beside random images and coresets; nothing is distilled."""
    job, options = load_job(arguments.job, arguments.set), {}
    for name in ("root", "labels", "classes", "normalised", "scale", "ray_logs", "beside"):
        options[name] = getattr(arguments, name)
    # The progress is no part of the JSON.
    with redirect_stdout(sys.stderr) if arguments.json else nullcontext():
        found = api.score(job, arguments.sets, names=arguments.name, **options, command=_score_command(arguments))
    if arguments.json:
        print(json.dumps(found.as_json(), indent=2))
        return 0
    print(f"\n{printable(str(found), keep=chr(10))}\n\nreport: {_relative(found.page)}/index.html")
    return 0


def _score_command(arguments: argparse.Namespace) -> str:
    """Return the command line that repeats these scores, quoted for a shell, without secrets."""
    parts = ["vlcp-ray", "score", *arguments.sets, "--job", arguments.job]
    repeated = {"--set": arguments.set, "--name": arguments.name, "--beside": arguments.beside or ()}
    parts += [part for option, values in repeated.items() for value in values for part in (option, value)]
    for name in ("labels", "classes", "normalised", "scale"):
        parts += [f"--{name}", value] if (value := getattr(arguments, name)) else []
    parts += ["--root", arguments.root] if arguments.root != api.ROOT else []
    return shlex.join(public(parts))


def _export(arguments: argparse.Namespace) -> int:
    """Write a distilled set, the captions or the model in a format that other tools open."""
    from vlcp_ray.exports import job as exports

    if not arguments.to and not arguments.push_to_hub:
        raise ConfigError("name the target: --to FOLDER, or --push-to-hub OWNER/NAME")
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
    if arguments.push_to_hub or str(arguments.to).startswith("hf://"):
        exports.check_push(job, store, steps, choice, arguments.i_have_the_right)
    with tempfile.TemporaryDirectory() as folder:
        to = arguments.to or folder
        if arguments.push_to_hub and "://" in to:
            raise ConfigError(f"--to {to}: the hub takes a folder of this machine; leave --to out")
        written = exports.export(job, store, steps, choice, exports.open_target(to))
        print(f"{written}{f': {public(to)}' if arguments.to else ''}")
        if arguments.push_to_hub:
            print(exports.push(to, arguments.push_to_hub, arguments.format))
    return 0


def _fetch(arguments: argparse.Namespace) -> int:
    """Fetch the models, the image set and the teacher of a job, so that it runs without a network."""
    from vlcp_ray.offline import command

    job = load_job(arguments.job, arguments.set)
    check_inputs(job)
    return command.fetch(job, graph(job), arguments.to, ["vlcp-ray", "run", arguments.job], arguments.set)


def _ls(arguments: argparse.Namespace) -> int:
    """List the runs under a root: artifacts, sizes, states and dates."""
    from vlcp_ray.housekeeping import command

    return command.ls(api.open_root(arguments.root), arguments.artifacts)


def _gc(arguments: argparse.Namespace) -> int:
    """Delete the artifacts under a root that none of the jobs needs, after asking."""
    from vlcp_ray.housekeeping import command

    store, needed = api.open_root(arguments.root), dict[str, frozenset[str]]()
    for name in arguments.jobs:
        if command.is_report(name):
            needed[name] = command.needs_of_report(store, name)
        else:
            job = load_job(name, arguments.set)
            check_inputs(job)
            needed[name] = frozenset(step.folder for step in graph(job))
    return command.gc(store, needed, arguments.yes)


def _doctor(arguments: argparse.Namespace) -> int:
    """Check this machine, with a fix for each problem."""
    from vlcp_ray.doctor import checks

    return checks.main(arguments.root, arguments.fix)


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return int(text)


def _in_order(steps: Sequence[Step]) -> list[Step]:
    return sorted(steps, key=lambda step: list(STAGES).index(step.stage))


def _relative(path: str) -> str:
    """Return a path as one would type it in the current folder."""
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except ValueError:
        return path


#: Completion of names of the package, and of paths of TOML files, by shell functions of their own.
_JOBS: Final = dict.fromkeys(("bash", "zsh"), "_vlcp_ray_jobs") | {"tcsh": "f:*.toml"}
_SCALES: Final = dict.fromkeys(("bash", "zsh"), "_vlcp_ray_clusters") | {"tcsh": "f:*.toml"}
_PREAMBLE: Final = {
    "bash": "".join(
        f"""
_vlcp_ray_{folder}() {{
  compgen -W "{" ".join(shipped_files(folder))}" -- "$1"
  compgen -d -- "$1"
  compgen -f -X '!*.toml' -- "$1"
}}
"""
        for folder in SHIPPED
    ),
    "zsh": "".join(
        f"""
_vlcp_ray_{folder}() {{
  compadd -- {" ".join(shipped_files(folder))}
  _files -g '*.toml'
}}
"""
        for folder in SHIPPED
    ),
}

#: A command is called as its function, and its help is the function's docstring.
_COMMANDS: Final = (
    _jobs,
    _inspect,
    _caption,
    _plan,
    _bench,
    _run,
    _submit,
    _status,
    _verify,
    _report,
    _score,
    _export,
    _fetch,
    _ls,
    _gc,
    _doctor,
)
#: Those without a job file as their first argument.
_WITHOUT_JOB: Final = (_jobs, _inspect, _caption, _score, _ls, _gc, _doctor)


def parser() -> argparse.ArgumentParser:
    """Build the parser of all commands; parsed arguments have the command's function as `command`."""
    whole = argparse.ArgumentParser(
        prog="vlcp-ray",
        description="Distil a labelled image set into a tiny one.",
        epilog=_epilog(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    whole.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    shtab.add_argument_to(whole, help="print a script that completes commands, options and jobs", preamble=_PREAMBLE)
    subparsers = whole.add_subparsers(required=True, metavar="COMMAND")
    subs = {}
    for command in _COMMANDS:
        text = str(command.__doc__)
        name = command.__name__.removeprefix("_")
        sub = subs[command] = subparsers.add_parser(name, help=text.rstrip("."), description=text)
        sub.set_defaults(command=command)
        if command in (_inspect, _caption):
            _add_source_options(sub, is_caption=command is _caption)
        elif command not in _WITHOUT_JOB:
            _add_job_options(sub, several=command is _report)
        if command not in (_jobs, _ls, _doctor):
            sub.add_argument(
                "--set",
                action="append",
                default=[],
                metavar="KEY=VALUE",
                help="override a setting, e.g. generate.strength=0.5; may be repeated",
            )
        if command not in (_jobs, _inspect, _caption, _fetch, _ls, _gc):
            sub.add_argument(
                "--root",
                default=api.ROOT,
                metavar="URI",
                help="where artifacts are kept: a folder, s3://, gs:// (runs)",
            )
    for command in (_plan, _bench, _run, _submit, _score):
        scale = subs[command].add_argument(
            "--scale",
            metavar="FILE",
            help="workers, GPUs and batches per stage: a file, or the name of one (`vlcp-ray jobs`); default: derived "
            "from the hardware",
        )
        _complete(scale, _SCALES)
    for command in (_run, _submit):
        _add_run_options(subs[command])
    _add_bench_options(subs[_bench])
    _add_submit_options(subs[_submit])
    _add_report_options(subs[_report])
    _add_score_options(subs[_score])
    _add_export_options(subs[_export])
    subs[_fetch].add_argument(
        "--to", metavar="FOLDER", help="a folder to carry to the other machine; default: the caches of this machine"
    )
    _add_housekeeping_options(subs[_ls], subs[_gc])
    subs[_doctor].add_argument(
        "--fix", action="store_true", help="repair a torchvision that does not fit a CPU build of torch"
    )
    return whole


def _epilog() -> str:
    """List the stages and the kinds of work, for the end of the help."""
    stages = "\n".join(f"  {stage.name:<10} {stage.summary}" for stage in STAGES.values())
    return (
        f"stages (run --to STAGE), in their order:\n{stages}\n\nkinds of work (bench --only WORK): {', '.join(works())}"
    )


def _complete(argument: argparse.Action, by_shell: Mapping[str, str | Mapping[str, str]]) -> None:
    """Let a shell complete the values of an argument."""
    argument.complete = by_shell  # type: ignore[attr-defined]


def _add_job_options(sub: argparse.ArgumentParser, several: bool) -> None:
    text = "a job, e.g. digits (`vlcp-ray jobs` lists them), or the path of a job file"
    if several:
        job = sub.add_argument("job", nargs="+", metavar="JOB", help=f"{text}; of several the scores side by side")
    else:
        job = sub.add_argument("job", metavar="JOB", help=text)
    _complete(job, _JOBS)
    sub.add_argument(
        "--sample", type=_positive, default=0, metavar="N", help="a run of its own with N images of each class"
    )


def _add_source_options(sub: argparse.ArgumentParser, is_caption: bool) -> None:
    if is_caption:
        _add_caption_options(sub)
        return
    what = sub.add_argument("what", metavar="SOURCE|JOB", help="a folder, file or URI (s3://, hf://), or a job")
    _complete(what, shtab.FILE)
    sub.add_argument("--json", action="store_true", help="print one JSON object")
    sub.add_argument("--to", metavar="FILE", help="write a page with pictures of the classes, e.g. page.html")
    sub.add_argument("--all", action="store_true", help="count all images, however long it takes")


def _add_caption_options(sub: argparse.ArgumentParser) -> None:
    what = sub.add_argument("what", metavar="SOURCE", help="a folder, file or URI (s3://, hf://) of images by class")
    _complete(what, shtab.FILE)
    sub.add_argument(
        "--to",
        metavar="FILE",
        help="the table that caption.source reads: .parquet, .jsonl or .csv; of a preview a page, .html",
    )
    sub.add_argument(
        "--preview",
        type=_positive,
        default=0,
        metavar="N",
        help="caption N images and print the captions; with --to page.html, a page of the images too",
    )


def _add_report_options(sub: argparse.ArgumentParser) -> None:
    forms = sub.add_mutually_exclusive_group()
    forms.add_argument("--json", action="store_true", help="print trials, differences and measures of the sets as JSON")
    for form, text in (("csv", "every row with its budget"), ("latex", "a tabular"), ("markdown", "a table")):
        forms.add_argument(
            f"--{form}",
            dest="form",
            action="store_const",
            const=form,
            default="",
            help=f"print the scores as {form}: {text}",
        )


def _add_score_options(sub: argparse.ArgumentParser) -> None:
    sets = sub.add_argument(
        "sets",
        nargs="+",
        metavar="SET",
        help="an image folder, parquet, an export of ours, a .pt file of images, or the folder of one",
    )
    _complete(sets, shtab.FILE)
    job = sub.add_argument(
        "--job", required=True, metavar="JOB", help="the job whose images, protocols and teacher score it"
    )
    _complete(job, _JOBS)
    sub.add_argument(
        "--name",
        action="append",
        default=[],
        metavar="NAME",
        help="name of its rows; may be repeated, one for each set",
    )
    sub.add_argument("--labels", default="", metavar="FILE", help="the .pt file of the labels (beside the images)")
    sub.add_argument(
        "--classes",
        default="",
        metavar="LIST",
        help="which class a class number is: a list of the package, a file with a line for each, or `job`",
    )
    sub.add_argument(
        "--normalised",
        default="",
        metavar="NAME|MEAN/STD",
        help=f"how a tensor was normalised: {', '.join((*NORMALISATIONS, ZCA))} (found, where its numbers show it)",
    )
    sub.add_argument(
        "--beside",
        action="append",
        metavar="METHOD",
        help="a method to compare it with, may be repeated (random, herding, k-center, and full where the job has it)",
    )
    sub.add_argument("--json", action="store_true", help="print the objects of `report --json`, and what each set is")
    sub.add_argument(
        "--ray-logs", action="store_true", help="show the messages of Ray and its workers, without the live view"
    )


def _add_run_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--to",
        choices=tuple(STAGES),
        default=api.LAST,
        metavar="STAGE",
        help=f"stop after a stage: {', '.join(STAGES)}",
    )
    sub.add_argument("--track", choices=trackers.NAMES, default="", help="mirror curves and images to a tracker")
    sub.add_argument(
        "--ray-logs", action="store_true", help="show the messages of Ray and its workers, without the live view"
    )


def _add_bench_options(sub: argparse.ArgumentParser) -> None:
    kinds = tuple(works())
    sub.add_argument(
        "--only",
        action="append",
        metavar="WORK",
        choices=kinds,
        help=f"one kind of work, may be repeated: {', '.join(kinds)}",
    )
    sub.add_argument("--random", action="store_true", help="use random weights of the paper's sizes: no download")


def _add_submit_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--address", metavar="URL", help="the cluster's dashboard (http://127.0.0.1:8265)")
    sub.add_argument(
        "--env",
        choices=("image", "cpu", "gpu"),
        default="image",
        help="image: the machines have all dependencies; cpu, gpu: Ray installs the dependencies of this extra",
    )
    sub.add_argument("--detach", action="store_true", help="return once the job is accepted")


def _add_housekeeping_options(ls: argparse.ArgumentParser, gc: argparse.ArgumentParser) -> None:
    text = "a folder, or a URI as --root takes it"
    _complete(
        ls.add_argument("root", nargs="?", default=api.ROOT, metavar="ROOT", help=f"{text} (runs)"), shtab.DIRECTORY
    )
    ls.add_argument("--artifacts", action="store_true", help="list every artifact, and the runs that need it")
    _complete(gc.add_argument("root", metavar="ROOT", help=text), shtab.DIRECTORY)
    jobs = gc.add_argument(
        "jobs", nargs="*", metavar="JOB", help="what is kept: a job as run takes it, or a report as ls shows it"
    )
    _complete(jobs, _JOBS)
    gc.add_argument("--yes", action="store_true", help="do not ask")


def _add_export_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--format", required=True, choices=tuple(FORMATS), help="; ".join(f"{k}: {v}" for k, v in FORMATS.items())
    )
    sub.add_argument("--to", metavar="URI", help="an empty folder, or a URI as --root takes it")
    sub.add_argument("--method", default=METHOD.name, help="method of the set (vlcp)")
    sub.add_argument("--seed", type=int, help="seed of the set or the model (the job's first)")
    sub.add_argument("--ipc", type=int, help="images per class (the job's largest)")
    sub.add_argument("--license", default="", metavar="ID", help="license id for the card (of a model: its base's)")
    sub.add_argument("--push-to-hub", metavar="OWNER/NAME", help="upload it to the Hugging Face hub")
    sub.add_argument(
        "--i-have-the-right", action="store_true", help="you may publish the real images of the set (random, rded ...)"
    )


if __name__ == "__main__":
    sys.exit(main())
