"""Caption images with a vision-language model."""

from collections.abc import Mapping

import pyarrow as pa
from PIL import Image

from vlcp_ray import images, schemas
from vlcp_ray.models.captioners import Answer, load_captioner
from vlcp_ray.seeds import seed_for
from vlcp_ray.stages import pair


class CaptionRows:
    """Row-wise: caption images. The seed of a row is a function of its image_id."""

    def __init__(self, settings: pair.Caption, gpus: float = 1.0) -> None:
        """Load the model in the engine of the settings.

        Args:
            gpus: the share of a GPU that vLLM may take.
        """
        self.settings = settings
        self.captioner = load_captioner(settings, gpus)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Add `caption`, cleaned as in the released code; "" in rows that are rejected, here or before; and the columns
        of ANSWERS, null in rows that the model has not captioned.

        Rows that have a caption already keep it, and their images are not decoded.

        Rejects images that cannot be decoded (`images.decode`), images with more tokens than the model may read
        (`too_many_tokens`), and answers without a word (`empty_caption`).
        """
        captions = table["caption"].to_pylist() if "caption" in table.column_names else [""] * len(table)
        is_left_out = [reason or caption for reason, caption in zip(schemas.reasons(table), captions, strict=True)]
        decoded, errors = images.decode_rows(table["image"].to_pylist(), is_left_out)
        answers = dict(zip(decoded, self._caption(table, decoded), strict=True))
        for row, answer in answers.items():
            captions[row] = answer.text
            if answer.error:
                errors[row] = ("too_many_tokens", answer.error)
            elif not answer.text:
                cut = ": it was cut before its end; raise caption.max_tokens" if answer.is_cut else ""
                errors[row] = ("empty_caption", f"the model's answer has no word{cut}")
        table = schemas.with_column(schemas.reject(table, errors), "caption", pa.array(captions, pa.string()))
        written = {row: answer for row, answer in answers.items() if not answer.error}
        for field in pair.ANSWERS:
            if field.name not in table.column_names:
                values = [getattr(written.get(row), field.name, None) for row in range(len(table))]
                table = table.append_column(field.name, pa.array(values, field.type))
        return table

    def _caption(self, table: pa.Table, decoded: Mapping[int, Image.Image]) -> list[Answer]:
        """Caption the decoded images of a table, which are given by their row."""
        rows = table.select(["image_id", "class_name"]).take(pa.array(list(decoded), pa.int64()))
        # Not str.format, which would fail on other braces in the prompt.
        prompts = [self.settings.prompt.replace("{class_name}", name) for name in rows["class_name"].to_pylist()]
        seeds = [seed_for(self.settings.seed, "caption", image_id) for image_id in rows["image_id"].to_pylist()]
        answers = self.captioner.caption(list(decoded.values()), prompts, seeds) if decoded else []
        return [answer._replace(text=clean(answer.text)) for answer in answers]


def clean(answer: str) -> str:
    """Remove double quotes and `'s`, and make all white space single spaces (as in the released code)."""
    return " ".join(answer.replace('"', "").replace("'s", "").split())
