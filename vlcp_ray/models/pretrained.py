"""Find pretrained models, and read shapes and sizes from their files without loading a library or a weight."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from vlcp_ray.models import architectures, families
from vlcp_ray.models.families import (
    CAPTIONER,
    CHAT_FILES,
    CONFIGURATIONS,
    DIT,
    SD,
    STABLE_DIFFUSION,
    WITH_CHAT,
    XL,
    BaseModels,
    Kind,
    read_json,
)
from vlcp_ray.settings import ConfigError
from vlcp_ray.store import io
from vlcp_ray.store.uris import strip_secrets

DEMO: Final = "demo/"
_PACKAGE: Final = Path(__file__).parents[1]

#: Number of parameters of the paper's other models, by hub id and part.
_PARAMETERS: Final[Mapping[tuple[str, str], int]] = {
    ("llava-hf/llava-1.5-7b-hf", ""): 7_063_427_072,
    ("facebook/DiT-XL-2-256", "transformer"): 749_826_464,
    ("facebook/DiT-XL-2-256", "vae"): 83_653_863,
}


class Use(NamedTuple):
    """A model that a job loads: the setting that names it, its name, and what it must be."""

    field: str
    model: str
    kind: Kind


def folder(model: str) -> str:
    """Return the first argument for `from_pretrained`: the packaged folder of demo/<name>, else the hub id or folder.

    The others are those of `pinned`.
    """
    return str(_PACKAGE / model) if model.startswith(DEMO) else hub_id(model) or strip_secrets(model)


def pinned(model: str) -> dict[str, str]:
    """Return the arguments for `from_pretrained` that name the revision of a model; none without one."""
    named = revision(model)
    return {"revision": named} if named else {}


def revision(model: str) -> str | None:
    """Return the revision of `owner/name@revision`; None for the newest one, and for other models."""
    return model.partition("@")[2] or None if hub_id(model) else None


def hub_id(model: str) -> str:
    """Return owner/name of a model of the hub, without its revision; "" for a folder or a packaged model."""
    is_path = model.startswith((DEMO, ".", "/", "~")) or "://" in model or model.count("/") != 1
    return "" if is_path or Path(model).exists() else model.partition("@")[0]


def find(model: str, name: str) -> Path | None:
    """Return the path of a file of a model, without asking the hub; None where it is not on this machine.

    Args:
        model: hub id, folder or demo/<name>; of the hub the file is looked up in the cache.
        name: of the file, in the folder of the model.
    """
    path = Path(folder(model)).expanduser() / name
    if path.exists():
        return path
    if not hub_id(model):
        return None
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(hub_id(model), name, revision=revision(model))
    return Path(cached) if isinstance(cached, str) else None


def check(model: str, field: str, kind: Kind) -> None:
    """Refuse a folder that does not exist or is no model, before anything starts and before it is hashed.

    Args:
        model: hub id, folder or demo/<name>.
        field: the setting it comes from, for the error.
        kind: STABLE_DIFFUSION, CAPTIONER or DIT.

    Raises:
        ValueError: `model` is written as a path or as demo/<name>, and the folder, its weights or a file do not exist;
            or it is a captioner of no known family.
    """
    if hub_id(model):
        return
    path = Path(folder(model)).expanduser()
    if model.startswith(DEMO) and path.is_dir() and not any(path.rglob("*.safetensors")):
        raise ValueError(f"{field}: the weights of {model} were not sent with this job; send it with vlcp-ray submit")
    if not path.is_dir():
        raise ValueError(f"{field}: there is no folder {model!r}; give a folder or a hub id such as owner/name")
    with naming(field, model):
        kind = families.check(kind, path, is_whole=not missing_files(path, kind))
    if missing := missing_files(path, kind):
        raise ValueError(
            f"{field}: the folder {model!r} is no {kind.name}: it lacks {', '.join(missing)}; give a folder that "
            "save_pretrained has written, or a hub id such as owner/name"
        )


def family(model: str) -> BaseModels:
    """Return the family of a base model by its model_index.json, which is downloaded where it is not here.

    Raises:
        ValueError: it is of none of them, or cannot be downloaded.
    """
    index = _config(model, "model_index.json", "base_model")
    with naming("base_model", model):
        return families.base_models(index)


@contextmanager
def naming(field: str, model: str) -> Iterator[None]:
    """Name the setting and the model in the error of `families.check`."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(f"{field}: {model} {error}") from error


def needs_float32(model: str) -> bool:
    """Return whether the numbers of a model's VAE are too large for float16: XL's, unless its configuration denies it.

    `force_upcast` is read of XL only: in other configurations it is a default that nothing needs.
    """
    index = _config(model, "model_index.json", "base_model")
    return index.get("_class_name") in XL.pipelines and bool(_vae_config(model).get("force_upcast", True))


def expected_family(model: str) -> BaseModels:
    """Return the family of a base model without asking the hub: SD of one that is neither here nor a published one."""
    if path := find(model, "model_index.json"):
        with naming("base_model", model):
            return families.base_models(read_json(path))
    published = architectures.PUBLISHED.get(hub_id(model))
    return published.family if published else SD


def missing_files(path: Path, kind: Kind) -> list[str]:
    """List the files that a model needs and that a folder does not have, with the parts of weights in several files."""
    missing = [file for file in kind.files if not any(any(path.glob(pattern)) for pattern in file.split("|"))]
    for index in sorted({one for file in kind.files for one in path.glob(f"{file.partition('|')[0]}.index.json")}):
        parts = json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}).values()
        missing += [
            str((index.parent / part).relative_to(path))
            for part in sorted(set(parts))
            if not (index.parent / part).exists()
        ]
    return [file.replace("|", " or ") for file in missing]


def check_hub(use: Use, cache: Path | None = None) -> None:
    """Refuse a model of the hub that cannot be read from here: by its first file, or by the cache of this machine.

    Args:
        cache: of the hub, for the first file; by default that of this machine.

    Raises:
        ConfigError: names the setting, what is missing, and the fix.
    """
    if not hub_id(use.model):
        return
    from huggingface_hub import constants

    if constants.is_offline_mode():
        _check_cache(use)
    else:
        _check_first_file(use, cache)


def _check_first_file(use: Use, cache: Path | None) -> None:
    """Refuse a model by its first file and its family: a base model by the configurations of its parts as well, a
    captioner by its chat template.
    """
    found = _download(use, use.kind.files[0], cache).parent
    with naming(use.field, use.model):
        families.check(use.kind, found, is_whole=False)
    if use.kind is STABLE_DIFFUSION:
        encoders = families.base_models(read_json(found / "model_index.json")).text_encoders
        for file in (*CONFIGURATIONS, *(f"{part}/config.json" for part in encoders)):
            _download(use, file, cache)
    elif use.kind is CAPTIONER:
        for file in (*CHAT_FILES, *WITH_CHAT):
            with suppress(_MissingFileError):
                _download(use, file, cache)
    with naming(use.field, use.model):
        families.check(use.kind, found)


class _MissingFileError(ConfigError):
    """A model of the hub does not have a file."""


def _download(use: Use, file: str, cache: Path | None) -> Path:
    """Download a file of a model of the hub.

    Raises:
        ConfigError: names the setting, what is missing, and the fix; a `_MissingFileError` if it is the file.
    """
    from huggingface_hub import errors, hf_hub_download

    try:
        return Path(hf_hub_download(hub_id(use.model), file, revision=revision(use.model), cache_dir=cache))
    except (errors.HfHubHTTPError, OSError, ValueError) as error:
        reason, fix = _why_not_read(use, file, error)
        is_answer = not isinstance(error, errors.LocalEntryNotFoundError)  # which is one of no network
        kind = _MissingFileError if is_answer and isinstance(error, errors.EntryNotFoundError) else ConfigError
        raise kind(f"{use.field}: {use.model} cannot be read: {reason}; {fix}") from error


def _why_not_read(use: Use, file: str, error: Exception) -> tuple[str, str]:
    """Return why a file of a model of the hub cannot be read, and the fix."""
    from huggingface_hub import errors

    if isinstance(error, errors.LocalEntryNotFoundError):  # no answer, and nothing in the cache
        reason = f"the hub does not answer ({str(error.__cause__ or error).splitlines()[0]})"
        return reason, "check the network, run vlcp-ray fetch with this job where there is internet, or give a folder"
    if isinstance(error, errors.EntryNotFoundError):
        return f"it is no {use.kind.name}: it lacks {file}", "give another model"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"it has no revision {revision(use.model)!r}", "give a branch, a tag or a commit of its page"
    if isinstance(error, errors.GatedRepoError):
        fix = "do so on its page and log in with hf auth login, or set HF_TOKEN"
        return "its terms are to be accepted", fix
    if isinstance(error, errors.RepositoryNotFoundError):
        return "the hub has no such model", "check its name; for a private one log in with hf auth login"
    return str(error).strip().splitlines()[0], "check its name and the network, or give a folder"


def _check_cache(use: Use) -> None:
    """Refuse a model that is not complete in the cache, where HF_HUB_OFFLINE forbids to fetch it."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:  # where it is; which files are needed only we know
        name, named = hub_id(use.model), revision(use.model)
        found = Path(snapshot_download(name, revision=named, local_files_only=True, ignore_patterns="*"))
        with naming(use.field, use.model):
            kind = families.check(use.kind, found, is_whole=not missing_files(found, use.kind))
        missing = missing_files(found, kind)
    except LocalEntryNotFoundError:
        missing = ["all files"]
    if missing:
        raise ConfigError(
            f"{use.field}: {use.model} is not complete in {constants.HF_HUB_CACHE} ({', '.join(missing)}), and "
            "HF_HUB_OFFLINE is set; run vlcp-ray fetch with this job where there is internet, and set HF_HUB_CACHE to "
            "what it has written"
        )


def content_hash(model: str) -> str:
    """Return what identifies a model in fingerprints: the hash of a folder's contents, or the hub id."""
    path = folder(model)
    return strip_secrets(model) if hub_id(model) or not Path(path).expanduser().exists() else io.content_hash(path)


def latent_shape(base_model: str, resolution: int) -> tuple[int, int, int]:
    """Compute the shape (c, h, w) of the latent of a `resolution` x `resolution` image."""
    return _latent_shape(_vae_config(base_model), resolution)


def _latent_shape(vae: Mapping[str, Any], resolution: int) -> tuple[int, int, int]:
    side = resolution // _pixels_along(vae)
    return int(vae.get("latent_channels", 4)), side, side


def _pixels_along(vae: Mapping[str, Any]) -> int:
    """Return how many pixels a number of a latent stands for, along each side."""
    return int(2 ** (len(vae.get("block_out_channels") or (64,)) - 1))  # diffusers' default is a VAE of one block


def scaling_factor(base_model: str) -> float:
    """Return the factor by which latents are multiplied so that their variance is about 1."""
    # Configurations of Stable Diffusion v1 may leave it out; this is theirs.
    return float(_vae_config(base_model).get("scaling_factor", 0.18215))


def check_dit(model: str, field: str) -> None:
    """Refuse a folder that is no DiT, or one that does not fit the method: see `check`.

    Raises:
        ValueError: as in `check`; or the DiT predicts no variance, or its classes have no names.
    """
    check(model, field, DIT)
    if hub_id(model):
        return
    config, index = _config(model, "transformer/config.json", field), _config(model, "model_index.json", field)
    if config.get("_class_name") != "DiTTransformer2DModel":
        raise ValueError(f"{field}: the transformer of {model!r} is a {config.get('_class_name')}; give a DiT")
    if config.get("out_channels") != 2 * config.get("in_channels", 4):
        raise ValueError(
            f"{field}: the DiT {model!r} predicts no variance (out_channels must be twice in_channels); give one that "
            "does, as facebook/DiT-XL-2-256"
        )
    if len(index.get("id2label") or {}) != config.get("num_embeds_ada_norm"):
        raise ValueError(
            f"{field}: model_index.json of {model!r} has no id2label with a name for each of its "
            f"{config.get('num_embeds_ada_norm')} classes; add it, as facebook/DiT-XL-2-256 has it"
        )


def dit_names(model: str) -> dict[int, str]:
    """Return the names of the classes of a DiT by their number."""
    names = _config(model, "model_index.json", "compare.minimax.model").get("id2label") or {}
    return {int(number): str(name) for number, name in names.items()}


def dit_side(model: str) -> int:
    """Return height and width of the latents of a DiT, without asking the hub: one that is not here has 32."""
    path = Path(folder(model)).expanduser() / "transformer" / "config.json"
    return int(json.loads(path.read_text(encoding="utf-8"))["sample_size"]) if path.exists() else 32


def dit_resolution(model: str) -> int:
    """Return height and width of the images of a DiT in pixels."""
    side = int(_config(model, "transformer/config.json", "compare.minimax.model")["sample_size"])
    return side * _pixels_along(_config(model, "vae/config.json", "compare.minimax.model"))


def captioner_config(model: str) -> dict[str, Any]:
    """Read the config.json of a captioner, from its folder or from the hub.

    Raises:
        ValueError: it cannot be downloaded.
    """
    return _config(model, "config.json", "caption.model")


def _vae_config(base_model: str) -> dict[str, Any]:
    return _config(base_model, "vae/config.json", "base_model")


def _config(model: str, name: str, field: str) -> dict[str, Any]:
    """Read a JSON file of a model, from its folder or from the hub.

    Raises:
        ValueError: it cannot be downloaded.
    """
    path = Path(folder(model)).expanduser() / name
    if not path.exists():
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError

        try:
            path = Path(hf_hub_download(hub_id(model), name, revision=revision(model)))
        except (HfHubHTTPError, OSError, ValueError) as error:
            raise ValueError(
                f"{field}: {model} cannot be downloaded from the hub ({str(error).strip().splitlines()[0]}); "
                "check its name and the network, or give a folder"
            ) from error
    with naming(field, model):
        return read_json(path)


def expected_resolution(base_model: str) -> int | None:
    """Return the side in pixels that a base model was trained at, the same on every machine; None if it is not known.

    It is read from the configurations in a folder. Of the hub's models that of the published ones is known.
    """
    if hub_id(base_model):
        published = architectures.PUBLISHED.get(hub_id(base_model))
        return published.resolution if published else None
    return cached_resolution(base_model)


def cached_resolution(base_model: str) -> int | None:
    """Return the side in pixels that a base model was trained at, by its configurations in its folder or the cache.

    None where these are not on this machine, or do not say it.

    Raises:
        ValueError: they cannot be read.
    """
    with naming("base_model", base_model):
        unet, vae = (find(base_model, f"{part}/config.json") for part in ("unet", "vae"))
        if unet is None or vae is None:
            return None
        sides = read_json(unet).get("sample_size")
        side = sides[0] if isinstance(sides, list) and len(set(sides)) == 1 else sides
        pixels = side * _pixels_along(read_json(vae)) if isinstance(side, int) else 0
    return pixels if pixels and pixels % 8 == 0 else None


def expected_latent_shape(base_model: str, resolution: int) -> tuple[int, int, int]:
    """Compute the shape (c, h, w) of a latent without asking the hub.

    A hub model that is not here is assumed to have the four channels and the eighth of the side of every Stable
    Diffusion.
    """
    if path := find(base_model, "vae/config.json"):
        with naming("base_model", base_model):
            return _latent_shape(read_json(path), resolution)
    return 4, resolution // 8, resolution // 8


def count_parameters(model: str, part: str) -> int | None:
    """Count the parameters of a model or of one of its parts, without asking the hub; None where they are not known.

    A part of a base model is recognised by its configuration, in the folder or in the hub's cache. Else the weights of
    a folder are added up, and a hub model that is not here may be a published one.
    """
    if part and (config := find(model, f"{part}/config.json")):
        with naming("base_model", model):
            known = architectures.parameters_of(part, read_json(config))
        if known:
            return known
    path = Path(folder(model)).expanduser() / part
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else []
    if files:
        return sum(map(_parameters_in, files))
    name = hub_id(model)
    return _PARAMETERS.get((name, part)) or architectures.published_parameters(name, part)


def identify(model: str, part: str) -> int:
    """Return a number that identifies a model or one of its parts: of its parameters, or, where not known, its name."""
    count = count_parameters(model, part)
    if count is not None:
        return count
    return int.from_bytes(hashlib.sha256(f"{strip_secrets(model)}/{part}".encode()).digest()[:6])


def _parameters_in(file: Path) -> int:
    with file.open("rb") as stream:  # safetensors: 8 bytes of length, then JSON with the shape of every tensor
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")


def count_pipeline_parameters(base_model: str) -> int | None:
    """Count the parameters of a Stable Diffusion's UNet, VAE and text encoders; None where one is not known."""
    parts = ("unet", "vae", *expected_family(base_model).text_encoders)
    sizes = [count_parameters(base_model, part) for part in parts]
    known = [size for size in sizes if size is not None]
    return sum(known) if len(known) == len(sizes) else None
