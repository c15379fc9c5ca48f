"""A report of a few small real tables, full of what a page must not let in."""

import dataclasses

import numpy as np
import pyarrow as pa

from tests.test_scores import SCORED
from vlcp_ray.images import encode_png
from vlcp_ray.page.contents import DistilledSet, Plane, Report, Sample, StageRow
from vlcp_ray.schemas import REJECTED, SCORES, SYNTHETIC, prototypes_schema, tensor_array

EVIL = "<script>alert('1')</script>"


def png(value: int, size: int = 32) -> bytes:
    return encode_png(np.full((size, size, 3), value, np.uint8))


def synthetic(classes: int, ipc: int, image: bytes | None = None) -> pa.Table:
    rows = [
        {"image_id": f"{c:04}-{k:03}", "label": c, "class_name": f"class <{c}>", "split": "train", "text": "a b"}
        | {"image": png((7 * c + k) % 256) if image is None else image, "prototype_id": f"{c}-{k}", "seed": 1}
        for c in range(classes)
        for k in range(ipc)
    ]
    return pa.Table.from_pylist(rows, schema=SYNTHETIC)


def prototypes(classes: int, ipc: int, text: str = "A round digit, wide and round.") -> pa.Table:
    places = [(c, k) for c in range(classes) for k in range(ipc)]
    columns = {
        "prototype_id": [f"{c}-{k}" for c, k in places],
        "label": [c for c, _ in places],
        "class_name": [f"class <{c}>" for c, _ in places],
        "cluster": [k for _, k in places],
        "size": [10 + k for _, k in places],
        "latent": tensor_array(np.zeros((len(places), 4, 1, 1), np.float32)),
        "text": [text] * len(places),
        "text_image_id": ["x"] * len(places),
        "words": [["round", "thin"]] * len(places),
    }
    schema = prototypes_schema((4, 1, 1))
    arrays = [v if isinstance(v, pa.Array) else pa.array(v, schema.field(k).type) for k, v in columns.items()]
    return pa.Table.from_arrays(arrays, schema=schema)


def nearest(table: pa.Table, count: int = 1) -> pa.Table:
    chosen = pa.concat_tables([table.select(["prototype_id", "image_id", "image"])] * count)
    return chosen.append_column("distance", pa.array(np.arange(len(chosen)), pa.float32()))


def distilled(
    classes: int = 2, ipc: int = 2, seed: int = 0, text: str = "A round digit, wide and round."
) -> DistilledSet:
    images = synthetic(classes, ipc)
    return DistilledSet(seed, ipc, prototypes(classes, ipc, text), images, images, nearest(images, 3))


def outliers(count: int) -> pa.Table:
    rows = [{"label": 0, "image_id": f"o{i}", "image": png(i), "distance": float(i)} for i in range(count)]
    return pa.Table.from_pylist(rows)


def rejected(*rows: tuple[str, str]) -> pa.Table:
    keys = ("image_id", "reason")
    full = [
        dict(zip(keys, row, strict=True)) | {"stage": "ingest", "detail": "no PNG", "source": "a.zip"} for row in rows
    ]
    return pa.Table.from_pylist(full, schema=REJECTED)


EMPTY = Report("digits", {}, {}, (), SCORES.empty_table(), (), REJECTED.empty_table())


def plane(*, outliers: bool) -> Plane:
    points = np.random.default_rng(0).normal(size=(30, 2)).astype(np.float32)
    clusters = np.arange(30, dtype=np.int32) % 3 - outliers
    return Plane("class <0>", points, clusters, points[:2], points[2:4] if outliers else None, 30)


def full_report() -> Report:
    first = dataclasses.replace(
        distilled(), outliers=outliers(9), outlier_counts={0: 12}, n_bytes=1024, images=4, classes=2
    )
    return Report(
        "digits",
        {"name": "digits", "ipc": [2], "ingest": {"source": "digits", "classes": []}}
        | {"caption": {"prompt": EVIL, "temperature": 0.2, "engine": None}},
        {"python": "3.11", "machine": "2 cores"},
        (StageRow("ingest", "ingest", "abcdef0123456789", 12, 10, 2, 3.0, "digits", "2 x 1 CPU", 12, "images", 300.0),),
        SCORED,
        (first, distilled(seed=1)),
        rejected(("a", "undecodable"), ("b", "undecodable")),
        {"a": png(1)},
        {0: [{"step": 1, "loss": 0.5, "learning_rate": 1e-4}, {"step": 2, "loss": 0.25, "learning_rate": 1e-4}]}
        | {1: [{"step": 1, "loss": 0.6}, {"step": 2, "loss": 0.3}]},
        tuple(Sample(seed, epoch, f"class <{c}>", png(c)) for seed in (0, 1) for epoch in (2, 4) for c in (0, 1)),
        {"train": 1297, "val": 500},
        1_048_576,
        ("class <0>", "class <1>"),
        {0: [("digit", 1.0), ("grey", 0.75)]},
        (plane(outliers=True),),
        pa.table({"label": [7], "class_name": ["the other"], "image": [png(3)]}),
        f"vlcp-ray run jobs/digits.toml --set 'caption.prompt={EVIL}'",
        {"ingest": 2.0},
    )
