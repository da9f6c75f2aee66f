"""Feature and relation distillation against loops in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from cmpagl_core.losses import feature_distillation_loss, relation_distillation_loss


def features(seed: int, width: int, images: int = 6) -> Tensor:
    return torch.randn(images, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cosine(one: Tensor, other: Tensor) -> float:
    return float(one @ other / one.norm() / other.norm())


def test_the_feature_loss_is_one_minus_the_mean_cosine() -> None:
    student, teacher = features(0, 5), features(1, 5)
    expected = 1 - sum(map(cosine, student, teacher)) / len(student)
    assert float(feature_distillation_loss(student, teacher)) == pytest.approx(expected, abs=1e-6)
    assert float(feature_distillation_loss(3 * teacher, teacher)) == pytest.approx(0.0, abs=1e-6)


def test_the_relation_loss_is_the_divergence_of_rows_without_their_own_image() -> None:
    student, teacher, temperature = features(0, 4), features(1, 9), 0.5

    def row(of: Tensor, image: int) -> list[float]:
        powers = [math.exp(cosine(of[image], of[j]) / temperature) for j in range(len(of)) if j != image]
        return [power / sum(powers) for power in powers]

    rows = [(row(teacher, image), row(student, image)) for image in range(len(student))]
    expected = sum(p * math.log(p / q) for ps, qs in rows for p, q in zip(ps, qs, strict=True)) / len(rows)
    assert float(relation_distillation_loss(student, teacher, temperature)) == pytest.approx(expected, rel=1e-4)


def test_relations_do_not_depend_on_width_scale_or_rotation() -> None:
    teacher = features(0, 5)
    turned = 2.5 * teacher @ torch.linalg.qr(features(1, 5, images=5)).Q
    assert float(relation_distillation_loss(turned, teacher, 0.1)) == pytest.approx(0.0, abs=1e-5)


def test_one_image_has_no_relations() -> None:
    with pytest.raises(ValueError, match="at least two images"):
        relation_distillation_loss(features(0, 3, images=1), features(0, 3, images=1), 0.1)
