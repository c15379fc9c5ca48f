"""What only a GPU can show, in some twenty minutes: `python -m tests.benchmarks.gpu --folder FOLDER [--json FILE]`.

Every stage's own class does its work with random weights of the paper's sizes, in the batches that are derived for the
GPU and in others. The table has images/s, TFLOP/s, the share of the peak of a large matrix product, the peak of the
memory beside its forecast, and what else was looked at: numbers that are not finite, a resumed training, a second run.
It needs torch, diffusers, transformers, accelerate, peft, pyarrow, pydantic and obstore, neither Ray nor vLLM. Without
a GPU the models are tiny, so that the same code is tested.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from tests.benchmarks.variants import SIDE, TEXT, free_memory, peak_memory, seconds_per_call, wait
from tests.tiny_models import build_stable_diffusion
from vlcp_ray import images, schemas
from vlcp_ray.bench.random_models import Size, dit, llava, stable_diffusion
from vlcp_ray.bench.run import peak
from vlcp_ray.config import Caption, Compare, Encode, Evaluate, Finetune, Generate, Job, Teach
from vlcp_ray.cost.flops import model_flops
from vlcp_ray.cost.memory import ModelMemory
from vlcp_ray.methods.idc import IDC, match_gradients
from vlcp_ray.methods.minimax import GUIDED_CHANNELS, Minimax
from vlcp_ray.methods.minimax import image_flops as dit_image_flops
from vlcp_ray.methods.sre2l import BATCH, SRe2L, recover
from vlcp_ray.models.architectures import FIRST, NAMES
from vlcp_ray.models.captioners import load_captioner
from vlcp_ray.models.dit import Sampler
from vlcp_ray.models.networks import TEACHER_NORM
from vlcp_ray.models.pretrained import dit_side, expected_resolution, latent_shape
from vlcp_ray.models.stable_diffusion import pick_device
from vlcp_ray.models.teacher import build_teacher
from vlcp_ray.protocols import PROTOCOLS
from vlcp_ray.protocols.labelled_images import LabelledImages
from vlcp_ray.scale import FinetunePool
from vlcp_ray.schemas import tensor_array
from vlcp_ray.stages.evaluate import Trial
from vlcp_ray.stages.evaluate.trial import run_trial
from vlcp_ray.stages.finetune import dit_training_flops, training_flops
from vlcp_ray.stages.finetune.batches import Schedule
from vlcp_ray.stages.finetune.dit import DitTrainer
from vlcp_ray.stages.finetune.trainer import Trainer
from vlcp_ray.stages.finetune.training import train
from vlcp_ray.stages.generate import image_flops
from vlcp_ray.stages.generate.img2img import Img2Img
from vlcp_ray.stages.pair import encode_flops
from vlcp_ray.stages.pair.encode import EncodeRows
from vlcp_ray.stages.stage import TRAINING_PASSES

_GIB: Final = 2**30
FAILED: Final = "FAILED"
_ACCUMULATED: Final = 2  # batches of a step
_CLASSES: Final = 10
_LENGTH: Final = 1024  # tokens of image, prompt and caption together, at most
_RANK: Final = 16  # of LoRA
_ANSWER_TOKENS: Final[Mapping[str, int]] = {"real": 64, "tiny": 8}


@dataclass(frozen=True)
class Row:
    """One line of the table; a figure is None where it does not apply."""

    stage: str
    setting: str
    images_per_second: float | None = None
    tflops: float | None = None
    peak_share: float | None = None
    gib: float | None = None
    forecast_gib: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Machine:
    """Where the checks run.

    Args:
        device: cuda or cpu.
        size: of the models.
        folder: with the models' weights.
        peak: operations per second of a large matrix product.
        base: the base model, of `vlcp_ray.models.architectures.NAMES`.
    """

    device: str
    size: Size
    folder: Path
    peak: float
    base: str = FIRST

    @property
    def model(self) -> str:
        if self.size == "tiny" and self.base != FIRST:
            path = self.folder / f"stable-diffusion-{self.base}-tiny"
            return str(path if path.exists() else build_stable_diffusion(path, "2" if self.base == "2" else "xl"))
        return stable_diffusion(self.size, self.folder, device=self.device, name=self.base)

    @property
    def side(self) -> int:
        """The side in pixels that the base model was trained at."""
        return expected_resolution(self.model) or SIDE[self.size]

    def job(self, **settings: Any) -> Job:
        encode = Encode(resolution=self.side, train_resolution=self.side)
        return Job(name="gpu", base_model=self.model, encode=encode, **settings)

    def batches(self, *real: int) -> tuple[int, ...]:
        """Return batch sizes: one of two images where the models are tiny, and with another base model."""
        return real if (self.size, self.base) == ("real", FIRST) else (2,)

    def row(self, stage: str, setting: str, count: int, flops: float, call: Callable[[], object], **more: Any) -> Row:
        """Measure a call that processes `count` images of `flops` operations each."""
        free_memory(self.device)
        speed = count / seconds_per_call(call, self.device)
        return Row(
            stage,
            setting,
            images_per_second=speed,
            tflops=speed * flops / 1e12,
            peak_share=speed * flops / self.peak,
            gib=peak_memory(self.device),
            **more,
        )


def check_encode(machine: Machine) -> Iterator[Row]:
    """Encode photographs with mirrored views, in both precisions."""
    job, memory = machine.job(), ModelMemory.for_job(machine.job())
    random, side = np.random.default_rng(0), machine.side
    photos = [
        images.encode_png(random.integers(0, 256, (side * 3 // 4, side, 3)).astype(np.uint8))
        for _ in range(2 * machine.batches(32, 8)[0])
    ]
    table = pa.table({"image_id": [str(number) for number in range(len(photos))], "image": photos})
    latents = np.zeros(0)
    for batch in machine.batches(32, 8):
        encode = EncodeRows(job.encode, machine.model, batch, threads=os.cpu_count() or 1)
        flops = encode_flops(job, model_flops(job))
        row = machine.row("encode", f"batch {batch}", len(photos), flops, partial(encode, table))
        result = encode(table)
        latents = schemas.tensors(result["latent"]).astype(np.float32)
        rejected = sum(bool(reason) for reason in schemas.reasons(result))
        busy = _busy_share(partial(encode, table), machine.device)
        forecast = memory.encode(batch, latent_shape(machine.model, side)[1])
        yield replace(row, forecast_gib=forecast, note=f"{rejected} not finite{busy}")
    encode.vae.to(torch.float32)
    exact = schemas.tensors(encode(table)["latent"]).astype(np.float32)
    yield Row("encode", "against float32", note=f"largest difference of a latent {np.abs(exact - latents).max():.1e}")


def check_finetune(machine: Machine) -> Iterator[Row]:
    """Take training steps in all ways that save memory, and go on after a checkpoint."""
    if machine.device == "cuda":
        settings = [("fp16", 4, False), ("fp16", 8, False), ("fp16", 8, True), ("bf16", 4, False), ("bf16", 20, True)]
    else:
        settings = [("no", 2, False), ("no", 2, True)]
    for precision, batch, recompute in settings:
        pool = FinetunePool(batch_size=batch, gradient_checkpointing=recompute)
        yield _train(machine, precision, pool)
    yield _train(machine, settings[0][0], FinetunePool(batch_size=settings[0][1], average_on="cpu"))
    yield _train(machine, settings[0][0], FinetunePool(batch_size=settings[0][1], optimizer="adamw8bit"))
    yield _train_ahead(machine, settings[0][0], settings[0][1])
    yield _resume(machine, settings[0][0], settings[0][1])
    yield _train_distributed(machine, settings[0][0], settings[0][1])
    if machine.device == "cuda":
        yield _train_in_little_memory(machine)


def _trainer(
    machine: Machine, precision: str, pool: FinetunePool, rank: int = 0, **options: Any
) -> tuple[Trainer, Callable[[], Any]]:
    """Return a trainer, and a function that takes one step, which adds up the gradients of two batches."""
    channels, height, width = latent_shape(machine.model, machine.side)
    count = _ACCUMULATED * pool.batch_size
    settings = Finetune(mixed_precision=precision, batch_size=count, lora_rank=rank)
    trainer = Trainer(settings, machine.model, 0, machine.side, pool, machine.device, **options)
    table = _pairs(count, channels, height, width)
    batch = Schedule(count, 1, count, 0).rank_batch(0)
    return trainer, lambda: trainer.step(trainer.prepare(table, batch))


def _pairs(count: int, channels: int, height: int, width: int) -> pa.Table:
    """Return the columns of PAIRS that fine-tuning reads, with noise for moments."""
    moments = np.random.default_rng(0).normal(size=(count, 2, 2 * channels, height, width)).astype(np.float16)
    columns = {"image_id": [str(number) for number in range(count)], "caption": [TEXT] * count}
    return pa.table({**columns, "train_moments": tensor_array(moments)})


def _train(machine: Machine, precision: str, pool: FinetunePool, name: str = "", rank: int = 0, **options: Any) -> Row:
    trainer, step = _trainer(machine, precision, pool, rank, **options)
    job = machine.job(finetune=Finetune(lora_rank=rank))
    flops = training_flops(job, model_flops(job), pool.gradient_checkpointing)
    saving = [
        *(["recomputed"] if pool.gradient_checkpointing else []),
        *(["average on the CPU"] if pool.average_on == "cpu" else []),
    ]
    saving += ["8-bit AdamW"] if pool.optimizer == "adamw8bit" else []
    saving += [f"LoRA of rank {rank}"] if rank else []
    setting = name or ", ".join([precision, f"batch {pool.batch_size}", *saving])
    row = machine.row("finetune", setting, _ACCUMULATED * pool.batch_size, flops, step)
    side = latent_shape(machine.model, machine.side)[1]
    forecast = ModelMemory.for_job(job).train(pool, trainer.batch_per_device, side, precision, rank)
    halved = "" if trainer.batch_per_device == pool.batch_size else f", halved to {trainer.batch_per_device}"
    skipped = f", {trainer.steps_done - int(trainer.sums.norm[1])} skipped" if trainer.scaler.is_enabled() else ""
    scale = f", loss scale {trainer.scaler.get_scale():.0f}" if trainer.scaler.is_enabled() else ""
    return replace(row, forecast_gib=forecast, note=f"{trainer.steps_done} steps{skipped}{scale}{halved}")


def _train_ahead(machine: Machine, precision: str, batch: int) -> Row:
    """Train in the stage's own loop, which reads and prepares the inputs of the next steps beside a step."""
    pool = FinetunePool(batch_size=batch, gradient_checkpointing=False)
    trainer, step = _trainer(machine, precision, pool)
    step()
    free_memory(machine.device)
    pairs = _pairs(_ACCUMULATED * batch * machine.batches(16)[0], *latent_shape(machine.model, machine.side))
    speeds: list[float] = []

    def loop(epochs: int) -> None:
        schedule = Schedule(len(pairs), epochs, _ACCUMULATED * batch, 0)
        trainer.steps_done = trainer.images_reported = 0
        train(trainer, schedule, pairs.take, lambda metrics: speeds.append(metrics.images_per_second))

    loop(2)
    job = machine.job()
    flops = training_flops(job, model_flops(job), gradient_checkpointing=False)
    return Row(
        "finetune",
        f"{precision}, batch {batch}, in its loop",
        images_per_second=speeds[1],
        tflops=speeds[1] * flops / 1e12,
        peak_share=speeds[1] * flops / machine.peak,
        gib=peak_memory(machine.device),
        forecast_gib=ModelMemory.for_job(job).train(
            pool, trainer.batch_per_device, latent_shape(machine.model, machine.side)[1], precision
        ),
        note=f"{len(pairs) // (_ACCUMULATED * batch)} steps{_busy_share(partial(loop, 1), machine.device)}",
    )


def _resume(machine: Machine, precision: str, batch: int) -> Row:
    """Compare the time of a step before and after a checkpoint is loaded."""
    pool = FinetunePool(batch_size=batch, gradient_checkpointing=False)
    trainer, step = _trainer(machine, precision, pool)
    before = seconds_per_call(step, machine.device)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        trainer.save(folder, trainer.sums.total())
        saved = time.perf_counter() - start
        size = sum(file.stat().st_size for file in Path(folder).iterdir()) / _GIB
        trainer.load(folder)
    after = seconds_per_call(step, machine.device)
    counters = {str(state["step"].device) for state in trainer.optimizer.state.values()}
    note = (
        f"a step {1000 * before:.0f} ms, after loading {1000 * after:.0f} ms; step counters on {', '.join(counters)}; "
    )
    return Row("finetune", "resumed", note=f"{note}checkpoint {size:.2f} GiB written in {saved:.1f} s")


def _train_distributed(machine: Machine, precision: str, batch: int) -> Row:
    """Train as one rank of a distributed training: its gradients are views into DDP's buckets."""
    with tempfile.TemporaryDirectory() as folder:
        backend = "nccl" if machine.device == "cuda" else "gloo"
        distributed.init_process_group(backend, init_method=f"file://{folder}/ranks", rank=0, world_size=1)
        try:
            wrap = partial(DistributedDataParallel, gradient_as_bucket_view=True)
            pool = FinetunePool(batch_size=batch, gradient_checkpointing=False)
            return _train(machine, precision, pool, f"{precision}, batch {batch}, one rank of DDP", wrap=wrap)
        finally:
            distributed.destroy_process_group()


def _train_in_little_memory(machine: Machine) -> Row:
    """Train in the memory of a card of 24 GB, with a batch that does not fit: it is halved."""
    total = torch.cuda.get_device_properties(0).total_memory / _GIB
    torch.cuda.set_per_process_memory_fraction(min(1.0, 22 / total))
    try:
        return _train(
            machine, "fp16", FinetunePool(batch_size=16, gradient_checkpointing=False), "fp16, 22 GiB, batch 16"
        )
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def check_generate(machine: Machine) -> Iterator[Row]:
    """Generate images with guidance, in several batches; compare those of a batch of one."""
    job, side = machine.job(), latent_shape(machine.model, machine.side)[1]
    settings = (
        Generate(image_size=machine.side)
        if machine.size == "real"
        else Generate(image_size=machine.side, num_inference_steps=4)
    )
    count = machine.batches(32, 8)[0]
    shape = latent_shape(machine.model, machine.side)
    latents = np.random.default_rng(0).normal(size=(count, *shape)).astype(np.float32)
    columns = {"prototype_id": [f"{number:04d}" for number in range(count)], "label": [0] * count, "seed": [0] * count}
    columns |= {"class_name": ["tench"] * count, "text": [TEXT] * count}
    table = pa.table({**columns, "latent": tensor_array(latents)})
    flops = image_flops(settings, model_flops(job), side)
    for batch in machine.batches(32, 8):
        img2img = Img2Img(settings, machine.model, batch)
        row = machine.row("generate", f"batch {batch}", count, flops, partial(img2img, table))
        pixels = _decoded(img2img(table))
        black = sum(not image.any() for image in pixels)
        forecast = ModelMemory.for_job(job).generate(batch, side, guided=True)
        busy = _busy_share(partial(img2img, table), machine.device)
        yield replace(row, forecast_gib=forecast, note=f"{black} black, {count - len(pixels)} not finite{busy}")
    alone = _decoded(Img2Img(settings, machine.model, 1)(table.slice(0, 1)))
    difference = int(np.abs(alone[0].astype(int) - pixels[0].astype(int)).max())
    yield Row("generate", "batch 1 against more", note=f"largest difference of a pixel {difference} of 255")


def _decoded(synthetic: pa.Table) -> list[images.Pixels]:
    """Decode the images of SYNTHETIC; rejected rows have none."""
    return [np.asarray(images.decode(content)) for content in synthetic["image"].to_pylist() if content]


def check_base_models(machine: Machine) -> Iterator[Row]:
    """Do the work of the stages with Stable Diffusion 2.1 and XL; fine-tune all weights, and LoRA's."""
    precision = "fp16" if machine.device == "cuda" else "no"
    for base in NAMES[1:]:
        other = replace(machine, base=base)
        pools = [FinetunePool(batch_size=batch, gradient_checkpointing=True) for batch in (*other.batches(), 1)]
        checks: list[Callable[[], Iterator[Row]]] = [
            partial(check_encode, other),
            lambda: iter([_train(other, precision, pools[0])]),  # noqa: B023, called before the next base model
            lambda: (_train(other, precision, pool, rank=_RANK) for pool in pools),  # noqa: B023
            lambda: iter([_validate(other, precision, pools[-1])]),  # noqa: B023
            partial(check_generate, other),
        ]
        for check in checks:
            try:
                yield from (replace(row, setting=f"{base}: {row.setting}") for row in check())
            except (torch.OutOfMemoryError, ValueError, ImportError) as error:  # what follows may fit
                yield Row("finetune", FAILED, note=f"{base}: {' '.join(str(error).split())[:200]}")
            free_memory(machine.device)


def _validate(machine: Machine, precision: str, pool: FinetunePool) -> Row:
    """Generate a validation image beside what is trained, with LoRA."""
    trainer, step = _trainer(machine, precision, pool, _RANK, class_names=["tench"])
    step()
    free_memory(machine.device)
    epoch = trainer.settings.validation_epochs
    (content,) = trainer.validate(epoch)
    gib, side = peak_memory(machine.device), latent_shape(machine.model, machine.side)[1]
    forecast = ModelMemory.for_job(machine.job()).validate(pool, side, True, precision, _RANK)
    black = "" if np.asarray(images.decode(content)).any() else "black"
    return Row("finetune", "a validation image with LoRA", gib=gib, forecast_gib=forecast, note=black)


def check_methods(machine: Machine) -> Iterator[Row]:
    """Fine-tune the DiT of minimax and sample from it; take steps of sre2l and idc-1 at their size for ImageNet."""
    yield from _check_optimised(machine)
    yield from _check_minimax(machine)  # last: its DiT computes in TF32, and the process with it


def _check_minimax(machine: Machine) -> Iterator[Row]:
    model = dit(machine.size, machine.folder, device=machine.device)
    (batch,) = machine.batches(8)
    steps = 50 if machine.size == "real" else 2
    settings = Minimax(model=model, batch_size=batch, num_inference_steps=steps)
    job, side = Job(name="gpu", compare=Compare(methods=("minimax",), minimax=settings)), dit_side(model)
    memory, flops = ModelMemory.for_job(job), model_flops(job)
    labels = [number % _CLASSES for number in range(batch)]
    table = _pairs(batch, 4, side, side).append_column("label", pa.array(labels))
    for recompute in (False, True):
        pool = FinetunePool(batch_size=batch, gradient_checkpointing=recompute)
        trainer = DitTrainer(settings, 0, {number: number for number in range(_CLASSES)}, pool, machine.device)

        def step(trainer: DitTrainer = trainer) -> None:
            trainer.step(trainer.prepare(table, Schedule(batch, 1, batch, 0).rank_batch(0)))

        setting = f"DiT, batch {batch}{', recomputed' if recompute else ''}"
        row = machine.row("methods", setting, batch, dit_training_flops(flops, side, recompute), step)
        yield replace(row, forecast_gib=memory.train_dit(recompute, trainer.batch_per_device, side))
        del trainer, step
    options = {"guided_channels": GUIDED_CHANNELS, "guidance_scale": settings.guidance_scale, "steps": steps}
    sampler = Sampler(model, machine.device, batch, **options)
    call = partial(sampler, labels, list(range(batch)))
    row = machine.row(
        "methods", f"images of the DiT, batch {batch}", batch, dit_image_flops(settings, flops, side), call
    )
    black = sum(not pixels.any() for pixels in call().pixels)
    yield replace(row, forecast_gib=memory.generate_by_dit(batch, side, guided=True), note=f"{black} black")


def _check_optimised(machine: Machine) -> Iterator[Row]:
    real = machine.size == "real"
    size, networks = (224, ("ResNet-18", "ResNetAP-10")) if real else (32, ("ConvNet-3", "ConvNet-3"))
    job, width = Job(name="gpu"), Evaluate().width if real else 8
    memory, flops = ModelMemory.for_job(job), model_flops(job)
    teacher = build_teacher(Teach(network=networks[0], input_size=size, width=width), _CLASSES, size, seed=1)
    teacher = teacher.to(machine.device).eval().requires_grad_(False)
    steps = 20 if real else 2
    labels = [number % _CLASSES for number in range(BATCH)]
    options: dict[str, Any] = {"seed": 0, "device": machine.device}
    call = partial(recover, teacher, labels, size, SRe2L(steps=steps), flip=True, **options)
    each = TRAINING_PASSES * flops.classify(networks[0], size, width, _CLASSES, TEACHER_NORM)
    row = machine.row("methods", f"sre2l, {networks[0]}, {size} px", steps * BATCH, each, call)
    same = "the same" if np.array_equal(call(), call()) else "DIFFERENT"
    forecast = memory.recover(networks[0], width, size, BATCH)
    yield replace(row, forecast_gib=forecast, note=f"{same} again; images/s are of one step")
    batch = 64 if real else 2
    settings = IDC(
        network=networks[1],
        width=width,
        outer_steps=1,
        inner_steps=steps // 2,
        batch_size=batch,
        train_images=2 * batch,
    )
    random, ipc = np.random.default_rng(0), 10 if real else 1
    shape = (_CLASSES * settings.batch_size, 3, size, size)
    photos = LabelledImages(random.integers(0, 256, shape).astype(np.uint8), np.arange(shape[0]) % _CLASSES)
    call = partial(match_gradients, photos, ipc, settings, factor=1, **options)
    compared = settings.batch_size + 3 * ipc  # a gradient of a gradient takes three trainings' passes
    count = settings.inner_steps * (_CLASSES * compared + settings.train_images)
    each = TRAINING_PASSES * flops.classify(networks[1], size, width, _CLASSES, "instance")
    row = machine.row("methods", f"idc-1, {networks[1]}, {size} px", count, each, call)
    same = "the same" if np.array_equal(call(), call()) else "DIFFERENT"
    forecast = memory.match(networks[1], width, size, settings.batch_size, ipc)
    yield replace(row, forecast_gib=forecast, note=f"{same} again; images/s are of one step")


def check_evaluate(machine: Machine) -> Iterator[Row]:
    """Train classifiers under both protocols in float32 and bf16, twice with the same seed."""
    size, count, epochs = (224, 100, 20) if machine.size == "real" else (16, 10, 1)
    random = np.random.default_rng(0)
    labels = np.arange(count) % _CLASSES
    train, val = (
        LabelledImages(random.integers(0, 256, (count, 3, size, size)).astype(np.uint8), labels) for _ in range(2)
    )
    names = [str(number) for number in range(_CLASSES)]
    networks = (
        {"minimax": "ResNetAP-10", "rded": "ResNet-18"}
        if machine.size == "real"
        else dict.fromkeys(PROTOCOLS, "ConvNet-3")
    )
    for protocol, network in networks.items():
        fields: dict[str, Any] = {"input_size": size, "epochs": epochs, "validations": 1}
        teacher = build_teacher(Teach(network=network, input_size=size), _CLASSES, size, seed=1)
        trial = Trial("random", protocol, network, count // _CLASSES, 0, 0)
        flops = model_flops(machine.job()).classify(network, size, Evaluate().width, _CLASSES, PROTOCOLS[protocol].norm)
        each = flops * (TRAINING_PASSES + PROTOCOLS[protocol].needs_teacher)
        for precision in ("float32", "bf16"):
            settings = Evaluate(protocols=(protocol,), networks=(network,), precision=precision, **fields)
            call = partial(run_trial, train, val, names, settings, trial, machine.device, teacher.eval())
            row = machine.row("evaluate", f"{protocol}, {network}, {precision}", epochs * count, each, call)
            first, again = call(), call()
            same = all(first[name] == again[name] for name in first if name != "seconds")
            yield replace(row, note=f"top-1 {first['top1_last']:.0%}, {'the same' if same else 'DIFFERENT'} again")


def check_caption(machine: Machine) -> Iterator[Row]:
    """Caption in transformers, in half precision and in 8 bits."""
    captioner = llava(machine.size, machine.folder, device=machine.device)
    for precision in ("auto", "8bit"):
        try:
            yield _caption(machine, captioner, precision)
        except (torch.OutOfMemoryError, ValueError) as error:  # 8 bits may fit where half precision does not
            yield Row("caption", FAILED, note=f"{precision}: {' '.join(str(error).split())[:200]}")
        free_memory(machine.device)


def _caption(machine: Machine, captioner: str, precision: str) -> Row:
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (375, 500, 3)).astype(np.uint8))
    tokens = _ANSWER_TOKENS[machine.size]
    count = machine.batches(16)[0] if precision == "auto" else 2  # in 8 bits one image after the other
    settings = Caption(
        engine="transformers", model=captioner, precision=precision, max_tokens=tokens, max_model_len=_LENGTH
    )
    job, loaded = Job(name="gpu", caption=settings), load_captioner(settings)
    flops = model_flops(job).caption(settings.prompt, tokens)
    call = partial(loaded.caption, [photo] * count, [settings.prompt] * count, list(range(count)))
    row = machine.row("caption", f"transformers, {precision}, {count} images", count, flops, call)
    forecast = ModelMemory.for_job(job).caption(precision == "8bit", _LENGTH * (count if precision == "auto" else 1))
    return replace(row, forecast_gib=forecast)


CHECKS: Final[Mapping[str, Callable[[Machine], Iterator[Row]]]] = {
    "encode": check_encode,
    "finetune": check_finetune,
    "generate": check_generate,
    "evaluate": check_evaluate,
    "caption": check_caption,
    "base-models": check_base_models,
    "methods": check_methods,
}


def run(size: Size, folder: Path, names: Sequence[str]) -> Iterator[Row]:
    """Run the checks one after the other; one that fails is a row with its error."""
    device = pick_device()
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    machine = Machine(device, size, folder, peak(name))
    yield Row(
        "machine",
        name,
        tflops=machine.peak / 1e12,
        note=f"torch {torch.__version__}, CUDA {torch.version.cuda}{_driver()}",
    )
    for check in names:
        start = time.perf_counter()
        try:
            yield from CHECKS[check](machine)
        except Exception as error:  # the others can still show something
            yield Row(check, FAILED, note=" ".join(f"{type(error).__name__}: {error}".split())[:300])
        free_memory(device)
        wait(device)
        yield Row(check, "all", note=f"{time.perf_counter() - start:.0f} s")


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the lines of the table."""
    yield f"{'stage':<9} {'setting':<34} {'images/s':>9} {'TFLOP/s':>8} {'of peak':>8} {'GiB':>6} {'forecast':>9}  note"
    for row in rows:
        figures = [
            "" if value is None else text.format(value)
            for value, text in (
                (row.images_per_second, "{:,.1f}"),
                (row.tflops, "{:,.1f}"),
                (row.peak_share, "{:.1%}"),
                (row.gib, "{:.1f}"),
                (row.forecast_gib, "{:.1f}"),
            )
        ]
        columns = " ".join(f"{text:>{width}}" for text, width in zip(figures, (9, 8, 8, 6, 9), strict=True))
        yield f"{row.stage:<9} {row.setting:<34} {columns}  {row.note}".rstrip()


def _busy_share(call: Callable[[], object], device: str) -> str:
    """Say in which part of a call's seconds the GPU computed; nothing on a CPU."""
    if device != "cuda":
        return ""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        seconds = time.perf_counter() - start
    busy = sum(event.self_device_time_total for event in profile.key_averages()) / 1e6
    return f", GPU busy {busy / seconds:.0%}"


def _driver() -> str:
    from vlcp_ray.doctor.checks import driver_version

    return f", driver {version}" if (version := driver_version()) else ""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line above, and return its exit code: 1 if a check failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--size", choices=("real", "tiny"), default="real" if torch.cuda.is_available() else "tiny")
    parser.add_argument("--folder", type=Path, required=True, help="where random weights are written, and found again")
    parser.add_argument("--only", choices=tuple(CHECKS), action="append", help="one check, or several")
    parser.add_argument("--json", type=Path, help="a file for the rows")
    parser.add_argument("--together", type=int, default=0, help="run the checks in this many processes at a time")
    arguments = parser.parse_args(argv)
    if arguments.together:
        return _run_together(arguments)
    size: Size = "real" if arguments.size == "real" else "tiny"
    rows: list[Row] = []
    for row in run(size, arguments.folder, arguments.only or list(CHECKS)):
        print(*list(table([row]))[1:], flush=True) if rows else print(*table([row]), sep="\n", flush=True)
        rows.append(row)
        if arguments.json:
            arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    return int(any(row.setting == FAILED for row in rows))


def _run_together(arguments: argparse.Namespace) -> int:
    """Run the same checks in several processes at a time, as trials that share a GPU do."""
    command = [
        sys.executable,
        "-m",
        "tests.benchmarks.gpu",
        "--size",
        arguments.size,
        "--folder",
        str(arguments.folder),
    ]
    command += [part for name in arguments.only or () for part in ("--only", name)]
    return max(process.wait() for process in [subprocess.Popen(command) for _ in range(arguments.together)])


if __name__ == "__main__":
    sys.exit(main())
