"""Knows how images get descriptions: from a vision-language model (METHOD 2.1), or from a table of earlier ones."""

from collections.abc import Mapping

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from vlcp_ray import config, images, schemas
from vlcp_ray.models.captioner import load_captioner
from vlcp_ray.seeds import seed_for
from vlcp_ray.text import clean


class Caption:
    """Row-wise: images in, the same rows with descriptions out. An image's seed is a function of its id."""

    def __init__(self, settings: config.Caption) -> None:
        """Load the model in the engine that the settings name."""
        self.settings = settings
        self.captioner = load_captioner(settings)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Add `caption`, cleaned as the released code does; it is "" in rows that are rejected, here or before.

        Rejects what cannot be decoded (the reasons of `images.decode`) and what the model has no word for
        (`empty_caption`).
        """
        found, faults = images.decode_rows(table["image"].to_pylist(), schemas.reasons(table))
        captions = [""] * len(table)
        for row, text in zip(found, self._describe(table, found), strict=True):
            captions[row] = text
            if not text:
                faults[row] = ("empty_caption", "the answer holds no word")
        return schemas.with_column(schemas.reject(table, faults), "caption", pa.array(captions, pa.string()))

    def _describe(self, table: pa.Table, found: Mapping[int, Image.Image]) -> list[str]:
        asked = table.select(["image_id", "class_name"]).take(pa.array(list(found), pa.int64()))
        # Class names may hold braces, which str.format would read.
        prompts = [self.settings.prompt.replace("{class_name}", name) for name in asked["class_name"].to_pylist()]
        seeds = [seed_for(self.settings.seed, "caption", image_id) for image_id in asked["image_id"].to_pylist()]
        answers = self.captioner.describe(list(found.values()), prompts, seeds) if found else []
        return [clean(answer) for answer in answers]


class CarryCaptions:
    """Row-wise: images in, the same rows with the descriptions that a table holds for them out; runs no model."""

    def __init__(self, captions: pa.Table) -> None:
        """Keep a table of image_id and caption, or of file_name and text as the released code writes them.

        File names are compared without their extension, with the folder that they lie in where the table gives it.

        Raises:
            ValueError: a column is missing, or an image_id or file name occurs twice.
        """
        names = ("image_id", "caption") if "image_id" in captions.column_names else ("file_name", "text")
        if missing := [name for name in names if name not in captions.column_names]:
            raise ValueError(
                f"caption.source: the table lacks {' and '.join(missing)}; it has {', '.join(captions.column_names)}, "
                "needed are image_id and caption, or file_name and text"
            )
        image_ids = pc.cast(captions[names[0]], pa.string()).combine_chunks()
        self.captions = pc.cast(captions[names[1]], pa.string()).combine_chunks()
        self.folders = _folders(image_ids) if names[0] == "file_name" else None
        self.taken: dict[str, str] = {}
        if self.folders is not None:
            image_ids = _file_names(image_ids, self.folders)
        counts = pc.value_counts(image_ids)
        twice = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
        if len(twice):
            raise ValueError(f"caption.source: {len(twice)} ids occur twice or more, {twice[0].as_py()!r} for one")
        # Arrow would hash all ids anew for every batch: at ImageNet's size that is nearly all of the time.
        self.places = pd.Index(image_ids.to_numpy(zero_copy_only=False))

    def __call__(self, table: pa.Table) -> pa.Table:
        """Add `caption`; rejects rows that the table does not know (`missing_caption`) or has no word for
        (`empty_caption`)."""
        image_ids = table["image_id"]
        if self.folders is not None:
            image_ids = _file_names(image_ids, self.folders)
        places = self.places.get_indexer(image_ids.to_numpy(zero_copy_only=False))
        where = pa.array(places, mask=places < 0)
        if self.folders is not None:
            known = where.is_valid()
            self._take(image_ids.filter(known), table["image_id"].filter(known))
        unknown = _rows(pc.is_null(where))
        captions = pc.fill_null(self.captions.take(where), "")
        empty = _rows(pc.equal(pc.utf8_trim_whitespace(captions), ""))
        faults = dict.fromkeys(empty, ("empty_caption", "the table's description holds no word"))
        faults |= dict.fromkeys(unknown, ("missing_caption", "the table of descriptions lacks this image_id"))
        rejected = schemas.reject(table, faults)
        kept = pc.if_else(pc.equal(rejected["reason"], ""), captions, "")
        return schemas.with_column(rejected, "caption", kept)

    def _take(self, file_names: pa.ChunkedArray, image_ids: pa.ChunkedArray) -> None:
        for name, image_id in zip(file_names.to_pylist(), image_ids.to_pylist(), strict=True):
            if self.taken.setdefault(name, image_id) != image_id:
                raise ValueError(
                    f"caption.source: the file name {name!r} is that of {self.taken[name]} and of {image_id}; "
                    "give the table's file names with the folder of their class"
                )


def _folders(file_names: pa.Array) -> int:
    """How many folders of an image's id its file name must agree with: the class's, where the table has folders."""
    return int(bool(pc.any(pc.match_substring(file_names, "/")).as_py()))


def _file_names(paths: pa.Array | pa.ChunkedArray, folders: int) -> pa.Array | pa.ChunkedArray:
    """The end of each path, with so many folders: no extension, and no `_<wnid>` as the hub's ImageNet appends it."""
    stems = pc.replace_substring_regex(paths, r"(_n\d{8})?\.\w+$", "")
    return pc.replace_substring_regex(stems, rf"^.*?((?:[^/]*/){{0,{folders}}}[^/]*)$", r"\1")


def _rows(mask: pa.ChunkedArray) -> list[int]:
    rows: list[int] = pc.indices_nonzero(mask).to_pylist()
    return rows
