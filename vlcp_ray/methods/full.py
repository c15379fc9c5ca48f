"""full: the whole train split, the upper bound that distilled sets are compared with."""

from typing import Final

from vlcp_ray.methods.method import Method

METHOD: Final = Method("full", "the full train split", "the usual upper bound", "train split", ("images",))
