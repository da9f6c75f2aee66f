"""The penalty on hubs against loops in float64, whole and in shares of processes."""

from __future__ import annotations

import math
from statistics import variance

import pytest
import torch
from torch import Tensor

from cmpagl_core.losses import hubness_loss, spread_share


def logits(seed: int, size: int = 7) -> Tensor:
    return 5 * torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("seed", range(3))
def test_it_is_the_variance_of_nearness_both_ways(seed: int) -> None:
    given = logits(seed)
    near = [
        [math.log(sum(math.exp(value) for value in row)) for row in matrix.tolist()] for matrix in (given, given.t())
    ]
    assert hubness_loss(given).item() == pytest.approx(variance(near[0]) + variance(near[1]), rel=1e-12)


def test_equally_near_items_and_single_pairs_cost_nothing() -> None:
    assert hubness_loss(torch.eye(5)).item() == pytest.approx(0.0, abs=1e-12)
    assert hubness_loss(torch.ones(1, 1)).item() == 0.0


def test_a_step_along_its_gradient_pushes_a_hub_away() -> None:
    given = torch.zeros(4, 4)
    given[:, 2] = 1.0  # a caption that is near to every image
    given.requires_grad_()
    (gradient,) = torch.autograd.grad(hubness_loss(given), given)
    assert bool((gradient[:, 2] > 0).all())
    assert bool((gradient[:, [0, 1, 3]] < 0).all())


@pytest.mark.parametrize("sizes", [(7,), (4, 3), (3, 2, 2)], ids=str)
def test_the_shares_of_processes_sum_to_the_loss_and_its_gradient(sizes: tuple[int, ...]) -> None:
    given = logits(0).requires_grad_()
    images, texts = given.logsumexp(dim=1), given.logsumexp(dim=0)
    shares = [spread_share(own, near.detach()) for near in (images, texts) for own in near.split(list(sizes))]
    found, expected = torch.stack(shares).sum(), hubness_loss(given)
    assert torch.allclose(found, expected)
    assert torch.allclose(torch.autograd.grad(found, given)[0], torch.autograd.grad(hubness_loss(given), given)[0])
