"""Coverage and diversity of distilled sets, and the nearest real image of each synthetic one: one class at a time.

Images are compared by their pixels at `SIDE` x `SIDE`: this needs no model, so that it is the same for all jobs and
methods, and a copy has the distance 0.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from vlcp_ray import images
from vlcp_ray.schemas import conform, with_column
from vlcp_ray.stages.report import COMPARED_AT, COVERAGE, NEIGHBOURS

#: Side in pixels of the compared images, both sides forced, as those of the latents of prototypes are.
SIDE: Final = COMPARED_AT["side"]
#: A real image is covered by a synthetic one among so many nearest images (Naeem et al., Reliable Fidelity and
#: Diversity Metrics for Generative Models, ICML 2020, which takes 5).
NEAREST: Final = COMPARED_AT["nearest"]
_VALUES: Final = SIDE * SIDE * 3
_BLOCK: Final = 1024  # rows whose distances to all others are in memory at a time
#: The columns of `ShrinkImages`.
SHRUNK: Final = pa.schema(
    [
        pa.field("set", pa.string()),
        pa.field("image_id", pa.string()),
        pa.field("label", pa.int32()),
        pa.field("pixels", pa.binary(_VALUES)),
    ]
)

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ShrinkImages:
    """Row-wise: replace image files by their pixels at `SIDE` x `SIDE`.

    Args:
        name: of the set that the rows are of, "" for real images; it becomes the column `set`.
    """

    name: str

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return SHRUNK, a row for each row of image_id, label and image.

        Raises:
            ImageError: an image cannot be decoded.
        """
        small = [images.square(images.decode(data.as_py()), SIDE).tobytes() for data in table["image"]]
        columns = [[self.name] * len(table), table["image_id"], table["label"], small]
        arrays = [
            pa.chunked_array([c], f.type) if isinstance(c, list) else c for c, f in zip(columns, SHRUNK, strict=True)
        ]
        return pa.Table.from_arrays(arrays, schema=SHRUNK)


@dataclass(frozen=True)
class Neighbourhoods:
    """The real images of a class and how near they are to each other, in squared distances.

    Args:
        pixels: (n, d), whole numbers.
        radii: (n,), to the `NEAREST`-th nearest other image, or to the farthest of fewer; 0 for a single image.
        spread: mean distance (not squared) to the nearest other image; NaN for a single image.
    """

    pixels: Floats
    radii: Floats
    spread: float


@dataclass(frozen=True)
class Comparison:
    """One class of a distilled set beside the real images of the class.

    Args:
        covered: (n,), whether a synthetic image is among the `NEAREST` nearest images of each real one.
        nearest_real: (m,), the row of the real image that is nearest to each synthetic one, the first of equal ones.
        to_real: (m,), the distance to it.
        to_synthetic: (m,), the distance to the nearest other synthetic image of the class; NaN for a single one.
    """

    covered: npt.NDArray[np.bool_]
    nearest_real: Integers
    to_real: Floats
    to_synthetic: Floats


def find_neighbourhoods(pixels: Floats) -> Neighbourhoods:
    """Find the nearest other images of each real image of a class.

    Args:
        pixels: (n, d), n > 0.
    """
    count = len(pixels)
    if count == 1:
        return Neighbourhoods(pixels, np.zeros(1), math.nan)
    kept = min(NEAREST, count - 1)
    nearest = np.empty((count, kept))
    for start in range(0, count, _BLOCK):
        distances = squared_distances(pixels[start : start + _BLOCK], pixels)
        rows = np.arange(len(distances))
        distances[rows, start + rows] = np.inf  # an image is not its own neighbour
        nearest[start : start + _BLOCK] = np.sort(np.partition(distances, kept - 1, axis=1)[:, :kept], axis=1)
    return Neighbourhoods(pixels, nearest[:, -1], _mean(np.sqrt(nearest[:, 0])))


def compare(real: Neighbourhoods, pixels: Floats) -> Comparison:
    """Compare the synthetic images of a class with the real ones.

    Args:
        pixels: (m, d), m > 0, of the synthetic images.
    """
    count = len(pixels)
    nearest_synthetic = np.full(len(real.pixels), np.inf)
    nearest_real, to_real, to_other = np.empty(count, np.int64), np.empty(count), np.full(count, np.nan)
    for start in range(0, count, _BLOCK):
        block = slice(start, start + _BLOCK)
        distances = squared_distances(pixels[block], real.pixels)
        nearest_synthetic = np.minimum(nearest_synthetic, distances.min(axis=0))
        nearest_real[block] = distances.argmin(axis=1)
        to_real[block] = distances.min(axis=1)
        if count > 1:
            others = squared_distances(pixels[block], pixels)
            rows = np.arange(len(others))
            others[rows, start + rows] = np.inf
            to_other[block] = others.min(axis=1)
    return Comparison(nearest_synthetic <= real.radii, nearest_real, np.sqrt(to_real), np.sqrt(to_other))


def squared_distances(rows: Floats, others: Floats) -> Floats:
    """Compute the squared distances of (a, d) to (b, d) rows of whole numbers: (a, b).

    Sums of whole numbers up to 255 are exact in double precision, and so is the product of matrices: equal images have
    the distance 0, and the result depends neither on the order of rows nor on threads.
    """
    result: Floats = np.square(rows).sum(1)[:, None] - 2 * rows @ others.T + np.square(others).sum(1)
    return result


def compare_class(rows: pa.Table, sets: Mapping[str, Mapping[str, Any]]) -> tuple[pa.Table, pa.Table]:
    """Compare one class of every set with its real images.

    Args:
        rows: SHRUNK of the class: real images and those of all sets, in any order.
        sets: method, ipc and seed of each set, by its name.

    Returns COVERAGE, a row for each set, and NEIGHBOURS, a row for each synthetic image.
    """
    rows = rows.sort_by([("set", "ascending"), ("image_id", "ascending")])
    real_rows = rows.filter(pc.equal(rows["set"], ""))
    coverage, neighbours = [], []
    real = find_neighbourhoods(_pixels(real_rows)) if len(real_rows) else None
    for name, key in sets.items():
        own = rows.filter(pc.equal(rows["set"], name))
        if real is None or not len(own):
            continue
        found = compare(real, _pixels(own))
        constant = {"method": key["method"], "ipc": key["ipc"], "seed": key["seed"], "label": own["label"][0].as_py()}
        coverage.append(
            constant
            | {"real": len(real_rows), "synthetic": len(own), "covered": int(found.covered.sum())}
            | {"spread": _unit(real.spread), "to_real": _unit(_mean(found.to_real))}
            | {"to_synthetic": _unit(_mean(found.to_synthetic))}
            | {"redundant": int((found.to_synthetic < found.to_real).sum())}
        )
        table = own.select(["image_id", "label"])
        columns = {
            name: pa.repeat(pa.scalar(value, NEIGHBOURS.field(name).type), len(own)) for name, value in constant.items()
        }
        columns |= {"real_image_id": real_rows["image_id"].take(pa.array(found.nearest_real))}
        columns |= {
            "distance": pa.array(_unit(found.to_real)),
            "spread": pa.array(np.full(len(own), _unit(real.spread))),
        }
        for column, values in columns.items():
            table = with_column(table, column, values)
        neighbours.append(conform(table, NEIGHBOURS))
    return (
        conform(pa.Table.from_pylist(coverage, schema=COVERAGE), COVERAGE),
        pa.concat_tables([NEIGHBOURS.empty_table(), *neighbours]),
    )


def summarise(coverage: pa.Table) -> list[dict[str, Any]]:
    """Compute the measures of each set from those of its classes.

    Args:
        coverage: COVERAGE.

    Returns for each set, sorted by ipc, method and seed: these three, `coverage` and `redundancy`, fractions of 1, and
    `to_real` and `diversity`, means over classes of `to_real` and `to_synthetic` in units of the class's `spread`; None
    where no class has one, as for the diversity of sets with one image per class.
    """
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in coverage.sort_by("label").to_pylist():
        groups.setdefault((row["ipc"], row["method"], row["seed"]), []).append(row)
    return [
        {
            "method": method,
            "ipc": ipc,
            "seed": seed,
            "coverage": sum(row["covered"] for row in rows) / sum(row["real"] for row in rows),
            "to_real": _relative(rows, "to_real"),
            "diversity": _relative(rows, "to_synthetic"),
            "redundancy": sum(row["redundant"] for row in rows) / sum(row["synthetic"] for row in rows),
        }
        for (ipc, method, seed), rows in sorted(groups.items())
    ]


def _relative(rows: list[dict[str, Any]], name: str) -> float | None:
    ratios = [row[name] / row["spread"] for row in rows if row["spread"] > 0 and not math.isnan(row[name])]
    return math.fsum(ratios) / len(ratios) if ratios else None


def _pixels(rows: pa.Table) -> Floats:
    """(n, d), from the column `pixels`."""
    data = b"".join(rows["pixels"].to_pylist())
    return np.frombuffer(data, np.uint8).reshape(len(rows), -1).astype(np.float64)


def _mean(values: Floats) -> float:
    """The mean of an exact sum, which does not depend on the order."""
    return math.fsum(values) / len(values)


def _unit(distance: Any) -> Any:
    """Convert a Euclidean distance of levels to the root mean square difference of pixels: 1 is black against white."""
    return distance / (255 * math.sqrt(_VALUES))
