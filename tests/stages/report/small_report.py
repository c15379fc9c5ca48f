"""A report of small real tables, with HTML in every text that comes from outside."""

import dataclasses

import numpy as np
import pyarrow as pa

from tests.stages.report.test_scores import SCORED
from vlcp_ray.images import encode_png
from vlcp_ray.schemas import REJECTED, SYNTHETIC, tensor_array
from vlcp_ray.stages.evaluate import SCORES
from vlcp_ray.stages.prototype import prototypes_schema
from vlcp_ray.stages.report.contents import DistilledSet, Neighbour, Report, Sample, StageRow, TsnePlot

SCRIPT = "<script>alert('1')</script>"


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
    clusters = [(c, k) for c in range(classes) for k in range(ipc)]
    columns = {
        "prototype_id": [f"{c}-{k}" for c, k in clusters],
        "label": [c for c, _ in clusters],
        "class_name": [f"class <{c}>" for c, _ in clusters],
        "cluster": [k for _, k in clusters],
        "size": [10 + k for _, k in clusters],
        "latent": tensor_array(np.zeros((len(clusters), 4, 1, 1), np.float32)),
        "text": [text] * len(clusters),
        "text_image_id": ["x"] * len(clusters),
        "words": [["round", "thin"]] * len(clusters),
    }
    schema = prototypes_schema((4, 1, 1))
    arrays = [v if isinstance(v, pa.Array) else pa.array(v, schema.field(k).type) for k, v in columns.items()]
    return pa.Table.from_arrays(arrays, schema=schema)


def nearest(table: pa.Table, count: int = 1) -> pa.Table:
    rows = pa.concat_tables([table.select(["prototype_id", "image_id", "image"])] * count)
    return rows.append_column("distance", pa.array(np.arange(len(rows)), pa.float32()))


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


def tsne_plot(*, outliers: bool) -> TsnePlot:
    points = np.random.default_rng(0).normal(size=(30, 2)).astype(np.float32)
    clusters = np.arange(30, dtype=np.int32) % 3 - outliers
    return TsnePlot("class <0>", points, clusters, points[:2], points[2:4] if outliers else None, 30)


def full_report() -> Report:
    first = dataclasses.replace(
        distilled(), outliers=outliers(9), outlier_counts={0: 12}, n_bytes=1024, images=4, classes=2
    )
    metrics = [
        {"step": 1, "loss": 0.5, "learning_rate": 1e-4},
        {"step": 2, "loss": 0.25, "learning_rate": 1e-4},
    ]
    return Report(
        title="digits",
        settings={"name": "digits", "ipc": [2], "ingest": {"source": "digits", "classes": []}}
        | {"caption": {"prompt": SCRIPT, "temperature": 0.2, "engine": None}},
        facts={"python": "3.11", "machine": "2 cores"},
        stages=(
            StageRow(
                *("ingest", "ingest", "abcdef0123456789", 12, 10, 2, 3.0, "digits"),
                devices="2 x 1 CPU",
                done=12,
                unit="images",
                peak_memory=300.0,
            ),
        ),
        scores=SCORED,
        sets=(first, distilled(seed=1)),
        rejected=rejected(("a", "undecodable"), ("b", "undecodable")),
        rejected_images={"a": png(1)},
        epoch_metrics={0: metrics, 1: [{"step": 1, "loss": 0.6}, {"step": 2, "loss": 0.3}]},
        samples=[Sample(seed, epoch, f"class <{c}>", png(c)) for seed in (0, 1) for epoch in (2, 4) for c in (0, 1)],
        source="digits",
        splits={"train": 1297, "val": 500},
        train_bytes=1_048_576,
        class_names=("class <0>", "class <1>"),
        dropped_words={0: [("digit", 1.0), ("grey", 0.75)]},
        tsne_plots=(tsne_plot(outliers=True),),
        other_classes=pa.table({"label": [7], "class_name": ["the other"], "image": [png(3)]}),
        coverage=[
            {"method": method, "ipc": 2, "seed": seed, "coverage": 0.25 * (seed + 1), "redundancy": 0.5}
            | {"diversity": 1.5, "to_real": to_real, "gpu_seconds": 1234.0 + seed, "cpu_seconds": 0.5}
            for method, to_real in (("vlcp", 0.75), ("random", 0.0))
            for seed in (0, 1)
        ],
        neighbours=[
            Neighbour("class <0>", "real <7>", 0.01, 0.125, png(5), png(6)),
            Neighbour("class <1>", "real <8>", 0.25, None, png(7), png(8)),
        ],
        command=f"vlcp-ray run jobs/digits.toml --set 'caption.prompt={SCRIPT}'",
        estimates={"ingest": 2.0},
    )
