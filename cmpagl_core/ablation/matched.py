"""Plain Swin that costs as much as Gswin: without the global window, but wider (ours).

What a part of a model gains may be what its operations or its parameters gain anywhere; so the variant without it is
widened until it has as many. Only the width moves: depth and windows stay, so that both see an image in the same way.
"""

from __future__ import annotations

from bisect import bisect_left
from functools import cache
from typing import Literal

from cmpagl_core.models.summary import image_encoder_parameters, image_encoder_size
from cmpagl_core.recipe import ImageEncoderPart, Recipe

Measure = Literal["flops", "parameters"]

_WIDEST = 2  # times the width; a global window never costs more


def widened(recipe: Recipe, measure: Measure) -> tuple[str, ...]:
    """Overrides for the width at which plain Swin comes nearest to the recipe's own encoder in FLOPs or parameters.

    Empty where the encoder is no Swin from patches: a backbone and what joins it would be widened too.
    """
    cfg, size_px = recipe.image_encoder, recipe.data.image_size_px
    if cfg.backbone != "none":
        return ()
    return (
        "image_encoder.global_window=false",
        "image_encoder.size=custom",
        f"image_encoder.width={_matched_width(cfg, size_px, measure)}",
        f"image_encoder.depths={list(cfg.depths)}",
        f"image_encoder.num_heads={list(cfg.num_heads)}",
    )


@cache
def _matched_width(cfg: ImageEncoderPart, size_px: int, measure: Measure) -> int:
    """Of the widths at which every stage's heads share its channels evenly; costs grow with the width."""
    wanted = _cost(cfg, size_px, measure)
    wider = range(cfg.width, _WIDEST * cfg.width + 1)
    widths = [
        width for width in wider if all(width * 2**stage % heads == 0 for stage, heads in enumerate(cfg.num_heads))
    ]

    def cost(width: int) -> int:
        return _cost(
            cfg.model_copy(update={"width": width, "size": "custom", "global_window": False}), size_px, measure
        )

    above = bisect_left(widths, wanted, key=cost)
    return min(widths[max(0, above - 1) : above + 1], key=lambda width: abs(cost(width) - wanted))


def _cost(cfg: ImageEncoderPart, size_px: int, measure: Measure) -> int:
    return image_encoder_size(cfg, size_px).flops if measure == "flops" else image_encoder_parameters(cfg, size_px)
