"""Tests of the teacher: loading its weights, its features and soft labels."""

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from tests.labelled_digits import NAMES, digits
from vlcp_ray.config import Teach
from vlcp_ray.models.classifiers import head_of
from vlcp_ray.models.teacher import build_teacher, features, load_teacher, soft_labels
from vlcp_ray.protocols.metrics import accuracy, predict
from vlcp_ray.stages.teach.train import TrainedTeacher, train_teacher

SETTINGS = Teach(network="ConvNet-3", width=16, input_size=16, epochs=8, batch_size=32, validations=4, flip=False)
TRAIN, VAL = digits(0, 300), digits(1000, 1200)


@pytest.fixture(scope="module")
def trained() -> TrainedTeacher:
    return train_teacher(TRAIN, VAL, NAMES, SETTINGS, 0, "cpu")


@pytest.mark.parametrize("name", ["convnext_tiny", "mnasnet0_5", "ResNetAP-10"])
def test_weights_load_from_a_file(name: str) -> None:
    """safetensors sorts weights by name, so that the last layer is not the last, and loses versions of modules."""
    settings = Teach(network=name, input_size=32)
    network = build_teacher(settings, 7, 32, 5).eval()
    loaded = load_teacher(settings, load(save(network.state_dict())))
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded(images), network(images))


def test_load_teacher_from_its_weights_has_the_same_accuracy(trained: TrainedTeacher) -> None:
    network = load_teacher(SETTINGS, trained.state)
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert accuracy(predict(network, VAL.pixels), torch.tensor(VAL.labels)) == (trained.top1, trained.top5)


def test_load_teacher_of_another_network_is_refused(trained: TrainedTeacher) -> None:
    for settings in (SETTINGS.model_copy(update={"network": ("ConvNet-4",)}), Teach(network="ResNet-18")):
        with pytest.raises(ValueError, match=r"teach\.network: the weights are not those of"):
            load_teacher(settings, trained.state)
    with pytest.raises(ValueError, match=r"teach\.network: the weights have no linear layer"):
        load_teacher(SETTINGS, {})
    with pytest.raises(ValueError, match=r"no layer fc, so they are not those of resnet18$"):
        load_teacher(Teach(network="resnet18"), trained.state)
    with pytest.raises(ValueError, match=r"are not those of resnet18: "):
        load_teacher(Teach(network="resnet18"), {"fc.weight": torch.zeros(10, 512)})


def test_features_are_the_inputs_of_the_last_layer(trained: TrainedTeacher) -> None:
    network = load_teacher(SETTINGS, trained.state)
    computed = features(network, VAL.pixels[:70], "cpu")  # more than a batch
    assert computed.shape == (70, 16 * 2 * 2)
    assert computed.dtype == np.float32
    head = head_of(network)
    logits = computed @ head.weight.numpy().T + head.bias.numpy()
    np.testing.assert_array_equal(logits.argmax(1), predict(network, VAL.pixels)[:70, 0])
    assert not head._forward_pre_hooks


def test_soft_labels_are_probabilities_that_rank_as_the_network_does(trained: TrainedTeacher) -> None:
    network = load_teacher(SETTINGS, trained.state)
    labels = soft_labels(network, VAL.pixels[:70], "cpu")  # more than a batch
    assert labels.shape == (70, 10)
    np.testing.assert_allclose(labels.sum(1), 1, rtol=1e-5)
    np.testing.assert_array_equal(labels.argmax(1), predict(network, VAL.pixels)[:70, 0])
