"""Tests of the job file: strict reading, and errors that name the field and the fix."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlcp_ray.config import Job, load_ingest, load_job, sample_overrides
from vlcp_ray.models.pretrained import folder
from vlcp_ray.settings import ConfigError, build, shipped_files

JOBS = sorted((Path(__file__).parents[1] / "jobs").glob("*.toml"))


def job(**settings: object) -> Job:
    return build(Job, {"name": "test", **settings}, "test.toml")


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_load_job_of_every_shipped_file_is_valid(path: Path) -> None:
    assert load_job(path).name == path.stem


def test_job_defaults_are_those_of_the_paper() -> None:
    """METHOD.md sections 2.1 to 2.6."""
    settings = job()
    assert settings.caption.temperature == 0.2
    assert settings.caption.max_tokens == 1024
    assert (settings.finetune.epochs, settings.finetune.batch_size, settings.finetune.learning_rate) == (8, 32, 1e-5)
    assert (settings.finetune.weight_decay, settings.finetune.max_grad_norm, settings.finetune.ema_decay) == (
        0.01,
        1.0,
        0.9999,
    )
    assert settings.finetune.validation_epochs == 2
    assert (settings.encode.resolution, settings.prototype.n_neighbors, settings.prototype.n_init) == (512, 10, 10)
    assert (settings.prototype.max_df, settings.prototype.n_words) == (0.7, 30)
    assert (settings.generate.strength, settings.generate.guidance_scale) == (0.7, 10)
    assert (settings.generate.num_inference_steps, settings.generate.negative_prompt) == (
        50,
        "cartoon, anime, painting",
    )
    assert (settings.evaluate.learning_rate, settings.evaluate.batch_size, settings.evaluate.repeats) == (None, None, 3)
    assert settings.evaluate.protocols == ("minimax",)
    assert (settings.evaluate.temperature, settings.evaluate.epochs, settings.evaluate.rded_epochs) == (20, None, None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"generate": {"strenght": 0.7}}, "unknown setting 'generate.strenght'; did you mean 'strength'?"),
        ({"gnerate": {}}, "did you mean 'generate'?"),
        ({"generate": {"strength": 1.5}}, "generate.strength: Input should be less than or equal to 1, not 1.5"),
        ({"generate": {"strength": 0.01}}, "generate: strength leaves no denoising step"),
        ({"caption": {"prompt": "What is it?"}}, "prompt must contain {class_name}"),
        ({"caption": {"max_tokens": 512, "max_model_len": 512}}, "max_tokens must be smaller than max_model_len"),
        ({"ipc": 5}, "ipc: must be a list in brackets, as [1, 10], not 5"),
        ({"caption": 3}, "caption: is a section; write its settings as [caption] in the file"),
        ({"name": "My Job"}, "name: must consist of lower-case letters, digits and hyphens"),
        ({"encode": {"resolution": 30}}, "encode.resolution: Input should be a multiple of 8"),
        ({"ipc": []}, "ipc must be a list of different values"),
        ({"seeds": [1, 1]}, "seeds must be a list of different values"),
        ({"evaluate": {"networks": []}}, "evaluate: networks must be a list of different values, at least one"),
        ({"evaluate": {"protocols": ["rded", "rded"]}}, "evaluate: protocols must be a list of different values"),
        ({"evaluate": {"protocols": ["hard"]}}, "evaluate.protocols.0"),
        (
            {"evaluate": {"factor": 2}},
            "evaluate.factor is for rded only; add rded to protocols or methods, or leave factor out",
        ),
        (
            {"evaluate": {"protocols": ["rded"], "batch_size": 8}},
            "evaluate: batch_size is for minimax only",
        ),
        ({"evaluate": {"protocols": ["rded"], "factor": 3}}, "input_size must be a multiple of factor, 3, not 224"),
        (
            {"evaluate": {"protocols": ["rded"], "networks": ["ConvNet-3"], "input_size": 32}},
            "teach.input_size must be evaluate.input_size, 32, not 224",
        ),
        (
            {"ingest": {"max_per_class": 5}, "ipc": [1, 6]},
            "ingest.max_per_class, 5, is below the largest ipc, 6; raise",
        ),
        ({"compare": {"methods": ["randm"]}}, "compare.methods.0"),
        (
            {"compare": {"methods": ["vlcp"], "d4m_clustering": "k-means"}},
            "compare: d4m_clustering is for d4m only; add d4m to methods or leave it out",
        ),
    ],
)
def test_job_with_wrong_settings_names_field_and_fix(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        job(**settings)
    assert message in str(caught.value)
    assert str(caught.value).startswith("test.toml: ")
    assert "\n" not in str(caught.value)


def test_load_job_overrides_nested_fields_with_their_types(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text("ipc = [1]\n[generate]\nstrength = 0.5\n")
    settings = load_job(path, ["generate.strength=0.6", "ipc=[2, 3]", "caption.model=some/folder", "seeds = [4]"])
    assert (settings.generate.strength, settings.ipc, settings.caption.model, settings.seeds) == (
        0.6,
        (2, 3),
        "some/folder",
        (4,),
    )


@pytest.mark.parametrize(
    ("override", "message"), [("strength", "section.key=value"), ("ipc.x=1", "'ipc' is a value"), ("a.b=1", "'a'")]
)
def test_load_job_with_bad_override_is_refused(tmp_path: Path, override: str, message: str) -> None:
    path = tmp_path / "a.toml"
    path.write_text("ipc = [1]\n")
    with pytest.raises(ConfigError, match=message):
        load_job(path, [override])


def test_load_job_of_missing_or_broken_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_job(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match=r"is a folder; name a \.toml file in it"):
        load_job(tmp_path)
    broken = tmp_path / "broken.toml"
    broken.write_text("ipc = [1\n")
    with pytest.raises(ConfigError, match=r"broken\.toml: cannot be read as TOML"):
        load_job(broken)


@given(st.text(min_size=1, max_size=20))
def test_job_with_any_unknown_key_is_refused(key: str) -> None:
    if key not in Job.model_fields:
        with pytest.raises(ConfigError, match="unknown setting"):
            job(**{key: 1})


def test_job_dumped_in_full_is_read_again() -> None:
    """Manifests hold every setting, also those of protocols that the job does not use."""
    settings = job(evaluate={"protocols": ["rded"], "factor": 2, "rded_epochs": 10}, teach={"network": "ConvNet-3"})
    assert Job.model_validate(settings.model_dump(mode="json")) == settings
    assert Job.model_validate(job().model_dump(mode="json")) == job()


def test_job_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        job().generate.strength = 0.1  # type: ignore[misc]


def test_load_ingest_takes_settings_of_the_image_set_only() -> None:
    assert load_ingest("x", ["ingest.max_pixels=7"]).max_pixels == 7
    with pytest.raises(ConfigError, match=r"--set ipc: of an image set only ingest\.\* can be set"):
        load_ingest("x", ["ipc=[1]"])


def test_sample_overrides_limit_images_and_sets_and_name_the_run() -> None:
    whole = load_job("digits", ["ipc=[1, 5, 50]"])
    job = load_job("digits", sample_overrides(whole, 4))
    assert (job.name, job.ipc) == ("digits-sample-4", (1, 2))
    assert (job.ingest.max_per_class, job.ingest.max_val_per_class, job.ingest.max_rejected) == (4, 4, 0.1)
    with pytest.raises(ConfigError, match=r"--sample: the job sets ingest\.max_per_class or max_val"):
        sample_overrides(load_job("digits", ["ingest.max_per_class=5"]), 4)


def test_load_job_by_name_and_by_path_is_the_same_job() -> None:
    assert set(shipped_files("jobs")) == {path.stem for path in JOBS}
    assert all(load_job(path.stem) == load_job(path) for path in JOBS)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digit", "digit: no such job; did you mean digits?"),
        ("mnist", "mnist: no such job; `vlcp-ray jobs` lists them; a path has a / or ends in .toml"),
        ("mnist.toml", "mnist.toml: no such file; `vlcp-ray jobs` lists those of the package"),
        ("./mnist", "mnist: no such file; `vlcp-ray jobs` lists those of the package"),
    ],
)
def test_load_job_of_an_unknown_name_says_where_the_names_are(name: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_job(name)
    assert str(error.value) == message


def test_load_job_with_changed_settings_merges_sections() -> None:
    changed = {"ingest": {"source": Path("/data/x"), "classes": "imagenette"}, "ipc": [7]}
    job = load_job("imagenette", ["ipc=[1]"], changed)
    assert (job.ingest.source, job.ipc) == ("/data/x", (1,))
    assert job.ingest.expect == load_job("imagenette").ingest.expect
    with pytest.raises(ConfigError, match=r"imagenette: unknown setting 'ingest.sorce'; did you mean 'source'\?"):
        load_job("imagenette", changed={"ingest": {"sorce": "x"}})
    with pytest.raises(ConfigError, match="imagenette: ipc: must be a list in brackets"):
        load_job("imagenette", changed={"ipc": 5})


def test_settings_of_methods_that_the_caller_takes_out_go_with_them() -> None:
    file = shipped_files("jobs")["cifar10-compare"]
    assert load_job(file).compare.idc.network == "ConvNet-3"
    fewer = load_job(file, ['compare.methods=["random", "sre2l"]'])
    assert (fewer.compare.idc, fewer.rank) == (Job(name="x").compare.idc, Job(name="x").rank)
    assert fewer.compare.sre2l == load_job(file).compare.sre2l
    assert load_job(file, changed={"compare": {"methods": ["random"]}}).compare.methods == ("random",)
    with pytest.raises(ConfigError, match="idc is for idc-1 or idc only"):
        load_job(file, ['compare.methods=["random"]', "compare.idc.width=8"])
    with pytest.raises(ConfigError, match="rank is for el2n or forgetting only"):
        load_job(file, ['compare.methods=["random"]', "rank.networks=8"])


def test_rank_stops_within_the_training_of_the_teacher() -> None:
    with pytest.raises(ConfigError, match=r"rank\.epochs, 10, must be at most teach\.epochs, 5"):
        job(teach={"epochs": 5}, compare={"methods": ["el2n"]})


def test_sizes_that_a_job_leaves_out_are_those_of_its_base_model(tmp_path: Path) -> None:
    def sizes(model: str, **encode: int) -> tuple[int, int]:
        made = build(Job, {"name": "x", "base_model": model, "encode": encode}, "x").encode
        return made.resolution, made.train_resolution

    xl = "stabilityai/stable-diffusion-xl-base-1.0"
    assert sizes(xl) == (1024, 1024)
    assert sizes(xl, resolution=512) == (512, 1024)
    assert sizes(xl, train_resolution=512) == (1024, 512)
    assert sizes("stabilityai/stable-diffusion-2-1@main") == (768, 768)
    assert sizes("benjamin-paine/stable-diffusion-v1-5") == sizes("some/model") == (512, 512)
    assert sizes("demo/stable_diffusion") == (32, 32)
    model = Path(shutil.copytree(folder("demo/stable_diffusion"), tmp_path / "model"))
    unet = json.loads((model / "unet/config.json").read_text())
    (model / "unet/config.json").write_text(json.dumps(unet | {"sample_size": 2 * unet["sample_size"]}))
    assert sizes(str(model)) == (64, 64)
    for side, pixels in ((None, 512), ([8, 8], 64), ([8, 16], 512), (3.5, 512)):
        (model / "unet/config.json").write_text(json.dumps(unet | {"sample_size": side}))
        assert sizes(str(model)) == (pixels, pixels), side
    (model / "unet/config.json").write_text("{")
    with pytest.raises(ConfigError, match="base_model: "):
        sizes(str(model))
