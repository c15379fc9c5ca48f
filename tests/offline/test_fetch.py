"""Tests of fetching what a job needs, and of running from it without a network; the hub is a server on loopback."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi

from tests.hub_server import Hub, serve
from tests.image_sets import open_set, picture, read_all
from tests.small_job import JOB, write_inputs
from vlcp_ray.cli import main
from vlcp_ray.config import load_job
from vlcp_ray.models import pretrained, stable_diffusion
from vlcp_ray.models.captioners import load_captioner
from vlcp_ray.models.networks import NETWORKS
from vlcp_ray.models.pretrained import folder
from vlcp_ray.offline.fetch import SUMS, fetch
from vlcp_ray.pipeline import graph
from vlcp_ray.settings import ConfigError
from vlcp_ray.sources import open_source
from vlcp_ray.sources.hub import at_commit
from vlcp_ray.stages import STAGES
from vlcp_ray.stages.teach import checkpoint

MODELS = ("base_model=owner/sd@v1", "caption.model=owner/llava", "caption.engine=transformers")
IMAGES = {
    f"{split}/{key}/{i}.png": picture(i) for split in ("train", "val") for key in ("cat", "dog") for i in range(2)
}


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


def model_files(name: str) -> dict[str, bytes]:
    place = Path(folder(name))
    return {str(file.relative_to(place)): file.read_bytes() for file in place.rglob("*") if file.is_file()}


def check_sums(to: Path) -> list[str]:
    subprocess.run(["sha256sum", "--check", "--quiet", SUMS], cwd=to, check=True)
    return [line.partition("  ")[2] for line in (to / SUMS).read_text().splitlines()]


@pytest.fixture
def hubs(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Hub, Hub, Hub]]:
    """A hub with a Stable Diffusion, a LLaVA and an image set, and more than a job needs of each."""
    diffusion, captioner, pets = Hub("owner/sd", kind="models"), Hub("owner/llava", kind="models"), Hub("owner/pets")
    more = {"v1.ckpt": b"x" * 999, "unet/diffusion_pytorch_model.fp16.safetensors": b"x" * 999, "README.md": b"#"}
    diffusion.push(model_files("demo/stable_diffusion") | more, "v1")
    captioner.push(model_files("demo/llava") | {"pytorch_model.bin": b"x" * 999}, "main")
    pets.push({f"plain/{name}": content for name, content in IMAGES.items()} | {"other/1.png": picture(9)}, "main")
    with serve(diffusion, captioner, pets) as endpoint:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
        template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        # Bound to the address of the hub when it was imported.
        monkeypatch.setattr("diffusers.pipelines.pipeline_utils.model_info", HfApi(endpoint).model_info)
        yield diffusion, captioner, pets


@pytest.mark.filterwarnings("ignore:.*local_dir_use_symlinks:UserWarning")  # diffusers' own call of the hub
def test_job_loads_without_a_network_what_was_fetched_from_the_hub(
    hubs: tuple[Hub, Hub, Hub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = [*MODELS, "ingest.source=hf://datasets/owner/pets/plain"]
    options = [part for one in sets for part in ("--set", one)]
    to, carried = tmp_path / "to", tmp_path / "other machine"
    with monkeypatch.context() as online:
        online.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        assert main(["fetch", str(JOB), "--to", str(to), *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    for line, hub in zip(lines, hubs, strict=False):
        assert f"commit {next(iter(hub.commits))[:12]}" in line
    command = lines[-1].split()
    assert command[:3] == ["HF_HUB_OFFLINE=1", f"HF_HUB_CACHE={to}/hub", f"TORCH_HOME={to}/torch"]
    assert command[3:] == ["vlcp-ray", "run", str(JOB), *options]  # nothing changes, and no fingerprint
    listed = check_sums(to)
    assert not [name for name in listed if name.endswith((".ckpt", ".bin", "fp16.safetensors", "other/1.png"))]
    assert len([name for name in listed if "datasets--owner--pets" in name]) == len(IMAGES)

    shutil.copytree(to, carried, symlinks=True)
    shutil.rmtree(to)
    asked = [len(hub.read) for hub in hubs]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(carried / "hub"))
    job = load_job(JOB, sets)
    for use in (use for stage in STAGES.values() for use in stage.models(job)):
        pretrained.check_hub(use)
    pipeline = stable_diffusion.load_pipeline(job.base_model, "cpu")
    assert pipeline.unet.config.sample_size == 4
    stable_diffusion.load_vae(job.base_model, "cpu")
    stable_diffusion.load_noise_schedule(job.base_model)
    stable_diffusion.load_text(job.base_model, "cpu", torch.float32)
    assert pretrained.latent_shape(job.base_model, 32) == (4, 4, 4)
    load_captioner(job.caption)
    assert open_source(job.ingest).classes.names == ("cat", "dog")
    assert [len(hub.read) for hub in hubs] == asked


@pytest.mark.usefixtures("online")
@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("ingest.source=hf://datasets/owner/pets/plan", "ingest.source: hf://datasets/owner/pets/plan has no file"),
        ("ingest.source=/nowhere", "ingest.source: there is no /nowhere"),
        ("caption.model=owner/lava", "caption.model: owner/lava cannot be read: the hub has no such model"),
    ],
)
def test_fetch_looks_up_every_name_before_it_fetches_weights(
    hubs: tuple[Hub, Hub, Hub], setting: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = [part for one in (*MODELS, setting) for part in ("--set", one)]
    assert main(["fetch", str(JOB), "--to", str(tmp_path / "to"), *sets]) == 2
    assert sentence in capsys.readouterr().err
    read = {name for hub in hubs for _, name in hub.read}
    assert read
    assert all(name.endswith(("config.json", "model_index.json", "chat_template.jinja")) for name in read)


@pytest.fixture
def local(tmp_path: Path) -> list[str]:
    """Settings with a model, an image set, captions and a teacher in folders of this machine."""
    inputs = write_inputs(tmp_path / "inputs")
    model = shutil.copytree(folder("demo/stable_diffusion"), tmp_path / "sd")
    (tmp_path / "teacher.pth").write_bytes(b"weights")
    return [
        f"base_model={model}",
        f"ingest.source={inputs}/images",
        f"caption.source={inputs}/captions.parquet",
        f"teach.checkpoint={tmp_path}/teacher.pth",
        "compare.methods=['vlcp','rded']",
        "evaluate.factor=2",
        "generate.image_size=32",
    ]


@pytest.mark.usefixtures("online")
def test_fetch_copies_what_is_on_this_machine_and_prints_the_settings_that_change(
    local: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "carried"
    command = ["fetch", str(JOB), "--to", str(to), *(part for one in local for part in ("--set", one))]
    assert main(command) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    changed = [part for part in last.split() if part.startswith(("base_model", "ingest.so", "caption.so", "teach."))]
    assert {part.partition("=")[0]: part.partition("=")[2] for part in changed} == {
        "base_model": f"{to}/base_model/sd",
        "ingest.source": f"{to}/ingest.source/images",
        "caption.source": f"{to}/caption.source/captions.parquet",
        "teach.checkpoint": f"{to}/teach.checkpoint/teacher.pth",
    }
    before, after = (graph(load_job(JOB, sets)) for sets in (local, [*local, *changed]))
    settings = [{step.title: json.dumps(dict(step.settings)) for step in steps} for steps in (before, after)]
    assert {title for title in settings[0] if settings[0][title] != settings[1][title]} == {"ingest"}  # has its path
    listed = check_sums(to)
    assert len(listed) == sum(1 for path in to.rglob("*") if path.is_file()) - 1

    times = {path: path.stat().st_mtime_ns for path in to.rglob("*.png")}
    (to / "teach.checkpoint" / "teacher.pth").write_bytes(b"weig")  # as an interrupted copy leaves it
    assert main(command) == 0
    assert {path: path.stat().st_mtime_ns for path in to.rglob("*.png")} == times
    assert check_sums(to) == listed


@pytest.mark.usefixtures("online")
def test_fetch_without_a_folder_leaves_files_of_this_machine_where_they_are(local: list[str], tmp_path: Path) -> None:
    job = load_job(JOB, local)
    before = sorted(tmp_path.rglob("*"))
    found = {one.field: one for one in fetch(job, graph(job))}
    assert {one.note for one in found.values()} == {"on this machine"}
    assert not any(one.files or one.value for one in found.values())
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.usefixtures("online")
def test_fetch_copies_no_file_to_which_a_link_leads_out_of_the_image_set(tmp_path: Path) -> None:
    (tmp_path / "set" / "train" / "cat").mkdir(parents=True)
    (tmp_path / "set" / "train" / "cat" / "1.png").write_bytes(picture(1))
    (tmp_path / "private").write_text("secret")
    (tmp_path / "set" / "train" / "cat" / "2.png").symlink_to(tmp_path / "private")
    job = load_job(JOB, [f"ingest.source={tmp_path}/set"])
    list(fetch(job, graph(job), tmp_path / "to"))
    copied = tmp_path / "to" / "ingest.source" / "set" / "train" / "cat"
    assert [path.name for path in copied.iterdir()] == ["1.png"]


@pytest.mark.usefixtures("online")
@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("ingest.source=/nowhere", "ingest.source: there is no /nowhere; name a folder, a file or a URI"),
        ("ingest.source=hf://datasets/pets", "it names no repository; write hf://datasets/owner/name"),
        ("ingest.source=nope://bucket", "ingest.source nope://bucket: "),
    ],
)
def test_fetch_of_what_is_not_there_exits_2_and_names_the_setting(
    setting: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for options in ([], ["--to", str(tmp_path / "to")]):
        assert main(["fetch", str(JOB), *options, "--set", setting]) == 2
        assert sentence in capsys.readouterr().err


def test_fetch_where_the_hub_is_forbidden_or_the_target_is_no_folder_exits_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fetch", str(JOB)]) == 2
    assert "HF_HUB_OFFLINE: fetch needs the network; call it without this variable" in capsys.readouterr().err
    (tmp_path / "file").touch()
    for to, sentence in (
        (str(tmp_path / "file"), "it is a file; give a folder"),
        ("s3://b/x", "give a folder of this"),
    ):
        assert main(["fetch", str(JOB), "--to", to]) == 2
        assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["base_model=owner/sd"], "base_model: owner/sd is not complete in {cache} (all files), and HF_HUB_OFFLINE is"),
        (["caption.model=owner/llava"], "caption.model: owner/llava is not complete in {cache} (all files)"),
        (["ingest.source=hf://datasets/owner/pets"], "ingest.source: hf://datasets/owner/pets is not complete in the"),
        (
            ["teach.checkpoint=torchvision", "teach.network=ResNet-18", "compare.methods=['rded']"],
            "teach.checkpoint: torchvision's weights ResNet18_Weights.IMAGENET1K_V1 are not at {cache}",
        ),
    ],
)
def test_run_without_a_network_says_before_it_starts_what_was_not_fetched(
    settings: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    options = [part for one in settings for part in ("--set", one)]
    assert main(["run", str(JOB), "--root", str(tmp_path / "root"), *options]) == 2
    error = capsys.readouterr().err
    assert sentence.format(cache=tmp_path / "cache") in error
    assert "vlcp-ray fetch" in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "root").exists()


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Hub, Path]]:
    """A set of the hub in the cache of this machine, which then has no network."""
    from huggingface_hub import snapshot_download

    pets, cache = Hub("owner/pets"), tmp_path / "cache"
    pets.push(IMAGES, "main", "v1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    with serve(pets) as endpoint, monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        snapshot_download("owner/pets", repo_type="dataset", endpoint=endpoint)
    at_commit.cache_clear()
    open_source.cache_clear()
    yield pets, cache
    at_commit.cache_clear()
    open_source.cache_clear()


def test_image_set_of_the_hub_is_read_from_its_cache(cached: tuple[Hub, Path]) -> None:
    pets, cache = cached
    commit = pets.names["main"]
    uri, found = at_commit("hf://datasets/owner/pets", "")
    assert found == commit
    assert uri.startswith(str(cache))
    table = read_all(open_set("hf://datasets/owner/pets"))
    assert dict(zip(table["source"].to_pylist(), table["image"].to_pylist(), strict=True)) == IMAGES


def test_image_set_that_was_fetched_in_part_is_refused(cached: tuple[Hub, Path]) -> None:
    _, cache = cached
    next(cache.rglob("snapshots/*/train/cat/0.png")).unlink()
    for source in ("hf://datasets/owner/pets", "hf://datasets/owner/pets@v2"):
        with pytest.raises(ConfigError, match=r"is not complete in the cache of the hub, .* run vlcp-ray fetch with"):
            at_commit(source, "")


def test_teacher_of_torchvision_is_fetched_once_into_torchs_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def download(url: str, file: str, hash_prefix: str, progress: bool) -> None:
        asked.append((url.rpartition("/")[2], hash_prefix))
        Path(file).write_bytes(b"weights")

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    assert NETWORKS["ResNet-18"].published
    for home in ("", str(tmp_path / "to")):
        file = checkpoint.fetch("ResNet-18", home)
        assert checkpoint.fetch("ResNet-18", home) == file == checkpoint.cached_file("ResNet-18", home)
        assert file.parent == Path(home or tmp_path / "home") / "hub" / "checkpoints"
    assert asked == [("resnet18-f37072fd.pth", "f37072fd")] * 2
