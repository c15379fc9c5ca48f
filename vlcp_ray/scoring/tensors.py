"""Read a distilled set from tensor files: images, labels and, where the file has them, class names.

Files are read by `torch.load(weights_only=True)`: what a file may bring besides tensors and plain containers is not
run. Layouts: one tensor with the labels beside it (`images_best.pt` and `labels_best.pt` of MTT and DATM), a tuple or
list of images and labels (IDC's `data.pt`), a dict of both, and `data` of DC and DM, a list of such pairs.
"""

import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from vlcp_ray.scoring.scales import Numbers
from vlcp_ray.settings import ConfigError
from vlcp_ray.sources.reader import list_some

if TYPE_CHECKING:
    from torch import Tensor

SUFFIXES: Final = (".pt", ".pth")
#: The largest number of values of a tensor: 8 GiB in float32, or 14,000 images of 224 x 224 pixels.
MAX_VALUES: Final = 2**31
_IMAGES: Final = ("images", "image", "data", "syn_images", "image_syn")
_LABELS: Final = ("labels", "label", "targets", "target", "soft_labels", "syn_labels", "label_syn")
_CLASSES: Final = ("classes", "class_names")
_CHANNELS: Final = (1, 3)
_SUM: Final = 1e-2  # how far from 1 the sum of the shares of a soft label may be
_FIX: Final = "save what is needed alone: torch.save((images, labels), FILE)"


@dataclass(frozen=True, eq=False)
class Labels:
    """The labels of images.

    Args:
        numbers: (n,) class numbers.
        soft: (n, classes) probabilities in float32, rows with the sum 1; None for hard labels.
        kind: in words.
        width: numbers of a row, where a label is a row of one number for each class; else 0.
    """

    numbers: npt.NDArray[np.int64]
    soft: npt.NDArray[np.float32] | None
    kind: str
    width: int = 0


@dataclass(frozen=True, eq=False)
class TensorSet:
    """What tensor files hold: images (n, c, h, w) on any scale, labels, and the class names if they have any."""

    images: Numbers
    labels: Labels
    class_names: tuple[str, ...] = ()


def find_file(folder: Path) -> Path | None:
    """Return the tensor file with the images in a folder, or None where it holds none, or is an image folder.

    Raises:
        ConfigError: it holds several that may have the images.
    """
    files = sorted(
        path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    )
    if not files:
        return None
    found = [path for path in files if path.stem.lower().startswith(_IMAGES)]
    if not found and not any(path.is_dir() for path in folder.iterdir()):
        found = [path for path in files if not path.stem.lower().startswith((*_LABELS, "lr"))]
    if not found:
        return None
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ConfigError(f"{folder}: it holds several tensor files ({names}); name the one with the images")
    return found[0]


def read(file: Path, labels_file: Path | None = None) -> TensorSet:
    """Read the images and the labels of a set.

    Args:
        file: with the images, and perhaps the labels.
        labels_file: with the labels; None: in `file`, or beside it under the same name with `labels` for `images`.

    Raises:
        ConfigError: a file is no tensor file, has objects besides tensors, a tensor of another form, numbers that are
            not finite, or there are no labels.
    """
    content = _load(file)
    images, labels, names = _parts(content, file)
    beside = labels_file or (None if labels is not None else _labels_beside(file))
    if beside is not None:
        labels, place = _labels_of(_load(beside), beside), beside
    else:
        place = file
    numbers = _image_numbers(images, file)
    if labels is None:
        raise ConfigError(
            f"{file}: it has no labels, and no labels file is beside it; give --labels FILE, a tensor with a class "
            "number for each image"
        )
    return TensorSet(numbers, _read_labels(labels, len(numbers), place), names)


def _load(file: Path) -> Any:
    """Read a tensor file without running anything that it brings."""
    import torch

    try:
        is_zip = zipfile.is_zipfile(file)
        if is_zip:
            with zipfile.ZipFile(file) as archive:
                unpacked = sum(member.file_size for member in archive.infolist())
            if unpacked > 4 * MAX_VALUES or any(m.compress_type for m in archive.infolist()):
                raise ConfigError(f"{file}: it unpacks to {unpacked:,} bytes; torch.save compresses nothing; {_FIX}")
        elif file.stat().st_size > 4 * MAX_VALUES:
            raise ConfigError(f"{file}: it has {file.stat().st_size:,} bytes, more than a tensor file may have")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of a pickle protocol that torch.save does not write
            return torch.load(file, map_location="cpu", weights_only=True)
    except ConfigError:
        raise
    except Exception as error:  # torch raises errors of all kinds on damaged and hostile files
        reason = " ".join(str(error).split())
        if "weights_only" in reason or "Unsupported" in reason:
            raise ConfigError(
                f"{file}: it holds Python objects besides tensors, which can run code and are not loaded; {_FIX}"
            ) from error
        raise ConfigError(f"{file}: it cannot be read as a tensor file ({reason[:200]}); {_FIX}") from error


def _parts(content: Any, file: Path) -> tuple[Any, Any, tuple[str, ...]]:
    """Return images, labels or None, and class names of the content of a file."""
    import torch

    if isinstance(content, torch.Tensor):
        return content, None, ()
    if isinstance(content, Mapping):
        found = {str(name): value for name, value in content.items()}
        images = next((found[name] for name in _IMAGES if name in found), None)
        if isinstance(images, list | tuple):  # of DC and DM: a pair of each experiment
            return _pair_of(images, file)
        labels = next((found[name] for name in _LABELS if name in found), None)
        if images is None:
            raise ConfigError(
                f"{file}: it is a dict of {list_some(found) or 'nothing'}, without images and labels as such; {_FIX}"
            )
        key = next((name for name in _CLASSES if name in found), "")
        names = found[key] if key else ()
        if not (isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)):
            raise ConfigError(f"{file}: its {key} are no list of names; save one, or leave it out and give --classes")
        return images, labels, tuple(names)
    if isinstance(content, list | tuple):
        if len(content) == 2 and all(isinstance(part, torch.Tensor) for part in content):
            return content[0], content[1], ()
        return _pair_of(content, file)
    raise ConfigError(f"{file}: it holds {type(content).__name__}, no images; {_FIX}")


def _pair_of(pairs: Sequence[Any], file: Path) -> tuple[Any, Any, tuple[str, ...]]:
    """Return the only pair of images and labels in a list of pairs."""
    import torch

    is_pair = [isinstance(p, list | tuple) and len(p) == 2 and isinstance(p[0], torch.Tensor) for p in pairs]
    if not pairs or not all(is_pair):
        raise ConfigError(f"{file}: it holds a list of {len(pairs)} parts that are no images and labels; {_FIX}")
    if len(pairs) > 1:
        raise ConfigError(
            f"{file}: it holds {len(pairs)} sets; save each in a file of its own: for number, pair in enumerate(DATA): "
            "torch.save(tuple(pair), f'set{number}.pt')"
        )
    return pairs[0][0], pairs[0][1], ()


def _labels_beside(file: Path) -> Path | None:
    """Return the file of labels beside a file of images: labels_best.pt beside images_best.pt."""
    stem = file.stem.lower()
    start = next((name for name in _IMAGES if stem.startswith(name)), None)
    if start is None:
        return None
    rest = file.stem[len(start) :]
    candidates = (file.with_name(f"{name}{rest}{file.suffix}") for name in _LABELS)
    return next((path for path in candidates if path.is_file()), None)


def _labels_of(content: Any, file: Path) -> Any:
    if isinstance(content, Mapping):
        found = {str(name): value for name, value in content.items()}
        content = next((found[name] for name in _LABELS if name in found), content)
    if isinstance(content, list) and all(isinstance(number, int) for number in content):
        import torch

        return torch.tensor(content)
    return content


def _image_numbers(images: Any, file: Path) -> Numbers:
    """Check the images, and return them as an array (n, c, h, w) of uint8, integers or float32."""
    import torch

    tensor = _check_tensor(images, "images", file)
    shape = tuple(tensor.shape)
    if len(shape) != 4:
        raise ConfigError(f"{file}: the images have the shape {shape}, not (images, channels, height, width)")
    if shape[1] not in _CHANNELS:
        hint = "; move the channels first: images.permute(0, 3, 1, 2)" if shape[3] in _CHANNELS else ""
        raise ConfigError(
            f"{file}: the images have the shape {shape}, not (images, channels, height, width) with 1 or 3 "
            f"channels{hint}"
        )
    if not all(shape):
        raise ConfigError(f"{file}: it has no images, its tensor has the shape {shape}")
    if tensor.dtype == torch.bool:
        raise ConfigError(f"{file}: the images are true or false; save them as uint8 or as floats in 0 to 1")
    numbers: Numbers = _as_array(tensor)
    if not np.isfinite(numbers).all():
        bad = int(np.argmax(~np.isfinite(numbers).all((1, 2, 3))))
        raise ConfigError(f"{file}: image {bad} has numbers that are not finite (NaN or infinite)")
    return numbers


def _check_tensor(value: Any, what: str, file: Path) -> "Tensor":
    """Refuse what is no dense tensor of real numbers, or is one of too many values."""
    import torch

    if not isinstance(value, torch.Tensor):
        raise ConfigError(f"{file}: its {what} are {type(value).__name__} and no tensor; {_FIX}")
    if value.layout != torch.strided or value.is_quantized or value.is_complex() or value.is_meta:
        raise ConfigError(f"{file}: its {what} are no dense tensor of real numbers; {_FIX}")
    if value.numel() > MAX_VALUES:
        raise ConfigError(
            f"{file}: its {what} have {value.numel():,} values, and {MAX_VALUES:,} are the most of a tensor; give the "
            "set as an image folder"
        )
    return value.detach()


def _as_array(tensor: "Tensor") -> npt.NDArray[Any]:
    import torch

    if tensor.is_floating_point() and tensor.dtype != torch.float64:
        tensor = tensor.to(torch.float32)
    array: npt.NDArray[Any] = tensor.contiguous().numpy()
    return array


def _read_labels(value: Any, count: int, file: Path) -> Labels:
    """Check labels: class numbers (n,), or rows of one number for each class (n, classes)."""
    tensor = _check_tensor(value, "labels", file)
    if tensor.ndim == 2 and tensor.shape[1] == 1:
        tensor = tensor[:, 0]
    if tensor.ndim not in (1, 2) or len(tensor) != count:
        raise ConfigError(
            f"{file}: the labels have the shape {tuple(tensor.shape)}, not ({count},) or ({count}, classes), one for "
            "each image"
        )
    array = _as_array(tensor)
    if not np.isfinite(array).all():
        raise ConfigError(f"{file}: it has labels that are not finite (NaN or infinite)")
    if array.ndim == 1:
        if array.dtype.kind == "f" and (array != np.rint(array)).any():
            raise ConfigError(f"{file}: the labels are no whole numbers, such as {array[array != np.rint(array)][0]}")
        return Labels(array.astype(np.int64), None, "class numbers")
    return _of_rows(array.astype(np.float64))


def _of_rows(rows: npt.NDArray[np.float64]) -> Labels:
    numbers = rows.argmax(1)
    sums, is_share = rows.sum(1, keepdims=True), bool((rows >= 0).all())
    if is_share and (rows.max(1) == 1).all() and (sums == 1).all():
        return Labels(numbers, None, "one-hot", rows.shape[1])
    if is_share and (np.abs(sums - 1) < _SUM).all():
        return Labels(numbers, (rows / sums).astype(np.float32), "soft: probabilities", rows.shape[1])
    shares = np.exp(rows - rows.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    return Labels(numbers, shares.astype(np.float32), "soft: logits, of which the softmax is taken", rows.shape[1])
