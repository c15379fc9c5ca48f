"""Tests of the captioning engines: vLLM against transformers, batches, seeds and errors."""

import copy
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from PIL import Image

from vlcp_ray.demo import digits
from vlcp_ray.models.captioners import (
    Answer,
    Captioner,
    GumbelNoise,
    TransformersCaptioner,
    VllmCaptioner,
    _cpu_options,
    _gpu_options,
    load_captioner,
    too_long,
)
from vlcp_ray.scale import derive
from vlcp_ray.stages.pair import TRANSFORMERS_BATCH as BATCH
from vlcp_ray.stages.pair import Caption

SETTINGS = Caption(model="demo/llava", temperature=0, max_tokens=48, max_model_len=512)
N = 64


@pytest.fixture(scope="module")
def vllm() -> Iterator[VllmCaptioner]:
    """Load the only vLLM of the test suite; at the end its changes of torch and the environment are undone."""
    environment, set_num_threads = dict(os.environ), torch.set_num_threads
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of vLLM and torch, at import
        captioner = VllmCaptioner(SETTINGS)
    yield captioner
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    del captioner
    cleanup_dist_env_and_memory()
    torch.set_num_threads = set_num_threads
    os.environ.clear()
    os.environ.update(environment)


@pytest.fixture(scope="module")
def reference() -> TransformersCaptioner:
    return TransformersCaptioner(SETTINGS)


@pytest.fixture(params=["vllm", "reference"])
def engine(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def rows() -> tuple[list[Image.Image], list[str]]:
    """64 digits that the model was not trained on, and their prompts."""
    images, labels = digits.load("val")
    prompts = [SETTINGS.prompt.replace("{class_name}", digits.CLASS_NAMES[label]) for label in labels[:N]]
    return [Image.fromarray(image) for image in images[:N]], prompts


Rows = tuple[list[Image.Image], list[str]]
SEEDS = [2**62 + 1000 * i for i in range(N)]  # as large as those of seed_for


def with_settings(captioner: Any, **changes: Any) -> Any:
    """Copy a captioner, with the same loaded model and other settings."""
    other = copy.copy(captioner)
    other.settings = captioner.settings.model_copy(update=changes)
    return other


def caption(captioner: Captioner, rows: Rows, order: Sequence[int], seeds: Sequence[int] = SEEDS) -> dict[int, str]:
    """Caption these rows in one call and in this order; return the captions by row."""
    texts = captioner.caption([rows[0][i] for i in order], [rows[1][i] for i in order], [seeds[i] for i in order])
    return {row: answer.text for row, answer in zip(order, texts, strict=True)}


def count_different(first: dict[int, str], second: dict[int, str]) -> int:
    return sum(first[i] != second[i] for i in second)


def test_vllm_captions_equal_transformers(vllm: VllmCaptioner, reference: TransformersCaptioner, rows: Rows) -> None:
    captions = caption(vllm, rows, range(N))
    assert captions == caption(reference, rows, range(N))
    assert len(set(captions.values())) > N / 2
    assert all("digit" in text for text in captions.values())


@pytest.mark.parametrize("temperature", [0, 0.2])
def test_caption_does_not_depend_on_other_images(engine: Any, rows: Rows, temperature: float) -> None:
    captioner = with_settings(engine, temperature=temperature)
    n = BATCH + 4
    captions = caption(captioner, rows, range(n))
    assert caption(captioner, rows, range(n)[::-1]) == captions
    assert caption(captioner, rows, range(0, n, 3)) == {i: captions[i] for i in range(0, n, 3)}
    assert caption(captioner, rows, [5]) == {5: captions[5]}


@pytest.mark.filterwarnings("ignore")  # bitsandbytes says that it casts the inputs
def test_caption_in_8_bits_holds_linear_layers_in_one_byte_and_captions_nearly_the_same(
    reference: TransformersCaptioner, rows: Rows
) -> None:
    half = TransformersCaptioner(SETTINGS.model_copy(update={"engine": "transformers", "precision": "8bit"}))
    kinds = {name: weight.dtype for name, weight in half.model.named_parameters() if weight.ndim == 2}
    assert {kinds[name] for name in kinds if "proj" in name} == {torch.int8}
    assert half.model.lm_head.weight.dtype == torch.float32
    captions = caption(half, rows, range(6))
    assert all("digit" in text for text in captions.values())
    assert count_different(captions, caption(reference, rows, range(6))) < 4


def test_caption_at_temperature_1_depends_on_seed(engine: Any, rows: Rows) -> None:
    captioner = with_settings(engine, temperature=1.0)
    first = caption(captioner, rows, range(BATCH))
    assert caption(captioner, rows, range(BATCH)) == first
    others = caption(captioner, rows, range(BATCH), [seed + 1 for seed in SEEDS])
    assert count_different(first, others) > BATCH / 2


def test_caption_at_temperature_0_does_not_depend_on_seed(engine: Any, rows: Rows) -> None:
    assert caption(engine, rows, [0, 1], [1, 2]) == caption(engine, rows, [0, 1], [3, 4])


def test_caption_is_cut_at_max_tokens(vllm: VllmCaptioner, reference: TransformersCaptioner, rows: Rows) -> None:
    whole = caption(reference, rows, range(8))
    short = caption(with_settings(reference, max_tokens=5), rows, range(8))
    assert short == caption(with_settings(vllm, max_tokens=5), rows, range(8))
    assert all(0 < len(short[i]) < len(whole[i]) and whole[i].startswith(short[i]) for i in short)


def test_caption_is_cut_at_max_model_len(reference: TransformersCaptioner, rows: Rows) -> None:
    whole = reference.processor(images=rows[0][0], text=f"USER: <image>\n{rows[1][0]} ASSISTANT:")
    length = len(whole["input_ids"][0])
    full = caption(with_settings(reference, max_model_len=length + 5), rows, range(4))
    assert full[0] == caption(with_settings(reference, max_tokens=5), rows, [0])[0]


@pytest.mark.parametrize("words", [600, 30_000])
def test_too_long_prompt_has_no_answer_and_its_neighbours_have_theirs(engine: Any, rows: Rows, words: int) -> None:
    before = caption(engine, rows, [0, 1])
    images, prompts = [*rows[0][:1], rows[0][0], rows[0][1]], [rows[1][0], "word " * words, rows[1][1]]
    first, long, last = engine.caption(images, prompts, SEEDS[:3])
    assert (first.text, last.text) == (before[0], before[1])
    assert long == Answer("", 0, 0, False, too_long(SETTINGS).error)
    assert "512 tokens or more" in long.error
    assert engine.caption(images[1:2], prompts[1:2], [0]) == [long]


@pytest.mark.parametrize("room", [0, 1])
def test_prompt_that_leaves_one_token_has_an_answer(rows: Rows, reference: TransformersCaptioner, room: int) -> None:
    (whole,) = reference.caption(rows[0][:1], rows[1][:1], [0])
    captioner = with_settings(reference, max_model_len=whole.read_tokens + room)
    (answer,) = captioner.caption(rows[0][:1], rows[1][:1], [0])
    assert (answer.tokens, bool(answer.error)) == (room, room == 0)


@pytest.mark.parametrize("prompt", ['a {prompt} "of" {class_name}', "100 % \\n {}", ""])
def test_caption_with_unusual_prompt_returns_text(engine: Any, rows: Rows, prompt: str) -> None:
    (answer,) = engine.caption(rows[0][:1], [prompt], [0])
    assert isinstance(answer.text, str)


@pytest.mark.parametrize("size", [(1, 1), (3, 3), (1, 7), (200, 30)])
def test_caption_of_image_of_any_size_returns_text(engine: Any, rows: Rows, size: tuple[int, int]) -> None:
    (answer,) = engine.caption([Image.new("RGB", size, "white")], rows[1][:1], [0])
    assert answer.text


def test_vllm_with_blocks_in_flight_is_never_without_requests(vllm: VllmCaptioner, rows: Rows) -> None:
    """Ten blocks by two threads, each of which prepares the images of its next block meanwhile."""
    alone = [vllm.caption(rows[0][:16], rows[1][:16], range(16)) for _ in range(10)]
    vllm.engine.busy = vllm.engine.idle = 0.0
    with ThreadPoolExecutor(2) as threads:
        calls = [threads.submit(vllm.caption, rows[0][:16], rows[1][:16], range(16)) for _ in range(10)]
        assert [call.result() for call in calls] == alone
    while vllm.llm.llm_engine.has_unfinished_requests():
        time.sleep(0.01)
    assert vllm.engine.idle < 0.05 * (vllm.engine.idle + vllm.engine.busy)


@pytest.mark.parametrize("dies_in", ["add_request", "step"])
def test_dead_engine_ends_the_process_which_ray_starts_again(dies_in: str) -> None:
    program = """
import sys
from types import SimpleNamespace
from vllm.v1.engine.exceptions import EngineDeadError
from vlcp_ray.models.captioners import EngineThread

def die(*_):
    raise EngineDeadError

engine = SimpleNamespace(add_request=lambda *_: None, has_unfinished_requests=lambda: True, step=lambda: [])
setattr(engine, sys.argv[1], die)
EngineThread(SimpleNamespace(llm_engine=engine, _preprocess_cmpl_one=dict)).submit({}, None).result()
"""
    done = subprocess.run([sys.executable, "-c", program, dies_in], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "the captioning engine is dead, ending the process" in done.stderr
    assert "EngineDeadError" in done.stderr


def test_captions_of_padded_images_see_their_sides(engine: Any, rows: Rows) -> None:
    """A digit at the end of a long strip: the model's own processor cuts it off, after padding it is there."""
    strip = Image.new("RGB", (96, 32))
    strip.paste(rows[0][0].resize((32, 32)), (64, 0))
    blank = Image.new("RGB", (96, 32))
    answers = {}
    for is_padded in (True, False):
        before, engine.chat.is_padded = engine.chat.is_padded, is_padded
        answers[is_padded] = [engine.caption([image], rows[1][:1], [0]) for image in (strip, blank)]
        engine.chat.is_padded = before
    assert answers[False][0] == answers[False][1]
    assert answers[True][0] != answers[True][1]


def test_load_captioner_loads_engine_of_settings() -> None:
    captioner = load_captioner(SETTINGS.model_copy(update={"engine": "transformers"}))
    assert isinstance(captioner, TransformersCaptioner)


def test_gumbel_noise_samples_from_distribution() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    scores = GumbelNoise(0.5, range(20_000))(torch.empty(0), logits.repeat(20_000, 1))
    shares = torch.bincount(scores.argmax(dim=1), minlength=4) / 20_000
    torch.testing.assert_close(shares, torch.softmax(logits / 0.5, dim=0), atol=0.01, rtol=0)


def test_token_limits_are_what_the_model_leaves_up_to_max_tokens(reference: TransformersCaptioner) -> None:
    """With the 48 tokens of a caption and the 512 of the model."""
    assert reference._token_limits([300, 464, 465, 511, 512]) == [48, 48, 47, 1, 0]


def test_gpu_options_follow_the_share_of_the_gpu() -> None:
    assert _gpu_options(1.0)["gpu_memory_utilization"] == 0.92
    assert _gpu_options(0.5)["gpu_memory_utilization"] == 0.46
    assert _gpu_options(2.0)["gpu_memory_utilization"] == 0.92
    shared = derive(7, 1)
    assert _gpu_options(shared.caption.num_gpus)["gpu_memory_utilization"] + shared.encode.num_gpus <= 1


def test_cpu_options_keep_prompts_whole() -> None:
    assert _cpu_options() == {"dtype": "float32", "enforce_eager": True, "enable_chunked_prefill": False}
