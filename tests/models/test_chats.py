"""Tests of how captioners are asked: prompts, images as they are shown, and answers as they are read."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import AutoImageProcessor

from tests.tiny_captioners import FAMILIES, build_captioner
from vlcp_ray.models.captioners import TransformersCaptioner
from vlcp_ray.models.chats import LlavaChat, TemplateChat, is_llava, load_chat, shrink
from vlcp_ray.models.pretrained import folder
from vlcp_ray.settings import ConfigError
from vlcp_ray.stages.pair import Caption

SETTINGS = Caption(model="demo/llava")


def settings(model: str, **changes: Any) -> Caption:
    return Caption(model=model, **changes)


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A family, and the folder of a tiny model of it."""
    return request.param, build_captioner(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(build_captioner("qwen2_5_vl", tmp_path_factory.mktemp("qwen")))


def with_template(model: Path, change: tuple[str, str], target: Path) -> str:
    """Link a model into another folder, with a change of its chat template."""
    target.mkdir()
    for file in model.iterdir():
        (target / file.name).symlink_to(file)
    template = target / "chat_template.jinja"
    text = template.read_text(encoding="utf-8")
    template.unlink()
    assert change[0] in text
    template.write_text(text.replace(*change), encoding="utf-8")
    return str(target)


def test_prompt_is_written_in_the_model_s_own_template_with_thinking_off(model: tuple[str, str]) -> None:
    chat = TemplateChat(settings(model[1]))
    text = chat.write('a {prompt} "of" <digit>')
    assert 'a {prompt} "of" <digit>' in text
    if model[0] == "idefics3":
        assert text.startswith("User:<image>")  # the engine adds the first token, which the template writes as well
        first = chat.processor(images=[[Image.new("RGB", (32, 32))]], text=[text])["input_ids"][0]
        assert list(first).count(chat.processor.tokenizer.bos_token_id) == 1
    elif model[0] == "gemma3":
        assert text.startswith("<start_of_turn>user\n<start_of_image>a {prompt}")
    else:
        assert text.startswith("<|im_start|>user\n")
        assert text.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert chat.read("so <think>maybe red</think>\n\n A red digit. ") == "A red digit."


def test_answer_of_a_model_that_always_thinks_is_what_follows_its_thought(qwen: Path, tmp_path: Path) -> None:
    """One that was cut while it thought has none."""
    rule = "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
    chat = TemplateChat(settings(with_template(qwen, (rule, "<think>\n"), tmp_path / "thinks")))
    assert chat.write("x").endswith("<|im_start|>assistant\n<think>\n")
    assert chat.read("Got it, the digit is red") == ""
    assert chat.read("it is red</think>A red digit.") == "A red digit."
    other = TemplateChat(settings(str(qwen)))
    assert other.read("A red digit.") == "A red digit."
    assert other.read(" <think>Got it, the digit is") == ""
    assert other.read("<think>red</think>\n<answer>A red digit.</answer>") == "A red digit."
    assert other.read("<think>red</think>\n<answer>A red di") == "A red di"


def test_template_without_a_place_for_an_image_is_refused(qwen: Path, tmp_path: Path) -> None:
    mark = "<|vision_start|><|image_pad|><|vision_end|>"
    with pytest.raises(ConfigError, match=r"caption\.model: the chat template of .* has no place for an image"):
        TemplateChat(settings(with_template(qwen, (mark, ""), tmp_path / "text")))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, True),
        ({"vision_config": {"model_type": "pixtral"}}, False),
        ({"text_config": {"model_type": "llama", "vocab_size": 128_320}}, False),
        ({"text_config": {"model_type": "llama", "vocab_size": 32_064}}, True),
        ({"text_config": {"model_type": "llama"}}, True),
    ],
    ids=["demo", "Pixtral", "LLaVA of Llama 3", "LLaVA-1.5", "left out"],
)
def test_only_llava_1_5_has_its_prompt(change: dict[str, Any], expected: bool, tmp_path: Path) -> None:
    config = json.loads(Path(folder("demo/llava"), "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    assert is_llava(str(tmp_path)) == expected
    assert isinstance(load_chat(SETTINGS), LlavaChat)


def test_processor_makes_no_more_tokens_than_the_model_reads(qwen: Path) -> None:
    """Of an image with too many tokens; of one that fits nothing changes."""
    assert TemplateChat(settings(str(qwen))).processor_options == {}
    few = settings(str(qwen), engine="transformers", temperature=0, max_model_len=60, max_tokens=8)
    size = TemplateChat(few).processor_options["size"]
    assert size == {"shortest_edge": 32 * 32, "longest_edge": 4 * 60 * 16 * 16}
    whole = TransformersCaptioner(few.model_copy(update={"max_model_len": 4096}))
    limited = TransformersCaptioner(few)
    fitting, large = (Image.new("RGB", size, "red") for size in ((32, 48), (400, 300)))
    assert limited.caption([fitting], ["x"], [0]) == whole.caption([fitting], ["x"], [0])
    assert limited.caption([large], ["x"], [0])[0].error
    tokens = limited.processor(images=[[large]], text=[limited.chat.write("x")])["input_ids"][0]
    assert 60 <= len(tokens) < len(whole.processor(images=[[large]], text=[whole.chat.write("x")])["input_ids"][0])


@pytest.mark.parametrize(("size", "corner"), [((40, 20), (20, 0)), ((20, 40), (0, 20))])
def test_square_pads_the_shorter_sides_with_the_mean_colour(size: tuple[int, int], corner: tuple[int, int]) -> None:
    padded = LlavaChat(SETTINGS).view(Image.new("RGB", size, "red"))
    assert padded.size == (40, 40)
    pixels = np.asarray(padded)
    mean = AutoImageProcessor.from_pretrained(folder("demo/llava")).image_mean
    assert pixels[0, 0].tolist() == pixels[39, 39].tolist() == [int(255 * value) for value in mean]
    assert (pixels == [255, 0, 0]).all(axis=2).sum() == 40 * 20
    assert pixels[20, 20].tolist() == [255, 0, 0]


def test_square_leaves_square_images_and_those_of_crop() -> None:
    oblong, square = Image.new("RGB", (40, 20)), Image.new("RGB", (20, 20))
    assert LlavaChat(SETTINGS).view(square) is square
    assert LlavaChat(SETTINGS.model_copy(update={"image_aspect_ratio": "crop"})).view(oblong) is oblong


@pytest.mark.parametrize(("size", "limit"), [((200, 150), 1000), ((1, 5000), 100), ((5000, 1), 100), ((30, 30), 900)])
def test_shrink_keeps_the_limit_and_the_aspect_ratio(size: tuple[int, int], limit: int) -> None:
    image = Image.new("RGB", size)
    small = shrink(image, limit)
    assert 0 < small.width * small.height <= limit
    assert (small is image) == (size[0] * size[1] <= limit)
    if min(small.size) > 5:
        assert small.width / small.height == pytest.approx(size[0] / size[1], rel=0.1)
    assert shrink(image, 0) is image
