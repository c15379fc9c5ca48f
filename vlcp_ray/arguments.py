"""Knows what the command line takes: the commands with their options, and a line of help for each."""

import argparse
from collections.abc import Callable, Mapping
from typing import Final

from vlcp_ray import __version__, trackers
from vlcp_ray.pipeline import STAGE_NAMES

Command = Callable[[argparse.Namespace], int]

FORMS: Final = ("imagefolder", "parquet", "webdataset", "descriptions", "model")
WORKS: Final = ("ingest", "caption", "encode", "finetune", "prototype", "generate", "decode", "evaluate")
_HELP: Final = {
    "plan": "show the stages, their fingerprints, what will run and what it costs",
    "bench": "measure how fast this machine does the job's work; `plan` then counts with it",
    "run": "run the job, or go on where it stopped",
    "submit": "run the job on a cluster, through Ray's Jobs API",
    "status": "show rows, rejected rows and seconds of every stage",
    "report": "print the scores and where the report is",
    "export": "write a distilled set, the descriptions or the model as others open them",
    "doctor": "check this machine, with a cure for each problem",
}


def parser(commands: Mapping[str, Command]) -> argparse.ArgumentParser:
    """The parser; what it returns has the function of the command that was given as `command`.

    Args:
        commands: a function for every name of `_HELP`.
    """
    whole = argparse.ArgumentParser(prog="vlcp-ray", description="Distil a labelled image set into a tiny one.")
    whole.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    subparsers = whole.add_subparsers(required=True, metavar="COMMAND")
    subs = {}
    for name, text in _HELP.items():
        sub = subs[name] = subparsers.add_parser(name, help=text, description=text)
        sub.set_defaults(command=commands[name])
        if name != "doctor":
            sub.add_argument("job", metavar="JOB", help="a job file, e.g. jobs/digits.toml")
            sub.add_argument(
                "--set", action="append", default=[], metavar="KEY=VALUE", help="e.g. generate.strength=0.5"
            )
        sub.add_argument(
            "--root", default="runs", metavar="URI", help="where artifacts lie: a folder, s3://, gs:// (runs)"
        )
    for name in ("plan", "bench", "run", "submit"):
        subs[name].add_argument(
            "--scale", metavar="FILE", help="workers, GPUs and batches per stage; default: what is there"
        )
    for name in ("run", "submit"):
        _to_run(subs[name])
    _to_bench(subs["bench"])
    _to_submit(subs["submit"])
    subs["report"].add_argument("--json", action="store_true", help="the scores as a list of objects")
    _to_export(subs["export"])
    subs["doctor"].add_argument("--fix", action="store_true", help="repair a torchvision that does not fit a CPU torch")
    return whole


def _to_run(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--to", choices=STAGE_NAMES, default=STAGE_NAMES[-1], metavar="STAGE", help="stop after a stage")
    sub.add_argument("--track", choices=trackers.NAMES, default="", help="mirror curves and pictures there as well")
    sub.add_argument("--ray-logs", action="store_true", help="show what Ray and its workers say; no live view then")


def _to_bench(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--only", action="append", metavar="WORK", choices=WORKS, help="one kind of work, or several")
    sub.add_argument("--random", action="store_true", help="with random weights of the paper's sizes: no download")


def _to_submit(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--address", metavar="URL", help="of the cluster's dashboard (http://127.0.0.1:8265)")
    sub.add_argument(
        "--env",
        choices=("image", "cpu", "gpu"),
        default="image",
        help="what the machines have: everything (image), or Ray installs the dependencies of an extra there",
    )
    sub.add_argument("--detach", action="store_true", help="come back once the job is accepted")


def _to_export(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--format", required=True, choices=FORMS, help="what, and for whom")
    sub.add_argument("--to", metavar="URI", help="an empty folder, or a URI as --root takes it")
    sub.add_argument("--method", default="vlcp", help="which of the job's sets (vlcp)")
    sub.add_argument("--seed", type=int, help="of the set or the model (the job's first)")
    sub.add_argument("--ipc", type=int, help="images per class (the job's most)")
    sub.add_argument("--license", default="other", metavar="ID", help="for the card, as the hub writes it: mit")
    sub.add_argument("--push-to-hub", metavar="OWNER/NAME", help="upload it to the Hugging Face hub")
