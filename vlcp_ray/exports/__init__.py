"""Exports: a distilled set, its captions or its model in formats that other tools open."""

from typing import Final

#: The file of an export that says which set it is, as JSON: `score` reads it. It has no suffix, so that no loader of
#: data sets takes it for data.
SET: Final = "SET"
#: The values of `export --format`, with what each writes.
FORMATS: Final[dict[str, str]] = {
    "imagefolder": "a folder for each class",
    "parquet": "files that `datasets` loads",
    "webdataset": "tars",
    "dd-ranking": "images.pt and labels.pt, normalised and sorted by class as DD-Ranking loads them",
    "captions": "the captions of all training images",
    "model": "the fine-tuned Stable Diffusion",
}
