"""Tests of the families of captioners: each answers in vLLM as in transformers, through its own chat template."""

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.tiny_captioners import FAMILIES as TINY
from tests.tiny_captioners import build_captioner
from vlcp_ray.config import Job
from vlcp_ray.demo import digits
from vlcp_ray.models.captioners import Answer, TransformersCaptioner
from vlcp_ray.models.families import CAPTIONERS, LLAVA, TESTED
from vlcp_ray.scale import Scale
from vlcp_ray.settings import ConfigError, build
from vlcp_ray.stages.pair import STAGE, TRANSFORMERS_BATCH, Caption

_PROGRAM = """
import json, sys
from tests.models.test_families import rows, settings
from vlcp_ray.models.captioners import load_captioner

print(json.dumps(load_captioner(settings(sys.argv[1], "vllm", max_pixels=int(sys.argv[2]))).caption(*rows())))
"""


def settings(model: str, engine: str = "transformers", **changes: Any) -> Caption:
    given = {"engine": engine, "model": model, "temperature": 0, "max_tokens": 24, "max_model_len": 1024}
    return Caption(**given | changes)


def rows() -> tuple[list[Image.Image], list[str], list[int]]:
    """More images than a batch of transformers has: digits, and some of other shapes."""
    pixels, labels = digits.load("val")
    images = [Image.fromarray(one).convert("RGB") for one in pixels[: TRANSFORMERS_BATCH - 1]]
    images += [Image.new("RGB", size, colour) for size, colour in (((200, 30), "red"), ((30, 90), "blue"))]
    prompts = [f"Describe the {digits.CLASS_NAMES[label]}." for label in labels[: len(images)]]
    return images, prompts, list(range(len(images)))


@pytest.fixture(scope="module", params=TINY)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A family, and the folder of a tiny model of it."""
    return request.param, build_captioner(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def reference(model: tuple[str, str]) -> TransformersCaptioner:
    return TransformersCaptioner(settings(model[1]))


@pytest.fixture(scope="module")
def answers(reference: TransformersCaptioner) -> Sequence[Answer]:
    return reference.caption(*rows())


# vLLM takes half a minute to start: one family beside LLaVA is in the suite.
@pytest.mark.parametrize(
    ("family", "max_pixels"),
    [
        ("qwen2_5_vl", 0),
        pytest.param("llava_onevision", 0, marks=pytest.mark.faults),
        pytest.param("idefics3", 0, marks=pytest.mark.faults),
        pytest.param("idefics3", 64 * 64, marks=pytest.mark.faults),
        pytest.param("internvl", 0, marks=pytest.mark.faults),
        pytest.param("internvl", 2 * 32 * 32, marks=pytest.mark.faults),
    ],
)
def test_vllm_answers_as_transformers(family: str, max_pixels: int, tmp_path: Path) -> None:
    model = build_captioner(family, tmp_path)
    command = [sys.executable, "-c", _PROGRAM, model, str(max_pixels)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = [Answer(*row) for row in json.loads(done.stdout.splitlines()[-1])]
    assert found == TransformersCaptioner(settings(model, max_pixels=max_pixels)).caption(*rows())


def test_gemma_is_refused_in_vllm_on_cpus_where_it_would_be_another_model(tmp_path: Path) -> None:
    """Its answers there differed from those of transformers: vLLM's attention on CPUs has no such mask."""
    model = build_captioner("gemma3", tmp_path)
    scale = Scale()
    with pytest.raises(ConfigError, match=r"caption\.engine: on CPUs vLLM .* Gemma 3 does not; set caption\.engine="):
        STAGE.check_scale(build(Job, {"name": "x", "caption": {"model": model}}, "x"), scale)
    STAGE.check_scale(build(Job, {"name": "x", "caption": {"model": model, "engine": "transformers"}}, "x"), scale)
    on_gpu = scale.model_copy(update={"caption": scale.caption.model_copy(update={"num_gpus": 1.0})})
    STAGE.check_scale(build(Job, {"name": "x", "caption": {"model": model}}, "x"), on_gpu)


def test_answers_differ_with_the_image_and_have_counts(answers: Sequence[Answer]) -> None:
    assert len({answer.text for answer in answers}) > len(answers) / 2
    for answer in answers:
        assert 0 < answer.tokens <= 24
        assert answer.is_cut == (answer.tokens == 24)
        assert answer.read_tokens > 16


def test_answer_does_not_depend_on_other_images(reference: TransformersCaptioner, answers: Sequence[Answer]) -> None:
    images, prompts, seeds = rows()
    for row in (0, len(images) - 2, len(images) - 1):
        assert reference.caption([images[row]], [prompts[row]], [0]) == [answers[row]]
    assert reference.caption(images[::-1], prompts[::-1], seeds) == list(answers)[::-1]


def test_answer_ends_at_the_end_token(model: tuple[str, str], reference: TransformersCaptioner) -> None:
    """The third token of the first answer becomes the one that ends answers."""
    images, prompts, _ = rows()
    written: list[list[int]] = []
    decode = reference.processor.batch_decode
    reference.processor.batch_decode = lambda tokens, **options: (written.extend(tokens), decode(tokens, **options))[1]
    ends = reference.ends
    try:
        reference.caption(images[:1], prompts[:1], [0])
        reference.ends = [written[0][2]]
        (answer,) = reference.caption(images[:1], prompts[:1], [0])
    finally:
        reference.processor.batch_decode, reference.ends = decode, ends
    first = written[0].index(written[0][2]) + 1
    assert (answer.tokens, answer.is_cut) == (first, False)


def test_fewer_pixels_are_fewer_tokens(model: tuple[str, str], reference: TransformersCaptioner) -> None:
    """A photograph of 200 x 150 pixels; each family has its own way to count."""
    image = [Image.new("RGB", (200, 150), "red")]
    whole = reference.caption(image, ["x"], [0])[0].read_tokens
    small = TransformersCaptioner(settings(model[1], max_pixels=32 * 32)).caption(image, ["x"], [0])[0].read_tokens
    if model[0] == "gemma3":
        assert small == whole  # all images have as many
    else:
        assert small < whole


@pytest.mark.parametrize("size", [(1, 1), (3, 1000), (1000, 2)])
def test_image_of_any_size_has_an_answer(reference: TransformersCaptioner, size: tuple[int, int]) -> None:
    (answer,) = reference.caption([Image.new("RGB", size, "white")], ["x"], [0])
    assert answer.tokens


def test_families_are_served_by_both_engines() -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as IN_TRANSFORMERS
    from vllm import model_executor

    registry = Path(model_executor.__path__[0], "models", "registry.py").read_text(encoding="utf-8")
    in_vllm = set(re.findall(r'"(\w+)": \(', registry))
    for family in CAPTIONERS:
        assert IN_TRANSFORMERS[family] in in_vllm, family
    assert {LLAVA, *TINY} == set(TESTED)
