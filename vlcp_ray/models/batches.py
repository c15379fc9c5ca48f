"""What to do where a device has too little memory: halve batches, or say which setting to change."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from vlcp_ray.monitoring.memory import count_halving

T = TypeVar("T")


@contextmanager
def naming_memory_fix(sentence: str) -> Iterator[None]:
    """Replace the error of a device without memory by a ValueError with this sentence."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ValueError(sentence) from error


class Batches:
    """The rows that a model takes at once.

    Every batch is padded to the same size, so that the result of a row is the same to the last bit, whichever other
    rows are in its batch. A halved size is another one: results may then differ in the last bit, which is said.

    Args:
        size: rows at once.
        setting: how the log and the error name the size.
    """

    def __init__(self, size: int, setting: str) -> None:
        self.size, self.setting = size, setting

    def run(self, count: int, call: Callable[[range, int], T]) -> Iterator[T]:
        """Call a function with the numbers of each batch's rows, and the size to which it pads them.

        Raises:
            ValueError: not even one row fits into the memory of the device.
        """
        start = 0
        while start < count:
            rows = range(start, min(start + self.size, count))
            try:
                result = call(rows, self.size)
            except torch.OutOfMemoryError as error:
                self._halve(error)
                continue
            yield result
            start = rows.stop

    def _halve(self, error: torch.OutOfMemoryError) -> None:
        if self.size == 1:
            raise ValueError(
                f"{self.setting}: not even one image fits into the memory of the GPU; give the pool a larger share of "
                "it (num_gpus in the scale file), or use a GPU with more memory"
            ) from error
        self.size //= 2
        count_halving()
