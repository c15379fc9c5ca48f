"""Write a distilled set as a data set that other tools open: image folder, parquet, WebDataset; and its captions."""

import io
import json
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet

from vlcp_ray.exports.names import file_names, folder_names
from vlcp_ray.exports.rows import read_sorted
from vlcp_ray.schemas import IMAGES, SYNTHETIC, conform
from vlcp_ray.stages.pair import PAIRS
from vlcp_ray.store.artifact import Artifact

#: Rows of a shard, and rows in memory at once: 100 MB of images of 256 pixels.
SHARD: Final = 1000
#: The column of a teacher's class probabilities.
SOFT_LABEL: Final = "soft_label"
_COLUMNS: Final = ("image_id", "class_name", "prototype_id", "text", "seed")  # beside image and label
_TYPES: Final = {pa.string(): "string", pa.int64(): "int64"}


@dataclass(frozen=True)
class Names:
    """The names of a set: those of its classes, by label, and those of its files without suffix, by image_id."""

    classes: Sequence[str]
    files: Mapping[str, str]


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
        form: a key of `WRITERS`.
        class_names: by label.
        n_rows: of the set.
        soft_labels: computes the class probabilities of rows, in the order of the labels; None: no such column.
    """
    parts = read_sorted(synthetic, "synthetic", SYNTHETIC.names, ("label", "image_id"), SHARD)
    if soft_labels:
        parts = (part.append_column(SOFT_LABEL, soft_labels(part)) for part in parts)
    ids = synthetic.table("synthetic", SYNTHETIC, ["image_id"])["image_id"].to_pylist()
    WRITERS[form](parts, target, Names(class_names, file_names(ids)), -(-n_rows // SHARD))


def _imagefolder(parts: Iterable[pa.Table], target: Artifact, names: Names, _: int) -> None:
    """Write `train/<class>/<image_id>.png`, and a line of train/metadata.jsonl for each image."""
    folders = folder_names(names.classes)
    with tempfile.TemporaryDirectory() as folder:
        with (Path(folder) / "metadata.jsonl").open("w", encoding="utf-8") as lines:
            for part in parts:
                for row in part.to_pylist():
                    name = f"{folders[row['label']]}/{names.files[row['image_id']]}{_suffix(row['image'])}"
                    target.write_bytes(f"train/{name}", row["image"])
                    lines.write(f"{json.dumps({'file_name': name} | _metadata(row), ensure_ascii=False)}\n")
        target.put_folder(Path(folder), "train")


def _parquet(parts: Iterable[pa.Table], target: Artifact, names: Names, shards: int) -> None:
    """Write `data/train-*.parquet` as `datasets` does: an image is a struct of bytes and path, a label has names."""
    for number, part in enumerate(parts):
        sink = io.BytesIO()
        parquet.write_table(hub_table(part, names), sink, row_group_size=100)
        target.write_bytes(f"data/train-{number:05d}-of-{shards:05d}.parquet", sink.getvalue())


def hub_table(rows: pa.Table, names: Names) -> pa.Table:
    """Convert rows of SYNTHETIC, with or without soft labels, to a table that `datasets` reads."""
    info = {"info": {"features": _parquet_features(names.classes, SOFT_LABEL in rows.column_names)}}
    metadata = {b"huggingface": json.dumps(info, ensure_ascii=False).encode()}
    paths = pa.array([f"{names.files[image_id]}.png" for image_id in rows["image_id"].to_pylist()], pa.string())
    image = pa.StructArray.from_arrays([rows["image"].combine_chunks(), paths], ["bytes", "path"])
    columns = {"image": image, "label": rows["label"].cast(pa.int64())}
    columns |= {name: rows[name] for name in (*_COLUMNS, SOFT_LABEL) if name in rows.column_names}
    return pa.table(columns).replace_schema_metadata(metadata)


def _webdataset(parts: Iterable[pa.Table], target: Artifact, names: Names, _: int) -> None:
    """Write `train-*.tar` with key.png, key.cls (the label) and key.json; and classes.txt, a name a line, by label."""
    for number, part in enumerate(parts):
        sink = io.BytesIO()
        with tarfile.open(fileobj=sink, mode="w") as tar:
            for row in part.to_pylist():
                key = names.files[row["image_id"]]  # without a dot, at which a key ends
                _add(tar, f"{key}{_suffix(row['image'])}", row["image"])
                _add(tar, f"{key}.cls", str(row["label"]).encode())
                _add(tar, f"{key}.json", json.dumps(_metadata(row), ensure_ascii=False).encode())
        target.write_bytes(f"train-{number:06d}.tar", sink.getvalue())
    target.write_bytes("classes.txt", "".join(f"{' '.join(name.split())}\n" for name in names.classes).encode())


WRITERS: Final[Mapping[str, Callable[[Iterable[pa.Table], Artifact, Names, int], None]]] = {
    "imagefolder": _imagefolder,
    "parquet": _parquet,
    "webdataset": _webdataset,
}


def card_features(class_names: Sequence[str], soft_labels: bool) -> list[dict[str, Any]]:
    """List the columns for a dataset card, in a notation that `datasets` before version 4 also reads."""
    names = {str(label): name for label, name in enumerate(class_names)}
    listed: list[dict[str, Any]] = [
        {"name": "image", "dtype": "image"},
        {"name": "label", "dtype": {"class_label": {"names": names}}},
    ]
    listed += [{"name": name, "dtype": _TYPES[SYNTHETIC.field(name).type]} for name in _COLUMNS]
    soft_label = {"name": SOFT_LABEL, "sequence": "float32", "length": len(class_names)}
    return [*listed, soft_label] if soft_labels else listed


def _suffix(image: bytes) -> str:
    """Return the file name extension of an image; real images of artifacts may be JPEG."""
    return ".png" if image[:4] == b"\x89PNG" else ".jpg" if image[:2] == b"\xff\xd8" else ".img"


def _parquet_features(class_names: Sequence[str], soft_labels: bool) -> dict[str, Any]:
    """Return the columns in the notation of the parquet files' metadata."""
    features: dict[str, Any] = {
        "image": {"_type": "Image"},
        "label": {"names": list(class_names), "_type": "ClassLabel"},
    }
    features |= {name: {"dtype": _TYPES[SYNTHETIC.field(name).type], "_type": "Value"} for name in _COLUMNS}
    share = {"dtype": "float32", "_type": "Value"}
    soft_label = {"feature": share, "length": len(class_names), "_type": "Sequence"}
    return features | {SOFT_LABEL: soft_label} if soft_labels else features


def _metadata(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns of a row beside its image; nine digits are enough to restore a float32 exactly."""
    soft = {SOFT_LABEL: [float(f"{share:.9g}") for share in row[SOFT_LABEL]]} if SOFT_LABEL in row else {}
    return {"label": row["label"]} | {name: row[name] for name in _COLUMNS} | soft


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def write_captions(pairs: Artifact, images: Artifact, target: Artifact) -> int:
    """Write every caption as captions.parquet and as captions.jsonl, which `caption.source` reads.

    Args:
        images: IMAGES, which say where in the image set each row came from.

    Returns the number of captions.
    """
    columns, count = ("image_id", "label", "class_name", "caption"), 0
    schema = pa.schema([*(PAIRS.field(name) for name in columns), IMAGES.field("source")])
    known = images.table("images", IMAGES, ["image_id", "source"])
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder)
        with (
            parquet.ParquetWriter(local / "captions.parquet", schema) as table,
            (local / "captions.jsonl").open("w", encoding="utf-8") as lines,
        ):
            for part in read_sorted(pairs, "pairs", columns, ("image_id",), 100 * SHARD):
                found = known["source"].take(pc.index_in(part["image_id"], known["image_id"]))
                part = part.append_column("source", pc.fill_null(found, ""))
                table.write_table(conform(part, schema))
                lines.writelines(_caption_lines(part))
                count += len(part)
        target.put_folder(local, "")
    return count


def _caption_lines(part: pa.Table) -> Iterator[str]:
    for row in part.to_pylist():
        line = {"file_name": row["image_id"], "text": row["caption"]}
        line |= {name: row[name] for name in ("label", "class_name", "source")}
        yield f"{json.dumps(line, ensure_ascii=False)}\n"
