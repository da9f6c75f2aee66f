"""CMPAGL: Gswin and the two BERT halves, with the projections and heads between them (section 1)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmpagl_core.models.backbone import Backbone
from cmpagl_core.models.backbone_skip import BackboneSkip
from cmpagl_core.models.balance import Balance
from cmpagl_core.models.bert import (
    BertShape,
    CrossAttentionCache,
    FusionEncoder,
    MlmHead,
    TextEncoder,
    bert_shape,
    fusion_layers,
    text_layers,
)
from cmpagl_core.models.gswin import GswinEncoder
from cmpagl_core.models.weights import ImportReport
from cmpagl_core.recipe import Recipe

Origin = Literal["imported_image", "imported_text", "new"]


@dataclass(frozen=True)
class ImageEncoding:
    """The image encoder's output for a batch."""

    tokens: Tensor  # [B, 1 + N, C], the paper's F, its mean first
    features: Tensor  # [B, D], unit length


@dataclass(frozen=True)
class TextEncoding:
    """The text encoder's output for a batch."""

    tokens: Tensor  # [B, L, H], the paper's G
    features: Tensor  # [B, D], unit length
    attention_mask: Tensor  # [B, L] bool


class CmpaglModel(nn.Module):
    """The complete model. Build it with `build_model`; it has only the parts that the recipe's losses train."""

    def __init__(self, recipe: Recipe, shape: BertShape) -> None:
        super().__init__()
        losses, fused = recipe.losses, recipe.fusion_encoder.enabled
        layers = text_layers(recipe.text_encoder, shape, recipe.fusion_encoder)
        self.import_reports: tuple[ImportReport, ...] = ()
        self.logit_scale_max = losses.logit_scale_max
        self.probes = recipe.image_encoder.probes
        self.image_encoder = GswinEncoder(recipe.image_encoder, recipe.data.image_size_px)
        self.text_encoder = TextEncoder(recipe.text_encoder, shape, layers)
        width = self.image_encoder.width
        self.fusion_encoder = (
            FusionEncoder(recipe.fusion_encoder, shape, fusion_layers(recipe.fusion_encoder, shape, layers), width)
            if fused
            else None
        )
        self.image_projection = nn.Linear(width, losses.embed_dim)
        self.text_projection = nn.Linear(self.text_encoder.pooled_width, losses.embed_dim)
        backbone, cfg = self.image_encoder.patch_embed, recipe.image_encoder
        self.backbone_skip = (
            BackboneSkip(cfg, backbone.part_channels, backbone.extra_channels, losses.embed_dim)
            if isinstance(backbone, Backbone) and cfg.backbone_skip
            else None
        )
        self.balance = Balance(losses.embed_dim) if recipe.train.balance_images else None
        self.logit_scale = nn.Parameter(torch.tensor(math.log(losses.logit_scale_init)))
        self.itm_head = nn.Linear(shape.hidden_size, 2) if recipe.matches_pairs else None
        self.mlm_head = MlmHead(shape) if fused and losses.mlm > 0 else None
        for head in (self.image_projection, self.text_projection, self.itm_head):
            if head is not None:
                nn.init.normal_(head.weight, std=0.02 if head is self.itm_head else head.in_features**-0.5)
                nn.init.zeros_(head.bias)
        # Without pre-alignment nothing trains the projections; a scale is trained only by losses that use it.
        self.image_projection.requires_grad_(losses.aligns_features)
        self.text_projection.requires_grad_(losses.aligns_features)
        if self.backbone_skip is not None:
            self.backbone_skip.requires_grad_(losses.aligns_features)
        self.logit_scale.requires_grad_(losses.uses_itc)

    def encode_images(self, pixel_values: Tensor) -> ImageEncoding:
        """pixel_values: [B, 3, S, S]."""
        return self.encode_backbone_maps(self.backbone_maps(pixel_values))

    def backbone_maps(self, pixel_values: Tensor) -> Tensor:
        """pixel_values: [B, 3, S, S]. Returns [B, C, h, w], which may be cached for a frozen backbone."""
        return self.image_encoder.embed(pixel_values)

    def encode_backbone_maps(self, maps: Tensor) -> ImageEncoding:
        """maps: [B, C, h, w] from `backbone_maps`."""
        tokens = self.image_encoder.forward_map(maps)
        projected = self.image_projection(tokens[:, 0])
        if self.backbone_skip is not None:
            projected = self.backbone_skip(projected, maps)
        return ImageEncoding(tokens, unit_groups(projected, self.probes))

    def encode_texts(self, input_ids: Tensor, attention_mask: Tensor) -> TextEncoding:
        """input_ids: [B, L] int64. attention_mask: [B, L] bool."""
        tokens, pooled = self.text_encoder.pooled(input_ids, attention_mask)
        return TextEncoding(tokens, unit_groups(self.text_projection(pooled), self.probes), attention_mask)

    def fuse(self, text: TextEncoding | tuple[Tensor, Tensor], image: Tensor | CrossAttentionCache) -> Tensor:
        """text: an encoding, or (input_ids, attention_mask). image: tokens [B, 1 + N, C], or their cache.

        Row i of the texts is paired with row i of the images. Returns [B, L, H].
        """
        if isinstance(text, TextEncoding):
            tokens, mask = text.tokens, text.attention_mask
        else:
            tokens, mask = self.text_encoder(*text), text[1]
        fused: Tensor = self._fusion()(tokens, mask, image)
        return fused

    def fuse_first_token(self, text_tokens: Tensor, attention_mask: Tensor, image: CrossAttentionCache) -> Tensor:
        """The output of `fuse` at the first token, [B, 1, H], the only one that ITM reads."""
        return self._fusion().first_token(text_tokens, attention_mask, image)

    def cross_attention_cache(self, image_tokens: Tensor) -> CrossAttentionCache:
        """Keys and values of images [B, 1 + N, C] for every fusion layer, for use with many texts."""
        return self._fusion().cross_attention_cache(image_tokens)

    def itm_logits(self, fused: Tensor) -> Tensor:
        """fused: [B, L, H]. Returns [B, 2]; index 1 is a match."""
        if self.itm_head is None:
            raise ValueError("this recipe has no ITM head")
        logits: Tensor = self.itm_head(fused[:, 0])
        return logits

    def mlm_logits(self, fused: Tensor) -> Tensor:
        """fused: [..., H]. Returns logits over the vocabulary, [..., V]."""
        if self.mlm_head is None:
            raise ValueError("this recipe has no MLM head")
        logits: Tensor = self.mlm_head(fused, self.text_encoder.embeddings.word_embeddings.weight)
        return logits

    @torch.no_grad()
    def clamp_logit_scale(self) -> None:
        """Clamp the logit scale between 1 and the recipe's maximum; called after each optimiser step."""
        self.logit_scale.clamp_(0.0, math.log(self.logit_scale_max))

    def parameter_origins(self) -> dict[str, Origin]:
        """Origin of each parameter: imported image weights, imported text weights, or new."""
        imported = {name for report in self.import_reports for name in report.imported}
        return {name: _origin(name) if name in imported else "new" for name, _ in self.named_parameters()}

    def _fusion(self) -> FusionEncoder:
        if self.fusion_encoder is None:
            raise ValueError("this recipe has no fusion encoder")
        return self.fusion_encoder


def build_model(
    recipe: Recipe, vocab_size: int, pretrained: bool = True, text_shape: BertShape | None = None
) -> CmpaglModel:
    """The model of a recipe; its random weights depend on the recipe's seed alone.

    pretrained: import the recipe's weights; false builds the shape alone, to be filled from a run. text_shape: BERT's
    shape if already known (a run stores it), else it is read with the weights.
    Raises MismatchError if weights do not fit, CmpaglError if they are not available.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.train.seed)
        model = CmpaglModel(recipe, text_shape or bert_shape(recipe.text_encoder, vocab_size))
    if pretrained:
        model.import_reports = tuple(_import_all(model, recipe))
    return model


def _import_all(model: CmpaglModel, recipe: Recipe) -> list[ImportReport]:
    # imported here, since loading a run needs neither timm's registry nor any foreign file
    from cmpagl_core.models.imports import import_backbone, import_bert, import_swin

    cfg, reports = recipe.image_encoder, []
    backbone = model.image_encoder.patch_embed
    if cfg.weights != "random":
        reports.append(import_swin(model.image_encoder, cfg.swin_weights).prefixed("image_encoder."))
    if isinstance(backbone, Backbone):
        backbones = (backbone, *backbone.others)
        named = zip(
            (cfg.backbone, *cfg.extra_backbones), (cfg.backbone_weights, *cfg.extra_backbone_weights), strict=True
        )
        for place, (one, (name, source)) in enumerate(zip(backbones, named, strict=True)):
            prefix = "image_encoder.patch_embed." + (f"extra.{place - 1}." if place else "")
            if source != "random":
                reports.append(import_backbone(one, name, source).prefixed(prefix))
    if recipe.text_encoder.weights != "random":
        names = {id(module): f"{name}." for name, module in model.named_children()}
        found = import_bert(model.text_encoder, model.fusion_encoder, model.mlm_head, recipe.text_encoder.weights)
        reports.extend(report.prefixed(names[id(module)]) for module, report in found)
    return reports


def _origin(name: str) -> Origin:
    return "imported_image" if name.startswith("image_encoder.") else "imported_text"


def unit_groups(x: Tensor, groups: int) -> Tensor:
    """Normalise the last axis, in fp32 so that equal inputs stay equal under autocast.

    x: [B, D]. All groups of D / groups features get the same length, so that a cosine is the mean of the groups'.
    """
    grouped = F.normalize(x.float().view(*x.shape[:-1], groups, -1), dim=-1)
    joined: Tensor = grouped.flatten(-2) / groups**0.5
    return joined
