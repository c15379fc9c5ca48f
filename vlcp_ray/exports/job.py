"""Export what a job has made: find the artifacts, write them with a card, and push them to the hub."""

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs as pafs

from vlcp_ray import __version__
from vlcp_ray.config import Job
from vlcp_ray.cost.requirements import set_steps
from vlcp_ray.engine.context import list_written
from vlcp_ray.exports import cards, dataset, licences
from vlcp_ray.exports.names import file_names
from vlcp_ray.methods import METHODS, vlcp
from vlcp_ray.models import pretrained
from vlcp_ray.protocols import PROTOCOLS
from vlcp_ray.schemas import SYNTHETIC
from vlcp_ray.settings import ConfigError
from vlcp_ray.stages import evaluate, finetune, generate, ingest, pair
from vlcp_ray.stages.prototype import PROTOTYPES
from vlcp_ray.stages.report.scores import score_table
from vlcp_ray.store import uris
from vlcp_ray.store.artifact import Artifact, Step, Store
from vlcp_ray.store.files import check_access
from vlcp_ray.store.io import open_uri, retry

SUMS: Final = "SHA256SUMS"
_MAX_TEXTS: Final = 100  # in a card


@dataclass(frozen=True)
class Choice:
    """What to export of a job.

    Args:
        form: a key of FORMATS.
        method: of the distilled set.
        seed: None: the job's first.
        ipc: None: the job's largest.
        license: of the export, for its card; "" for that of the base model, of a model, and "other" of the rest.
        command: the command that made the job, for the card.
    """

    form: str
    method: str = vlcp.METHOD.name
    seed: int | None = None
    ipc: int | None = None
    license: str = ""
    command: str = ""


def export(job: Job, store: Store, steps: Sequence[Step], choice: Choice, target: Artifact) -> str:
    """Export a distilled set, the captions or the model to a folder that is empty or does not exist.

    The file SHA256SUMS lists all others: `sha256sum --check SHA256SUMS` reads them again.

    Returns a line on what was written.

    Raises:
        ConfigError: the job does not make it or has not made it yet, or the target is not empty.
    """
    kind = target.filesystem.get_file_info(target.path).type
    if kind == pafs.FileType.File:
        raise ConfigError(f"--to {target.path}: it is a file; give an empty folder or one that does not exist")
    if kind != pafs.FileType.NotFound and _has_files(target):
        raise ConfigError(f"--to {target.path}: it has files already; give an empty folder or one that does not exist")
    write = {"captions": _captions, "model": _model}.get(choice.form, _dataset)
    line = write(job, store, steps, choice, target)
    target.write_bytes(SUMS, _sums(target))
    return line


def _sums(target: Artifact) -> bytes:
    """Return the hashes of the files of an export, in the form that `sha256sum --check` reads."""
    lines = (f"{entry['sha256']}  {name}\n" for name, entry in list_written(target).items())
    return "".join(lines).encode()


def check_push(job: Job, store: Store, steps: Sequence[Step], choice: Choice, has_right: bool) -> None:
    """Refuse to publish real images without the user's statement that they may be published.

    Raises:
        ConfigError: names the terms of the image set.
    """
    if has_right or choice.form not in dataset.WRITERS:
        return
    step = find_set(job, steps, choice.method, choice.ipc, choice.seed)
    origin = _origin(step)
    if origin in _FROM_REAL_IMAGES:
        terms = licences.of_images(job, _class_keys(store, step))
        raise ConfigError(
            f"--push-to-hub: the images of {choice.method} are real images of {public(job.ingest.source)}, parts of "
            f"some, or made from their pixels; their terms: {terms.name}. {terms.terms} Add --i-have-the-right if you "
            "may publish them"
        )


#: The origins of images that the terms of the image set bind.
_FROM_REAL_IMAGES: Final = ("real", "optimised from real images")


def _origin(step: Step) -> str:
    """Return what the images of a set are: generated from prototypes, optimised from noise or real images, or real."""
    if "prototypes" in step.inputs:
        return "generated"
    start = METHODS[step.key["method"]].optimised_from
    return f"optimised from {start}" if start else "real"


def _class_keys(store: Store, step: Step) -> list[str]:
    """Return the keys of the classes of the image set, as ingest has recorded them; none where it has not."""
    recorded = store.artifact(_images(step)).read_bytes(ingest.CLASSES)
    return [str(key) for key in json.loads(recorded)[0]] if recorded else []


def open_target(to: str) -> Artifact:
    """Open the target of an export: a folder or a URI.

    Raises:
        ConfigError: the URI cannot be used, or the store refuses access.
    """
    try:
        filesystem, path = open_uri(to, "--to")
    except ValueError as error:
        raise ConfigError(str(error)) from error
    retry(lambda: check_access(filesystem, path), f"list --to {path}")
    return Artifact(filesystem, path)


def push(folder: str, repository: str, form: str) -> str:
    """Upload a local folder to the Hugging Face hub, to a new or existing repository; return its address.

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
        message = str(error).strip().splitlines()[0]
        raise ConfigError(f"--push-to-hub {repository}: {uris.redact(message)}; log in with: hf auth login") from error


def public(value: Any) -> Any:
    """Prepare a setting for a card: without secrets, and of a path of this machine only its last part."""
    if isinstance(value, dict):
        return {name: public(inner) for name, inner in value.items()}
    is_path = isinstance(value, str) and value.startswith(("/", "~", ".", "file://"))
    value = uris.public(value)
    return Path(value).name if is_path else value


def _dataset(job: Job, store: Store, steps: Sequence[Step], choice: Choice, target: Artifact) -> str:
    step = find_set(job, steps, choice.method, choice.ipc, choice.seed)
    manifest = _manifest(store, step)
    facts = _facts(job, store, step, choice)
    class_names, images = facts["class_names"], int(manifest["rows"])
    evaluations = [s for s in steps if s.stage == evaluate.STAGE.name]
    teacher = _teacher(steps)
    teacher_facts = _teacher_facts(job, store, teacher) if teacher else None
    soft_labels = _soft_labels(store.artifact(teacher), job) if teacher else None
    dataset.write(choice.form, store.artifact(step), target, class_names, images, soft_labels)
    origin = _origin(step)
    generated = origin == "generated"
    used = {"uses_model": generated, "uses_captions": generated}
    used["uses_teacher"] = teacher is not None or "teacher" in step.inputs
    card = (
        facts
        | _licences(job, store, step, **used)
        | {
            "title": f"{job.name}: {facts['ipc']} images per class",
            "contents": _contents(target),
            "images": images,
            "method": choice.method,
            "origin": origin,
            "size": job.generate.image_size,
            "scores": _scores(
                store, [s for s in evaluations if s.inputs.get("set", step).fingerprint == step.fingerprint]
            ),
            "texts": _texts(store, step),
            "teacher": teacher_facts,
        }
    )
    target.write_bytes("README.md", cards.dataset_card(choice.form, card).encode())
    return f"{images:,} images of {len(class_names):,} classes, {step.title}"


def read_set(store: Store, step: Step, classes: int | None = None) -> tuple[pa.Table, list[str]]:
    """Read a set, rows of SYNTHETIC sorted by label and image_id, and the names of the classes by label.

    Args:
        step: that of `find_set`.
        classes: read so many of the first classes; None: all.

    Raises:
        ConfigError: the set is not made yet.
    """
    _manifest(store, step)
    artifact = store.artifact(step)
    if classes is None:
        rows = artifact.table("synthetic", SYNTHETIC)
    else:
        rows = artifact.rows("synthetic", SYNTHETIC, SYNTHETIC.names, "label", pa.array(range(classes), pa.int32()))
    names: list[str] = _manifest(store, _images(step))["class_names"]
    return rows.sort_by([("label", "ascending"), ("image_id", "ascending")]), names


def read_hub_table(job: Job, store: Store, steps: Sequence[Step], step: Step) -> pa.Table:
    """Read a set as one table, with the columns of `export --format parquet`."""
    rows, names = read_set(store, step)
    if teacher := _teacher(steps):
        rows = rows.append_column(dataset.SOFT_LABEL, _soft_labels(store.artifact(teacher), job)(rows))
    files = dataset.Names(names, file_names(rows["image_id"].to_pylist()))
    starts = range(0, len(rows), dataset.SHARD)  # an array of images has at most 2 GiB
    return pa.concat_tables([dataset.hub_table(rows.slice(start, dataset.SHARD), files) for start in starts])


def _teacher(steps: Sequence[Step]) -> Step | None:
    """Return the step of the teacher with whose soft labels the sets are evaluated, if there is one."""
    evaluations = (step for step in steps if step.stage == evaluate.STAGE.name)
    return next((step.inputs["teacher"] for step in evaluations if "teacher" in step.inputs), None)


def _soft_labels(teacher: Artifact, job: Job) -> Callable[[pa.Table], pa.Array]:
    from vlcp_ray.exports.soft_labels import load_labeller  # here, as it loads torch

    return load_labeller(teacher, job.teach)


def _captions(job: Job, store: Store, steps: Sequence[Step], choice: Choice, target: Artifact) -> str:
    (step,) = [step for step in steps if step.stage == pair.STAGE.name]
    _manifest(store, step)
    count = dataset.write_captions(store.artifact(step), store.artifact(_images(step)), target)
    described_by = [job.caption.source, job.caption.model if job.caption.uses_model else ""]
    captioner = " and ".join(public(name) for name in described_by if name)
    used = _licences(job, store, step, uses_model=False, uses_captions=True, uses_teacher=False)
    card = (
        _facts(job, store, step, choice)
        | used
        | {
            "title": f"{job.name}: captions",
            "contents": _contents(target),
            "images": count,
            "captioner": captioner,
            "prompt": job.caption.prompt if job.caption.uses_model else "",
        }
    )
    target.write_bytes("README.md", cards.captions_card(card).encode())
    return f"{count:,} captions"


def _model(job: Job, store: Store, steps: Sequence[Step], choice: Choice, target: Artifact) -> str:
    seed = job.seeds[0] if choice.seed is None else choice.seed
    step = next((s for s in steps if s.stage == finetune.STAGE.name and s.key["seed"] == seed), None)
    if step is None:
        raise ConfigError(f"--seed {seed}: the job fine-tunes no model with it; seeds are {list(job.seeds)}")
    manifest, licence = _manifest(store, step), licences.of_model(job.base_model)
    with tempfile.TemporaryDirectory() as folder:
        target.put_folder(Path(store.artifact(step).get_folder(finetune.MODEL, Path(folder))), "")
    if licence.text:
        target.write_bytes("LICENSE.txt", licence.full_text().encode())
    evaluations = [s for s in steps if s.stage == evaluate.STAGE.name]
    models = [(s, s.inputs["set"].inputs.get("model")) for s in evaluations if "set" in s.inputs]
    own = [s for s, model in models if model and model.fingerprint == step.fingerprint]
    used = _licences(job, store, step, uses_model=True, uses_captions=True, uses_teacher=False)
    budget = {"steps": manifest.get("steps"), "images of a step": job.finetune.batch_size}
    card = (
        _facts(job, store, step, choice)
        | used
        | {
            "title": f"{job.name}: the fine-tuned model",
            "contents": _contents(target),
            "license": choice.license or licence.id,
            "hub_id": pretrained.hub_id(job.base_model),
            "budget": {name: f"{value:,}" for name, value in budget.items() if value},
            "scores": _scores(store, own),
            "seed": seed,
            "base_model": public(job.base_model),
            "epochs": job.finetune.epochs,
            "learning_rate": job.finetune.learning_rate,
        }
    )
    target.write_bytes("README.md", cards.model_card(card).encode())
    return f"the model of {step.title}"


def find_set(job: Job, steps: Sequence[Step], method: str, ipc: int | None, seed: int | None) -> Step:
    """Return the step of a distilled set.

    Args:
        ipc: None: the job's largest.
        seed: None: the job's first.

    Raises:
        ConfigError: the job makes no such set.
    """
    key = {"seed": job.seeds[0] if seed is None else seed, "ipc": ipc or max(job.ipc)}
    sets = set_steps(steps)
    for step in sets:
        if step.key == {**key, "method": method}:
            return step
    methods = ", ".join(dict.fromkeys(step.key["method"] for step in sets))
    raise ConfigError(
        f"the job makes no set {method}, seed {key['seed']}, ipc {key['ipc']}; it has the methods "
        f"{methods}, the seeds {list(job.seeds)} and the ipc {list(job.ipc)}"
    )


def _manifest(store: Store, step: Step) -> dict[str, Any]:
    manifest = store.artifact(step).manifest()
    if manifest is None:
        raise ConfigError(
            f"{step.title} does not exist yet under {store.path}; run this job first, with the same --root and --set"
        )
    return manifest


def _facts(job: Job, store: Store, step: Step, choice: Choice) -> dict[str, Any]:
    """Return the variables that the templates of all cards share."""
    images = _manifest(store, _images(step))
    return {
        "license": choice.license or "other",
        "version": __version__,
        "command": choice.command,
        "fingerprint": step.folder,
        "hashes": _hashes(step),
        "settings": {name: public(value) for name, value in job.model_dump(mode="json").items()},
        "source": public(job.ingest.source),
        "sample": ingest.format_sample(job.ingest),
        "class_names": images["class_names"],
        "train_rows": images["splits"].get("train", 0),
        "val_rows": images["splits"].get("val", 0),
        **{name: step.key.get(name) for name in ("seed", "ipc")},
    }


def _teacher_facts(job: Job, store: Store, teacher: Step) -> dict[str, Any]:
    return {
        "network": job.teach.network,
        "input_size": job.teach.input_size,
        "top1": _manifest(store, teacher)["top1"],
        "protocols": [name for name in job.evaluate.protocols if PROTOCOLS[name].needs_teacher],
    }


def _images(step: Step) -> Step:
    """Return the step of IMAGES that a step was made from."""
    while step.stage != ingest.STAGE.name:
        step = step.inputs["images"] if "images" in step.inputs else next(iter(step.inputs.values()))
    return step


def _licences(job: Job, store: Store, step: Step, **used: bool) -> dict[str, Any]:
    """Return the variables of the template of licences."""
    found = licences.bound(job, _class_keys(store, step), **used)
    shown = [replace(one, name=str(public(one.name))) for one in found]
    return {"licences": shown, "restricting": [one.licence for one in shown if one.licence.restrictions()]}


def _hashes(step: Step) -> list[tuple[str, str]]:
    """List what identifies the models and the artifacts that an export was made from, with what it is of."""
    steps = list(_ancestors(step, set()))
    models = [(one.settings["base_model"], "base_model") for one in steps if "base_model" in one.settings]
    captioners = [one.settings["caption"]["model"] for one in steps if "model" in one.settings.get("caption", {})]
    names = [*models, *((name, "caption.model") for name in captioners)]
    contents = [(str(name), f"{field}: {'hub id' if '/' in str(name) else 'content'}") for name, field in names]
    return [*dict.fromkeys(contents), *((one.folder, f"artifact: {one.title}") for one in steps)]


def _ancestors(step: Step, seen: set[str]) -> Iterator[Step]:
    """Yield the steps that a step was made from, each after its own inputs, and the step."""
    if step.fingerprint not in seen:
        seen.add(step.fingerprint)
        for other in step.inputs.values():
            yield from _ancestors(other, seen)
        yield step


def _contents(target: Artifact) -> str:
    """Hash the list of the files that an export has so far: all but its card."""
    return hashlib.sha256(_sums(target)).hexdigest()


def _scores(store: Store, own: Sequence[Step]) -> str:
    """Return the score table of some evaluations; empty without trials of a set."""
    if not own:
        return ""
    scores = pa.concat_tables([store.artifact(s).table("scores", evaluate.SCORES) for s in own])
    return score_table(scores) if pc.any(pc.greater(scores["ipc"], 0)).as_py() else ""


def _texts(store: Store, step: Step) -> list[dict[str, Any]]:
    """Return the first text prototypes of a generated set."""
    if step.stage != generate.STAGE.name:
        return []
    columns = ["prototype_id", "class_name", "size", "text"]
    table = store.artifact(step.inputs["prototypes"]).table("prototypes", PROTOTYPES, columns)
    rows: list[dict[str, Any]] = table.sort_by("prototype_id").slice(0, _MAX_TEXTS).to_pylist()
    return rows


def _has_files(target: Artifact) -> bool:
    selector = pafs.FileSelector(target.path, recursive=True, allow_not_found=True)
    return any(info.is_file for info in target.filesystem.get_file_info(selector))
