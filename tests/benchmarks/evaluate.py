"""Measure training images per second: batches of tensors in memory against a DataLoader with Pillow images.

Both train the same network under the minimax protocol, with the same augmentations, CutMix and optimiser, on all cores.
Ours trains as `vlcp-ray` does: one trial for each core, each with one thread. The DataLoader has one trial with two
workers; it is measured with one thread and with a thread for each core, and the faster one counts, because threads
wait for each other beside busy workers. Its images are decoded before, and torchvision transforms them one at a time:
the released code would also read and decode them in every epoch, ours does so once.

The augmented views alone are measured too, on one core: only they differ, and a large network hides the difference.
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
from vlcp_ray.config import Evaluate
from vlcp_ray.models.classifiers import build_classifier
from vlcp_ray.monitoring.allocator import memory_retained
from vlcp_ray.protocols import augment, minimax
from vlcp_ray.protocols.labelled_images import LabelledImages, to_device
from vlcp_ray.scale import Scale

Case = tuple[str, int, int, int, int]

CLASSES = 10
WORKERS = 2
CORES = os.cpu_count() or 1
# (network, width, pixels, images, epochs per turn): for the digits job, for CIFAR and for large images.
CASES: tuple[Case, ...] = (("ConvNet-3", 32, 32, 512, 3), ("ConvNet-3", 128, 32, 256, 1), ("ConvNet-6", 16, 224, 32, 1))

#: Of the minimax protocol.
AUGMENTATION = (minimax.RECIPE.crop_scale, minimax.RECIPE.jitter, minimax.RECIPE.lighting)


class Lighting:
    """Add PCA noise to the colours of an image (3, s, s), as misc/utils.py of MinimaxDiffusion does."""

    def __call__(self, image: Tensor) -> Tensor:
        alphas = torch.randn(3) * minimax.RECIPE.lighting * torch.tensor(augment._EIGENVALUES)
        return image + (torch.tensor(augment._EIGENVECTORS) @ alphas).view(3, 1, 1)


class Images(Dataset[tuple[Tensor, int]]):
    """Pillow images, transformed as the released loader does."""

    def __init__(self, images: LabelledImages, size: int) -> None:
        self.images = [Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))) for pixels in images.pixels]
        self.labels = images.labels.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomResizedCrop(size, scale=minimax.RECIPE.crop_scale),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.ColorJitter(*[minimax.RECIPE.jitter] * 3),
                Lighting(),
                transforms.Normalize(augment._MEAN, augment._STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), self.labels[index]


def evaluate(_: Scale) -> Iterator[Row]:
    """Measure the views alone and the training of every case."""
    for case in CASES:
        yield views(case)
        yield trainings(case)


def views(case: Case) -> Row:
    """Measure images per second of augmentation alone, on one core."""
    _, _, size, count, _ = case
    images, generator = noise(count, size), torch.Generator().manual_seed(0)
    loader, (pixels, _) = Images(images, size), to_device(images, "cpu")
    torch.set_num_threads(1)
    pairs = [
        (
            rate(lambda: len([loader[i] for i in range(count)])),
            rate(lambda: sum(len(augment.augment(part, generator, True, *AUGMENTATION)) for part in pixels.split(64))),
        )
        for _ in range(PAIRS)
    ]
    return Row(f"evaluate: views of {size} px alone", "images/s", None, pairs)


def trainings(case: Case) -> Row:
    """Measure images per second of training, in turns: the one trial of the loader, and all trials of ours at once."""
    name, width, size, count, epochs = case
    theirs = per_image(case)
    pools = [ProcessPoolExecutor(1, get_context("spawn"), start, (case,)) for _ in range(CORES)]
    try:
        advance_all(pools, 1)
        next(theirs)  # starts the workers, which stay
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
    """Measure images per second of the loader's trial with a number of threads."""
    torch.set_num_threads(threads)
    return rate(lambda: count * len([next(trial) for _ in range(epochs)]))


def advance_all(pools: list[ProcessPoolExecutor], epochs: int) -> int:
    """Train some epochs of all our trials at once, and return the sum of their epochs."""
    for future in [pool.submit(advance, epochs) for pool in pools]:
        future.result()
    return epochs * len(pools)


def start(case: Case) -> None:
    """Start a trial of ours in this process."""
    torch.set_num_threads(1)
    _open_contexts.enter_context(memory_retained())
    _running.append(batched(case))


def advance(epochs: int) -> None:
    """Train some epochs of this process's trial."""
    for _ in range(epochs):
        next(_running[0])


_running: list[Iterator[int]] = []
_open_contexts = ExitStack()  # until the process ends


def prepare(case: Case) -> tuple[nn.Module, LabelledImages, Evaluate]:
    """Build the network, the images and the settings that both sides train with."""
    name, width, size, count, _ = case
    network = build_classifier(name, num_classes=CLASSES, input_size=size, width=width, seed=0)
    return network, noise(count, size), Evaluate(networks=(name,), width=width, input_size=size)


def batched(case: Case) -> Iterator[int]:
    """Train as `vlcp-ray` does, and yield the number of each epoch."""
    network, images, settings = prepare(case)
    for epoch in minimax.train(network, to_device(images, "cpu"), settings, epochs=10_000, seed=0):
        yield epoch.number


def per_image(case: Case) -> Iterator[int]:
    """Train as the released code does, with workers that stay for all epochs, and yield after each epoch."""
    network, images, settings = prepare(case)
    loader = DataLoader(
        Images(images, settings.input_size),
        minimax.batch_size_for(settings, 1, CLASSES, len(images.labels)),
        shuffle=True,
        num_workers=WORKERS,
        persistent_workers=True,
    )
    optimizer = torch.optim.SGD(
        network.parameters(),
        minimax.RECIPE.learning_rate[0],
        minimax.RECIPE.momentum,
        weight_decay=minimax.RECIPE.weight_decay[0],
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
    """Make images of noise: the work does not depend on their content."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (count, 3, size, size), np.uint8)
    return LabelledImages(pixels, generator.integers(0, CLASSES, count))
