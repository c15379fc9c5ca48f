"""Tests of what is read from the files of pretrained models."""

import json
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.hub_server import Hub, serve
from vlcp_ray.config import Job
from vlcp_ray.models.architectures import own_configs
from vlcp_ray.models.families import CAPTIONER, CONFIGURATIONS, SD, STABLE_DIFFUSION, XL, Kind
from vlcp_ray.models.pretrained import (
    Use,
    cached_resolution,
    check,
    check_hub,
    content_hash,
    count_parameters,
    count_pipeline_parameters,
    expected_family,
    expected_latent_shape,
    expected_resolution,
    folder,
    identify,
    latent_shape,
    scaling_factor,
)
from vlcp_ray.settings import ConfigError, build

PAPER = "benjamin-paine/stable-diffusion-v1-5"


@pytest.fixture
def model(tmp_path: Path) -> str:
    (tmp_path / "vae").mkdir()
    config = {"block_out_channels": [8, 8, 8, 8], "latent_channels": 4, "scaling_factor": 0.5}
    (tmp_path / "vae" / "config.json").write_text(json.dumps(config))
    return str(tmp_path)


def test_latent_shape_is_an_eighth_of_image(model: str) -> None:
    assert latent_shape(model, 32) == (4, 4, 4)
    assert latent_shape(model, 512) == (4, 64, 64)


def test_scaling_factor_left_out_is_that_of_stable_diffusion_v1(model: str) -> None:
    assert scaling_factor(model) == 0.5
    (Path(model) / "vae" / "config.json").write_text(json.dumps({"block_out_channels": [8], "latent_channels": 4}))
    assert scaling_factor(model) == 0.18215


def test_latent_shape_of_packaged_model_is_known() -> None:
    assert latent_shape("demo/stable_diffusion", 32) == (4, 4, 4)


def test_latent_shape_of_missing_hub_model_raises() -> None:
    with pytest.raises(ValueError, match=r"base_model: some/model cannot be downloaded from the hub .* give a folder"):
        latent_shape("some/model", 32)


def test_expected_latent_shape_of_hub_model_needs_no_hub(model: str) -> None:
    assert expected_latent_shape("some/model", 512) == (4, 64, 64)
    (Path(model) / "vae" / "config.json").write_text(json.dumps({"block_out_channels": [8, 8], "latent_channels": 6}))
    assert expected_latent_shape(model, 512) == (6, 256, 256)


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere", "~/nowhere", "nowhere", "a/b/c", "demo/nothing"])
def test_check_of_missing_folder_raises(name: str) -> None:
    with pytest.raises(ValueError, match=f"base_model: there is no folder '{name}'"):
        check(name, "base_model", STABLE_DIFFUSION)


def test_check_of_hub_id_or_model_folder_passes(tiny_stable_diffusion: str) -> None:
    for name in ("some/model", tiny_stable_diffusion, "demo/stable_diffusion"):
        check(name, "base_model", STABLE_DIFFUSION)
    check("demo/llava", "caption.model", CAPTIONER)
    with pytest.raises(ValueError, match=r"'demo/stable_diffusion' is no vision-language model: it lacks config"):
        check("demo/stable_diffusion", "caption.model", CAPTIONER)


@pytest.mark.parametrize(("kind", "model"), [(STABLE_DIFFUSION, "demo/stable_diffusion"), (CAPTIONER, "demo/llava")])
def test_check_of_a_folder_without_one_of_its_files_names_it(kind: Kind, model: str, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder(model), tmp_path / "model", symlinks=True))
    check(str(copy), "base_model", kind)
    for file in kind.files:
        found = [path for pattern in file.split("|") for path in copy.glob(pattern)]
        for path in found:
            path.rename(f"{path}.off")
        with pytest.raises(ValueError, match=rf"base_model: the folder .* lacks {re.escape(file.partition('|')[0])}"):
            check(str(copy), "base_model", kind)
        for path in found:
            Path(f"{path}.off").rename(path)
    check(str(copy), "base_model", kind)


def test_check_of_a_folder_with_the_name_of_a_hub_id_reads_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "some" / "model").mkdir(parents=True)
    (tmp_path / "some" / "file").touch()
    with pytest.raises(ValueError, match=r"the folder 'some/model' is no vision-language model"):
        check("some/model", "caption.model", CAPTIONER)
    with pytest.raises(ValueError, match=r"there is no folder 'some/file'"):
        check("some/file", "caption.model", CAPTIONER)


def test_check_of_packaged_model_without_weights_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlcp_ray.models.pretrained._PACKAGE", tmp_path)
    (tmp_path / "demo" / "llava").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"caption\.model: the weights of demo/llava were not sent with this job"):
        check("demo/llava", "caption.model", CAPTIONER)


def test_content_hash_of_folder_depends_on_contents_not_on_place(model: str, tmp_path: Path) -> None:
    before = content_hash(model)
    (tmp_path / "vae").rename(tmp_path / "other")
    assert content_hash(model) != before
    (tmp_path / "other").rename(tmp_path / "vae")
    assert content_hash(model) == before
    assert content_hash("some/model") == "some/model"
    assert content_hash("demo/llava") == content_hash(folder("demo/llava"))


def test_count_parameters_of_folder_adds_up_its_files(model: str) -> None:
    for number, shape in enumerate([(2, 3), (4,)]):
        save_file({"weight": np.zeros(shape, np.float32)}, Path(model) / "vae" / f"{number}.safetensors")
    assert count_parameters(model, "vae") == 10
    assert count_parameters(model, "unet") is None


def test_count_pipeline_parameters_of_unknown_model_is_none() -> None:
    assert count_pipeline_parameters(PAPER) == 859_520_964 + 83_653_863 + 123_060_480
    assert count_pipeline_parameters("some/model") is None


@pytest.mark.parametrize(
    ("model", "gated", "sentence"),
    [
        ("owner/sd", False, ""),
        ("owner/sd@v1", False, ""),
        ("owner/sd@v2", False, "cannot be read: it has no revision 'v2'; give a branch, a tag or a commit of its page"),
        ("owner/sb", False, "cannot be read: the hub has no such model; check its name; for a private one log in"),
        ("owner/sd", True, "cannot be read: its terms are to be accepted; do so on its page and log in with hf auth"),
    ],
)
def test_check_of_a_model_of_the_hub_asks_for_its_first_file(
    model: str, gated: bool, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub("owner/sd", gated, kind="models")
    hub.push(
        {
            "model_index.json": b'{"_class_name": "StableDiffusionPipeline", "text_encoder": ["t", "C"]}',
            **{f"{part}/config.json": b"{}" for part in ("unet", "vae")},
            "scheduler/scheduler_config.json": b"{}",
            "text_encoder/config.json": b"{}",
            "unet/weights.bin": b"0",
        },
        "main",
        "v1",
    )
    with serve(hub) as endpoint:
        _use_hub(monkeypatch, endpoint, tmp_path)
        if not sentence:
            check_hub(Use("base_model", model, STABLE_DIFFUSION))
            assert {name for _, name in hub.read} == {"model_index.json", *CONFIGURATIONS, "text_encoder/config.json"}
            return
        with pytest.raises(ConfigError, match=f"^base_model: {re.escape(f'{model} {sentence}')}"):
            check_hub(Use("base_model", model, STABLE_DIFFUSION))


def test_a_base_model_of_the_hub_is_known_by_the_configurations_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once they were downloaded nothing is asked: here a Stable Diffusion XL of another name and resolution."""
    first, own = (own_configs(name) for name in ("1", "xl"))
    configs = {part: own.get(part, first.get(part)) for part in ("unet", "vae", *XL.text_encoders)}
    configs["unet"] = dict(configs["unet"] or {}) | {"sample_size": 96}
    index = {"_class_name": XL.pipelines[0], **{part: ["library", "Class"] for part in configs}}
    files = {f"{part}/config.json": config for part, config in configs.items()}
    hub = Hub("owner/xl", kind="models")
    content = {"model_index.json": index, "scheduler/scheduler_config.json": {}, **files}
    hub.push({name: json.dumps(config).encode() for name, config in content.items()}, "main")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert (expected_family("owner/xl"), expected_resolution("owner/xl")) == (SD, None)
    before = build(Job, {"name": "x", "base_model": "owner/xl"}, "x")
    before.check_resolution()
    assert count_pipeline_parameters("owner/xl") is None
    with serve(hub) as endpoint:
        _use_hub(monkeypatch, endpoint, tmp_path)
        check_hub(Use("base_model", "owner/xl", STABLE_DIFFUSION))
    assert (expected_family("owner/xl"), cached_resolution("owner/xl")) == (XL, 768)
    after = build(Job, {"name": "x", "base_model": "owner/xl"}, "x")
    for one in (pickle.loads(pickle.dumps(before)), after):  # a job does not depend on what was downloaded
        assert (one.encode.resolution, one.encode.train_resolution) == (512, 512)
        with pytest.raises(
            ConfigError, match=r"^encode.resolution: owner/xl was trained at 768 x .* encode.resolution=768 and"
        ):
            one.check_resolution()
    meant = {"resolution": 512, "train_resolution": 512}
    build(Job, {"name": "x", "base_model": "owner/xl", "encode": meant}, "x").check_resolution()
    assert expected_latent_shape("owner/xl", 768) == (4, 96, 96)
    assert count_pipeline_parameters("owner/xl") == 2_567_463_684 + 83_653_863 + 123_060_480 + 694_659_840
    assert count_parameters("owner/xl", "unet") == count_parameters("stabilityai/stable-diffusion-xl-base-1.0", "unet")


def test_count_parameters_of_a_folder_knows_a_published_part_by_its_configuration(tmp_path: Path) -> None:
    """Also where the same weights are there several times, in other precisions."""
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text(json.dumps(own_configs("2")["unet"]))
    for variant in ("", ".fp16"):
        file = tmp_path / "unet" / f"diffusion_pytorch_model{variant}.safetensors"
        save_file({"weight": np.zeros((2, 3), np.float32)}, file)
    assert count_parameters(str(tmp_path), "unet") == 865_910_724


def test_check_of_a_model_of_the_hub_refuses_another_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub("owner/llava", kind="models")
    hub.push({"config.json": b'{"model_type": "llava"}'}, "main")
    with serve(hub) as endpoint:
        _use_hub(monkeypatch, endpoint, tmp_path)
        check_hub(Use("caption.model", "owner/llava", CAPTIONER))
        with pytest.raises(
            ConfigError, match=r"base_model: owner/llava .* it is no Stable Diffusion .* model_index.json;"
        ):
            check_hub(Use("base_model", "owner/llava", STABLE_DIFFUSION))


def test_check_of_a_captioner_of_no_known_family_lists_the_families(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub("owner/bert", kind="models")
    hub.push({"config.json": b'{"model_type": "bert"}'}, "main")
    with serve(hub) as endpoint:
        _use_hub(monkeypatch, endpoint, tmp_path / "cache")
        with pytest.raises(ConfigError, match=r"^caption\.model: owner/bert cannot caption .* 'bert', which is"):
            check_hub(Use("caption.model", "owner/bert", CAPTIONER))
    copy = Path(shutil.copytree(folder("demo/llava"), tmp_path / "model", symlinks=True))
    config = json.loads((copy / "config.json").read_text())
    for family, message in (
        ("bert", r"'bert', which is none .* LLaVA-1\.5 \(llava\), .* Qwen2\.5-VL"),
        ("qwen2_vl", ""),
    ):
        (copy / "config.json").write_text(json.dumps(config | {"model_type": family}))
        if message:
            with pytest.raises(ValueError, match=f"^caption.model: .* cannot caption images: .*{message}"):
                check(str(copy), "caption.model", CAPTIONER)
        else:
            check(str(copy), "caption.model", CAPTIONER)
    (copy / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match=r"cannot caption images: it has no chat template \(chat_template\.jinja or "):
        check(str(copy), "caption.model", CAPTIONER)


def test_check_of_a_captioner_of_the_hub_without_a_chat_template_refuses_it_before_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hubs = [Hub(f"owner/{name}", kind="models") for name in ("base", "chat")]
    for hub in hubs:
        template = {"chat_template": "{{ messages }}"} if hub.name == "owner/chat" else {}
        files = {"config.json": {"model_type": "qwen2_vl"}, "tokenizer_config.json": template}
        weights = {"model.safetensors": b"0"}
        hub.push({name: json.dumps(one).encode() for name, one in files.items()} | weights, "main")
    with serve(*hubs) as endpoint:
        _use_hub(monkeypatch, endpoint, tmp_path / "cache")
        with pytest.raises(ConfigError, match=r"^caption\.model: owner/base cannot caption .* has no chat template"):
            check_hub(Use("caption.model", "owner/base", CAPTIONER))
        check_hub(Use("caption.model", "owner/chat", CAPTIONER))
    for hub in hubs:
        assert {name for _, name in hub.read} <= {"config.json", "tokenizer_config.json"}


def test_models_whose_parameters_are_not_known_are_told_apart() -> None:
    assert identify("llava-hf/llava-1.5-7b-hf", "") == 7_063_427_072
    assert identify("owner/one", "") == identify("owner/one", "")
    assert len({identify(f"owner/{name}", part) for name in ("one", "two") for part in ("", "unet")}) == 4


def _use_hub(monkeypatch: pytest.MonkeyPatch, endpoint: str, cache: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
