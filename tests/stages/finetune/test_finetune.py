"""Tests of the specification of finetune: its costs and its checks."""

import pytest

from vlcp_ray.config import Job
from vlcp_ray.cost.flops import model_flops
from vlcp_ray.cost.inputs import CostInputs
from vlcp_ray.models.pretrained import count_parameters, count_pipeline_parameters
from vlcp_ray.pipeline import graph
from vlcp_ray.scale import FinetunePool, Pool, Scale
from vlcp_ray.settings import ConfigError, build
from vlcp_ray.stages.finetune import LORA, STAGE, divide_pool, hashed_settings, training_flops
from vlcp_ray.stages.ingest import Expect

IMAGES = Expect(train=1000, val=100, classes=4, gib=1)


def make_job(**finetune: object) -> Job:
    size = {"resolution": 32, "train_resolution": 32}
    demo = {"base_model": "demo/stable_diffusion", "encode": size, "caption": {"model": "demo/llava"}}
    return build(Job, {"name": "x", "seeds": [0, 1], "finetune": finetune, **demo}, "x")


def test_training_flops_with_gradient_checkpointing_has_fourth_pass() -> None:
    job = make_job()
    flops = [training_flops(job, model_flops(job), checkpointing) for checkpointing in (True, False)]
    text = model_flops(job).embed_text()
    assert (flops[0] - text) / (flops[1] - text) == pytest.approx(4 / 3)


@pytest.mark.parametrize(
    "setting",
    [
        {"validation_classes": 3},
        {"validation_steps": 7},
        {"validation_guidance_scale": 2.0},
        {"epochs": 3},
    ],
)
def test_hashed_settings_with_another_setting_differ(setting: dict[str, float]) -> None:
    assert hashed_settings(make_job(**setting), "hash") != hashed_settings(make_job(), "hash")
    assert hashed_settings(make_job(), "other hash") != hashed_settings(make_job(), "hash")


def test_finetune_loads_of_validation_follow_its_settings() -> None:
    def validation_flops(**settings: object) -> float:
        job = make_job(epochs=2, validation_epochs=2, **settings)
        steps = [step for step in graph(job) if step.stage == STAGE.name]
        return [load.amount for load in STAGE.loads(CostInputs.for_job(job, IMAGES), steps)][1]

    decode = 2 * 4 * CostInputs.for_job(make_job(), IMAGES).models.decode(4)  # two seeds, four classes
    default = validation_flops()
    assert validation_flops(validation_classes=1) == pytest.approx(default / 4)
    assert validation_flops(validation_steps=40) - decode == pytest.approx(2 * (default - decode))


def test_finetune_loads_count_training_and_validation_images() -> None:
    job = make_job(epochs=6, validation_epochs=4)
    inputs, steps = CostInputs.for_job(job, IMAGES), [step for step in graph(job) if step.stage == STAGE.name]
    training, validation = STAGE.loads(inputs, steps)
    assert len(steps) == training.starts == 2
    assert training.images == 2 * 6 * 1000
    assert training.amount == pytest.approx(
        training.images * training_flops(job, inputs.models, gradient_checkpointing=True)
    )
    # One validation per seed, of all 4 classes: 20 steps with guidance, each two passes of the UNet.
    image = 2 * 20 * inputs.models.denoise(4) + inputs.models.decode(4)
    assert validation.amount == pytest.approx(2 * 4 * image)
    assert (validation.images, validation.starts, validation.pool_name) == (0, 0, "finetune")


def test_finetune_disk_is_bytes_of_float32_parameters() -> None:
    job = make_job()
    steps = [step for step in graph(job) if step.stage == STAGE.name]
    pipeline, unet = count_pipeline_parameters(job.base_model), count_parameters(job.base_model, "unet")
    assert pipeline
    assert unet
    # Two models, and two checkpoints of the seed that is trained, of weights, average and moments.
    assert STAGE.disk(CostInputs.for_job(job, IMAGES), steps) == pytest.approx(
        (2 * 4 * pipeline + 2 * 16 * unet) / 2**30
    )


def test_hashed_settings_of_lora_have_its_recipe_and_others_do_not() -> None:
    assert hashed_settings(make_job(lora_rank=4), "hash")["lora"] == LORA
    assert not {"lora", "lora_rank", "snr_gamma"} & hashed_settings(make_job(), "hash").keys()


def test_check_scale_with_fp16_without_gpu_raises() -> None:
    with_gpu = Scale(finetune=Pool(num_gpus=1))
    STAGE.check_scale(make_job(mixed_precision="fp16"), with_gpu)
    for precision in ("no", "bf16"):
        STAGE.check_scale(make_job(mixed_precision=precision), Scale())
    with pytest.raises(ConfigError, match=r"finetune\.mixed_precision: fp16 needs a GPU, .* in the scale file"):
        STAGE.check_scale(make_job(mixed_precision="fp16"), Scale())


@pytest.mark.parametrize(
    ("workers", "required", "batch", "seeds", "divided"),
    [
        (1, 1, 32, 3, (1, 1, 1)),
        (3, 3, 32, 3, (1, 1, 3)),
        (6, 6, 32, 3, (2, 2, 3)),
        (16, 16, 32, 3, (5, 5, 3)),
        (16, 16, 32, 1, (8, 8, 1)),  # four images of a step are the least
        (16, 6, 32, 3, (5, 2, 3)),
        (2, 2, 32, 3, (2, 2, 1)),  # two rounds of one rank each would take longer than three of two
        (8, 8, 4, 1, (1, 1, 1)),
    ],
)
def test_divide_pool_gives_every_seed_a_part(
    workers: int, required: int, batch: int, seeds: int, divided: tuple[int, int, int]
) -> None:
    pool = FinetunePool(num_workers=workers, min_workers=required, num_gpus=1, average_on="cpu")
    part, at_once = divide_pool(pool, batch, seeds)
    assert (part.num_workers, part.required_workers, at_once) == divided
    assert (part.num_gpus, part.average_on) == (1, "cpu")
