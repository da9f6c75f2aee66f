"""Rates, decay and averages are what the recipe says."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from cmpagl_core.recipe import OptimPart
from cmpagl_core.training.optim import (
    RunningAverage,
    make_optimizer,
    optimizer_tensors,
    restore_optimizer,
    schedule,
    set_rate,
)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.imported = nn.Linear(2, 2)
        self.norm = nn.LayerNorm(2)
        self.relative_position_bias_table = nn.Parameter(torch.zeros(9, 2))
        self.gate = nn.Parameter(torch.zeros(2, 2))
        self.logit_scale = nn.Parameter(torch.tensor(1.0))

    def loss(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.norm(self.imported(x)) @ self.gate * self.logit_scale
        return (out.sum() - 1) ** 2 + self.relative_position_bias_table.sum() ** 2


def small() -> tuple[Small, dict[str, str]]:
    torch.manual_seed(0)
    model = Small()
    origins = {name: "imported_text" if name.startswith("imported") else "new" for name, _ in model.named_parameters()}
    return model, origins


def test_imported_weights_learn_slower_and_only_matrices_decay() -> None:
    model, origins = small()
    optimizer = make_optimizer(model, origins, OptimPart(lr=1e-3, text_lr_scale=0.1, weight_decay=0.05))
    set_rate(optimizer, 0.5)
    found = {
        id(parameter): (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    expected = {
        "imported.weight": (5e-5, 0.05),
        "imported.bias": (5e-5, 0.0),
        "norm.weight": (5e-4, 0.0),
        "norm.bias": (5e-4, 0.0),
        "relative_position_bias_table": (5e-4, 0.0),
        "gate": (5e-4, 0.0),
        "logit_scale": (5e-4, 0.0),
    }
    for name, parameter in model.named_parameters():
        assert found[id(parameter)] == pytest.approx(expected[name]), name


def test_a_scale_of_0_freezes_imported_weights() -> None:
    model, origins = small()
    optimizer = make_optimizer(model, origins, OptimPart(text_lr_scale=0.0))
    assert not model.imported.weight.requires_grad
    assert all(p is not model.imported.weight for group in optimizer.param_groups for p in group["params"])


def test_the_rate_rises_on_a_line_and_falls_on_a_cosine() -> None:
    shares = [schedule(step, total=100, warmup_fraction=0.1) for step in range(100)]
    assert shares[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert shares[10:] == pytest.approx([0.5 * (1 + math.cos(math.pi * step / 90)) for step in range(90)])
    assert schedule(0, total=1, warmup_fraction=0.0) == 1.0


def test_a_restored_optimizer_takes_the_same_steps() -> None:
    batch = torch.randn(4, 2, generator=torch.Generator().manual_seed(1))

    def steps(model: Small, optimizer: torch.optim.Optimizer, count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            model.loss(batch).backward()
            optimizer.step()

    model, origins = small()
    optimizer = make_optimizer(model, origins, OptimPart())
    set_rate(optimizer, 1.0)
    steps(model, optimizer, 3)
    kept = {name: tensor.clone() for name, tensor in optimizer_tensors(model, optimizer).items()}
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    steps(model, optimizer, 3)

    again, _ = small()
    again.load_state_dict(weights)
    optimizer = make_optimizer(again, origins, OptimPart())
    set_rate(optimizer, 1.0)
    restore_optimizer(again, optimizer, kept)
    steps(again, optimizer, 3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_the_running_average_follows_its_recurrence() -> None:
    model, _ = small()
    average = RunningAverage(model, decay=0.5)
    expected = model.imported.weight.detach().clone()
    for step in range(12):
        with torch.no_grad():
            model.imported.weight.add_(1.0)
        average.update(model, step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.imported.weight.detach()
    torch.testing.assert_close(average.tensors["imported.weight"], expected)


def test_averaged_weights_are_there_inside_the_block_only() -> None:
    model, _ = small()
    average = RunningAverage(model, decay=0.9)
    before = model.imported.weight.detach().clone()
    with torch.no_grad():
        model.imported.weight.add_(1.0)
    own = model.imported.weight.detach().clone()
    with average.applied(model):
        assert torch.equal(model.imported.weight, before)
    assert torch.equal(model.imported.weight, own)


def test_weights_unfrozen_later_join_the_average() -> None:
    model, _ = small()
    model.imported.requires_grad_(False)
    average = RunningAverage(model, decay=0.9)
    assert "imported.weight" not in average.tensors
    model.imported.requires_grad_(True)
    average.update(model, 0)
    assert torch.equal(average.tensors["imported.weight"], model.imported.weight)
