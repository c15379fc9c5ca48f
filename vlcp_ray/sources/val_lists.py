"""Lists of the classes of val images that lie in one flat folder, as some archives of ImageNet have them."""

import csv
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pyarrow import fs as pafs

from vlcp_ray.settings import ConfigError
from vlcp_ray.sources.shards import ShardError, open_shard

#: Kaggle's archive of ImageNet has this list three folders above its `val`: ImageId,PredictionString.
_KAGGLE: Final = "LOC_val_solution.csv"
_PARENTS: Final = 4  # from ILSVRC/Data/CLS-LOC upwards
#: Tiny-ImageNet: file, wnid and a box, separated by tabs.
_ANNOTATIONS: Final = "val_annotations.txt"
_MAX_BYTES: Final = 2**26  # that of ImageNet has 2 MB


@dataclass(frozen=True)
class ValList:
    """The file that names the classes of the val images.

    Args:
        path: of the list.
        name: of the list, for messages.
    """

    path: str
    name: str

    def read(self, filesystem: pafs.FileSystem, limit: str = "") -> Mapping[str, str]:
        """Return the label of each image: its wnid or class name by its file name without extension.

        Args:
            limit: the folder that links may not leave, of a local set.

        Raises:
            ConfigError: the list cannot be read.
        """
        try:
            file = open_shard(filesystem, self.path, limit)
            text = file.read(_MAX_BYTES).decode("utf-8-sig")
        except (ShardError, UnicodeDecodeError) as error:
            raise ConfigError(f"ingest.source: {self.path} cannot be read ({error}); download it again") from error
        return _parse(text, "\t" if self.name == _ANNOTATIONS else ",")


def _parse(text: str, delimiter: str) -> dict[str, str]:
    rows = csv.reader(text.splitlines(), delimiter=delimiter, quoting=csv.QUOTE_NONE)
    return {posixpath.splitext(row[0])[0]: row[1].split()[0] for row in rows if len(row) > 1 and row[1].strip()}


def find_val_list(filesystem: pafs.FileSystem, path: str, val: str) -> ValList | None:
    """Find the list of the classes of a flat val folder.

    Args:
        path: the folder of the image set.
        val: the path of the folder of val images.
    """
    parents = [path]
    while len(parents) <= _PARENTS and (parent := posixpath.dirname(parents[-1])) not in ("", parents[-1]):
        parents.append(parent)
    candidates = [f"{val}/{_ANNOTATIONS}", *(f"{parent.rstrip('/')}/{_KAGGLE}" for parent in parents)]
    infos = filesystem.get_file_info(candidates)
    return next((ValList(info.path, info.base_name) for info in infos if info.is_file), None)
