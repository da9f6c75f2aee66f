"""Both BERT halves against transformers' BertModel; padding and masks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, BertModel

from cmpagl_core.errors import MismatchError, RecipeError
from cmpagl_core.models.bert import BertShape, FusionEncoder, MlmHead, TextEncoder, bert_shape, text_layers
from cmpagl_core.models.cmpagl import build_model
from cmpagl_core.models.imports import import_bert
from cmpagl_core.recipe import FusionEncoderPart, Recipe, TextEncoderPart

SMALL = BertShape(vocab_size=50, hidden_size=24, num_layers=4, num_heads=3, intermediate_size=48, max_positions=40)
MINILM = BertShape(vocab_size=200, hidden_size=384, num_layers=6, num_heads=12, intermediate_size=1536)
BERT_BASE = BertShape(vocab_size=200, hidden_size=768, num_layers=12, num_heads=12, intermediate_size=3072)

SHAPES, NAMES = [SMALL, MINILM, pytest.param(BERT_BASE, marks=pytest.mark.slow)], ["small", "minilm", "bert-base"]


def bert_config(shape: BertShape) -> BertConfig:
    return BertConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        intermediate_size=shape.intermediate_size,
        max_position_embeddings=shape.max_positions,
    )


def scramble(module: torch.nn.Module) -> None:
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)


def halves(shape: BertShape, image_width: int = 10) -> tuple[TextEncoder, FusionEncoder]:
    layers = shape.num_layers // 2
    text = TextEncoder(TextEncoderPart(), shape, layers).eval()
    return text, FusionEncoder(FusionEncoderPart(), shape, shape.num_layers - layers, image_width).eval()


def batch(shape: BertShape, lengths: tuple[int, ...] = (9, 4, 1)) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(1, shape.vocab_size, (len(lengths), max(lengths)), generator=generator)
    attention_mask = torch.arange(max(lengths))[None, :] < torch.tensor(lengths)[:, None]
    return input_ids.masked_fill(~attention_mask, 0), attention_mask


@pytest.mark.parametrize("shape", SHAPES, ids=NAMES)
@pytest.mark.parametrize("prefix", ["", "bert."])
def test_text_half_then_fusion_half_without_an_image_is_bert(shape: BertShape, prefix: str, tmp_path: Path) -> None:
    bert = BertModel(bert_config(shape)).eval()
    scramble(bert)
    save_file(
        {prefix + name: tensor.contiguous() for name, tensor in bert.state_dict().items()}, tmp_path / "b.safetensors"
    )
    text, fusion = halves(shape)
    import_bert(text, fusion, None, f"file:{tmp_path / 'b.safetensors'}")
    input_ids, attention_mask = batch(shape)
    with torch.inference_mode():
        expected = bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        found = fusion(text(input_ids, attention_mask), attention_mask, None)
    assert float((found - expected)[attention_mask].abs().max()) < 1e-5


def test_every_tensor_of_a_masked_language_model_finds_its_place(tmp_path: Path) -> None:
    published = BertForMaskedLM(bert_config(SMALL)).eval()
    scramble(published)
    state = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor.clone()
        for name, tensor in published.state_dict().items()
        if "decoder" not in name
    }
    save_file(state, tmp_path / "mlm.safetensors")
    text, fusion = halves(SMALL)
    head = MlmHead(SMALL).eval()
    reports = import_bert(text, fusion, head, f"file:{tmp_path / 'mlm.safetensors'}")
    input_ids, attention_mask = batch(SMALL)
    with torch.inference_mode():
        expected = published(input_ids=input_ids, attention_mask=attention_mask).logits
        fused = fusion(text(input_ids, attention_mask), attention_mask, None)
        found = head(fused, text.embeddings.word_embeddings.weight)
    assert float((found - expected)[attention_mask].abs().max()) < 1e-5
    (_, of_text), (_, of_fusion), (_, of_head) = reports
    assert not of_text.new
    assert not of_head.new
    assert all("crossattention" in name or "image_projection" in name for name in of_fusion.new)


@pytest.mark.parametrize("shape", SHAPES, ids=NAMES)
def test_padding_never_changes_a_text_or_a_fused_token(shape: BertShape) -> None:
    text, fusion = halves(shape)
    scramble(text)
    scramble(fusion)
    input_ids, attention_mask = batch(shape, lengths=(9, 4, 1))
    image = torch.randn(3, 6, 10)
    tokens = text(input_ids, attention_mask)
    fused = fusion(tokens, attention_mask, image)
    for row, length in enumerate((9, 4, 1)):
        for padding in (0, 3, 20):
            alone_ids = torch.nn.functional.pad(input_ids[row : row + 1, :length], (0, padding), value=7)
            alone_mask = torch.arange(length + padding)[None, :] < length
            alone = text(alone_ids, alone_mask)
            alone_fused = fusion(alone, alone_mask, image[row : row + 1])
            assert torch.allclose(alone[0, :length], tokens[row, :length], atol=1e-5)
            assert torch.allclose(alone_fused[0, :length], fused[row, :length], atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES, ids=NAMES)
def test_the_order_of_a_batch_never_changes_a_text_or_a_fused_token(shape: BertShape) -> None:
    text, fusion = halves(shape)
    scramble(text)
    scramble(fusion)
    input_ids, attention_mask = batch(shape)
    image = torch.randn(3, 6, 10)
    tokens = text(input_ids, attention_mask)
    fused = fusion(tokens, attention_mask, image)
    for order in ([2, 0, 1], [1, 2, 0], [2, 1, 0]):
        turned = text(input_ids[order], attention_mask[order])
        assert torch.allclose(turned, tokens[order], atol=1e-5)
        assert torch.allclose(fusion(turned, attention_mask[order], image[order]), fused[order], atol=1e-5)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("size", ["minilm-l6", pytest.param("bert-base", marks=pytest.mark.slow)])
def test_a_captions_feature_depends_on_neither_padding_nor_its_batch(size: str, pooling: str) -> None:
    recipe = Recipe.model_validate(
        {
            "data": {"image_size_px": 32},
            "image_encoder": {"size": "custom", "width": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1]},
            "text_encoder": {"size": size, "pooling": pooling},
            "losses": {"itm": 0.0, "mlm": 0.0},
            "fusion_encoder": {"enabled": False},
        }
    )
    model = build_model(recipe, 200).eval()
    scramble(model.text_encoder)
    input_ids, attention_mask = batch(MINILM, lengths=(9, 4, 1, 6))
    with torch.inference_mode():
        together = model.encode_texts(input_ids, attention_mask).features
        for row, length in enumerate((9, 4, 1, 6)):
            for padding in (0, 5, 30):
                ids = torch.nn.functional.pad(input_ids[row : row + 1, :length], (0, padding), value=7)
                alone = model.encode_texts(ids, torch.arange(length + padding)[None, :] < length).features
                assert torch.allclose(alone[0], together[row], atol=1e-5)
        turned = model.encode_texts(input_ids.flip(0), attention_mask.flip(0)).features.flip(0)
    assert torch.allclose(turned, together, atol=1e-5)
    assert not torch.allclose(together[0], together[1], atol=1e-3)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_pooling_ignores_padding(pooling: str) -> None:
    text = TextEncoder(TextEncoderPart(pooling=pooling), SMALL, 2)
    tokens = torch.randn(2, 5, 24)
    mask = torch.tensor([[True] * 3 + [False] * 2, [True] * 5])
    expected = tokens[:, 0] if pooling == "cls" else torch.stack([tokens[0, :3].mean(0), tokens[1].mean(0)])
    assert torch.allclose(text.pool(tokens, mask), expected, atol=1e-6)


def test_no_token_sees_a_later_one_less_than_an_earlier_one() -> None:
    """A fusion layer is a decoder layer; it must not become causal."""
    _, fusion = halves(SMALL)
    scramble(fusion)
    tokens = torch.randn(1, 6, 24)
    mask, image = torch.ones(1, 6, dtype=torch.bool), torch.randn(1, 4, 10)
    changed = tokens.clone()
    changed[0, -1] += 1.0
    difference = (fusion(tokens, mask, image) - fusion(changed, mask, image)).abs().amax(dim=-1)
    assert bool((difference > 1e-4).all())


def test_an_image_changes_every_fused_token_and_its_cache_gives_the_same() -> None:
    _, fusion = halves(SMALL)
    scramble(fusion)
    tokens, mask = torch.randn(3, 5, 24), torch.ones(3, 5, dtype=torch.bool)
    images = torch.randn(2, 4, 10)
    rows = torch.tensor([1, 0, 1])
    direct = fusion(tokens, mask, images[rows])
    cache = fusion.cross_attention_cache(images)
    assert torch.allclose(fusion(tokens, mask, cache.select(rows)), direct, atol=1e-6)
    one = fusion(tokens, mask, fusion.cross_attention_cache(images[1:]))
    assert torch.allclose(one[[0, 2]], direct[[0, 2]], atol=1e-6)
    assert bool(((one[1] - direct[1]).abs().amax(dim=-1) > 1e-4).all())


def test_the_first_token_alone_is_the_first_token_of_all() -> None:
    _, fusion = halves(SMALL)
    scramble(fusion)
    tokens = torch.randn(3, 5, 24)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2, [True] * 4 + [False]])
    for images in (torch.randn(3, 4, 10), torch.randn(1, 4, 10)):
        cache = fusion.cross_attention_cache(images)
        alone = fusion.first_token(tokens, mask, cache)
        assert torch.allclose(alone, fusion(tokens, mask, cache)[:, :1], atol=1e-5)


def test_cross_attention_is_what_transformers_layer_computes() -> None:
    _, fusion = halves(SMALL)
    scramble(fusion)
    x, image = torch.randn(2, 5, 24), torch.randn(2, 4, 10)
    found = fusion(x, torch.ones(2, 5, dtype=torch.bool), image)
    projected = fusion.image_projection(image)
    for layer in fusion.layers:
        x = layer(x, torch.zeros(2, 1, 5, 5), projected, torch.zeros(2, 1, 5, 4))
    assert torch.allclose(found, x, atol=1e-5)


def test_the_shape_comes_from_the_weights_configuration(tmp_path: Path) -> None:
    bert_config(SMALL).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "model.safetensors"):
        (tmp_path / name).write_text("{}")
    assert bert_shape(TextEncoderPart(weights=f"file:{tmp_path}"), vocab_size=50) == SMALL
    assert BertShape.from_dict(SMALL.to_dict()) == SMALL
    with pytest.raises(MismatchError, match="tokenizer has 51 tokens"):
        bert_shape(TextEncoderPart(weights=f"file:{tmp_path}"), vocab_size=51)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"model_type": "gpt2"}',
        '{"model_type": "bert"}',
        '{"model_type": "bert", "vocab_size": "x"}',
        "[" * 9999,
    ],
)
def test_a_configuration_that_is_no_berts_is_refused(content: str, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (tmp_path / name).write_text(content)
    with pytest.raises(MismatchError, match="not the configuration of a BERT"):
        bert_shape(TextEncoderPart(weights=f"file:{tmp_path}"), vocab_size=10)


@pytest.mark.parametrize(
    ("layers", "fused", "expected"), [(None, True, 3), (None, False, 3), (5, True, 5), (6, False, 6)]
)
def test_the_text_half_is_half_of_the_depth_unless_told(layers: int | None, fused: bool, expected: int) -> None:
    assert text_layers(TextEncoderPart(layers=layers), MINILM, FusionEncoderPart(enabled=fused)) == expected


@pytest.mark.parametrize(("layers", "fused"), [(6, True), (7, True), (7, False)])
def test_a_split_that_leaves_fusion_nothing_is_refused(layers: int, fused: bool) -> None:
    with pytest.raises(RecipeError, match=f"text_encoder.layers = {layers}"):
        text_layers(TextEncoderPart(layers=layers), MINILM, FusionEncoderPart(enabled=fused))
