"""ITM's hard negatives and MLM's masks, drawn from a given generator; both losses against loops."""

from __future__ import annotations

import math

import pytest
import torch

from cmpagl_core.losses import hard_negatives, itm_loss, itm_pairs, mask_tokens, mlm_loss


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_hard_negatives_are_drawn_as_often_as_the_softmax_says() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    positives = torch.tensor([[False, True, False, False]])
    drawn = hard_negatives(logits.expand(4000, 4), positives.expand(4000, 4), generator())
    shares = torch.bincount(drawn, minlength=4) / 4000
    expected = logits.masked_fill(positives, -torch.inf).softmax(dim=1)[0]
    assert shares[1] == 0
    assert torch.allclose(shares, expected, atol=0.03)


def test_a_row_without_negatives_is_left_out() -> None:
    positives = torch.tensor([[True, True, True], [True, True, False], [True, False, True]])
    logits = torch.zeros(3, 3)
    assert hard_negatives(logits, positives, generator()).tolist() == [-1, 2, 1]
    pairs = itm_pairs(logits, positives, generator())
    assert pairs.images.tolist() == [0, 1, 2, 1, 2, 2, 1]
    assert pairs.texts.tolist() == [0, 1, 2, 2, 1, 1, 2]
    assert pairs.matches.tolist() == [True] * 3 + [False] * 4


def test_no_pair_called_a_negative_is_a_duplicate() -> None:
    logits = torch.randn(16, 16, generator=generator())
    group = torch.randint(6, (16,), generator=generator())
    positives = (group[:, None] == group[None, :]) | (torch.rand(16, 16, generator=generator(1)) < 0.1)
    assert not torch.equal(positives, positives.t())
    for seed in range(20):
        pairs = itm_pairs(logits, positives, generator(seed))
        assert torch.equal(positives[pairs.images, pairs.texts], pairs.matches)
        assert len(pairs.matches) == 48


def test_negatives_of_no_hardness_are_drawn_without_a_look_at_their_logits() -> None:
    logits = torch.tensor([[0.0, 9.0, -9.0, 1.0]]).expand(3000, 4)
    logits = torch.cat([logits, torch.zeros(3000, 2996)], dim=1)
    positives = torch.zeros(3000, 3000, dtype=torch.bool)
    positives[:, 4:] = True  # every row has the first four columns for negatives
    pairs = itm_pairs(logits, positives, generator(), hardness=0.0)
    texts = pairs.texts[3000:6000]
    assert torch.allclose(torch.bincount(texts, minlength=4) / 3000, torch.full((4,), 0.25), atol=0.03)
    hard = itm_pairs(logits, positives, generator()).texts[3000:6000]
    assert float((hard == 1).float().mean()) > 0.99


def test_the_same_generator_draws_the_same() -> None:
    logits, positives = torch.randn(9, 9), torch.eye(9, dtype=torch.bool)
    first, again = (itm_pairs(logits, positives, generator(5)) for _ in range(2))
    assert torch.equal(first.texts, again.texts)
    assert torch.equal(first.images, again.images)


def test_a_batch_of_duplicates_alone_has_only_matches() -> None:
    pairs = itm_pairs(torch.zeros(3, 3), torch.ones(3, 3, dtype=torch.bool), generator())
    assert pairs.matches.tolist() == [True, True, True]


def test_the_matching_loss_equals_a_loop() -> None:
    logits = torch.randn(6, 2, dtype=torch.float64)
    matches = torch.tensor([True, False, True, True, False, False])
    expected = 0.0
    for (no, yes), match in zip(logits.tolist(), matches.tolist(), strict=True):
        expected -= math.log(math.exp(yes if match else no) / (math.exp(no) + math.exp(yes))) / 6
    assert itm_loss(logits, matches).item() == pytest.approx(expected, rel=1e-6)


def test_masking_chooses_fifteen_percent_and_splits_them_80_10_10() -> None:
    input_ids = torch.randint(10, 5000, (400, 50), generator=generator())
    input_ids[:, 0] = 2
    attention_mask = torch.arange(50)[None, :] < torch.randint(5, 51, (400, 1), generator=generator(1))
    masked = mask_tokens(input_ids, attention_mask, 0.15, 4, (0, 2, 3), 5000, generator(2))
    may = attention_mask & (input_ids != 2)
    assert not bool(masked.chosen[~may].any())
    assert torch.equal(masked.input_ids[~masked.chosen], input_ids[~masked.chosen])
    chosen = masked.chosen
    assert chosen.sum().item() / may.sum().item() == pytest.approx(0.15, abs=0.01)
    now, then = masked.input_ids[chosen], input_ids[chosen]
    shares = [(now == 4), (now == then), (now != 4) & (now != then)]
    for share, expected in zip(shares, (0.8, 0.1, 0.1), strict=True):
        assert share.float().mean().item() == pytest.approx(expected, abs=0.03)


def test_masks_are_drawn_from_the_generator_alone() -> None:
    ids, mask = torch.randint(5, 90, (4, 9)), torch.ones(4, 9, dtype=torch.bool)
    torch.manual_seed(1)
    first = mask_tokens(ids, mask, 0.5, 4, (0,), 90, generator(3))
    torch.manual_seed(2)
    again = mask_tokens(ids, mask, 0.5, 4, (0,), 90, generator(3))
    assert torch.equal(first.input_ids, again.input_ids)
    assert torch.equal(first.chosen, again.chosen)


def test_the_masked_language_loss_equals_a_loop() -> None:
    logits, targets = torch.randn(5, 7, dtype=torch.float64), torch.tensor([0, 6, 3, 3, 1])
    expected = 0.0
    for row, target in zip(logits.tolist(), targets.tolist(), strict=True):
        expected -= math.log(math.exp(row[target]) / sum(math.exp(value) for value in row)) / 5
    assert mlm_loss(logits, targets).item() == pytest.approx(expected, rel=1e-6)


def test_accumulation_changes_nothing_for_mlm_under_global_normalisation() -> None:
    logits, targets = torch.randn(12, 7, requires_grad=True), torch.randint(7, (12,))
    (whole,) = torch.autograd.grad(mlm_loss(logits, targets), logits)
    micro = (slice(0, 2), slice(2, 9), slice(9, 12))  # three micro-batches with unequal numbers of tokens
    parts = sum(mlm_loss(logits[part], targets[part], normaliser=12 / 3) for part in micro) / 3
    (accumulated,) = torch.autograd.grad(parts, logits)
    assert torch.allclose(whole, accumulated, atol=1e-7)


def test_a_batch_in_which_nothing_was_masked_costs_nothing() -> None:
    logits = torch.randn(0, 7, requires_grad=True)
    loss = mlm_loss(logits, torch.zeros(0, dtype=torch.long))
    assert loss.item() == 0.0
    loss.backward()
