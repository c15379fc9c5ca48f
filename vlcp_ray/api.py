"""The Python API: load a job, run it, and read what it has made. API.md shows its use.

`import vlcp_ray as vr` has these functions; the command line calls them, too. Where a function takes `root`, it is the
folder or URI under which the artifacts are kept, by default `runs` in the current folder, as for `vlcp-ray --root`.
"""

import html
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, Literal, overload

from vlcp_ray import pipeline
from vlcp_ray.config import Job, load_job, sample_overrides
from vlcp_ray.methods.vlcp import METHOD
from vlcp_ray.monitoring import trackers
from vlcp_ray.pipeline import check_inputs, graph
from vlcp_ray.scale import Scale, count_cores, load_scale
from vlcp_ray.schemas import REJECTED
from vlcp_ray.settings import ConfigError
from vlcp_ray.stages import STAGES, evaluate, ingest, teach
from vlcp_ray.stages.ingest import format_skipped
from vlcp_ray.store.artifact import Manifest, Step, Store

if TYPE_CHECKING:
    import datasets
    import pandas as pd
    import pyarrow as pa
    from PIL.Image import Image

    from vlcp_ray.exports.torch_dataset import DistilledSet
    from vlcp_ray.scoring.scored import Scored

ROOT: Final = "runs"
LAST: Final = list(STAGES)[-1]
#: The table of the rows that a stage has refused, of every stage that is row-wise.
_REJECTED: Final = "rejected"


@dataclass(frozen=True)
class Page:
    """An HTML page that a notebook shows where it is the last value of a cell."""

    html: str

    def _repr_html_(self) -> str:
        style = "width: 100%; height: 800px; border: 0"
        return f'<iframe srcdoc="{html.escape(self.html)}" style="{style}"></iframe>'


def load(job: str | os.PathLike[str], /, *, sample: int = 0, **settings: Any) -> Job:
    """Load a job and change settings of it.

    Args:
        job: the name of a job of the package, such as "digits" (`vlcp-ray jobs` lists them), or the path of a job file.
        sample: take so many images of each class only, as a job of its own; 0: all.
        settings: those that differ from the file's, as in the file: `ipc=[1], ingest={"source": "/data/images"}`.

    Raises:
        ConfigError: there is no such job, a setting is unknown, or a value is out of range; the sentence names the fix.
    """
    name = os.fspath(job)
    loaded = load_job(name, changed=settings)
    if sample < 0:
        raise ConfigError(f"sample must be a number of images above 0, not {sample}")
    return load_job(name, sample_overrides(loaded, sample), settings) if sample else loaded


def run(
    job: Job,
    *,
    root: str = ROOT,
    to: str = LAST,
    scale: Scale | str | None = None,
    track: str = "",
    ray_logs: bool = False,
    command: str = "",
) -> None:
    """Run a job or resume it: complete artifacts are skipped. The progress is shown below the cell or in the terminal.

    Args:
        to: the stage after which to stop.
        scale: workers, GPUs and batches per stage, or the name or path of a scale file; None: derived from the machine.
        track: "wandb" or "mlflow", to mirror curves and images to it.
        ray_logs: show the messages of Ray and its workers.
        command: the command that repeats this run, for the report.

    Raises:
        ConfigError: the job cannot run here; the sentence names the setting or the package, and the fix.
    """
    _check_one_of("to", to, STAGES)
    _check_one_of("track", track, ("", *trackers.NAMES))
    store, _ = open_store(job, root)
    trackers.check_installed(track)
    _run(job, store, to, scale, command, track=track, ray_logs=ray_logs)


def _run(job: Job, store: Store, to: str, scale: Scale | str | None, command: str, **options: Any) -> None:
    workers = load_scale(scale) if isinstance(scale, str) else scale
    from vlcp_ray.monitoring import terminal

    with terminal.view(plain=options.get("ray_logs", False)) as view:
        for step in pipeline.run(job, store, to, workers, command, view=view, **options):
            view.log_line(step.title, format_counts(step, store.artifact(step).manifest() or {}))


def score(
    job: Job,
    sets: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    root: str = ROOT,
    names: str | Sequence[str] = (),
    labels: str | os.PathLike[str] = "",
    classes: str | os.PathLike[str] = "",
    normalised: str = "",
    beside: str | Sequence[str] | None = None,
    scale: Scale | str | None = None,
    ray_logs: bool = False,
    command: str = "",
) -> "Scored":
    """Score distilled sets that were made elsewhere, beside random images and coresets of their size.

    Nothing is distilled: the job gives the real images, the protocols and networks, and the teacher. A set is read,
    checked and kept as an artifact, so that the same set is scored once. An export of `vlcp-ray export` gets the scores
    that its run had. Of another set the random numbers of its trainings follow from its seed and size, not its name.

    Args:
        sets: folders, files or URIs: an image folder, parquet, an export, or tensor files of torch.
        names: of their rows, in the place of those of their folders; one for all: sets of one size are then of one
            method, each of the next of the job's seeds.
        labels: the tensor file of the labels, where it is not found beside the images.
        classes: which class a class number is: a list of the package, a file with a line for each number, or "job".
        normalised: how the numbers of tensors were normalised, where they do not show it: a name of
            `scoring.scales.NORMALISATIONS`, "MEAN/STD", or "zca".
        beside: the methods that sets are compared with; None: random, herding, k-center, and full where the job has it.
        scale, ray_logs, command: as of `run`.

    Raises:
        ConfigError: a set cannot be read, its scale is not clear, or its classes are not those of the job.
    """
    from vlcp_ray.scoring import scored
    from vlcp_ray.scoring.given import assign, write
    from vlcp_ray.scoring.read import Known, Options, read_all

    places = [os.fspath(one) for one in ([sets] if isinstance(sets, str | os.PathLike) else sets)]
    names, beside = [names] if isinstance(names, str) else names, [beside] if isinstance(beside, str) else beside
    options = Options(os.fspath(labels), os.fspath(classes), normalised)
    scoring = scored.scoring_job(job, beside)  # of the job's own seeds and ipc, until those of the sets are known
    store, steps = open_store(scoring, root)
    images = store.artifact(next(step for step in steps if step.stage == ingest.STAGE.name))
    teacher = next((step.fingerprint for step in steps if step.stage == teach.STAGE.name), "")

    def train_pixels(size: int) -> Any:
        from vlcp_ray.protocols.labelled_images import load_split

        _run(job, store, ingest.STAGE.name, scale, command, ray_logs=ray_logs)
        return load_split(images, "train", size, size, count_cores()).pixels

    known = Known(scored.job_classes(job, images), job.ingest, teacher, train_pixels)
    found = read_all(places, options, known)
    entries = assign(found, places, names, job.seeds, scoring.compare.methods, job.evaluate.input_size)
    keys = [(entry.step.key["seed"], entry.step.key["ipc"]) for entry in entries]
    scoring = scored.scoring_job(job, beside, keys)
    given = [pipeline.Given(entry.step, entry.stream, partial(write, entry)) for entry in entries]
    _run(scoring, store, LAST, scale, command, ray_logs=ray_logs, given=given)
    steps = graph(scoring, given)
    page = store.artifact(steps[-1])
    facts = tuple(entry.facts for entry in entries)
    return scored.Scored(read_trials(store, steps), facts, tuple(read_measures(store, steps)), page.path)


def scores(job: Job, *, root: str = ROOT) -> "pd.DataFrame":
    """Return the score table, a row for each protocol, network, number of images per class, method and epochs.

    Accuracies are fractions of 1: `top1_last_mean`, `top1_last_std` and so on, over `n` trials. `difference` is vlcp's
    top-1 minus the row's in points, from `low` to `high` at 95 %, `significant` after Holm's correction. The trials
    themselves are `table(job, "scores")`.
    """
    import pandas as pd

    from vlcp_ray.stages.report.scores import score_summary

    store, steps = open_store(job, root)
    return pd.DataFrame(score_summary(read_trials(store, steps)))


def table(
    job: Job,
    name: str,
    *,
    root: str = ROOT,
    method: str | None = None,
    ipc: int | None = None,
    seed: int | None = None,
    columns: Sequence[str] | None = None,
) -> "pd.DataFrame":
    """Return the rows of a table that the job has written, such as "prototypes"; REFERENCE.md lists all with columns.

    Tables of several sets are put together; the columns `method`, `ipc` and `seed` are added where the table lacks them
    (the `seed` of "synthetic" is that of an image's noise). Tensors are NumPy arrays, images are the bytes of files.

    Args:
        method, ipc, seed: take the tables of these sets only; None: of all.
        columns: to read; None: all, which for "images" and "pairs" of a large set do not fit into memory.
    """
    rows = _read_table(job, name, root, {"method": method, "ipc": ipc, "seed": seed}, columns)
    import pandas as pd
    import pyarrow as pa

    from vlcp_ray.schemas import tensors

    return pd.DataFrame(
        {
            field.name: list(tensors(rows[field.name]))
            if isinstance(field.type, pa.FixedShapeTensorType)
            else rows[field.name].to_pandas()
            for field in rows.schema
        }
    )


def show(
    job: Job,
    what: Literal["page", "images"] = "page",
    *,
    root: str = ROOT,
    method: str = METHOD.name,
    ipc: int | None = None,
    seed: int | None = None,
) -> "Page | Image":
    """Return the report or a contact sheet of a distilled set, which a notebook shows as the last value of a cell.

    Args:
        what: "page": the report, or "images": a contact sheet, a row for each class, of a large set the first ones.
        method, ipc, seed: of the set of "images"; None: the job's largest ipc and first seed.
    """
    _check_one_of("what", what, ("page", "images"))
    if what == "page" and (method, ipc, seed) != (METHOD.name, None, None):
        raise ConfigError('method, ipc and seed are for show(job, "images"); the page shows all sets: leave them out')
    store, steps = open_store(job, root)
    if what == "page":
        page = store.artifact(steps[-1])
        content = page.read_bytes("index.html") if page.manifest() is not None else None
        if content is None:
            raise ConfigError(f"{LAST}: not made yet under {store.path}; run the job first, with the same root")
        return Page(content.decode())
    from vlcp_ray.exports.contact_sheet import MAX_CLASSES, contact_sheet
    from vlcp_ray.exports.job import find_set, read_set

    rows, names = read_set(store, find_set(job, steps, method, ipc, seed), MAX_CLASSES)
    images: dict[str, list[bytes]] = {}
    for row in rows.select(["label", "image"]).to_pylist():
        images.setdefault(names[row["label"]], []).append(row["image"])
    return contact_sheet(images)


@overload
def distilled(
    job: Job,
    form: Literal["torch"] = "torch",
    *,
    root: str = ROOT,
    method: str = METHOD.name,
    ipc: int | None = None,
    seed: int | None = None,
    transform: Callable[[Any], Any] | None = None,
) -> "DistilledSet": ...


@overload
def distilled(
    job: Job,
    form: Literal["datasets"],
    *,
    root: str = ROOT,
    method: str = METHOD.name,
    ipc: int | None = None,
    seed: int | None = None,
) -> "datasets.Dataset": ...


def distilled(
    job: Job,
    form: Literal["torch", "datasets"] = "torch",
    *,
    root: str = ROOT,
    method: str = METHOD.name,
    ipc: int | None = None,
    seed: int | None = None,
    transform: Callable[[Any], Any] | None = None,
) -> "DistilledSet | datasets.Dataset":
    """Return a distilled set to train on.

    Args:
        form: "torch": a torch Dataset of (image, label), whose `classes` are the names by label; "datasets": a
            `datasets.Dataset` with the columns of `vlcp-ray export --format parquet`, which has soft labels where the
            job trains with them. It needs the package datasets.
        method, ipc, seed: of the set; None: the job's largest ipc and first seed.
        transform: form "torch" only: what is made of each RGB image of PIL, as in torchvision.

    Raises:
        ConfigError: the job does not make the set or has not made it yet.
    """
    _check_one_of("form", form, ("torch", "datasets"))
    store, steps = open_store(job, root)
    from vlcp_ray.exports.job import find_set, read_hub_table, read_set

    step = find_set(job, steps, method, ipc, seed)
    if form == "torch":
        from vlcp_ray.exports.torch_dataset import DistilledSet

        return DistilledSet(*read_set(store, step), transform)
    if transform is not None:
        raise ConfigError('transform is for form="torch"; leave it out, and use set_transform of the datasets.Dataset')
    if find_spec("datasets") is None:
        raise ConfigError('form="datasets": the package datasets is not installed: pip install datasets')
    import datasets

    return datasets.Dataset(read_hub_table(job, store, steps, step))


def open_store(job: Job, root: str) -> tuple[Store, tuple[Step, ...]]:
    """Check the inputs of a job, and return the store at a root and the steps of the job.

    Raises:
        ConfigError: a model or a table of the job is missing, or the root cannot be used.
    """
    check_inputs(job)
    return open_root(root), graph(job)


def open_root(root: str) -> Store:
    """Return the store at a root, which need not exist yet.

    Raises:
        ConfigError: the root cannot be used.
    """
    try:
        return Store.at(root)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def read_trials(store: Store, steps: Iterable[Step]) -> "pa.Table":
    """Read SCORES of all sets: the trials that have ended."""
    import pyarrow as pa

    found = [step for step in steps if step.stage == evaluate.STAGE.name]
    return pa.concat_tables([store.artifact(step).table("scores", evaluate.SCORES) for step in found])


def read_measures(store: Store, steps: Sequence[Step]) -> list[dict[str, Any]]:
    """Read coverage, diversity, redundancy and device-seconds of every set; none before the report is made."""
    from vlcp_ray.stages.report import COVERAGE
    from vlcp_ray.stages.report.coverage import summarise
    from vlcp_ray.stages.report.device_seconds import with_device_seconds

    page = store.artifact(steps[-1])
    sets = summarise(page.table("coverage", COVERAGE)) if page.manifest() is not None else []
    return with_device_seconds(sets, steps, store.manifests(steps) if sets else {})


def format_counts(step: Step, manifest: Manifest) -> str:
    """Format rows, with what they are, rejected rows and seconds of a complete artifact."""
    stage, count = STAGES[step.stage], manifest["rows_in"]
    counts = f"{count:>7,} {stage.rows.replace('s', '', 1) if count == 1 else stage.rows}"
    if stage.row_wise:
        counts += f" in = {manifest['rows']:,} out + {manifest['rejected']:,} rejected"
    skipped = f"   not read: {format_skipped(manifest['skipped'])}" if manifest.get("skipped") else ""
    return f"{counts:<48} {manifest['seconds']:7.1f} s{skipped}"


def _read_table(job: Job, name: str, root: str, key: dict[str, Any], columns: Sequence[str] | None) -> "pa.Table":
    """Read a table of all complete artifacts whose step has these values of its key, where they are not None."""
    import pyarrow as pa

    schemas = {table: schema for stage in STAGES.values() for table, schema in stage.tables.items()}
    schemas[_REJECTED] = REJECTED
    _check_one_of("name", name, schemas)
    schema = schemas[name]
    for column in columns or ():
        _check_one_of("columns", column, schema.names)
    store, steps = open_store(job, root)
    wanted = {part: value for part, value in key.items() if value is not None}
    having = [step for step in steps if _has_table(step, name)]
    chosen = [step for step in having if wanted.items() <= step.key.items()]
    if not chosen:
        keys = sorted({step.title for step in having})
        raise ConfigError(f"{name}: the job makes none with {wanted}; it makes {', '.join(keys) or 'none at all'}")
    manifests = store.manifests(chosen)
    made = [step for step in chosen if manifests.get(step.fingerprint)]
    if not made:
        raise ConfigError(f"{name}: not made yet under {store.path}; run the job first, with the same root")
    parts = []
    for step in made:
        rows = store.artifact(step).table(name, schema, columns)
        for part, kind in (("seed", pa.int64()), ("ipc", pa.int64()), ("method", pa.string())):
            if part in step.key and part not in schema.names:
                rows = rows.add_column(0, part, pa.repeat(pa.scalar(step.key[part], kind), len(rows)))
        parts.append(rows)
    return pa.concat_tables(parts, promote_options="default")  # the stages that reject rows have other keys


def _has_table(step: Step, name: str) -> bool:
    stage = STAGES[step.stage]
    return name in stage.tables or (name == _REJECTED and stage.row_wise)


def _check_one_of(field: str, value: str, allowed: Iterable[str]) -> None:
    names = list(allowed)
    if value not in names:
        raise ConfigError(f"{field} must be one of {', '.join(name or repr(name) for name in names)}, not {value!r}")
