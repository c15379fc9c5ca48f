"""Knows what the page is given: the run's tables, pictures and counts, of large sets the part that is shown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

#: Stages that answer every row with a row: there, and only there, rows in = rows out + rows rejected.
ROW_WISE: Final = frozenset({"ingest", "pair", "generate"})


@dataclass(frozen=True)
class StageRow:
    """One sealed artifact.

    Args:
        seconds: None where nothing was computed.
        devices: of its workers, in words.
        done: how many `unit`s it worked through, for the rate.
        peak_memory: MiB of its largest worker or of the driver, None where it was not measured.
    """

    name: str
    stage: str
    fingerprint: str
    rows_in: int
    rows: int
    rejected: int
    seconds: float | None
    detail: str
    devices: str = ""
    done: int = 0
    unit: str = "rows"
    peak_memory: float | None = None

    @property
    def row_wise(self) -> bool:
        """Whether the stage answers every row with a row."""
        return self.stage in ROW_WISE

    @property
    def missing(self) -> int:
        """Rows of a row-wise stage that are neither in its output nor rejected; below 0 where there are too many."""
        return self.rows_in - self.rows - self.rejected if self.row_wise else 0


@dataclass(frozen=True)
class DistilledSet:
    """One distilled set; the tables may hold only what is shown of it, if the totals are given.

    Args:
        prototypes: PROTOTYPES; the latents may be left out, they are not shown.
        synthetic: SYNTHETIC of the method vlcp.
        centroids: SYNTHETIC columns, the centroids decoded without denoising.
        nearest: prototype_id, image_id, image (bytes), distance: the real images nearest to each centroid.
        outliers: label, image_id, image (bytes), distance to the nearest centroid: the farthest outliers of a class.
        outlier_counts: outliers by label.
        classes: number of classes of the whole set.
        images: number of images of the whole set.
        n_bytes: of all its image files.
    """

    seed: int
    ipc: int
    prototypes: pa.Table
    synthetic: pa.Table
    centroids: pa.Table | None
    nearest: pa.Table
    outliers: pa.Table | None = None
    outlier_counts: Mapping[int, int] = field(default_factory=dict)
    classes: int | None = None
    images: int | None = None
    n_bytes: int | None = None

    @property
    def n_classes(self) -> int:
        """Classes of the whole set."""
        return self.classes or max(len(pc.unique(t["label"])) for t in (self.synthetic, self.prototypes))

    @property
    def n_images(self) -> int:
        """Images of the whole set."""
        return self.images or len(self.synthetic)


@dataclass(frozen=True)
class Sample:
    """An image that the model drew of a class name while it was tuned."""

    seed: int
    epoch: int
    class_name: str
    image: bytes


@dataclass(frozen=True)
class Plane:
    """The latents of one class on a plane, from `stages.embed`.

    Args:
        points: (n, 2); clusters: (n,), -1 for an outlier.
        centres: (k, 2), the centroids of the inliers.
        centres_before: (k, 2), those that clusters of all images have; None where there are no outliers.
        total: images of the class, where not all are shown.
    """

    class_name: str
    points: npt.NDArray[np.float32]
    clusters: npt.NDArray[np.int32]
    centres: npt.NDArray[np.float32]
    centres_before: npt.NDArray[np.float32] | None
    total: int


@dataclass(frozen=True)
class Report:
    """Everything that the page tells; an empty part leaves its section out.

    Args:
        scores: SCORES.
        rejected: REJECTED.
        rejected_images: image_id, image (bytes) of rejected rows that are images.
        progress: by seed, the records of fine-tuning by epoch: step, epoch, images, loss and what else is known.
        splits: images of the set by split, without the rejected ones.
        train_bytes: of the image files of train.
        class_names: by label.
        dropped_words: by label, words with the share of the class's descriptions that hold them.
        planes: of the first set with the most images per class.
        others: label, class_name, image (a small one): of the classes that are not shown in full.
        command: what makes all of it again.
        estimates: seconds by stage, from before the run.
    """

    title: str
    settings: Mapping[str, Any]
    facts: Mapping[str, str]
    stages: Sequence[StageRow]
    scores: pa.Table
    sets: Sequence[DistilledSet]
    rejected: pa.Table
    rejected_images: Mapping[str, bytes] = field(default_factory=dict)
    progress: Mapping[int, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    validation: Sequence[Sample] = ()
    splits: Mapping[str, int] = field(default_factory=dict)
    train_bytes: int | None = None
    class_names: Sequence[str] = ()
    dropped_words: Mapping[int, Sequence[tuple[str, float]]] = field(default_factory=dict)
    planes: Sequence[Plane] = ()
    others: pa.Table | None = None
    command: str = ""
    estimates: Mapping[str, float] = field(default_factory=dict)
