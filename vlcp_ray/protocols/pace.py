"""Knows how many epochs a set is trained on under each protocol; it needs no torch, so that `plan` can count them."""

from typing import Final

from vlcp_ray.config import Evaluate

RDED_EPOCHS: Final = 300

#: The minimax protocol's epochs: up to this ipc, this many.
_EPOCHS: Final = ((1, 3000), (10, 2000), (50, 1500), (200, 1000), (500, 500))
_EPOCHS_BEYOND: Final = 300
_MANY_CLASSES: Final = 100


def minimax_epochs(settings: Evaluate, ipc: int, num_classes: int) -> int:
    """The training epochs of a set: by the settings where they say it, else by the protocol's table (METHOD 3.1)."""
    if ipc == 0:
        return settings.full_epochs
    if settings.epochs is not None:
        return settings.epochs
    epochs = next((epochs for limit, epochs in _EPOCHS if ipc <= limit), _EPOCHS_BEYOND)
    return epochs if num_classes < _MANY_CLASSES else epochs * 2 // 3 // 100 * 100


def rded_epochs(settings: Evaluate, ipc: int) -> int:
    """The training epochs of a set: by the settings where they say it, else the protocol's 300."""
    if ipc == 0:
        return settings.full_epochs
    return settings.rded_epochs or settings.epochs or RDED_EPOCHS
