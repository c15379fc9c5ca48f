"""Knows what the teacher of a job says of the images of a set as they are, for trainers that cannot ask it."""

from collections.abc import Callable

import pyarrow as pa
import torch
from safetensors.torch import load

from vlcp_ray.config import Teach
from vlcp_ray.protocols.images import BATCH, prepare
from vlcp_ray.protocols.teacher import load_teacher, soft_labels
from vlcp_ray.schemas import TEACHER
from vlcp_ray.settings import ConfigError
from vlcp_ray.store import Artifact


def labeller(teacher: Artifact, settings: Teach) -> Callable[[pa.Table], pa.Array]:
    """A function of rows of SYNTHETIC that gives the class probabilities of each, in the order of the labels.

    An image is looked at as the protocol reads it for training, before any view is drawn: its short side scaled to
    `settings.input_size`, the middle cut out, normalised. A row depends on its image and the weights alone.

    Raises:
        ConfigError: the weights are gone.
    """
    weights = teacher.read_bytes(TEACHER)
    if weights is None:
        raise ConfigError(f"{teacher.path}/{TEACHER} is gone; delete that folder and run the job again")
    network = load_teacher(settings, load(weights))
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def label(rows: pa.Table) -> pa.Array:
        starts = range(0, len(rows), BATCH)  # decoded a batch at a time: a shard of pixels is larger than its files
        told = [
            pa.FixedSizeListArray.from_arrays(pa.array(said.ravel(), pa.float32()), said.shape[1])
            for start in starts
            for said in [soft_labels(network, prepare(rows.slice(start, BATCH), settings.input_size).pixels, device)]
        ]
        return pa.concat_arrays(told)

    return label
