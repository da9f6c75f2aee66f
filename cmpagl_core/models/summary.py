"""Parameters and FLOPs of each part of a recipe's model, counted without computing anything."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cmpagl_core.models.bert import bert_shape
from cmpagl_core.models.cmpagl import CmpaglModel
from cmpagl_core.models.gswin import GswinEncoder
from cmpagl_core.models.weights import reachable
from cmpagl_core.recipe import ImageEncoderPart, Recipe

BERT_VOCABULARY = 30_522
CAPTION_TOKENS = 16  # about the mean caption of the public sets, including [CLS] and [SEP]


@dataclass(frozen=True)
class SummaryRow:
    """One part of the model; a multiply-add of matrix products, convolutions and attention counts as two FLOPs.

    Counts are those of the plain formulas; on the CPU, `LocalQueryAttention` may fold two products into one.
    """

    part: str
    parameters: int
    trained: int  # parameters that the recipe trains from the first step
    flops: int  # for one image, one caption, or one pair of both


def summarise_recipe(recipe: Recipe) -> tuple[tuple[SummaryRow, ...], str]:
    """As `summarise`, with BERT's vocabulary; also a note if the shape depends on weights that are not available."""
    cfg = recipe.text_encoder
    if reachable(cfg.weights):
        return summarise(recipe, BERT_VOCABULARY), ""
    blank = recipe.model_copy(update={"text_encoder": cfg.model_copy(update={"weights": "random"})})
    return summarise(blank, BERT_VOCABULARY), f"{cfg.weights} is not on this machine: counted as {cfg.size}"


def summarise(recipe: Recipe, vocab_size: int, caption_tokens: int = CAPTION_TOKENS) -> tuple[SummaryRow, ...]:
    """A row for each part, in the order of the data flow, and their total.

    Only shapes are computed (on torch's meta device), so it takes no memory. Raises what building the model raises.
    """
    with torch.device("meta"), torch.no_grad():
        model = CmpaglModel(recipe, bert_shape(recipe.text_encoder, vocab_size)).eval()
        size = recipe.data.image_size_px
        runs = _parts(model, torch.empty(1, 3, size, size), caption_tokens)
        rows = [SummaryRow(name, *_parameters(modules), _flops(run)) for name, modules, run in runs]
    rows.append(SummaryRow("logit scale", 1, int(model.logit_scale.requires_grad), 0))
    total = SummaryRow("total", *(sum(getattr(row, key) for row in rows) for key in ("parameters", "trained", "flops")))
    return (*rows, total)


@dataclass(frozen=True)
class EncoderSize:
    """Parameters of an image encoder, and its FLOPs for one image."""

    parameters: int
    flops: int


def image_encoder_size(cfg: ImageEncoderPart, image_size_px: int) -> EncoderSize:
    """Of Gswin alone, from pixels to image tokens, counted as in `summarise`."""
    with torch.device("meta"), torch.no_grad():
        encoder = GswinEncoder(cfg, image_size_px).eval()
        pixel_values = torch.empty(1, 3, image_size_px, image_size_px)
        return EncoderSize(_parameters([encoder])[0], _flops(lambda: encoder(pixel_values)))


def image_encoder_parameters(cfg: ImageEncoderPart, image_size_px: int) -> int:
    """As in `image_encoder_size`, without the pass that counts operations."""
    with torch.device("meta"):
        return _parameters([GswinEncoder(cfg, image_size_px)])[0]


Run = Callable[[], Tensor]


def _parts(model: CmpaglModel, pixel_values: Tensor, tokens: int) -> list[tuple[str, list[nn.Module], Run]]:
    """Name, modules and forward pass of each part; each pass starts from existing tensors."""
    image, text = model.image_encoder, model.text_encoder
    backbone_map = image.embed(pixel_values)
    parts: list[tuple[str, list[nn.Module], Run]] = [
        ("backbone", [image.patch_embed], lambda: image.embed(pixel_values))
    ]
    x = backbone_map.permute(0, 2, 3, 1)
    if image.backbone_projection is not None:
        x = x[..., : sum(image.backbone_projection.part_channels)]
        parts.append(("backbone projection", [image.backbone_projection], _call(image.backbone_projection, x)))
        x = image.backbone_projection(x)
    for name, stage in image.layers.items():
        parts.append((f"Gswin stage {int(name) + 1}", [stage], _call(stage, x)))
        x = stage(x)
    image_tokens = torch.empty(1, 1 + image.last_map_size**2, image.width)
    parts.append(
        ("image norm and projection", [image.norm, model.image_projection], _call(model.image_projection, x[:, 0, 0]))
    )
    input_ids = torch.zeros(1, tokens, dtype=torch.long)
    mask = torch.ones(1, tokens, dtype=torch.bool)
    text_tokens = torch.empty(1, tokens, text.shape.hidden_size)
    pooled = torch.empty(1, text.pooled_width)
    parts.append(("text half", [text], lambda: text(input_ids, mask)))
    parts.append(("text projection", [model.text_projection], _call(model.text_projection, pooled)))
    if model.fusion_encoder is not None:
        parts.append(
            ("fusion half", [model.fusion_encoder], _call(model.fusion_encoder, text_tokens, mask, image_tokens))
        )
    if model.itm_head is not None:
        parts.append(("ITM head", [model.itm_head], lambda: model.itm_logits(text_tokens)))
    if model.mlm_head is not None:
        parts.append(("MLM head", [model.mlm_head], lambda: model.mlm_logits(text_tokens)))
    return parts


def _call(module: nn.Module, *inputs: Tensor) -> Run:
    return lambda: module(*inputs)


def _parameters(modules: list[nn.Module]) -> tuple[int, int]:
    """All parameters, and those that are trained."""
    found = [parameter for module in modules for parameter in module.parameters()]
    return sum(one.numel() for one in found), sum(one.numel() for one in found if one.requires_grad)


def _flops(run: Run) -> int:
    counter = FlopCounterMode(display=False)
    with counter:
        run()
    return int(counter.get_total_flops())
