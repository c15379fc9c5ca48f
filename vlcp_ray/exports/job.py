"""Knows which of a job's artifacts an export is made of, and where it goes."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs as pafs

from vlcp_ray import __version__
from vlcp_ray.config import Job
from vlcp_ray.exports import cards, dataset
from vlcp_ray.filesystems import open_uri
from vlcp_ray.schemas import SCORES, prototypes_schema
from vlcp_ray.scores import score_table
from vlcp_ray.settings import ConfigError
from vlcp_ray.store import Artifact, Step, Store

Form = Literal["imagefolder", "parquet", "webdataset", "descriptions", "model"]
_MAX_TEXTS: Final = 100  # in a card


@dataclass(frozen=True)
class Choice:
    """What is wanted of a job, and what its card says: a seed or ipc of None is the first seed or the largest ipc."""

    form: Form
    method: str = "vlcp"
    seed: int | None = None
    ipc: int | None = None
    license: str = "other"
    command: str = ""  # what has made the job, for the card


def export(job: Job, store: Store, steps: Sequence[Step], choice: Choice, target: Artifact) -> str:
    """Write one form of what a job has made under a folder that is empty or not there yet.

    Returns what was written, in a line.

    Raises:
        ConfigError: the job makes no such thing or has not made it yet, or the target holds files.
    """
    kind = target.filesystem.get_file_info(target.path).type
    if kind == pafs.FileType.File:
        raise ConfigError(f"--to {target.path}: it is a file; give an empty folder or one that is not there")
    if kind != pafs.FileType.NotFound and _files(target):
        raise ConfigError(f"--to {target.path}: it holds files already; give an empty folder or one that is not there")
    write = {"descriptions": _descriptions, "model": _model}.get(choice.form, _dataset)
    return write(job, store, steps, choice, target)


def opened(to: str) -> Artifact:
    """The place of an export: a folder or a URI.

    Raises:
        ConfigError: the URI cannot be used.
    """
    try:
        return Artifact(*open_uri(to, "--to"))
    except ValueError as error:
        raise ConfigError(str(error)) from error


def push(folder: str, repository: str, form: Form) -> str:
    """Upload a local folder to the Hugging Face hub, making the repository where there is none; returns its address.

    Raises:
        ConfigError: the hub refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    kind, hub = "model" if form == "model" else "dataset", HfApi()
    try:
        hub.create_repo(repository, repo_type=kind, exist_ok=True)
        return str(hub.upload_folder(folder_path=folder, repo_id=repository, repo_type=kind).commit_url)
    except (HfHubHTTPError, OSError, ValueError) as error:
        said = str(error).strip().splitlines()[0]
        raise ConfigError(f"--push-to-hub {repository}: {said}; log in with: hf auth login") from error


def public(value: Any) -> Any:
    """A setting as a card may tell it: of a path of this machine the last part."""
    if isinstance(value, dict):
        return {name: public(inner) for name, inner in value.items()}
    is_path = isinstance(value, str) and value.startswith(("/", "~", ".", "file://"))
    return Path(value).name if is_path else value


def _dataset(job: Job, store: Store, steps: Sequence[Step], choice: Choice, target: Artifact) -> str:
    step = _find(job, steps, choice)
    manifest = _sealed(store, step)
    facts = _facts(job, store, step, choice)
    names, images = facts["class_names"], int(manifest["rows"])
    teacher = next((s.inputs["teacher"] for s in steps if s.stage == "evaluate" and "teacher" in s.inputs), None)
    taught = _sealed(store, teacher) | {"network": job.teach.network} if teacher else None
    soft_labels = _soft_labels(store.artifact(teacher), job) if teacher else None
    dataset.write(choice.form, store.artifact(step), target, names, images, soft_labels)
    told = facts | {"title": f"{job.name}: {facts['ipc']} images a class", "images": images, "method": choice.method}
    told |= {"drawn": step.stage == "generate" or choice.method == "centroid", "size": job.generate.image_size}
    told |= {"scores": _scores(store, steps, step), "texts": _texts(store, step), "teacher": taught}
    target.write_bytes("README.md", cards.dataset_card(choice.form, told).encode())
    return f"{images:,} images of {len(names):,} classes, {step.title}"


def _soft_labels(teacher: Artifact, job: Job) -> Callable[[pa.Table], pa.Array]:
    from vlcp_ray.exports.soft_labels import labeller  # here, as it loads torch

    return labeller(teacher, job.teach)


def _descriptions(job: Job, store: Store, steps: Sequence[Step], choice: Choice, target: Artifact) -> str:
    (step,) = [step for step in steps if step.stage == "pair"]
    _sealed(store, step)
    count = dataset.descriptions(store.artifact(step), target)
    model = public(job.caption.source or job.caption.model)
    told = {"title": f"{job.name}: descriptions", "images": count, "captioner": model, "prompt": job.caption.prompt}
    target.write_bytes("README.md", cards.descriptions_card(_facts(job, store, step, choice) | told).encode())
    return f"{count:,} descriptions"


def _model(job: Job, store: Store, steps: Sequence[Step], choice: Choice, target: Artifact) -> str:
    seed = job.seeds[0] if choice.seed is None else choice.seed
    found = [step for step in steps if step.stage == "finetune" and step.key["seed"] == seed]
    if not found:
        raise ConfigError(f"--seed {seed}: the job fine-tunes no model with it; seeds are {list(job.seeds)}")
    _sealed(store, found[0])
    with tempfile.TemporaryDirectory() as folder:
        target.put_folder(Path(store.artifact(found[0]).get_folder("model", Path(folder))), "")
    told = {"title": f"{job.name}: the fine-tuned model", "seed": seed, "base_model": public(job.base_model)}
    told |= {"epochs": job.finetune.epochs, "learning_rate": job.finetune.learning_rate}
    target.write_bytes("README.md", cards.model_card(_facts(job, store, found[0], choice) | told).encode())
    return f"the model of {found[0].title}"


def _find(job: Job, steps: Sequence[Step], choice: Choice) -> Step:
    """The set that is wanted."""
    wanted = {"seed": job.seeds[0] if choice.seed is None else choice.seed, "ipc": choice.ipc or max(job.ipc)}
    sets = [step for step in steps if step.stage in ("generate", "select")]
    for step in sets:
        if step.key == {**wanted, "method": choice.method}:
            return step
    methods = ", ".join(dict.fromkeys(step.key["method"] for step in sets))
    raise ConfigError(
        f"the job makes no set {choice.method}, seed {wanted['seed']}, ipc {wanted['ipc']}; it has the methods "
        f"{methods}, the seeds {list(job.seeds)} and the ipc {list(job.ipc)}"
    )


def _sealed(store: Store, step: Step) -> dict[str, Any]:
    manifest = store.artifact(step).manifest()
    if manifest is None:
        raise ConfigError(
            f"{step.title} is not made yet under {store.path}; first: vlcp-ray run with this job and the same --root "
            "and --set"
        )
    return manifest


def _facts(job: Job, store: Store, step: Step, choice: Choice) -> dict[str, Any]:
    ingested = _sealed(store, _source(step))
    return {
        "license": choice.license,
        "version": __version__,
        "command": choice.command,
        "fingerprint": f"{step.stage}-{step.fingerprint}",
        "settings": {name: public(value) for name, value in job.model_dump(mode="json").items()},
        "source": public(job.ingest.source),
        "class_names": ingested["class_names"],
        "train_rows": ingested["splits"].get("train", 0),
        "val_rows": ingested["splits"].get("val", 0),
        **{name: step.key.get(name) for name in ("seed", "ipc")},
    }


def _source(step: Step) -> Step:
    while step.stage != "ingest":
        step = step.inputs["images"] if "images" in step.inputs else next(iter(step.inputs.values()))
    return step


def _scores(store: Store, steps: Sequence[Step], made: Step) -> str:
    """The table of the trials of this set and of the full train split."""
    of_it = [s for s in steps if s.stage == "evaluate" and s.inputs.get("set", s) in (made, s)]
    scores = pa.concat_tables([store.artifact(step).table("scores", SCORES) for step in of_it])
    return score_table(scores) if pc.any(pc.greater(scores["ipc"], 0)).as_py() else ""


def _texts(store: Store, step: Step) -> list[dict[str, Any]]:
    if step.stage != "generate":
        return []
    names = ["prototype_id", "class_name", "size", "text"]
    table = store.artifact(step.inputs["prototypes"]).table("prototypes", prototypes_schema((1, 1, 1)), names)
    rows: list[dict[str, Any]] = table.sort_by("prototype_id").slice(0, _MAX_TEXTS).to_pylist()
    return rows


def _files(target: Artifact) -> bool:
    selector = pafs.FileSelector(target.path, recursive=True, allow_not_found=True)
    return any(info.is_file for info in target.filesystem.get_file_info(selector))
