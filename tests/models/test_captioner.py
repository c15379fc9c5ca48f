"""Knows that both engines say the same of the same image, whatever images are beside it, and what a seed decides."""

import copy
import os
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from PIL import Image

from vlcp_ray import config
from vlcp_ray.demo import digits
from vlcp_ray.models.captioner import (
    BATCH,
    Captioner,
    GumbelNoise,
    TransformersCaptioner,
    VllmCaptioner,
    load_captioner,
)

SETTINGS = config.Caption(model="demo/llava", temperature=0, max_tokens=48, max_model_len=512)
N = 64


@pytest.fixture(scope="module")
def vllm() -> Iterator[VllmCaptioner]:
    """The only vLLM of the suite; what it changes in torch for the whole process is taken back."""
    environment, set_num_threads = dict(os.environ), torch.set_num_threads
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # vLLM's and torch's own, of their imports
        captioner = VllmCaptioner(SETTINGS)
    yield captioner
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    del captioner
    cleanup_dist_env_and_memory()
    torch.set_num_threads = set_num_threads
    os.environ.clear()
    os.environ.update(environment)


@pytest.fixture(scope="module")
def plain() -> TransformersCaptioner:
    return TransformersCaptioner(SETTINGS)


@pytest.fixture(params=["vllm", "plain"])
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


def changed(captioner: Any, **changes: Any) -> Any:
    """The same loaded model under other settings."""
    other = copy.copy(captioner)
    other.settings = captioner.settings.model_copy(update=changes)
    return other


def describe(captioner: Captioner, rows: Rows, order: Sequence[int], seeds: Sequence[int] = SEEDS) -> dict[int, str]:
    """Texts by row number, asked for in one call and in this order."""
    texts = captioner.describe([rows[0][i] for i in order], [rows[1][i] for i in order], [seeds[i] for i in order])
    return dict(zip(order, texts, strict=True))


def differing(first: dict[int, str], second: dict[int, str]) -> int:
    return sum(first[i] != second[i] for i in second)


def test_both_engines_say_the_same(vllm: VllmCaptioner, plain: TransformersCaptioner, rows: Rows) -> None:
    ours, reference = describe(vllm, rows, range(N)), describe(plain, rows, range(N))
    assert ours == reference
    assert len(set(ours.values())) > N / 2
    assert all("digit" in text for text in ours.values())


@pytest.mark.parametrize("temperature", [0, 0.2])
def test_neighbours_change_nothing(engine: Any, rows: Rows, temperature: float) -> None:
    captioner = changed(engine, temperature=temperature)
    n = BATCH + 4
    together = describe(captioner, rows, range(n))
    assert describe(captioner, rows, range(n)[::-1]) == together
    assert describe(captioner, rows, range(0, n, 3)) == {i: together[i] for i in range(0, n, 3)}
    assert describe(captioner, rows, [5]) == {5: together[5]}


def test_a_seed_decides_what_is_drawn(engine: Any, rows: Rows) -> None:
    captioner = changed(engine, temperature=1.0)
    first = describe(captioner, rows, range(BATCH))
    assert describe(captioner, rows, range(BATCH)) == first
    others = describe(captioner, rows, range(BATCH), [seed + 1 for seed in SEEDS])
    assert differing(first, others) > BATCH / 2


def test_without_temperature_a_seed_decides_nothing(engine: Any, rows: Rows) -> None:
    assert describe(engine, rows, [0, 1], [1, 2]) == describe(engine, rows, [0, 1], [3, 4])


def test_answers_end_where_the_settings_say(vllm: VllmCaptioner, plain: TransformersCaptioner, rows: Rows) -> None:
    whole = describe(plain, rows, range(8))
    short = describe(changed(plain, max_tokens=5), rows, range(8))
    assert short == describe(changed(vllm, max_tokens=5), rows, range(8))
    assert all(0 < len(short[i]) < len(whole[i]) and whole[i].startswith(short[i]) for i in short)


def test_an_answer_ends_where_the_model_is_full(plain: TransformersCaptioner, rows: Rows) -> None:
    whole = plain.processor(images=rows[0][0], text=f"USER: <image>\n{rows[1][0]} ASSISTANT:")
    length = len(whole["input_ids"][0])
    full = describe(changed(plain, max_model_len=length + 5), rows, range(4))
    assert full[0] == describe(changed(plain, max_tokens=5), rows, [0])[0]


def test_a_prompt_that_is_too_long_is_refused_and_harms_nothing(engine: Any, rows: Rows) -> None:
    before = describe(engine, rows, [0])
    with pytest.raises(ValueError, match=r"max.*512|512.*max"):
        engine.describe(rows[0][:2], [rows[1][0], "many words " * 600], [0, 0])
    assert describe(engine, rows, [0]) == before


@pytest.mark.parametrize("prompt", ['a {prompt} "of" {class_name}', "100 % \\n {}", ""])
def test_any_prompt_will_do(engine: Any, rows: Rows, prompt: str) -> None:
    (text,) = engine.describe(rows[0][:1], [prompt], [0])
    assert isinstance(text, str)


@pytest.mark.parametrize("size", [(1, 1), (3, 3), (1, 7), (200, 30)])
def test_any_size_will_do(engine: Any, rows: Rows, size: tuple[int, int]) -> None:
    (text,) = engine.describe([Image.new("RGB", size, "white")], rows[1][:1], [0])
    assert text


def test_a_dead_engine_ends_the_process(vllm: VllmCaptioner, rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(os, "_exit", left.append)
        patch.setattr(vllm.llm.llm_engine, "step", lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            describe(vllm, rows, [0, 1])
    while vllm.llm.llm_engine.has_unfinished_requests():
        vllm.llm.llm_engine.step()
    assert left == [1]


def test_the_settings_choose_the_engine() -> None:
    captioner = load_captioner(SETTINGS.model_copy(update={"engine": "transformers"}))
    assert isinstance(captioner, TransformersCaptioner)


def test_noise_draws_from_the_distribution() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    scores = GumbelNoise(0.5, range(20_000))(torch.empty(0), logits.repeat(20_000, 1))
    shares = torch.bincount(scores.argmax(dim=1), minlength=4) / 20_000
    torch.testing.assert_close(shares, torch.softmax(logits / 0.5, dim=0), atol=0.01, rtol=0)
