"""Train by the released evaluators and by ours on the same images, and compare the accuracies.

`python -m tests.benchmarks.released --minimax FOLDER --rded FOLDER`: FOLDER is a checkout of vimar-gu/MinimaxDiffusion
or of LINs-lab/RDED, whose own code runs: its transforms, loaders, networks, optimisers and epochs. This project has no
copy of it. The images are samples of CIFAR-10 (32 px) and Tiny-ImageNet (64 px) from ../shared/data. The two
evaluators draw their random numbers differently, so that equal seeds mean nothing: compared are means and spreads.
"""

import argparse
import contextlib
import io
import math
import re
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np
import pyarrow as pa
import torch
from pyarrow import parquet
from torch.overrides import TorchFunctionMode

from tests.image_sets import SHARED
from vlcp_ray.models.teacher import load_teacher
from vlcp_ray.protocols.labelled_images import LabelledImages, prepare
from vlcp_ray.stages.evaluate import Evaluate, Trial
from vlcp_ray.stages.evaluate.trial import run_trial
from vlcp_ray.stages.teach import Teach
from vlcp_ray.stages.teach.train import train_teacher

_DEVICE: Final = "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Args:
        protocol: minimax or rded.
        network: by our name.
        size: side of the images in pixels: 32 takes CIFAR-10, 64 Tiny-ImageNet.
        classes: the first so many of the set.
        ipc: training images of a class.
        val: test images of a class.
        epochs: of a training.
        batch_size: images of a step.
        width: channels of a ConvNet.
    """

    protocol: str
    network: str
    size: int
    classes: int
    ipc: int
    val: int
    epochs: int
    batch_size: int
    width: int = 64

    def __str__(self) -> str:
        return f"{self.protocol}, {self.network}, {self.size} px"


CASES: Final = (
    Case("minimax", "ConvNet-3", 32, 10, 10, 100, 100, 64),
    Case("minimax", "ConvNet-3", 64, 5, 20, 50, 50, 64),
    Case("minimax", "ResNetAP-10", 32, 10, 5, 50, 25, 25),
    Case("minimax", "ResNetAP-10", 64, 5, 5, 50, 15, 13),
    Case("rded", "ConvNet-3", 32, 10, 10, 100, 40, 50, 128),  # the released ConvNets have 128 channels
)
_TEACHER: Final = Teach(network="ConvNet-3", width=128, input_size=32, epochs=5)


class OnCpu(TorchFunctionMode):
    """Let code that asks for CUDA run on the CPU: torch calls with the device "cuda" get the device "cpu"."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if function is torch.Tensor.cuda:
            return args[0]
        on_cpu = ["cpu" if isinstance(value, str) and value == "cuda" else value for value in args]
        named = {key: "cpu" if key == "device" and value == "cuda" else value for key, value in (kwargs or {}).items()}
        return function(*on_cpu, **named)


def tables(case: Case) -> Iterator[tuple[str, pa.Table]]:
    """Yield train and val with the columns image (file bytes) and label, sorted by label."""
    for split, count in (("train", case.ipc), ("val", case.val)):
        rows: list[tuple[str, bytes]] = list(_cifar(split) if case.size == 32 else _tiny_imagenet(split))
        names = sorted({name for name, _ in rows})[: case.classes]
        chosen = [
            (label, image)
            for label, wanted in enumerate(names)
            for image in [image for name, image in rows if name == wanted][:count]
        ]
        labels, images = zip(*chosen, strict=True)
        if len(labels) != count * case.classes:
            raise SystemExit(f"{case}: {split} has too few images of a class")
        yield split, pa.table({"image": pa.array(images, pa.binary()), "label": pa.array(labels, pa.int32())})


def _cifar(split: str) -> Iterator[tuple[str, bytes]]:
    table = parquet.read_table(SHARED / "cifar10" / f"{split.replace('val', 'test')}-00000-of-00001.parquet")
    for image, label in zip(table["img"].to_pylist(), table["label"].to_pylist(), strict=True):
        yield str(label), image["bytes"]


def _tiny_imagenet(split: str) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(SHARED / "tiny-imagenet-20.tar") as tar:
        members = sorted(tar.getmembers(), key=lambda member: member.name)
        read = {m.name: file.read() for m in members if f"/{split}/" in m.name and (file := tar.extractfile(m))}
    classes = {}
    for name, content in read.items():
        if name.endswith("val_annotations.txt"):
            classes = dict(line.split("\t")[:2] for line in content.decode().splitlines())
    for name, content in read.items():
        if name.endswith(".JPEG"):
            yield classes.get(Path(name).name) or Path(name).parts[2], content


def write_folders(case: Case, root: Path) -> None:
    """Write root/train/00000/0000.png and so on: lossless copies, so that all decoders give the same pixels."""
    for split, table in tables(case):
        pixels = prepare(table, case.size).pixels
        for number, (image, label) in enumerate(zip(pixels, table["label"].to_pylist(), strict=True)):
            file = root / split / f"{label:05d}" / f"{number:04d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(_png(image.transpose(1, 2, 0)))


def _png(pixels: Any) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def ours(case: Case, seeds: Sequence[int], teacher: dict[str, torch.Tensor] | None) -> Iterator[float]:
    """Train by our evaluator, once for each seed, and yield top-1 after the last epoch, in percent."""
    splits = {split: prepare(table, case.size) for split, table in tables(case)}
    fields: dict[str, Any] = {"batch_size" if case.protocol == "minimax" else "rded_batch_size": case.batch_size}
    settings = Evaluate(
        protocols=(case.protocol,),
        networks=(case.network,),
        input_size=case.size,
        width=case.width,
        epochs=case.epochs,
        validations=1,
        factor=1,
        **fields,
    )
    names = [str(label) for label in range(case.classes)]
    network = load_teacher(_TEACHER, teacher) if teacher else None
    for seed in seeds:
        trial = Trial("random", case.protocol, case.network, case.ipc, seed, 0)
        row = run_trial(splits["train"], splits["val"], names, settings, trial, _DEVICE, network)
        yield 100 * float(row["top1_last"])


def released_minimax(case: Case, seeds: Sequence[int], repository: Path) -> Iterator[float]:
    """Train by `train` of train.py of MinimaxDiffusion and yield top-1 after the last epoch, in percent."""
    net, depth = {"ConvNet-3": ("convnet", 3), "ResNetAP-10": ("resnet_ap", 10)}[case.network]
    with tempfile.TemporaryDirectory() as folder:
        write_folders(case, Path(folder))
        sys.argv = ["train.py", "-d", "imagenet", "--imagenet_dir", folder, "-n", net, "--depth", str(depth)]
        sys.argv += ["--nclass", str(case.classes), "--dseed", "1", "--size", str(case.size), "-j", "0"]
        sys.argv += ["--batch_size", str(case.batch_size), "--norm_type", "instance"]
        sys.argv += ["--width", str(case.width / 128 if net == "convnet" else 1)]
        sys.path.insert(0, str(repository))
        # Imported by train.py for a network that is not used here.
        sys.modules["efficientnet_pytorch"] = ModuleType("efficientnet_pytorch")
        sys.modules["efficientnet_pytorch"].EfficientNet = None  # type: ignore[attr-defined]
        import train  # type: ignore[import-not-found]
        from argument import args  # type: ignore[import-not-found]

        args.epochs = args.epoch_print_freq = case.epochs
        _, train_loader, val_loader, classes = train.load_data(args)
        for seed in seeds:
            _seed_everything(seed)
            model = train.define_model(args, classes)
            _, last = train.train(args, model, train_loader, val_loader, None, lambda text: None)
            yield float(last)


def released_rded(
    case: Case, seeds: Sequence[int], repository: Path, teacher: dict[str, torch.Tensor]
) -> Iterator[float]:
    """Train by validation/main.py of RDED and yield top-1 after the last epoch, in percent."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        data = Path(folder, "data", "cifar10")
        write_folders(case, data)
        (weights := Path(folder, "data", "pretrain_models")).mkdir()
        torch.save({"model": released_names(teacher)}, weights / "cifar10_conv3.pth")
        sys.argv = ["main.py", "--subset", "cifar10", "--arch-name", "conv3", "--stud-name", "conv3", "--factor", "1"]
        sys.argv += ["--ipc", str(case.ipc), "--re-epochs", str(case.epochs), "--re-batch-size", str(case.batch_size)]
        sys.path.insert(0, str(repository))
        from argument import args
        from validation.main import main  # type: ignore[import-not-found]

        args.workers, args.val_ipc, args.syn_data_path = 0, case.val, str(data / "train")
        for seed in seeds:
            args.seed = seed
            _seed_everything(seed)
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                main(args)
            yield 100 - float(re.findall(r"TEST:\s+Iter \d+: .*?Top-1 err = ([\d.]+)", printed.getvalue())[-1])


def released_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename the weights of our ConvNet to those of RDED's: convolutions, norms and the classifier, each in order."""
    blocks = sorted({int(name.split(".")[0]) for name in state if "." in name and len(name.split(".")) > 2})
    kinds = ("conv", "norm")
    named = {
        f"layers.{kinds[int(part)]}.{level}.{rest}": state[f"{block}.{part}.{rest}"]
        for level, block in enumerate(blocks)
        for part, rest in (name.split(".")[1:] for name in state if name.startswith(f"{block}."))
    }
    heads = {name: value for name, value in state.items() if int(name.split(".")[0]) not in blocks}
    return named | {f"classifier.{name.split('.')[1]}": value for name, value in heads.items()}


def _seed_everything(seed: int) -> None:
    import random

    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  # the released code draws from it
    torch.manual_seed(seed)


def train_all(case: Case, is_ours: bool, seeds: Sequence[int], repository: Path, teacher: Path | None) -> list[float]:
    """Train once for each seed, in a process of its own, and return top-1 in percent."""
    torch.set_num_threads(1)
    state = torch.load(teacher) if teacher and case.protocol == "rded" else None
    side, found = "ours" if is_ours else "released", []
    on_device = contextlib.nullcontext() if is_ours or _DEVICE == "cuda" else OnCpu()
    with on_device, contextlib.redirect_stdout(io.StringIO()):
        if is_ours:
            results = ours(case, seeds, state)
        elif state is None:
            results = released_minimax(case, seeds, repository)
        else:
            results = released_rded(case, seeds, repository, state)
        for top1 in results:
            print(f"  {case}, {side}: {top1:.1f}", file=sys.stderr)
            found.append(top1)
    return found


def line(case: Case, theirs: Sequence[float], mine: Sequence[float], seconds: float) -> str:
    """Format means, standard deviations, and the difference of the means with its standard error."""
    (a, b), (sa, sb) = ([f(side) for side in (theirs, mine)] for f in (statistics.fmean, statistics.stdev))
    error = math.sqrt(sa**2 / len(theirs) + sb**2 / len(mine))
    texts = f"{a:>5.1f} ± {sa:.1f} ({len(theirs)})  {b:>5.1f} ± {sb:.1f} ({len(mine)})  {b - a:+.1f} ± {error:.1f}"
    return f"{case!s:<28} {texts}  {seconds:.0f} s"


def train_a_teacher(folder: Path) -> Path:
    """Train the teacher of rded on other images of CIFAR-10 than the students', and return its file."""
    case = Case("rded", "ConvNet-3", 32, 10, 500, 100, 0, 0)
    splits: dict[str, LabelledImages] = {split: prepare(table, 32) for split, table in tables(case)}
    train = splits["train"]
    others = np.concatenate([np.arange(label * case.ipc + 10, (label + 1) * case.ipc) for label in range(10)])
    train = LabelledImages(train.pixels[others], train.labels[others])
    trained = train_teacher(train, splits["val"], [str(label) for label in range(10)], _TEACHER, 0, _DEVICE)
    torch.save(dict(trained.state), file := folder / "teacher.pth")
    return file


def main() -> int:
    """Print a line for each case, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.released", description=__doc__)
    parser.add_argument("--minimax", type=Path, help="a checkout of vimar-gu/MinimaxDiffusion")
    parser.add_argument("--rded", type=Path, help="a checkout of LINs-lab/RDED")
    parser.add_argument("--repeats", type=int, default=10, help="trainings on each side (10)")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    chosen = parser.parse_args()
    repositories = {"minimax": chosen.minimax, "rded": chosen.rded}
    print(f"{'':<28} released, %     ours, %         difference", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        teacher = train_a_teacher(Path(folder)) if chosen.rded else None
        for case in CASES:
            if not (repository := repositories[case.protocol]) or chosen.only not in str(case):
                continue
            started, seeds = time.monotonic(), range(chosen.repeats)
            workers = 1 if _DEVICE == "cuda" else 2
            with ProcessPoolExecutor(workers, get_context("spawn"), max_tasks_per_child=1) as pool:
                sides = [
                    pool.submit(train_all, case, is_ours, seeds, repository.resolve(), teacher)
                    for is_ours in (False, True)
                ]
                theirs, mine = (side.result() for side in sides)
            print(line(case, theirs, mine, time.monotonic() - started), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
