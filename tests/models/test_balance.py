"""Balanced features are cosines less the potentials of a transport plan of the training data."""

from __future__ import annotations

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


def test_on_its_own_bank_it_ranks_as_sinkhorn_does() -> None:
    images, texts = unit(12, 0), unit(20, 1)
    balance = fitted(images, texts)
    balanced = balance.images(images) @ balance.texts(texts).t()
    plan = sinkhorn(ScoreMatrix.from_array((images @ texts.t()).numpy()), SCALE).row_tiles()
    expected = torch.from_numpy(next(tile for _, tile in plan).copy())
    assert torch.corrcoef(torch.stack([balanced.flatten().double(), expected.flatten()]))[0, 1] > 0.999


def test_its_features_have_unit_length_and_their_products_are_the_balanced_scores() -> None:
    balance, images, texts = fitted(unit(12, 0), unit(20, 1)), unit(5, 2), unit(7, 3)
    of_images, of_texts = balance.images(images), balance.texts(texts)
    torch.testing.assert_close(of_images.norm(dim=1), torch.ones(5))
    torch.testing.assert_close(of_texts.norm(dim=1), torch.ones(7))
    row = -(SCALE * images @ balance.text_bank.t() - balance.text_offsets).logsumexp(dim=1) / SCALE
    column = -(SCALE * texts @ balance.image_bank.t() - balance.image_offsets).logsumexp(dim=1) / SCALE
    lengths = (2 + row[:, None] ** 2).sqrt() * (2 + column[None] ** 2).sqrt()
    torch.testing.assert_close(of_images @ of_texts.t(), (images @ texts.t() + row[:, None] + column[None]) / lengths)


def test_a_caption_near_to_every_image_sinks() -> None:
    images = F.normalize(unit(30, 0) + 1.0, dim=1)
    hub = F.normalize(images.mean(dim=0, keepdim=True), dim=1)
    texts = torch.cat([hub, F.normalize(images + 0.7 * unit(30, 1), dim=1)])
    balance = fitted(images, texts)
    plain, balanced = images @ texts.t(), balance.images(images) @ balance.texts(texts).t()
    ranks = [float((scores > scores[:, :1]).sum(dim=1).float().mean()) for scores in (plain, balanced)]
    assert ranks[1] > ranks[0] + 5


def test_a_repeated_caption_counts_as_often_as_it_occurs() -> None:
    images, texts = unit(12, 0), unit(5, 1)
    once = fitted(images, texts, torch.tensor([1, 3, 1, 1, 2]))
    repeated = fitted(images, texts[torch.tensor([0, 1, 1, 1, 2, 3, 4, 4])])
    torch.testing.assert_close(once.images(unit(4, 2)), repeated.images(unit(4, 2)))
    torch.testing.assert_close(once.texts(unit(4, 3)), repeated.texts(unit(4, 3)))


def test_a_saved_balance_is_restored_whatever_its_size() -> None:
    balance, empty = fitted(unit(12, 0), unit(20, 1)), Balance(8)
    assert not empty.is_fitted
    empty.load_state_dict(balance.state_dict())
    assert empty.is_fitted
    torch.testing.assert_close(empty.images(unit(4, 2)), balance.images(unit(4, 2)))


def test_without_itc_there_is_no_scale_to_balance_with() -> None:
    with pytest.raises(RecipeError, match="logit scale that ITC learns"):
        parse_recipe("version: 1\nlosses: {itc: 0.0}\ntrain: {balance_images: 8}\n", "here")
