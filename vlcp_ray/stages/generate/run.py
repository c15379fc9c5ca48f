"""generate: one Ray Data plan for all sets of the same model."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from vlcp_ray.engine.context import Context
from vlcp_ray.engine.synthetic_sets import make_sets
from vlcp_ray.stages.finetune import MODEL
from vlcp_ray.stages.generate import Generate, group_by_model
from vlcp_ray.store.artifact import Step


def run(context: Context, steps: Sequence[Step]) -> None:
    """Turn PROTOTYPES into SYNTHETIC, with the fine-tuned model where it is an input, else with the base model."""
    for group in group_by_model(steps):
        hashed, model = group[0].settings, group[0].inputs.get("model")
        settings = Generate(**{name: hashed[name] for name in Generate.model_fields})
        arguments = {"settings": settings, "text": hashed["text"]}
        with tempfile.TemporaryDirectory() as local:
            folder = context.artifact(model).get_folder(MODEL, Path(local)) if model else context.job.base_model
            make_sets(context, group, "vlcp_ray.stages.generate.img2img:Img2Img", arguments | {"model": folder})
