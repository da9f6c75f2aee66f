"""Balanced scores are cosines less the potentials of a transport plan of the training data."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cmpagl_core.errors import RecipeError
from cmpagl_core.models.balance import Balance
from cmpagl_core.ranking.offsets import sinkhorn
from cmpagl_core.ranking.scores import ScoreMatrix
from cmpagl_core.recipe_files import parse_recipe

SCALE = 10.0


def unit(rows: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(rows, 8, generator=torch.Generator().manual_seed(seed)), dim=1)


def fitted(images: Tensor, texts: Tensor, often: Tensor | None = None) -> Balance:
    balance = Balance(8)
    balance.fit(images, texts, torch.ones(len(texts)) if often is None else often, SCALE)
    return balance


def scores(balance: Balance, images: Tensor, texts: Tensor) -> Tensor:
    less = balance.image_potentials(images.numpy()), balance.text_potentials(texts.numpy())
    matrix = ScoreMatrix.from_features(images.numpy(), texts.numpy(), less=less)
    return torch.from_numpy(matrix.block(slice(0, len(images)), slice(0, len(texts))).copy())


def test_on_its_own_bank_it_ranks_as_sinkhorn_does() -> None:
    images, texts = unit(12, 0), unit(20, 1)
    plan = sinkhorn(ScoreMatrix.from_array((images @ texts.t()).numpy()), SCALE)
    expected = torch.from_numpy(plan.block(slice(0, 12), slice(0, 20)).copy()).float()
    found = SCALE * scores(fitted(images, texts), images, texts)
    torch.testing.assert_close(found - found.mean(), expected - expected.mean(), atol=1e-2, rtol=0.0)


def test_a_score_is_the_cosine_less_both_potentials() -> None:
    balance, images, texts = fitted(unit(12, 0), unit(20, 1)), unit(5, 2), unit(7, 3)
    row = (SCALE * images @ balance.text_bank.t() - balance.text_offsets).logsumexp(dim=1, keepdim=True) / SCALE
    column = (SCALE * texts @ balance.image_bank.t() - balance.image_offsets).logsumexp(dim=1) / SCALE
    torch.testing.assert_close(scores(balance, images, texts), images @ texts.t() - row - column, atol=1e-5, rtol=0.0)


def test_a_caption_near_to_every_image_sinks() -> None:
    images = F.normalize(unit(30, 0) + 1.0, dim=1)
    hub = F.normalize(images.mean(dim=0, keepdim=True), dim=1)
    texts = torch.cat([hub, F.normalize(images + 0.7 * unit(30, 1), dim=1)])
    balance = fitted(images, texts)
    plain, balanced = images @ texts.t(), scores(balance, images, texts)
    ranks = [float((of > of[:, :1]).sum(dim=1).float().mean()) for of in (plain, balanced)]
    assert ranks[1] > ranks[0] + 5


def test_a_repeated_caption_counts_as_often_as_it_occurs() -> None:
    images, texts = unit(12, 0), unit(5, 1)
    once = fitted(images, texts, torch.tensor([1, 3, 1, 1, 2]))
    repeated = fitted(images, texts[torch.tensor([0, 1, 1, 1, 2, 3, 4, 4])])
    np.testing.assert_allclose(
        once.image_potentials(unit(4, 2).numpy()), repeated.image_potentials(unit(4, 2).numpy()), atol=1e-6
    )
    np.testing.assert_allclose(
        once.text_potentials(unit(4, 3).numpy()), repeated.text_potentials(unit(4, 3).numpy()), atol=1e-6
    )


def test_a_saved_balance_is_restored_whatever_its_size() -> None:
    balance, empty = fitted(unit(12, 0), unit(20, 1)), Balance(8)
    assert len(empty.image_bank) == 0
    empty.load_state_dict(balance.state_dict())
    assert len(empty.image_bank) > 0
    np.testing.assert_allclose(
        empty.image_potentials(unit(4, 2).numpy()), balance.image_potentials(unit(4, 2).numpy()), atol=1e-6
    )


def test_without_itc_there_is_no_scale_to_balance_with() -> None:
    with pytest.raises(RecipeError, match="logit scale that ITC learns"):
        parse_recipe("version: 1\nlosses: {itc: 0.0}\ntrain: {balance_images: 8}\n", "here")
