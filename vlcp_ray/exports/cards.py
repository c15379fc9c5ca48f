"""Cards (README.md) of exported data sets, captions and models, with the metadata that the Hugging Face hub reads."""

import json
from collections.abc import Mapping
from importlib import resources
from typing import Any, Final

import jinja2
from huggingface_hub import DatasetCardData, ModelCardData

from vlcp_ray.exports import markdown
from vlcp_ray.exports.dataset import card_features
from vlcp_ray.methods import vlcp

_TAGS: Final = ["dataset-distillation", vlcp.METHOD.name]
_SIZES: Final = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def dataset_card(form: str, facts: Mapping[str, Any]) -> str:
    """Write the card of a distilled set.

    Args:
        form: imagefolder, parquet, webdataset or dd-ranking.
        facts: the variables of the template `dataset.md.j2`, and license.
    """
    header = _data_header(facts, "image-classification", facts["images"])
    listed = card_features(facts["class_names"], bool(facts["teacher"]))
    if form == "parquet":
        header |= {"dataset_info": {"features": listed}, "configs": [_config("data/train-*")]}
    elif form == "imagefolder":  # without features in the config its builder reads the label as a number
        header |= {"dataset_info": {"features": listed}, "configs": [_config("train/**") | {"features": listed}]}
    return _card("dataset.md.j2", DatasetCardData(**header).to_yaml(), {**facts, "form": form})


def captions_card(facts: Mapping[str, Any]) -> str:
    """Write the card of a set's captions.

    Args:
        facts: the variables of the template `captions.md.j2`, and license.
    """
    header = _data_header(facts, "image-to-text", facts["images"]) | {"configs": [_config("captions.parquet")]}
    return _card("captions.md.j2", DatasetCardData(**header).to_yaml(), facts)


def model_card(facts: Mapping[str, Any]) -> str:
    """Write the card of a fine-tuned model.

    Args:
        facts: the variables of the template `model.md.j2`, and license.
    """
    base = {"base_model": facts["hub_id"]} if facts["hub_id"] else {}
    header = {"license": facts["license"], "library_name": "diffusers", "pipeline_tag": "text-to-image"}
    tags = ["stable-diffusion-xl" if facts["is_xl"] else "stable-diffusion", *_TAGS]
    return _card("model.md.j2", ModelCardData(**header, **base, tags=tags).to_yaml(), facts)


def _data_header(facts: Mapping[str, Any], task: str, rows: int) -> dict[str, Any]:
    size = next((name for limit, name in _SIZES if rows < limit), "n>1M")
    header = {"pretty_name": facts["title"], "license": facts["license"], "language": "en"}
    return header | {"tags": ["synthetic", *_TAGS], "task_categories": [task], "size_categories": [size]}


def _config(files: str) -> dict[str, Any]:
    return {"config_name": "default", "data_files": [{"split": "train", "path": files}]}


def _card(template: str, header: str, facts: Mapping[str, Any]) -> str:
    folder = resources.files(__package__)
    loader = jinja2.FunctionLoader(lambda name: folder.joinpath(name).read_text(encoding="utf-8"))
    environment = jinja2.Environment(  # noqa: S701  # Markdown, not HTML
        loader=loader,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters["json"] = lambda value: json.dumps(value, indent=2, ensure_ascii=False, default=str)
    environment.filters["literal"] = lambda value: json.dumps(value)  # a string of JSON is one of Python
    environment.filters |= {"text": markdown.text, "code": markdown.code, "fenced": markdown.fenced}
    return environment.get_template(template).render(header=header.strip(), **facts) + "\n"
