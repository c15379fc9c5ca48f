"""Tests of the facts that pair counts in its table."""

from pathlib import Path

import pyarrow as pa

from vlcp_ray.stages.pair import format_too_long
from vlcp_ray.stages.pair.run import count_captions
from vlcp_ray.store.artifact import Artifact
from vlcp_ray.store.io import open_uri


def test_count_captions_counts_the_captions_of_all_files(tiny_stable_diffusion: str, tmp_path: Path) -> None:
    filesystem, path = open_uri(str(tmp_path / "pairs"), "--root")
    artifact = Artifact(filesystem, path)
    none = {"train": [0, 0], "caption_lengths": {"captions": 0, "too_long": 0, "encoder_tokens": 77}}
    assert count_captions(artifact, tiny_stable_diffusion, 2) == none
    lengths = [[75, 76], [1, 2, 300], *[[5]] * 300]  # letters, each a token
    for number, part in enumerate(lengths):
        labels = pa.array([min(number, 2)] * len(part), pa.int32())
        table = pa.table({"label": labels, "caption": ["x" * n for n in part]})
        artifact.write_table(f"pairs/{number}.parquet", table)
    counts = {"captions": 305, "too_long": 2, "encoder_tokens": 77}
    found = count_captions(artifact, tiny_stable_diffusion, 4)
    assert found == {"train": [2, 3, 300, 0], "caption_lengths": counts}


def test_format_too_long_is_a_sentence_with_exact_numbers() -> None:
    assert format_too_long(1200, 9469, 77) == (
        "1,200 of 9,469 captions are longer than the 77 tokens that the text encoder reads at once: fine-tuning reads "
        "the first 77, generation all of a text prototype"
    )
    assert format_too_long(1, 2, 77).startswith("1 of 2 captions is longer")
