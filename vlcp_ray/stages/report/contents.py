"""The records that the page is rendered from: tables, images and counts of a job; of large sets, the shown part."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from vlcp_ray.stages import STAGES


@dataclass(frozen=True)
class StageRow:
    """One complete artifact.

    Args:
        name: the title of its step.
        seconds: wall-clock time, as `Context.complete` has it; None where nothing was computed.
        detail: further counts of its manifest, in words.
        devices: of its workers, in words.
        done: number of `unit`s that it worked through, for the rate.
        peak_memory: MiB of its largest worker or of the driver; None where it was not measured.
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
        """Whether each input row is either written or rejected."""
        return STAGES[self.stage].row_wise

    @property
    def missing(self) -> int:
        """Rows of a row-wise stage that were neither written nor rejected; negative where there are too many."""
        return self.rows_in - self.rows - self.rejected if self.row_wise else 0


@dataclass(frozen=True)
class DistilledSet:
    """One distilled set of the method vlcp; the tables may have only the shown part if the totals are given.

    Args:
        prototypes: PROTOTYPES; the column latent may be missing, it is not shown.
        synthetic: SYNTHETIC.
        centroids: SYNTHETIC of the centroids decoded without denoising.
        nearest: prototype_id, image_id, image (bytes), distance: the real images nearest to each centroid.
        outliers: label, image_id, image (bytes), distance to the nearest centroid: the farthest outliers of a class.
        outlier_counts: outliers by label.
        classes: number of classes of the whole set.
        images: number of images of the whole set.
        n_bytes: bytes of all its image files.
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
    """An image that the model generated from a class name at the end of an epoch of its fine-tuning."""

    seed: int
    epoch: int
    class_name: str
    image: bytes


@dataclass(frozen=True)
class Neighbour:
    """A synthetic image and the real one of its class that is nearest to it.

    Args:
        real_image_id: of the real image.
        distance: between the two (see NEIGHBOURS).
        relative: the same in units of the distance of the class's real images to each other; None without such a one.
        synthetic, real: their image files.
    """

    class_name: str
    real_image_id: str
    distance: float
    relative: float | None
    synthetic: bytes
    real: bytes


@dataclass(frozen=True)
class TsnePlot:
    """The t-SNE of the latents of one class.

    Args:
        points: (n, 2), a position for each plotted image.
        clusters: (n,), the cluster of each; -1 for an outlier.
        centres: (k, 2), positions of the centroids of the inliers.
        centres_before: (k, 2), positions of the centroids of k-means on all images; None where there are no outliers.
        total: number of images of the class, of which n are plotted.
    """

    class_name: str
    points: npt.NDArray[np.float32]
    clusters: npt.NDArray[np.int32]
    centres: npt.NDArray[np.float32]
    centres_before: npt.NDArray[np.float32] | None
    total: int


@dataclass(frozen=True)
class Report:
    """Everything that the page shows; an empty part leaves its section out.

    Args:
        title: name of the job.
        settings: of the job, as JSON values by section.
        facts: machine and versions.
        stages: a row for each artifact.
        scores: SCORES.
        sets: the distilled sets of the method vlcp.
        rejected: REJECTED.
        rejected_images: image file by image_id, of rejected rows that are images.
        epoch_metrics: by seed, a record for each epoch of fine-tuning: step, epoch, images, loss and other metrics.
        samples: images generated during fine-tuning.
        source: where the images are from, `ingest.source`.
        sample: which images of the set were read, "" for all.
        class_lists: the selected classes or class lists, `ingest.classes`.
        splits: number of images by split, without the rejected ones.
        skipped: number of files of the image set that were not read, by suffix.
        too_long: how many captions are longer than what the text encoder reads at once, in words; "" for none.
        answers: the tokens of the captioner's answers, in words; "" for none.
        caption_problems: how many captions have a problem, in words, and examples of image_id and caption.
        train_bytes: bytes of the image files of the train split.
        class_names: by label.
        dropped_words: by label, words with the share of the class's captions that contain them.
        tsne_plots: of the first seed's set with the most images per class.
        other_classes: label, class_name, image (a small one), of the classes that are not shown in full.
        coverage: the measures of each distilled set, rows of `coverage.summarise` with their device-seconds.
        neighbours: of the same set as the plots, the synthetic images nearest to a real one, the nearest first.
        command: the command that reproduces the job.
        estimates: seconds by stage, estimated before the run.
        model_note: what a reader must know of the models, "" for nothing.
    """

    title: str
    settings: Mapping[str, Any]
    facts: Mapping[str, str]
    stages: Sequence[StageRow]
    scores: pa.Table
    sets: Sequence[DistilledSet]
    rejected: pa.Table
    rejected_images: Mapping[str, bytes] = field(default_factory=dict)
    epoch_metrics: Mapping[int, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    samples: Sequence[Sample] = ()
    source: str = ""
    sample: str = ""
    class_lists: Sequence[str] = ()
    splits: Mapping[str, int] = field(default_factory=dict)
    skipped: Mapping[str, int] = field(default_factory=dict)
    too_long: str = ""
    answers: str = ""
    caption_problems: Sequence[tuple[str, Sequence[Mapping[str, str]]]] = ()
    train_bytes: int | None = None
    class_names: Sequence[str] = ()
    dropped_words: Mapping[int, Sequence[tuple[str, float]]] = field(default_factory=dict)
    tsne_plots: Sequence[TsnePlot] = ()
    other_classes: pa.Table | None = None
    coverage: Sequence[Mapping[str, Any]] = ()
    neighbours: Sequence[Neighbour] = ()
    command: str = ""
    estimates: Mapping[str, float] = field(default_factory=dict)
    model_note: str = ""
