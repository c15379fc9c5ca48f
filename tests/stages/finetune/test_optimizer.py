"""Tests of the optimiser of fine-tuning and of the moving average of the weights."""

import sys

import pytest
import torch
from diffusers.training_utils import EMAModel

from vlcp_ray.settings import ConfigError
from vlcp_ray.stages.finetune.optimizer import MovingAverage, make_optimizer


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.Linear(128, 8))


def change(model: torch.nn.Module, step: int) -> None:
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(step))


def test_moving_average_equals_that_of_diffusers() -> None:
    model = network()
    theirs, ours = EMAModel(model.parameters(), decay=0.9), MovingAverage(model, 0.9, torch.device("cpu"))
    for step in range(20):
        change(model, step)
        theirs.step(model.parameters())
        ours.step()
    assert ours.steps == theirs.optimization_step == 20
    for mine, other in zip(ours.weights, theirs.shadow_params, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-7)


def test_moving_average_applied_ends_with_the_weights_of_before() -> None:
    model = network()
    average = MovingAverage(model, 0.9, torch.device("cpu"))
    average.weights = [torch.full_like(weight, 0.5) for weight in model.parameters()]
    before = [weight.clone() for weight in model.parameters()]
    inside: list[bool] = []

    def stop() -> None:
        with average.applied():
            inside.extend(bool((weight == 0.5).all()) for weight in model.parameters())
            raise InterruptedError

    with pytest.raises(InterruptedError):
        stop()
    assert inside == [True] * len(before)
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize(("kind", "tolerance"), [("adamw", 1e-6), ("adamw8bit", 2e-3)])
def test_optimizer_follows_adamw(kind: str, tolerance: float) -> None:
    models = [network(), network()]
    ours = make_optimizer(kind, models[0].parameters(), 1e-3, 0.01)  # type: ignore[arg-type]
    theirs = torch.optim.AdamW(models[1].parameters(), lr=1e-3, weight_decay=0.01, foreach=False)
    for step in range(10):
        batch = torch.randn(16, 64, generator=torch.Generator().manual_seed(step))
        for model, optimizer in zip(models, (ours, theirs), strict=True):
            optimizer.zero_grad()
            model(batch).pow(2).mean().backward()
            optimizer.step()
    for mine, other in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=tolerance)


def test_moments_of_the_optimizers_have_four_bytes_and_one() -> None:
    moments = {"adamw": "exp_avg", "adamw8bit": "state1"}
    for kind, name in moments.items():
        model = network()
        optimizer = make_optimizer(kind, model.parameters(), 1e-3, 0.01)  # type: ignore[arg-type]
        model(torch.ones(1, 64)).sum().backward()
        optimizer.step()
        state = optimizer.state[model[0].weight][name]  # type: ignore[index]
        assert state.element_size() == (1 if kind == "adamw8bit" else 4)


def test_optimizer_of_a_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(ConfigError, match=r"finetune.optimizer: adamw8bit needs bitsandbytes, .* pip install bitsandb"):
        make_optimizer("adamw8bit", network().parameters(), 1e-3, 0.01)
