"""Plausible mistakes of users: each gets one sentence that names the field and the fix, exit code 2, before work."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.image_sets import picture, write_files
from vlcp_ray.cli import main

#: Arguments after `run digits --root ROOT`, and what the sentence must hold.
SETTINGS = {
    "a misspelt setting": (["--set", "generate.strenght=0.5"], "'generate.strenght'; did you mean 'strength'?"),
    "a setting without its section": (["--set", "strength=0.5"], "unknown setting 'strength'; known here: base_model"),
    "no value": (["--set", "generate.strength"], "--set generate.strength: write --set section.key=value"),
    "a number out of range": (
        ["--set", "generate.strength=1.5"],
        "generate.strength: Input should be less than or equ",
    ),
    "a word for a number": (["--set", "finetune.learning_rate=fast"], "learning_rate: Input should be a valid number"),
    "no list": (["--set", "ipc=5"], "ipc: must be a list in brackets, as [1, 10], not 5"),
    "no image per class": (["--set", "ipc=[0]"], "ipc.0: Input should be greater than 0, not 0"),
    "no ipc at all": (["--set", "ipc=[]"], "ipc must be a list of different values, at least one"),
    "more images per class than there are": (["--set", "ipc=[1000]"], "class 'digit eight' has only 126 usable"),
    "a seed twice": (["--set", "seeds=[0,0]"], "seeds must be a list of different values"),
    "a section as a value": (["--set", "caption=x"], "caption: is a section; write its settings as [caption]"),
    "an unknown network": (
        ["--set", 'evaluate.networks=["resnet"]'],
        "must be one of the 85 networks that `python -m vlcp_ray.reference` lists, such as resnet",
    ),
    "an unknown protocol": (["--set", 'evaluate.protocols=["minmax"]'], "must be 'minimax', 'rded' or 'rded-stored'"),
    "an unknown method": (["--set", 'compare.methods=["kcenter"]'], "compare.methods.0: must be 'vlcp', "),
    "an unknown engine": (["--set", "caption.engine=vlm"], "caption.engine: Input should be 'vllm' or 'transformers'"),
    "a size that the VAE cannot take": (
        ["--set", "encode.resolution=30"],
        "resolution: Input should be a multiple of 8",
    ),
    "images too small for a network": (
        ["--set", 'evaluate.networks=["ResNet-18"]', "--set", "evaluate.input_size=5"],
        "input_size must be 9 or more for ResNet-18 with instance norm",
    ),
    "captions longer than the model's memory": (
        ["--set", "caption.max_tokens=600"],
        "max_tokens must be smaller than ",
    ),
    "a folder that is no model": (["--set", "base_model=/tmp"], "base_model: the folder '/tmp' is no Stable Diffusion"),
    "a misspelt demo model": (["--set", "caption.model=demo/lava"], "caption.model: there is no folder 'demo/lava'"),
    "a model that is nowhere": (["--set", "base_model=owner/none"], "base_model: owner/none is not complete in"),
    "a table that is nowhere": (["--set", "caption.source=a.csv"], "caption.source: there is no table 'a.csv'"),
    "a teacher that is nowhere": (
        ["--set", "teach.checkpoint=a.pt", "--set", 'compare.methods=["rded"]'],
        "teach.checkpoint: there is no file 'a.pt'; name a .pth file, or leave it out to train a teacher",
    ),
    "an image set that is nowhere": (["--set", "ingest.source=/no/set"], "ingest.source: there is no /no/set; give"),
    "an empty name of an image set": (
        ["--set", "ingest.source="],
        "ingest.source: must be a folder, a file or a URI, not ''",
    ),
    "a misspelt scheme": (["--set", "ingest.source=s3//b/x"], "ingest.source: there is no s3//b/x; give"),
    "a scheme that nothing opens": (["--set", "ingest.source=nope://b/x"], "ingest.source nope://b/x: "),
    "percents for a fraction": (
        ["--set", "ingest.val_fraction=20"],
        "val_fraction: Input should be less than or equal",
    ),
    "classes of the digits": (["--set", 'ingest.classes=["1"]'], "the embedded digits have one layout and ten classes"),
    "a name with spaces": (["--set", "name=My Job"], "name: must consist of lower-case letters, digits and hyphens"),
    "a scale file that is nowhere": (["--scale", "laptop"], "laptop: no such scale file; `vlcp-ray jobs` lists them"),
    "a job file as scale file": (["--scale", "jobs/digits.toml"], "jobs/digits.toml: unknown setting"),
    "a scale for GPUs": (["--scale", "aws"], "pair: this machine has "),
}


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("mistake", SETTINGS)
def test_wrong_setting_exits_2_with_a_sentence_before_anything_is_made(
    mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(Path(__file__).parents[1])
    arguments, sentence = SETTINGS[mistake]
    assert main(["run", "digits", "--root", str(tmp_path), *arguments]) == 2
    _check_sentence(capsys.readouterr().err, sentence)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def _check_sentence(error: str, sentence: str) -> None:
    *_, last = error.strip().splitlines()
    assert last.startswith("vlcp-ray: ")
    assert sentence in last
    assert "Traceback" not in error


#: Arguments of commands in a folder with the files of FILES.
COMMANDS = {
    "a misspelt job": (["run", "digit"], "digit: no such job; did you mean digits?"),
    "a folder for a job": (["run", "./pets/"], "pets: is a folder; name a .toml file in it"),
    "a job file that is nowhere": (["run", "none.toml"], "none.toml: no such file; `vlcp-ray jobs` lists those of"),
    "a bracket that is not closed": (["run", "broken.toml"], "broken.toml: cannot be read as TOML: Unclosed array"),
    "a job file in another encoding": (["run", "latin.toml"], "latin.toml: cannot be read as TOML: 'utf-8' codec"),
    "a job file in JSON": (["run", "./job.json"], "job.json: cannot be read as TOML"),
    "a setting in the section above": (["run", "section.toml"], "unknown setting 'caption.ipc'; known here: engine"),
    "the same setting twice": (["run", "twice.toml"], "twice.toml: cannot be read as TOML: Cannot overwrite a value"),
    "a root that is a file": (["run", "digits", "--root", "broken.toml"], "it is a file; give a folder"),
    "a root below a file": (["run", "digits", "--root", "broken.toml/runs"], "no file can be made there (Not a dir"),
    "a root where nobody can write": (["run", "digits", "--root", "/proc/runs"], "no file can be made there (No such"),
    "an empty root": (["run", "digits", "--root", ""], "--root: it is empty; give a folder"),
    "a root without a bucket": (["run", "digits", "--root", "s3://"], "it names no bucket; write s3://bucket/folder"),
    "an empty image set": (["run", "digits", "--set", "ingest.source=empty"], "is an empty folder; give the one that"),
    "a file for an image set": (["run", "digits", "--set", "ingest.source=twice.toml"], "twice.toml is a file, and no"),
    "an archive": (["run", "digits", "--set", "ingest.source=pets.zip"], "unpack it: unzip -q "),
    "the folder above the image set": (
        ["run", "digits", "--set", "ingest.source=."],
        "/pets; give that folder, or set",
    ),
    "no val images": (
        ["run", "digits", "--set", "ingest.source=pets"],
        "has no val images, on which sets are evaluated",
    ),
    "a class that is not there": (
        ["run", "digits", "--set", "ingest.source=pets", "--set", 'ingest.classes=["cat","bird"]'],
        "ingest.classes: the image set has no 'bird'; it has cat, dog",
    ),
    "too few images": (
        ["run", "digits", "--set", "ingest.source=pets", "--set", "ingest.val_fraction=0.3", "--set", "ipc=[50]"],
        "ipc: class 'cat' has only ",
    ),
    "another layout": (
        ["run", "digits", "--set", "ingest.source=pets", "--set", "ingest.layout=webdataset"],
        "pets has no .tar file",
    ),
    "a root of another machine for submit": (["submit", "digits", "--root", "runs"], "give a URI that they all reach"),
    "an export before the run": (["export", "digits", "--format", "imagefolder", "--to", "out"], "run this job first"),
    "an export without a target": (["export", "digits", "--format", "imagefolder"], "name the target: --to FOLDER, or"),
    "an export of a set that the job lacks": (
        ["export", "digits", "--format", "imagefolder", "--to", "out", "--method", "rded"],
        "the job makes no set rded, seed 0, ipc 5; it has the methods vlcp, random, centroid",
    ),
    "a misspelt folder for ls": (["ls", "run"], "there is no such folder; give the --root of your runs"),
    "a misspelt folder for gc": (["gc", "run"], "there is no such folder; give the --root of your runs"),
}
FILES = {
    "broken.toml": b"ipc = [1\n",
    "latin.toml": "# café\nipc = [1]\n".encode("latin-1"),
    "job.json": b'{"ipc": [1]}',
    "section.toml": b'[caption]\nmodel = "demo/llava"\nipc = [1]\n',
    "twice.toml": b"ipc = [1]\nipc = [2]\n",
    "pets.zip": b"PK",
    **{f"pets/train/{name}/{i}.png": picture(i, "PNG") for name in ("cat", "dog") for i in range(3)},
}


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], set[Path]]:
    """Work in a folder with FILES; returns a function that lists the files that were made."""
    write_files(tmp_path, FILES)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.rglob("*"))
    return lambda: {path for path in tmp_path.rglob("*") if path.is_file()} - before


@pytest.mark.parametrize("mistake", COMMANDS)
def test_wrong_command_exits_2_with_a_sentence_before_anything_is_made(
    mistake: str, in_folder: Callable[[], set[Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, sentence = COMMANDS[mistake]
    assert main(arguments) == 2
    _check_sentence(capsys.readouterr().err, sentence)
    assert not in_folder()
