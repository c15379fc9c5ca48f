"""Knows what each stage of a job has to do: images, operations, starts of its workers, and what can go on at once."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from vlcp_ray.config import Expect, Job
from vlcp_ray.cost.work import Models, classify
from vlcp_ray.needs import latent
from vlcp_ray.protocols.pace import minimax_epochs, rded_epochs
from vlcp_ray.schedule import Schedule
from vlcp_ray.store import Step

#: A training step beside the forward pass: backward takes two of them, and gradient checkpointing repeats it once.
TRAINED_PASSES: Final = 3
#: Fine-tuning samples from so many class names, with guidance, in so many steps (stages/finetune.py).
_SAMPLED, _SAMPLE_STEPS = 10, 20
#: Lloyd's iterations of a k-means. ImageNet's classes at 512 px take 10 to 30.
_ITERATIONS: Final = 20
_RDED_CROPS: Final = 300 * 5  # of a class: images, and crops of each
_SLICE: Final = 75  # tokens of a text that one slice of 77 ids holds


@dataclass(frozen=True)
class Load:
    """What one pool of workers has to do for a stage.

    Args:
        rate: by which measured rate it is done.
        images: that it reads or makes, 0 where another load of the stage has counted them.
        amount: operations; for ingest images. None where a model was never counted.
        starts: how often, one after the other, its workers start anew.
        units: pieces that can be worked on at once.
        wide: units are spread over all workers; else one of them does it all while the others wait.
    """

    stage: str
    pool: str
    rate: str
    images: int
    amount: float | None
    starts: int
    units: int
    wide: bool = True


def loads(job: Job, steps: Sequence[Step], images: Expect, models: Models, answer: float) -> Iterator[Load]:
    """The loads of all stages in the graph, in its order.

    Args:
        answer: tokens of a description.
    """
    of = {stage: [step for step in steps if step.stage == stage] for stage in {step.stage for step in steps}}
    given = _Given(job, images, models, answer)
    for stage, count in _COUNTED.items():
        if stage in of:
            yield from count(given, of[stage])


@dataclass(frozen=True)
class _Given:
    job: Job
    images: Expect
    models: Models
    answer: float

    @property
    def side(self) -> int:
        """Of the latents that are clustered and drawn from."""
        return latent(self.job, self.job.encode.resolution)[1]

    def slices(self, text: str) -> int:
        """Of the texts that guide: descriptions, or class names."""
        return 1 if text != "text" else max(1, -(-int(self.answer) // _SLICE))


def _ingest(given: _Given, _: Sequence[Step]) -> Iterator[Load]:
    count = given.images.train + given.images.val
    yield Load("ingest", "ingest", "ingest", count, count, 1, count)


def _pair(given: _Given, _: Sequence[Step]) -> Iterator[Load]:
    job, n, models = given.job, given.images.train, given.models
    each = None if job.caption.source else models.describe(job.caption.prompt, given.answer)
    if not job.caption.source:
        yield Load("pair", "caption", "caption", n, _times(each, n), 1, n)
    square, crop = models.encode(given.side), models.encode(latent(job, job.encode.train_resolution)[1])
    # The centre crop, mirrored too where training asks for it, and the square view: of square images the crop itself.
    views = 1 + job.finetune.random_flip
    again = 0 if job.ingest.source == "digits" and job.encode.train_resolution == job.encode.resolution else 1
    counted = n if job.caption.source else 0
    yield Load("pair", "encode", "encode", counted, _times(_plus(_times(crop, views), _times(square, again)), n), 1, n)


def _finetune(given: _Given, steps: Sequence[Step]) -> Iterator[Load]:
    job, models, settings, seeds = given.job, given.models, given.job.finetune, len(steps)
    side = latent(job, job.encode.train_resolution)[1]
    schedule = Schedule(given.images.train, settings.epochs, settings.batch_size, 0)
    seen = schedule.images_after(schedule.steps)
    passes = TRAINED_PASSES + settings.gradient_checkpointing
    each = _plus(_times(models.denoise(side), passes), models.embed())
    yield Load("finetune", "finetune", "finetune", seen * seeds, _times(each, seen * seeds), seeds, settings.batch_size)
    drawn = min(_SAMPLED, given.images.classes) * (settings.epochs // settings.validation_epochs)
    sampled = _plus(_times(models.denoise(side), 2 * _SAMPLE_STEPS), models.decode(side))
    yield Load("finetune", "finetune", "generate", 0, _times(sampled, drawn * seeds), 0, 1, wide=False)


def _prototype(given: _Given, steps: Sequence[Step]) -> Iterator[Load]:
    settings, classes = given.job.prototype, given.images.classes
    channels, height, width = latent(given.job, given.job.encode.resolution)
    values, each = channels * height * width, given.images.train / classes
    clusters = sum(step.key["ipc"] for step in steps)
    neighbours = sum(
        each for s in {json.dumps(s.science, sort_keys=True) for s in steps} if json.loads(s)["contamination"]
    )
    found = 2 * values * each * (clusters * _ITERATIONS * settings.n_init + neighbours)
    yield Load("prototype", "prototype", "prototype", given.images.train, found * classes, 1, classes)


def _generate(given: _Given, steps: Sequence[Step]) -> Iterator[Load]:
    models, side, classes = given.models, given.side, given.images.classes
    amount: float | None = 0.0
    for step in steps:
        science = given.job.generate.model_copy(update={k: v for k, v in step.science.items() if k != "text"})
        slices = given.slices(step.science["text"])
        calls = int(science.num_inference_steps * science.strength) + 1  # PNDM sees its first step twice
        guided = 1 + (science.guidance_scale > 1)
        each = _plus(_times(models.denoise(side, slices), calls * guided), models.decode(side), models.embed(slices))
        amount = _plus(amount, _times(each, step.key["ipc"] * classes))
    drawn = sum(step.key["ipc"] for step in steps) * classes
    starts = len({_alike(step) for step in steps})
    yield Load("generate", "generate", "generate", drawn, amount, starts, drawn)


def _alike(step: Step) -> str:
    """What one load of a model serves (flow/rows.py)."""
    model = step.inputs["model"].fingerprint if "model" in step.inputs else ""
    return json.dumps([step.key["method"], model, step.science], sort_keys=True)


def _teach(given: _Given, steps: Sequence[Step]) -> Iterator[Load]:
    teach, images = given.job.teach, given.images
    each = classify(teach.network, teach.input_size, teach.width, images.classes)
    learned = 0 if teach.checkpoint else TRAINED_PASSES * teach.epochs * images.train
    tested = images.val * (1 if teach.checkpoint else min(teach.checks, teach.epochs))
    yield Load("teach", "evaluate", "evaluate", images.train, each * (learned + tested), 1, 1, wide=False)


def _select(given: _Given, steps: Sequence[Step]) -> Iterator[Load]:
    teach, classes = given.job.teach, given.images.classes
    drawn: dict[str, int] = {
        m: sum(s.key["ipc"] for s in steps if s.key["method"] == m) * classes for m in given.job.compare.methods
    }
    if count := drawn.get("centroid"):
        decoded = _times(given.models.decode(given.side), count)
        yield Load("select", "generate", "decode", count, decoded, 1, count)
    if count := drawn.get("random"):
        yield Load("select", "ingest", "ingest", count, count, 1, count)  # read and written, not decoded
    looks = {"herding": given.images.train, "k-center": given.images.train}
    looks["rded"] = _RDED_CROPS * classes * len({s.key["seed"] for s in steps})
    seen = sum(looks[method] for method in looks if drawn.get(method))
    if seen:
        each = classify(teach.network, teach.input_size, teach.width, classes)
        count = sum(drawn.get(method, 0) for method in looks)
        yield Load("select", "evaluate", "evaluate", count, each * seen, 1, classes)


def _evaluate(given: _Given, steps: Sequence[Step]) -> Iterator[Load]:
    trials = [trial for step in steps for trial in _trials(given, step.key)]
    yield Load("evaluate", "evaluate", "evaluate", len(trials), sum(trials), 1, len(trials))


def _trials(given: _Given, key: Mapping[str, object]) -> Iterator[float]:
    """The operations of each trial of a set; the full train split is trained on once, under minimax."""
    settings, images, full = given.job.evaluate, given.images, key["method"] == "full"
    ipc = 0 if full else int(str(key["ipc"]))
    count = images.train if full else ipc * images.classes
    teach = given.job.teach
    told = classify(teach.network, settings.input_size, teach.width, images.classes)
    for protocol in ("minimax",) if full else settings.protocols:
        hard = protocol == "minimax"
        epochs = minimax_epochs(settings, ipc, images.classes) if hard else rded_epochs(settings, ipc)
        checks = min(settings.checks, epochs) // (1 if hard else 5)  # under rded of the last fifth alone
        for network in settings.networks:
            each = classify(network, settings.input_size, settings.width, images.classes)
            step = TRAINED_PASSES * each + (0 if hard else told)
            yield from [epochs * count * step + checks * images.val * each] * (1 if full else settings.repeats)


_COUNTED: Final = {
    "ingest": _ingest,
    "pair": _pair,
    "finetune": _finetune,
    "prototype": _prototype,
    "generate": _generate,
    "teach": _teach,
    "select": _select,
    "evaluate": _evaluate,
}


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _plus(*values: float | None) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
