"""Lists of the classes of val images that lie in one flat folder, as some archives of ImageNet have them."""

import csv
import os
import posixpath
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from pyarrow import fs as pafs

from vlcp_ray.settings import ConfigError
from vlcp_ray.sources.shards import ShardError, open_shard

#: Kaggle's archive of ImageNet has this list four folders above its images of val: ImageId,PredictionString.
_KAGGLE: Final = "LOC_val_solution.csv"
_HEAD: Final = "ImageId"  # of its first line
_PARENTS: Final = 4  # folders above val: CLS-LOC, Data, ILSVRC and the one that holds it
#: Tiny-ImageNet: file, wnid and a box, separated by tabs.
ANNOTATIONS: Final = "val_annotations.txt"
_MAX_BYTES: Final = 2**26  # that of ImageNet has 2 MB


@dataclass(frozen=True)
class ValList:
    """The file that names the classes of the val images.

    Args:
        path: of the list.
        name: of the list, for messages.
        limit: the folder or file that links may not leave, "" for no limit.
    """

    path: str
    name: str
    limit: str = ""

    def read(self, filesystem: pafs.FileSystem) -> Mapping[str, str]:
        """Return the label of each image: its wnid or class name by its file name without extension.

        Raises:
            ConfigError: the list cannot be read, or it is a link that leaves the limit.
        """
        try:
            file = open_shard(filesystem, self.path, self.limit)
            text = file.read(_MAX_BYTES).decode("utf-8-sig")
            return _parse(text, "\t" if self.name == ANNOTATIONS else ",")
        except (ShardError, UnicodeDecodeError, csv.Error) as error:
            raise ConfigError(
                f"ingest.source: {self.path} cannot be read ({error}); put the downloaded file there"
            ) from error

    def missing(self, named: Collection[str], found: Iterable[str], folder: str) -> dict[str, int]:
        """Count the images that the list names and their folder lacks, by what they are; nothing where all are there.

        Args:
            named: names without extension, of the images that are wanted.
            found: the file names in the folder.
        """
        count = len(set(named) - {posixpath.splitext(name)[0] for name in found})
        return {f"images that {self.name} names and {folder} lacks": count} if count else {}


def _parse(text: str, delimiter: str) -> dict[str, str]:
    rows = csv.reader(text.splitlines(), delimiter=delimiter, quoting=csv.QUOTE_NONE)
    named = (row for row in rows if len(row) > 1 and row[1].strip() and row[0] != _HEAD)
    return {posixpath.splitext(row[0])[0]: row[1].split()[0] for row in named}


def find_val_list(filesystem: pafs.FileSystem, path: str, val: str, limit: str) -> ValList | None:
    """Find the list of the classes of a flat val folder: in it, in the folder of the set, or in one above.

    Args:
        path: the folder of the image set.
        val: the path of the folder of val images, which lies in it.
        limit: the folder that links may not leave, of a local set; a list above the set may then be no link at all.
    """
    above, parent = list[str](), posixpath.dirname(path)
    while len(above) < _PARENTS - 1 and parent not in ("", *above):
        above.append(parent)
        parent = posixpath.dirname(parent)
    limits = dict.fromkeys((f"{val}/{ANNOTATIONS}", f"{path}/{_KAGGLE}"), limit)
    for folder in above:
        limits[posixpath.join(folder, _KAGGLE)] = limit and os.path.join(os.path.realpath(folder), _KAGGLE)
    infos = filesystem.get_file_info(list(limits))
    return next((ValList(info.path, info.base_name, limits[info.path]) for info in infos if info.is_file), None)
