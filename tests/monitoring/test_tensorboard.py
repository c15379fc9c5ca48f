"""Tests of TensorBoard files: every record is written once, also after a killed run."""

import io
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from tests.image_sets import encoded, noise
from vlcp_ray.images import decode
from vlcp_ray.monitoring.tensorboard import Record, Records
from vlcp_ray.store.artifact import Store

PNG = encoded(noise(0, (8, 8)), "PNG")
EPOCHS = [
    Record(
        f"epoch-{n:04d}", [(41 * n, {"loss": 1 / n, "learning_rate": 1e-5})], {"validation/00": PNG} if n == 2 else {}
    )
    for n in (1, 2, 3)
]


def events(folder: Path) -> Iterator[Event]:
    """All events of a series, in TensorBoard's order. Of each: length, checksum, content, checksum."""
    for file in sorted(folder.iterdir()):
        assert "tfevents" in file.name
        stream = io.BytesIO(file.read_bytes())
        while head := stream.read(12):
            yield Event.FromString(stream.read(struct.unpack("<Q", head[:8])[0]))
            assert len(stream.read(4)) == 4


def scalars(folder: Path) -> list[tuple[int, str, float]]:
    values = [(event.step, value) for event in events(folder) for value in event.summary.value]
    return [(step, value.tag, value.simple_value) for step, value in values if not value.HasField("image")]


class ListTracker:
    """A tracker that appends its records to a list."""

    def __init__(self) -> None:
        self.records: list[tuple[str, Sequence[tuple[int, Mapping[str, float]]], list[str]]] = []

    def record(
        self, series: str, scalars: Sequence[tuple[int, Mapping[str, float]]], images: Mapping[str, bytes]
    ) -> None:
        self.records.append((series, scalars, list(images)))

    def close(self) -> None:
        pass


def test_records_add_writes_scalars_and_images(tmp_path: Path) -> None:
    records = Records(Store.at(str(tmp_path)), "digits")
    for record in EPOCHS:
        records.add("finetune/seed-0", record)
    folder = tmp_path / "tensorboard" / "digits" / "finetune" / "seed-0"
    expected = [
        (step, name, np.float32(value)) for r in EPOCHS for step, values in r.scalars for name, value in values.items()
    ]
    assert scalars(folder) == expected
    (image,) = [v for event in events(folder) for v in event.summary.value if v.HasField("image")]
    assert image.tag == "validation/00"
    assert np.array_equal(np.asarray(decode(image.image.encoded_image_string)), np.asarray(decode(PNG)))


def test_records_of_a_resumed_run_are_complete_and_unique(tmp_path: Path) -> None:
    store, tracker = Store.at(str(tmp_path)), ListTracker()
    Records(store, "digits").add("finetune/seed-0", EPOCHS[0])  # the run is killed after this
    again = Records(store, "digits", tracker)
    assert again.names("finetune/seed-0") == {"epoch-0001"}
    assert again.names("finetune/seed-1") == set()
    for record in EPOCHS[1:]:
        again.add("finetune/seed-0", record)
    assert again.names("finetune/seed-0") == {record.name for record in EPOCHS}
    steps = [step for step, name, _ in scalars(tmp_path / "tensorboard/digits/finetune/seed-0") if name == "loss"]
    assert steps == [41, 82, 123]
    assert [(step, images) for _, ((step, _),), images in tracker.records] == [(82, ["validation/00"]), (123, [])]


def test_records_add_with_a_failing_tracker_still_writes_the_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class FailingTracker(ListTracker):
        def record(self, *_: object) -> None:
            raise ConnectionError

    records = Records(Store.at(str(tmp_path)), "digits", FailingTracker())
    records.add("finetune/seed-0", EPOCHS[0])
    assert len(list(tmp_path.rglob("*tfevents*"))) == 1
    assert "is not mirrored" in caplog.text
