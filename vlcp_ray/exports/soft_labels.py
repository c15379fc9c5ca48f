"""Soft labels of the job's teacher for the images of a set, for trainers that cannot run the teacher."""

from collections.abc import Callable

import pyarrow as pa
import torch
from safetensors.torch import load

from vlcp_ray.models.teacher import load_teacher, soft_labels
from vlcp_ray.protocols.labelled_images import prepare
from vlcp_ray.protocols.metrics import BATCH
from vlcp_ray.settings import ConfigError
from vlcp_ray.stages.teach import WEIGHTS, Teach
from vlcp_ray.store.artifact import Artifact


def load_labeller(teacher: Artifact, settings: Teach) -> Callable[[pa.Table], pa.Array]:
    """Load a teacher as a function from rows of SYNTHETIC to their class probabilities, in the order of the labels.

    Images are read as by the protocol, before augmentation: the short side scaled to `settings.input_size`, then
    centre-cropped, normalised. A row's probabilities depend on its image and the weights only.

    Raises:
        ConfigError: the artifact has no weights.
    """
    weights = teacher.read_bytes(WEIGHTS)
    if weights is None:
        raise ConfigError(f"{teacher.path}/{WEIGHTS} is missing; delete that folder and re-run the job")
    network = load_teacher(settings, load(weights))
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def label(rows: pa.Table) -> pa.Array:
        starts = range(0, len(rows), BATCH)  # decoded a batch at a time: a shard of pixels is larger than its files
        parts = [
            pa.FixedSizeListArray.from_arrays(pa.array(labels.ravel(), pa.float32()), labels.shape[1])
            for start in starts
            for labels in [soft_labels(network, prepare(rows.slice(start, BATCH), settings.input_size).pixels, device)]
        ]
        return pa.concat_arrays(parts)

    return label
