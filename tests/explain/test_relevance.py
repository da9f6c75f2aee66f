"""Relevance and stage shares against independent computations; sheet, page and command."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cmpagl_core.errors import ExitCode, UsageError
from cmpagl_core.explain.overlay import overlay, png_bytes, sheet
from cmpagl_core.explain.page import page
from cmpagl_core.explain.relevance import (
    Explanation,
    StageShare,
    WordRelevance,
    explain,
    fuse_with_weights,
    stage_shares,
    token_relevance,
)
from cmpagl_core.runs import LoadedModel, open_run

Cmpagl = Callable[..., Any]
TEXT = "Field 3, a bright square"


@pytest.fixture(scope="module")
def loaded(tiny_run: Path) -> LoadedModel:
    found = open_run(tiny_run).load()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # far from the start, so that attention is uneven and gates are open
        for parameter in found.model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return found


@pytest.fixture(scope="module")
def image(tiny_images: Path) -> Path:
    return sorted(tiny_images.rglob("*.jpg"))[0]


def encoded(loaded: LoadedModel) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    tokens = loaded.tokenizer([TEXT])
    with torch.no_grad():
        text = loaded.model.encode_texts(tokens.input_ids, tokens.attention_mask)
    image = torch.randn(1, 5, loaded.model.image_encoder.width, generator=torch.Generator().manual_seed(1))
    return text.tokens, tokens.attention_mask, image


def test_recorded_attention_belongs_to_the_very_same_fusion(loaded: LoadedModel) -> None:
    tokens, mask, image = encoded(loaded)
    fused, weights = fuse_with_weights(loaded.model.fusion_encoder, tokens, mask, image)
    assert torch.allclose(fused, loaded.model.fuse(loaded.model.encode_texts(*_ids(loaded)), image), atol=1e-5)
    assert all(torch.allclose(weight.sum(dim=-1), torch.ones(())) for weight in weights)


def _ids(loaded: LoadedModel) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = loaded.tokenizer([TEXT])
    return tokens.input_ids, tokens.attention_mask


def test_relevance_moves_with_the_image_tokens(loaded: LoadedModel) -> None:
    tokens, mask, image = encoded(loaded)
    order = torch.tensor([3, 0, 4, 1, 2])
    straight, probability = token_relevance(loaded.model, loaded.model.fusion_encoder, tokens, mask, image)
    turned, again = token_relevance(loaded.model, loaded.model.fusion_encoder, tokens, mask, image[:, order])
    assert float(straight.max()) > 0
    assert torch.allclose(turned, straight[:, order], atol=1e-6)
    assert again == pytest.approx(probability, abs=1e-5)


def test_relevance_is_attention_times_a_measured_gradient(loaded: LoadedModel) -> None:
    """One layer, by finite differences: move each attention weight of the first token and watch the logits."""
    model, fusion = loaded.model, loaded.model.fusion_encoder
    tokens, mask, image = encoded(loaded)
    with torch.no_grad():
        _, weights = fuse_with_weights(fusion, tokens, mask, image)
        last = len(weights) - 1
        expected = torch.zeros(weights[last].shape[1], image.shape[1], dtype=torch.float64)
        for head in range(expected.shape[0]):
            for place in range(expected.shape[1]):
                moved = [_logit_with(model, tokens, mask, image, last, head, place, step) for step in (1e-2, -1e-2)]
                expected[head, place] = weights[last][0, head, 0, place] * (moved[0] - moved[1]) / 2e-2
    fused, weights = fuse_with_weights(fusion, tokens, mask, image.requires_grad_())
    logits = model.itm_logits(fused)[0]
    (gradient,) = torch.autograd.grad(logits[1] - logits[0], [weights[last]])
    assert torch.allclose((weights[last] * gradient)[0, :, 0].double(), expected, atol=2e-3)


def _logit_with(
    model: torch.nn.Module,
    tokens: torch.Tensor,
    mask: torch.Tensor,
    image: torch.Tensor,
    layer: int,
    head: int,
    place: int,
    step: float,
) -> float:
    """The match logit after adding `step` to one attention weight of the first token: a part of the values is added."""
    fusion = model.fusion_encoder
    cross = fusion.layers[layer].crossattention
    value = fusion.cross_attention_cache(image).values[layer][0, head, place]

    def nudge(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        context = inputs[0].clone()
        context[0, 0, head * len(value) : (head + 1) * len(value)] += step * value
        return (context, *inputs[1:])

    handle = cross.output.register_forward_pre_hook(nudge)
    fused, _ = fuse_with_weights(fusion, tokens, mask, image)
    handle.remove()
    logits = model.itm_logits(fused)[0]
    return float(logits[1] - logits[0])


def test_an_explanation_has_a_heat_for_each_word_and_sums_to_the_whole(loaded: LoadedModel, image: Path) -> None:
    found = explain(loaded, image, TEXT)
    assert [word.word for word in found.words] == ["Field", "3", "a", "bright", "square"]
    assert sum(word.share for word in found.words) == pytest.approx(1.0)
    assert all((word.relevance >= 0).all() and word.relevance.shape == found.relevance.shape for word in found.words)
    assert (found.relevance + 1e-6 >= sum(word.relevance for word in found.words)).all()
    assert 0 < found.match_probability < 1
    assert [stage.stage for stage in found.stages] == [1, 2, 3, 4]
    assert all(0 < stage.share < 1 for stage in found.stages)


def test_stage_shares_are_the_lengths_of_what_each_attention_adds(loaded: LoadedModel) -> None:
    encoder, pixels = copy.deepcopy(loaded.model.image_encoder), torch.randn(2, 3, 32, 32)
    first = encoder.layers["0"].blocks[0]
    first.scale1 = torch.nn.Parameter(torch.rand(first.norm1.normalized_shape))
    with torch.no_grad():
        with stage_shares(encoder) as shares:
            encoder(pixels)
        stage, x = encoder.layers["0"], encoder.embed(pixels).permute(0, 2, 3, 1)
        block = stage.blocks[0]
        local = block.attn(block.norm1(x)) * block.scale1
        whole = block.global_branch(x + local, stage.generator(x))
    assert shares[0].local == pytest.approx(float(local.norm(dim=-1).mean()), rel=1e-4)
    assert shares[0].global_window == pytest.approx(float(whole.norm(dim=-1).mean()), rel=1e-4)
    assert StageShare(1, 0.0, 0.0).share == 0.0


def test_a_text_without_a_word_and_a_run_without_itm_are_refused(loaded: LoadedModel, image: Path) -> None:
    with pytest.raises(UsageError, match="no word in"):
        explain(loaded, image, "...")
    head, loaded.model.itm_head = loaded.model.itm_head, None
    try:
        with pytest.raises(UsageError, match="has no ITM head"):
            explain(loaded, image, TEXT)
    finally:
        loaded.model.itm_head = head


def test_heat_colours_its_own_corner_and_leaves_the_rest() -> None:
    grey = Image.new("RGB", (64, 64), (100, 100, 100))
    relevance = np.zeros((4, 4), dtype=np.float32)
    relevance[0, 0] = 2.0
    coloured = np.asarray(overlay(grey, relevance)).astype(int)
    changed = np.abs(coloured - 100).sum(axis=2)
    assert changed[:12, :12].min() > 20
    assert changed[40:, 40:].max() <= 3
    assert np.array_equal(np.asarray(overlay(grey, np.zeros((4, 4), dtype=np.float32))), np.asarray(grey))


def an_explanation() -> Explanation:
    relevance = np.arange(4, dtype=np.float32).reshape(2, 2)
    words = (WordRelevance("<b>tanks</b>", relevance, 0.75), WordRelevance("seaside" * 20, relevance / 3, 0.25))
    return Explanation("<script>tanks</script> seaside", 0.5, 0.9, relevance, words, (StageShare(1, 1.0, 0.25),))


def test_the_sheet_has_a_panel_for_each_word_and_the_same_bytes_each_time() -> None:
    opened = Image.new("RGB", (300, 200), (10, 120, 60))
    image = sheet(opened, an_explanation())
    assert image.width > 4 * 256
    assert image.height > 256
    assert png_bytes(image) == png_bytes(sheet(opened, an_explanation()))
    assert an_explanation().words[0].peak == (0.75, 0.75)


def test_the_page_is_self_contained_and_escapes_what_users_wrote() -> None:
    text = page(Image.new("L", (900, 300)), "a<b>.jpg", an_explanation())
    assert "<script" not in text
    assert "http" not in text.replace("http-equiv", "")
    assert "&lt;script&gt;tanks" in text
    assert "20.0 %" in text


def test_the_command_writes_a_sheet_and_a_page(
    cmpagl: Cmpagl, tiny_run: Path, tiny_images: Path, tmp_path: Path, image: Path
) -> None:
    result = cmpagl("explain", image, TEXT, "--run", tiny_run, "--html", "e.html", "--format", "json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert [word["word"] for word in document["words"]] == ["Field", "3", "a", "bright", "square"]
    assert len(document["stages"]) == 4
    with Image.open(tmp_path / "explain.png") as written:
        assert written.format == "PNG"
    assert (tmp_path / "e.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    table = cmpagl("explain", image, TEXT, "--run", tiny_run)
    assert "bright" in table.stdout
    assert "global_percent" in table.stdout


def test_the_command_says_when_the_matching_head_only_guessed(
    cmpagl: Cmpagl, tiny_run: Path, tmp_path: Path, image: Path
) -> None:
    run = shutil.copytree(tiny_run, tmp_path / "copied")
    for loss, said in ((0.636, True), (0.3, False)):
        event = {"event": "epoch", "epoch": 1, "terms": {"itm": loss}}
        (run / "log.jsonl").write_text(json.dumps(event) + "\n", encoding="utf-8")
        result = cmpagl("explain", image, TEXT, "--run", run)
        assert result.exit_code == 0, result.output
        assert ("ITM at chance" in result.stderr) is said


def test_the_command_refuses_an_image_that_is_not_there(cmpagl: Cmpagl, tiny_run: Path) -> None:
    result = cmpagl("explain", "none.jpg", TEXT, "--run", tiny_run)
    assert result.exit_code == ExitCode.DATA
    assert "none.jpg" in result.stderr
