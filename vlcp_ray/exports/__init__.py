"""Exports: a distilled set, its captions or its model in formats that other tools open."""

from typing import Final

#: The values of `export --format`, with what each writes.
FORMATS: Final[dict[str, str]] = {
    "imagefolder": "a folder for each class",
    "parquet": "files that `datasets` loads",
    "webdataset": "tars",
    "captions": "the captions of all training images",
    "model": "the fine-tuned Stable Diffusion",
}
