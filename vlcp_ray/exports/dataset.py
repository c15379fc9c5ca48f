"""Knows a distilled set as the data sets that other tools open as they are: image folder, parquet, WebDataset."""

import io
import json
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Final

import pyarrow as pa
from pyarrow import parquet

from vlcp_ray.exports.rows import in_order
from vlcp_ray.schemas import SYNTHETIC, conform, pairs_schema
from vlcp_ray.store import Artifact

#: Rows of a shard, and of what is in memory at once: 100 MB of images of 256 pixels.
SHARD: Final = 1000
_FACTS: Final = ("image_id", "class_name", "prototype_id", "text", "seed")
SOFT: Final = "soft_label"  # of a set whose job has a teacher
_TYPES: Final = {pa.string(): "string", pa.int64(): "int64"}


def write(
    form: str,
    synthetic: Artifact,
    target: Artifact,
    class_names: Sequence[str],
    n_rows: int,
    soft_labels: Callable[[pa.Table], pa.Array] | None = None,
) -> None:
    """Write a set of SYNTHETIC under `target`, sorted by label and image_id.

    Args:
        form: a key of `FORMS`.
        class_names: by label.
        n_rows: of the set.
        soft_labels: the class probabilities of rows, in the order of the labels; where there are none, no column.
    """
    parts = in_order(synthetic, "synthetic", SYNTHETIC.names, ("label", "image_id"), SHARD)
    if soft_labels:
        parts = (part.append_column(SOFT, soft_labels(part)) for part in parts)
    FORMS[form](parts, target, class_names, -(-n_rows // SHARD))


def _imagefolder(parts: Iterable[pa.Table], target: Artifact, class_names: Sequence[str], _: int) -> None:
    """`train/<class>/<image_id>.png`, and a line of train/metadata.jsonl for each."""
    folders = folder_names(class_names)
    with tempfile.TemporaryDirectory() as here:
        with (Path(here) / "metadata.jsonl").open("w", encoding="utf-8") as lines:
            for part in parts:
                for row in part.to_pylist():
                    name = f"{folders[row['label']]}/{_file_name(row['image_id'])}{suffix(row['image'])}"
                    target.write_bytes(f"train/{name}", row["image"])
                    lines.write(f"{json.dumps({'file_name': name} | _told(row), ensure_ascii=False)}\n")
        target.put_folder(Path(here), "train")


def _parquet(parts: Iterable[pa.Table], target: Artifact, class_names: Sequence[str], shards: int) -> None:
    """`data/train-*.parquet` as `datasets` writes them: an image is a struct of bytes and path, a label has names."""
    for number, part in enumerate(parts):
        soft = SOFT in part.column_names
        described = {"info": {"features": _features(class_names, soft)}}
        metadata = {b"huggingface": json.dumps(described, ensure_ascii=False).encode()}
        paths = pa.array([f"{_file_name(row)}.png" for row in part["image_id"].to_pylist()], pa.string())
        image = pa.StructArray.from_arrays([part["image"].combine_chunks(), paths], ["bytes", "path"])
        columns = {"image": image, "label": part["label"].cast(pa.int64())}
        columns |= {fact: part[fact] for fact in (*_FACTS, SOFT) if fact in part.column_names}
        sink = io.BytesIO()
        parquet.write_table(pa.table(columns).replace_schema_metadata(metadata), sink, row_group_size=100)
        target.write_bytes(f"data/train-{number:05d}-of-{shards:05d}.parquet", sink.getvalue())


def _webdataset(parts: Iterable[pa.Table], target: Artifact, class_names: Sequence[str], _: int) -> None:
    """`train-*.tar` with key.png, key.cls (the label) and key.json; classes.txt has a name a line, by label."""
    for number, part in enumerate(parts):
        sink = io.BytesIO()
        with tarfile.open(fileobj=sink, mode="w") as tar:
            for row in part.to_pylist():
                key = _file_name(row["image_id"]).replace(".", "_")  # what follows the first point is the kind
                _add(tar, f"{key}{suffix(row['image'])}", row["image"])
                _add(tar, f"{key}.cls", str(row["label"]).encode())
                _add(tar, f"{key}.json", json.dumps(_told(row), ensure_ascii=False).encode())
        target.write_bytes(f"train-{number:06d}.tar", sink.getvalue())
    target.write_bytes("classes.txt", "".join(f"{name}\n" for name in class_names).encode())


FORMS: Final[Mapping[str, Callable[[Iterable[pa.Table], Artifact, Sequence[str], int], None]]] = {
    "imagefolder": _imagefolder,
    "parquet": _parquet,
    "webdataset": _webdataset,
}


def features(class_names: Sequence[str], soft: bool) -> list[dict[str, Any]]:
    """The columns as a dataset card lists them, in words that `datasets` knew before its version 4 too."""
    names = {str(label): name for label, name in enumerate(class_names)}
    listed: list[dict[str, Any]] = [
        {"name": "image", "dtype": "image"},
        {"name": "label", "dtype": {"class_label": {"names": names}}},
    ]
    listed += [{"name": fact, "dtype": _TYPES[SYNTHETIC.field(fact).type]} for fact in _FACTS]
    return listed + ([{"name": SOFT, "sequence": "float32", "length": len(class_names)}] if soft else [])


def folder_names(class_names: Sequence[str]) -> list[str]:
    """A folder for every label. Classes of one name are told apart by their label, as are names with a slash."""
    twice = {name for name in class_names if class_names.count(name) > 1}
    return [
        f"{label:04d} {name}".replace("/", "_") if name in twice or "/" in name else name
        for label, name in enumerate(class_names)
    ]


def suffix(image: bytes) -> str:
    """The ending of an image file; selected real images keep the form in which they were found."""
    return ".png" if image[:4] == b"\x89PNG" else ".jpg" if image[:2] == b"\xff\xd8" else ".img"


def _features(class_names: Sequence[str], soft: bool) -> dict[str, Any]:
    described: dict[str, Any] = {
        "image": {"_type": "Image"},
        "label": {"names": list(class_names), "_type": "ClassLabel"},
    }
    described |= {fact: {"dtype": _TYPES[SYNTHETIC.field(fact).type], "_type": "Value"} for fact in _FACTS}
    one = {"dtype": "float32", "_type": "Value"}
    return described | ({SOFT: {"feature": one, "length": len(class_names), "_type": "Sequence"}} if soft else {})


def _told(row: Mapping[str, Any]) -> dict[str, Any]:
    """What is said of an image beside its pixels; nine digits are enough to read a float32 as it was."""
    soft = {SOFT: [float(f"{share:.9g}") for share in row[SOFT]]} if SOFT in row else {}
    return {"label": row["label"]} | {fact: row[fact] for fact in _FACTS} | soft


def _file_name(image_id: str) -> str:
    return PurePosixPath(image_id.replace("/", "_")).with_suffix("").name


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def descriptions(pairs: Artifact, target: Artifact) -> int:
    """Write every description as descriptions.parquet and as descriptions.jsonl, which `caption.source` reads again.

    Returns how many there are.
    """
    columns, count = ("image_id", "label", "class_name", "caption"), 0
    schema = pairs_schema((1, 1, 1), (1, 1, 1))
    schema = pa.schema([schema.field(name) for name in columns])
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        with (
            parquet.ParquetWriter(here / "descriptions.parquet", schema) as table,
            (here / "descriptions.jsonl").open("w", encoding="utf-8") as lines,
        ):
            for part in in_order(pairs, "pairs", columns, ("image_id",), 100 * SHARD):
                table.write_table(conform(part, schema))
                lines.writelines(_lines(part))
                count += len(part)
        target.put_folder(here, "")
    return count


def _lines(part: pa.Table) -> Iterator[str]:
    for row in part.to_pylist():
        told = {"file_name": row["image_id"], "text": row["caption"]}
        told |= {"label": row["label"], "class_name": row["class_name"]}
        yield f"{json.dumps(told, ensure_ascii=False)}\n"
