"""The recipe's part for data: which images and captions, how they become tensors, and what chooses."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from cmpagl_core.recipe_fields import Part, Seed, Word


class SelectionPart(Part):
    """The split that chooses the epoch and SMR's gammas: a split of its own, or a held-out share of train."""

    split: Annotated[Literal["val", "train", "test"], Word] = Field(
        "val", description="val, or train to hold out a random share of it; test is refused"
    )
    fraction: float = Field(0.1, gt=0.0, lt=1.0, description="share of train's images held out; only for split train")
    seed: Seed = Field(0, description="seed of that random share")


class DataPart(Part):
    """The prepared data set, and how its images and captions become tensors."""

    dataset: str = Field("", description="name or path of a prepared data set; empty: the newest")
    image_size_px: int = Field(
        224, ge=32, le=1024, description="images are resized to this square; the aspect ratio is not kept"
    )
    max_caption_tokens: int = Field(64, ge=8, le=512, description="longer captions are truncated")
    augment: Annotated[Literal["none", "flips", "d4"], Word] = Field(
        "d4", description="flips, or d4 (8 flips and 90-degree rotations); skipped for captions that name a direction"
    )
    crop_scale_min: float = Field(
        1.0, gt=0.0, le=1.0, description="smallest random crop, as a share of the image's area; 1: no crops"
    )
    workers: int = Field(0, ge=0, le=64, description="threads that decode images in the background; 0: none")
    selection: SelectionPart = SelectionPart()
