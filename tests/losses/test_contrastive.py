"""ITC and the metric losses against loops in float64, on batches with duplicates."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cmpagl_core.losses import (
    ScoreShare,
    caption_overlap,
    circle_loss,
    itc_loss,
    itc_share,
    metric_loss,
    metric_share,
    supcon_loss,
    triplet_loss,
)
from cmpagl_core.recipe import LossesPart

Loss = Callable[[Tensor, Tensor], Tensor]


def batch(seed: int, size: int = 7, groups: int = 4, owned: float = 0.15) -> tuple[Tensor, Tensor]:
    """Scores in -1 to 1 and the positives of a batch in which some pairs are duplicates.

    owned: share of the pairs that match one way alone: the image has such a caption, which it did not draw.
    """
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(size, size, generator=generator, dtype=torch.float64) * 2 - 1
    group = torch.randint(groups, (size,), generator=generator)
    one_way = torch.rand(size, size, generator=generator) < owned
    return scores, (group[:, None] == group[None, :]) | one_way


def both_ways(row_loss: Callable[[list[float], list[bool], int], float], scores: Tensor, positives: Tensor) -> float:
    size = len(scores)
    rows = [row_loss(scores[i].tolist(), positives[i].tolist(), i) for i in range(size)]
    columns = [row_loss(scores[:, j].tolist(), positives[:, j].tolist(), j) for j in range(size)]
    return (sum(rows) + sum(columns)) / (2 * size)


def itc_row(row: list[float], positive: list[bool], own: int) -> float:
    negatives = sum(math.exp(value) for value, is_positive in zip(row, positive, strict=True) if not is_positive)
    pulled = [
        -math.log(math.exp(value) / (math.exp(value) + negatives))
        for value, is_positive in zip(row, positive, strict=True)
        if is_positive
    ]
    return sum(pulled) / len(pulled)


def circle_row(row: list[float], positive: list[bool], own: int, m: float = 0.25, gamma: float = 64.0) -> float:
    to_positives = to_negatives = 0.0
    for value, is_positive in zip(row, positive, strict=True):
        if is_positive:
            to_positives += math.exp(-gamma * max(0.0, 1 + m - value) * (value - (1 - m)))
        else:
            to_negatives += math.exp(gamma * max(0.0, value + m) * (value - m))
    return math.log(1 + to_positives * to_negatives)


def supcon_row(row: list[float], positive: list[bool], own: int, temperature: float = 0.1) -> float:
    total = sum(math.exp(value / temperature) for value in row)
    pulled = [
        -math.log(math.exp(value / temperature) / total)
        for value, is_positive in zip(row, positive, strict=True)
        if is_positive
    ]
    return sum(pulled) / len(pulled)


def triplet_loop(scores: Tensor, positives: Tensor, margin: float, intra: float, hardest: bool) -> float:
    s, total = scores.tolist(), 0.0
    for i in range(len(s)):
        texts = [max(0.0, margin - s[i][i] + s[i][j]) for j in range(len(s)) if not positives[i, j]]
        images = [max(0.0, margin - s[i][i] + s[j][i]) for j in range(len(s)) if not positives[j, i]]
        for hinges in (texts, images):
            total += (max(hinges, default=0.0) if hardest else sum(hinges)) / len(s)
        total += intra * (1 - s[i][i]) / len(s)
    return total


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("loss", "row"),
    [(itc_loss, itc_row), (circle_loss, circle_row), (supcon_loss, supcon_row)],
    ids=["itc", "circle", "supcon"],
)
def test_a_loss_of_rows_and_columns_equals_a_loop(
    loss: Loss, row: Callable[[list[float], list[bool], int], float], seed: int
) -> None:
    scores, positives = batch(seed)
    assert loss(scores, positives).item() == pytest.approx(both_ways(row, scores, positives), rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("intra", [0.0, 1.0])
@pytest.mark.parametrize("negatives", ["sum", "hardest"])
def test_the_triplet_loss_equals_a_loop(seed: int, intra: float, negatives: str) -> None:
    scores, positives = batch(seed)
    expected = triplet_loop(scores, positives, 0.2, intra, negatives == "hardest")
    assert triplet_loss(scores, positives, 0.2, intra, negatives).item() == pytest.approx(expected, rel=1e-12)


def soft_row(row: list[float], positive: list[bool], target: list[float], share: float, smoothing: float) -> float:
    negatives = [j for j, is_positive in enumerate(positive) if not is_positive]
    loss = (1 - share - smoothing) * itc_row(row, positive, 0)
    if negatives:
        total = sum(math.exp(row[j]) for j in negatives)
        spread = sum(math.exp(target[j] / 0.1) for j in negatives)
        for j in negatives:
            log_share = math.log(math.exp(row[j]) / total)
            loss -= (share * math.exp(target[j] / 0.1) / spread + smoothing / len(negatives)) * log_share
    return loss


@pytest.mark.parametrize("seed", range(4))
def test_soft_targets_and_smoothing_equal_a_loop(seed: int) -> None:
    scores, positives = batch(seed)
    likeness = torch.rand(7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    rows = [soft_row(scores[i].tolist(), positives[i].tolist(), likeness[i].tolist(), 0.3, 0.1) for i in range(7)]
    columns = [
        soft_row(scores[:, j].tolist(), positives[:, j].tolist(), likeness[:, j].tolist(), 0.3, 0.1) for j in range(7)
    ]
    expected = (sum(rows) + sum(columns)) / 14
    found = itc_loss(scores, positives, likeness, soft_share=0.3, label_smoothing=0.1)
    assert found.item() == pytest.approx(expected, rel=1e-12)


NEVER_REPEL: dict[str, Loss] = {
    "itc": lambda scores, positives: itc_loss(14 * scores, positives),
    "itc soft": lambda scores, positives: itc_loss(14 * scores, positives, scores.detach() ** 2, 0.4, 0.2),
    "plain": triplet_loss,
    "intra": lambda scores, positives: triplet_loss(scores, positives, intra_weight=1.0),
    "hardest": lambda scores, positives: triplet_loss(scores, positives, negatives="hardest"),
    "circle": circle_loss,
}


@pytest.mark.parametrize("name", NEVER_REPEL)
@given(seed=st.integers(0, 10_000), groups=st.integers(1, 7))
def test_a_duplicates_similarity_never_gets_a_repulsive_gradient(name: str, seed: int, groups: int) -> None:
    scores, positives = batch(seed, groups=groups)
    scores.requires_grad_()
    (gradient,) = torch.autograd.grad(NEVER_REPEL[name](scores, positives), scores)
    assert bool(gradient.isfinite().all())
    assert bool((gradient[positives] <= 0).all())


@pytest.mark.parametrize("seed", range(5))
def test_supcon_never_repels_duplicates_that_are_equally_similar(seed: int) -> None:
    """As published, positives compete; identical captions have equal scores, and those are never pushed away."""
    scores, positives = batch(seed, owned=0.0)
    group = torch.arange(7)[:, None].where(positives, torch.tensor(7)).amin(dim=0)  # first member of each group
    scores = scores[group][:, group].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(supcon_loss(scores, positives), scores)
    assert bool((gradient[positives] <= 1e-12).all())


@pytest.mark.parametrize("name", NEVER_REPEL)
def test_a_batch_of_duplicates_alone_has_no_nan(name: str) -> None:
    scores = batch(0)[0].float().requires_grad_()
    loss = NEVER_REPEL[name](scores, torch.ones(7, 7, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(loss, scores)
    assert bool(loss.isfinite())
    assert bool(gradient.isfinite().all())


def test_confident_logits_do_not_overflow() -> None:
    scores, positives = torch.eye(4) * 2 - 1, torch.eye(4, dtype=torch.bool)
    assert itc_loss(100 * scores, positives).item() < 1e-6
    assert math.isfinite(itc_loss(-100 * scores, positives).item())
    assert math.isfinite(circle_loss(-scores, positives).item())


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"triplet": "plain"}, lambda s, p: triplet_loss(s, p, 0.3)),
        ({"triplet": "intra", "intra_weight": 0.5}, lambda s, p: triplet_loss(s, p, 0.3, 0.5)),
        ({"triplet": "plain", "triplet_negatives": "hardest"}, lambda s, p: triplet_loss(s, p, 0.3, 0.0, "hardest")),
        ({"triplet": "circle"}, lambda s, p: circle_loss(s, p, 0.3)),
        ({"triplet": "supcon"}, supcon_loss),
    ],
)
def test_the_recipe_chooses_the_metric_loss(fields: dict[str, object], expected: Loss) -> None:
    scores, positives = batch(0)
    cfg = LossesPart(margin_cosine=0.3, **fields)
    assert torch.equal(metric_loss(cfg, scores, positives), expected(scores, positives))


def test_caption_overlap_is_the_share_of_common_tokens() -> None:
    ids = torch.tensor([[5, 6, 7, 7, 0], [6, 7, 8, 0, 0], [9, 9, 9, 9, 9]])
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
    expected = torch.tensor([[1.0, 0.5, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 1.0]])
    assert torch.allclose(caption_overlap(ids, mask, vocab_size=10), expected)


def shares_of(scores: Tensor, positives: Tensor, sizes: tuple[int, ...]) -> list[ScoreShare]:
    """The scores as so many processes hold them."""
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    rows = [slice(start, start + size) for start, size in zip(starts, sizes, strict=True)]
    return [ScoreShare(scores[own], scores.t()[own], positives[own], positives.t()[own], own.start) for own in rows]


@pytest.mark.parametrize("sizes", [(7,), (4, 3), (3, 2, 2)], ids=str)
@pytest.mark.parametrize("kind", ["plain", "intra", "hardest", "circle", "supcon", "itc"])
def test_the_shares_of_processes_sum_to_the_loss_and_its_gradient(kind: str, sizes: tuple[int, ...]) -> None:
    scores, positives = batch(seed=4)
    positives |= torch.eye(len(scores), dtype=torch.bool)
    scores.requires_grad_()
    hardest = {"triplet": "plain", "triplet_negatives": "hardest"}
    cfg = LossesPart.model_validate(hardest if kind == "hardest" else {"triplet": "intra" if kind == "itc" else kind})
    shares = shares_of(scores, positives, sizes)
    if kind == "itc":
        soft, scale = (scores.detach() + scores.detach().t()) ** 2, torch.tensor(14.0, dtype=torch.float64)
        whole = itc_loss(scale * scores, positives, soft, 0.4, 0.2)
        parts = [
            itc_share(share, scale, soft[share.first : share.first + size], 0.4, 0.2)
            for share, size in zip(shares, sizes, strict=True)
        ]
    else:
        whole, parts = metric_loss(cfg, scores, positives), [metric_share(cfg, share) for share in shares]
    assert sum(part.item() for part in parts) == pytest.approx(whole.item(), rel=1e-12)
    (expected,) = torch.autograd.grad(whole, scores)
    (found,) = torch.autograd.grad(torch.stack(parts).sum(), scores)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
