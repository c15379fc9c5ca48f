"""pair: caption and encode every training image, in one streaming plan of two actor pools."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import ray

from vlcp_ray.config import Job
from vlcp_ray.engine.context import Context
from vlcp_ray.engine.streaming import RowWork, filter_rows, read, run_rows
from vlcp_ray.engine.tasks import run_remote
from vlcp_ray.engine.writing import WriteRows, complete_rows, done_ids
from vlcp_ray.models.pretrained import latent_shape
from vlcp_ray.monitoring.progress import log_line
from vlcp_ray.scale import Pool, Scale
from vlcp_ray.stages.pair import ANSWERS, STAGE, Caption, format_problems, format_tokens, format_too_long, pairs_schema
from vlcp_ray.stages.pair.answers import count_captions, count_tokens
from vlcp_ray.stages.pair.saved_captions import check_names
from vlcp_ray.store.artifact import Step

#: Batches of the VAE in one call of an actor: the images of the later ones are decoded while it encodes the first.
_BATCHES_PER_CALL: Final = 4
_COLUMNS: Final = ("image_id", "label", "class_name", "split", "image", "source")


def run(context: Context, steps: Sequence[Step]) -> None:
    """Caption and encode IMAGES(train) to PAIRS."""
    (step,) = steps
    job, scale, artifact = context.job, context.scale, context.artifact(step)
    manifest = context.manifest(step.inputs["images"])
    flip = job.finetune.random_flip
    channels, height, width = latent_shape(job.base_model, job.encode.train_resolution)
    schema = pairs_schema(latent_shape(job.base_model, job.encode.resolution), (2 * channels, height, width), 1 + flip)
    write = WriteRows({"": artifact}, STAGE.name, "pairs", schema, beside={"answers": ANSWERS})

    if job.caption.source:
        _check_names(context, step)
    rows = read(context.input(step, "images"), "images", _COLUMNS)
    done = done_ids(write, artifact)
    rows = filter_rows(rows, done=done, where={"split": "train"})
    captions = _caption_works(job.caption, scale)
    encode = _encode_work(job, scale.encode)
    rows_per_block = scale.rows_per_block
    if not job.caption.uses_model:  # without a model, Ray's overhead per block is a large share of the work
        rows_per_block *= 4
        if "RAY_ADDRESS" not in os.environ:  # all CPUs of this machine are free from the start: start all encoders now
            encode = replace(encode, pool=encode.pool.model_copy(update={"min_workers": None}))
    total = sum(manifest["train"])
    totals = {step.fingerprint: total}
    before = 0
    if job.caption.uses_model:
        ray.wait([done], fetch_local=False)  # it removes the answers that an interrupted run has left
        before = run_remote(count_tokens, artifact)["tokens"]
    seconds = run_rows(context, [step], rows, [*captions, encode], write, totals, rows_per_block)
    prompt = "" if job.caption.source else job.caption.prompt
    counts = run_remote(count_captions, artifact, job.base_model, len(manifest["class_names"]), prompt)
    if job.caption.uses_model:
        tokens = run_remote(count_tokens, artifact)
        counts["caption_tokens"] = tokens | _tokens_per_second(tokens, before, seconds[step.fingerprint])
    for line in _lines(counts):
        log_line(step.title, line)
    used = {} if job.caption.uses_model else {"caption": None}
    complete_rows(context, step, write, total, {"seconds": seconds[step.fingerprint], "pools": used, **counts})


def _tokens_per_second(tokens: Mapping[str, int], before: int, seconds: float) -> dict[str, float]:
    """Return the rate of this run; nothing where its model has captioned no image.

    Args:
        tokens: as `count_tokens`.
        before: tokens of the answers of earlier runs.
        seconds: of this run.
    """
    new = tokens["tokens"] - before
    return {"tokens_per_second": round(new / seconds, 1)} if seconds > 0 and new > 0 else {}


def _lines(counts: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a reader should know of the captions."""
    lengths = counts["caption_lengths"]
    if lengths["too_long"]:
        yield format_too_long(lengths["too_long"], lengths["captions"], lengths["encoder_tokens"])
    if tokens := format_tokens(counts.get("caption_tokens", {})):
        yield tokens
    yield from (line for line, _ in format_problems(counts["caption_problems"], lengths["captions"]))


def _check_names(context: Context, step: Step) -> None:
    """Compare the names of saved captions with those of the images before anything is encoded."""
    images, found = run_remote(check_names, context.job.caption.source, context.input(step, "images"))
    if found < images:
        fate = "the model describes the others" if context.job.caption.uses_model else "the others are rejected"
        log_line(step.title, f"caption.source has {found:,} of {images:,} training images; {fate}")


def _encode_work(job: Job, pool: Pool) -> RowWork:
    """Return the encoding work: its threads decode images while the VAE encodes others."""
    arguments = {
        "settings": job.encode,
        "base_model": job.base_model,
        "batch_size": pool.batch_size,
        "flip": job.finetune.random_flip,
        "threads": max(1, round(pool.num_cpus)),
    }
    batches = _BATCHES_PER_CALL if pool.num_gpus else 1  # on a CPU the same cores do both
    called = pool.model_copy(update={"batch_size": batches * pool.batch_size})
    return RowWork("vlcp_ray.stages.pair.encode:EncodeRows", arguments, called)


def _caption_works(settings: Caption, scale: Scale) -> list[RowWork]:
    """Return the captioning work: the table of saved captions, the model, or the model for what the table lacks."""
    works = []
    if settings.source:  # a look-up is far faster than encoding: one worker is enough
        arguments = {"uri": settings.source, "keeps_missing": settings.uses_model}
        pool = Pool(batch_size=scale.rows_per_block)
        works.append(RowWork("vlcp_ray.stages.pair.saved_captions:LoadSavedCaptions", arguments, pool))
    if settings.uses_model:
        # With two calls at a time vLLM has the images of the next while it finishes the last ones of the first.
        calls = 2 if settings.engine == "vllm" else 1
        arguments = {"settings": settings, "gpus": scale.caption.num_gpus}
        works.append(RowWork("vlcp_ray.stages.pair.caption:CaptionRows", arguments, scale.caption, calls))
    return works
