"""Measures training images a second: batched on tensors in memory, against a DataLoader that does the same with Pillow.

Both train the same network under the minimax protocol, with the same augmentations, CutMix and optimizer, on all cores:
ours as `vlcp-ray` does, a trial a core with one thread each; the loader's one trial with 2 workers, and with one thread
or one a core, whichever is faster in a turn: beside busy workers threads wait for each other. The loader has
torchvision's transforms, an image at a time, on images that are already decoded: reading and decoding would be its own
cost in every epoch, and ours once. The views alone, on one core, are measured besides: they are what differs, and the
network's own work, the same in both, hides it where it is large.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from tests.benchmarks.turns import PAIRS, Row, rate
from vlcp_ray import augment
from vlcp_ray.config import Evaluate, Network
from vlcp_ray.memory import kept_memory
from vlcp_ray.models.classifiers import build_classifier
from vlcp_ray.protocols import minimax
from vlcp_ray.protocols.images import LabelledImages, to_device
from vlcp_ray.scale import Scale

Case = tuple[Network, int, int, int, int]

CLASSES = 10
WORKERS = 2
CORES = os.cpu_count() or 1
# (network, width, pixels, images, epochs a turn): the networks of jobs/digits.toml, of CIFAR, and of large images.
CASES: tuple[Case, ...] = (("ConvNet-3", 32, 32, 512, 3), ("ConvNet-3", 128, 32, 256, 1), ("ConvNet-6", 16, 224, 32, 1))


class Lighting:
    """PCA noise of the colours, as misc/utils.py of MinimaxDiffusion adds it to an image (3, s, s)."""

    def __call__(self, image: Tensor) -> Tensor:
        alphas = torch.randn(3) * augment.LIGHTING * torch.tensor(augment._EIGENVALUES)
        return image + (torch.tensor(augment._EIGENVECTORS) @ alphas).view(3, 1, 1)


class Images(Dataset[tuple[Tensor, int]]):
    """Pillow images through the transforms of the released loader."""

    def __init__(self, images: LabelledImages, size: int) -> None:
        self.images = [Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))) for pixels in images.pixels]
        self.labels = images.labels.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomResizedCrop(size, scale=augment.CROP_SCALE),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.ColorJitter(augment.JITTER, augment.JITTER, augment.JITTER),
                Lighting(),
                transforms.Normalize(augment._MEAN, augment._STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), self.labels[index]


def evaluate(_: Scale) -> Iterator[Row]:
    """The views alone and the trainings of every case."""
    for case in CASES:
        yield views(case)
        yield trainings(case)


def views(case: Case) -> Row:
    """Images a second that are augmented, on one core, nothing being trained."""
    _, _, size, count, _ = case
    images, generator = noise(count, size), torch.Generator().manual_seed(0)
    loader, (pixels, _) = Images(images, size), to_device(images, "cpu")
    torch.set_num_threads(1)
    pairs = [
        (
            rate(lambda: len([loader[i] for i in range(count)])),
            rate(lambda: sum(len(augment.augment(part, generator, True)) for part in pixels.split(64))),
        )
        for _ in range(PAIRS)
    ]
    return Row(f"evaluate: views of {size} px alone", "images/s", None, pairs)


def trainings(case: Case) -> Row:
    """Images a second that are learned, by the loader's one trial and by ours at once, in turns."""
    name, width, size, count, epochs = case
    theirs = per_image(case)
    pools = [ProcessPoolExecutor(1, get_context("spawn"), start, (case,)) for _ in range(CORES)]
    try:
        advance_all(pools, 1)
        next(theirs)  # the workers start here, and stay
        pairs = [
            (
                max(threaded(threads, theirs, count, epochs) for threads in (1, CORES)),
                rate(lambda: advance_all(pools, epochs) * count),
            )
            for _ in range(PAIRS)
        ]
    finally:
        for pool in pools:
            pool.shutdown()
    return Row(f"evaluate: {name}, width {width}, {size} px", "images/s", 3, pairs)


def threaded(threads: int, trial: Iterator[int], count: int, epochs: int) -> float:
    """Images a second of the loader's trial with so many threads."""
    torch.set_num_threads(threads)
    return rate(lambda: count * len([next(trial) for _ in range(epochs)]))


def advance_all(pools: list[ProcessPoolExecutor], epochs: int) -> int:
    """So many epochs of every trial of ours, all at once; returns how many they were together."""
    for done in [pool.submit(advance, epochs) for pool in pools]:
        done.result()
    return epochs * len(pools)


def start(case: Case) -> None:
    """A trial of ours in a process of its own."""
    torch.set_num_threads(1)
    _kept.enter_context(kept_memory())
    _running.append(batched(case))


def advance(epochs: int) -> None:
    """Go on with this process's trial."""
    for _ in range(epochs):
        next(_running[0])


_running: list[Iterator[int]] = []
_kept = ExitStack()  # for as long as the process lives


def prepared(case: Case) -> tuple[nn.Module, LabelledImages, Evaluate]:
    """What both train: the network, the images, the settings."""
    name, width, size, count, _ = case
    network = build_classifier(name, num_classes=CLASSES, input_size=size, width=width, seed=0)
    return network, noise(count, size), Evaluate(width=width, input_size=size)


def batched(case: Case) -> Iterator[int]:
    """An epoch at a time, as `vlcp-ray` trains."""
    network, images, settings = prepared(case)
    return minimax.train(network, to_device(images, "cpu"), settings, 10_000, 0)


def per_image(case: Case) -> Iterator[int]:
    """An epoch at a time, as the released code trains, with workers that outlive an epoch."""
    network, images, settings = prepared(case)
    loader = DataLoader(
        Images(images, settings.input_size),
        settings.batch_size,
        shuffle=True,
        num_workers=WORKERS,
        persistent_workers=True,
    )
    optimizer = torch.optim.SGD(
        network.parameters(), settings.learning_rate, minimax.MOMENTUM, weight_decay=minimax.WEIGHT_DECAY
    )
    generator, epoch = torch.Generator().manual_seed(0), 0
    while True:
        for views, labels in loader:
            mixed, own, pasted, share = augment.cutmix(views, labels, generator)
            logits = network(mixed)
            loss = share * cross_entropy(logits, own) + (1 - share) * cross_entropy(logits, pasted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        epoch += 1
        yield epoch


def noise(count: int, size: int) -> LabelledImages:
    """Images whose content nobody looks at: the work is the same for all."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (count, 3, size, size), np.uint8)
    return LabelledImages(pixels, generator.integers(0, CLASSES, count))
