"""Read the weights of a published classifier from a `.pth` file, with its outputs in the order of the job's classes."""

import io
import pickle
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Final
from urllib.parse import urlsplit

import torch
from torch import Tensor

from vlcp_ray.models.networks import NETWORKS
from vlcp_ray.models.teacher import head_names

_NESTED: Final = ("model", "state_dict")
_CLASS_LISTS: Final = ("class_names", "classes")
_PREFIX: Final = "module."
_DENSE_LAYER: Final = re.compile(r"(denselayer\d+\.(?:norm|conv))\.(?=[12]\.)")

State = dict[str, Tensor]


def load_published(network: str, class_names: Sequence[str], outputs: Sequence[str]) -> State:
    """Load the weights that torchvision publishes for a network, and order its outputs by class.

    They are downloaded once on each machine, into torch's cache, and compared with the hash in their name.

    Raises:
        ValueError: they cannot be downloaded or read, or the classes are not among those of ImageNet-1K.
    """
    from torchvision.models import get_weight

    name = NETWORKS[network].published
    try:
        content = get_weight(name).get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"teach.checkpoint: torchvision's weights {name} cannot be loaded ({reason}); put the file where the "
            "workers reach it, and name it"
        ) from error
    # DenseNet's file has `norm.1` where the network has `norm1`.
    renamed = {_DENSE_LAYER.sub(r"\1", key): value for key, value in content.items()}
    return order_outputs(renamed, class_names, outputs, by_name=True)


def cached_file(network: str, folder: str = "") -> Path:
    """Return where torch keeps the weights that torchvision publishes for a network.

    Args:
        folder: TORCH_HOME; by default that of the environment.
    """
    from torchvision.models import get_weight

    home = Path(folder) / "hub" if folder else Path(torch.hub.get_dir())
    return home / "checkpoints" / PurePosixPath(urlsplit(get_weight(NETWORKS[network].published).url).path).name


def fetch(network: str, folder: str = "") -> Path:
    """Download the weights that torchvision publishes for a network, unless they are there, and compare their hash.

    Raises:
        OSError, RuntimeError: they cannot be downloaded, or are damaged.
    """
    from torchvision.models import get_weight

    file = cached_file(network, folder)
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        url = get_weight(NETWORKS[network].published).url  # the hash is in its name
        torch.hub.download_url_to_file(url, str(file), file.stem.rpartition("-")[2], progress=False)
    return file


def load_checkpoint(data: bytes, class_names: Sequence[str], outputs: Sequence[str] = ()) -> State:
    """Read the state dict of a `.pth` file, as RDED and torchvision publish them, and order its outputs by class.

    The state dict may be an entry `model` or `state_dict` of the file, and its names may begin with `module.`. Only
    tensors and plain values are read, no code is run. The class of each output is taken from, in this order:
    1. a list `class_names` or `classes` in the file;
    2. `class_names`, if there are as many outputs as classes;
    3. `outputs`.
    The rows of the last layer are then selected by class name.

    Args:
        data: content of the file.
        class_names: the job's classes, in the order of their labels.
        outputs: the class of every output of a network of more classes, spelt as in `class_names`.

    Raises:
        ValueError: the bytes are not such a file, or the classes of the outputs do not include those of the job.
    """
    return order_outputs(_read(data), class_names, outputs)


def order_outputs(
    content: Mapping[Any, Any], class_names: Sequence[str], outputs: Sequence[str], *, by_name: bool = False
) -> State:
    """Return the state dict in a file's content, its outputs in the order of the classes (see `load_checkpoint`).

    Args:
        by_name: select them by the names of `outputs`, also where there are as many as classes.
    """
    listed = next((content[name] for name in _CLASS_LISTS if isinstance(content.get(name), list | tuple)), ())
    state = _state(content)
    head = head_names(state)
    if not head:
        raise ValueError("teach.checkpoint: the file has no weights of a linear layer; give a classifier's state dict")
    count = len(state[head[0]])
    rows = _output_rows(tuple(listed or (outputs if by_name or count != len(class_names) else ())), count, class_names)
    bias = head[0].removesuffix("weight") + "bias"
    return state | {name: state[name][rows] for name in (head[0], bias) if name in state}


def entry_names(data: bytes) -> list[str]:
    """List the names of the weights in a `.pth` file, without its prefixes.

    Raises:
        ValueError: the bytes are not such a file.
    """
    return list(_state(_read(data)))


def _state(content: Mapping[Any, Any]) -> State:
    nested = next((content[name] for name in _NESTED if isinstance(content.get(name), Mapping)), content)
    return {str(name).removeprefix(_PREFIX): value for name, value in nested.items() if isinstance(value, Tensor)}


def _read(data: bytes) -> Mapping[Any, Any]:
    try:
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"teach.checkpoint: the file is not a state dict that can be read without running code: "
            f"{str(error).splitlines()[0] if str(error) else type(error).__name__}"
        ) from error
    if not isinstance(content, Mapping):
        raise ValueError(f"teach.checkpoint: the file holds a {type(content).__name__}, not a state dict")
    return content


def _output_rows(outputs: tuple[str, ...], count: int, class_names: Sequence[str]) -> list[int]:
    """Return the row of the last layer for every class, in the order of the classes."""
    if not outputs and count == len(class_names):
        return list(range(count))
    if len(outputs) != count:
        listed = f"a class list of {len(outputs)}" if outputs else f"no class list, for {len(class_names)} classes"
        raise ValueError(f"teach.checkpoint: the network has {count} outputs and {listed}")
    missing = [name for name in class_names if outputs.count(name) != 1]
    if missing:
        raise ValueError(
            "teach.checkpoint: the file's class list must have each class of the job exactly once; it does not have "
            f"{missing[:5]}"
        )
    return [outputs.index(name) for name in class_names]
