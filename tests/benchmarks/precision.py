"""Compare scores in bf16 with those in float32, over ten trainings each: `python -m tests.benchmarks.precision`.

Each training has its own weights and order of images, the same in both precisions. Without a GPU, bf16 is computed by
the CPU, which rounds as a GPU does; it shows the scores, not the speed.
"""

import sys
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from tests.labelled_digits import NAMES, digits
from vlcp_ray.config import Evaluate, Teach
from vlcp_ray.models.stable_diffusion import pick_device
from vlcp_ray.models.teacher import load_teacher
from vlcp_ray.protocols import PROTOCOLS
from vlcp_ray.stages.evaluate import Precision, Trial
from vlcp_ray.stages.evaluate.trial import run_trial
from vlcp_ray.stages.teach.train import train_teacher

_TRAINED, _TESTED = digits(0, 100), digits(1297, 1797)
_REPEATS: Final = 10
_EPOCHS: Final = 60
_NETWORK: Final = "ConvNet-3"
_SIZE: Final = 16  # pixels


def train() -> nn.Module:
    """Train the teacher on the digits that are in neither set."""
    settings = Teach(network=_NETWORK, width=32, input_size=_SIZE, epochs=10, flip=False)
    return load_teacher(settings, train_teacher(digits(100, 1297), _TESTED, NAMES, settings, 0, "cpu").state)


def scores(protocol: str, precision: Precision, repeats: int, epochs: int, teacher: nn.Module) -> list[float]:
    """Train on 100 digits and return top-1 on 500 others, a fraction of 1, for each repeat."""
    fields: dict[str, Any] = {"input_size": _SIZE, "epochs": epochs, "width": 32, "flip": False, "precision": precision}
    settings = Evaluate(protocols=(protocol,), networks=(_NETWORK,), **fields)
    found = []
    for repeat in range(repeats):
        trial = Trial("random", protocol, _NETWORK, 10, 0, repeat)
        row = run_trial(_TRAINED, _TESTED, NAMES, settings, trial, pick_device(), teacher)
        found.append(float(row["top1_last"]))
    return found


def lines(repeats: int = _REPEATS, epochs: int = _EPOCHS) -> Sequence[str]:
    """Return a line for each protocol: both means and spreads, and the mean difference of the pairs with its error."""
    torch.set_num_threads(1)  # several would wait for each other in such small steps
    teacher = train()
    table = [f"{'protocol':<10} {'float32, %':>14} {'bf16, %':>14} {'bf16 - float32':>16}"]
    for protocol in PROTOCOLS:
        exact, half = (100 * np.array(scores(protocol, one, repeats, epochs, teacher)) for one in ("float32", "bf16"))
        difference = half - exact
        error = difference.std(ddof=1) / np.sqrt(repeats)
        texts = [f"{values.mean():.1f} ± {values.std(ddof=1):.1f}" for values in (exact, half)]
        table.append(f"{protocol:<10} {texts[0]:>14} {texts[1]:>14} {f'{difference.mean():+.2f} ± {error:.2f}':>16}")
    return table


if __name__ == "__main__":
    print(*lines(), sep="\n", flush=True)
    sys.exit(0)
