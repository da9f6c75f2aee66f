"""A dry run predicts what a training takes, trains nothing, and needs neither images nor a hub."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from cmpagl_cli.app import app
from cmpagl_core.datasets.loading import PairBatch
from cmpagl_core.datasets.prepared import PreparedDataset, open_prepared
from cmpagl_core.errors import DataError
from cmpagl_core.models.backbone import Backbone
from cmpagl_core.models.bert import BertShape
from cmpagl_core.models.cmpagl import build_model
from cmpagl_core.models.tokenizer import load_tokenizer
from cmpagl_core.progress import Silent
from cmpagl_core.recipe import Recipe
from cmpagl_core.recipe_files import load_recipe
from cmpagl_core.training.forecast import BERT_VOCABULARY, forecast
from cmpagl_core.training.learner import make_learner
from cmpagl_core.training.measure import Cost, in_chunks, measure, resident_bytes
from cmpagl_core.training.start import TrainRequest
from cmpagl_core.training.step import accumulate, update
from cmpagl_core.workspace import Workspace

CPU = torch.device("cpu")
ALIGNING = ("losses.itm=0", "losses.mlm=0", "fusion_encoder.enabled=false")
PAPER = ("rsicd", "rsitmd", "ucm", "sydney")

MakeRecipe = Callable[..., Recipe]


@pytest.fixture
def workspace(squares: PreparedDataset, tiny_yaml: str, backbone_yaml: str, tmp_path: Path) -> Workspace:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "squares").symlink_to(squares.root)
    (tmp_path / "tiny.yaml").write_text(tiny_yaml)
    (tmp_path / "backbone.yaml").write_text(backbone_yaml)
    return Workspace(tmp_path)


def test_a_dry_run_counts_parameters_pairs_and_steps_and_writes_nothing(workspace: Workspace) -> None:
    before = sorted(workspace.root.rglob("*"))
    request = TrainRequest(str(workspace.root / "tiny.yaml"), overrides=("train.accumulate=2", "train.epochs=7"))
    found = forecast(request, workspace, Silent(), CPU)
    assert (found.recipe, found.pairs, found.steps_per_epoch, found.steps) == ("tiny", 16, 2, 14)
    recipe = load_recipe(workspace.root / "tiny.yaml")
    captions = [*dict.fromkeys(_captions(workspace))]
    model = build_model(recipe, load_tokenizer(recipe.text_encoder, 12, captions).vocab_size)
    assert found.parameters == sum(p.numel() for p in model.parameters())
    assert found.step_s > 0
    assert found.training_s == pytest.approx(7 * found.epoch_s)
    assert found.cache_bytes == 0
    assert sorted(workspace.root.rglob("*")) == before


def test_a_dry_run_reckons_the_cache_of_a_frozen_backbone(workspace: Workspace) -> None:
    found = forecast(TrainRequest(str(workspace.root / "backbone.yaml")), workspace, Silent(), CPU)
    backbone = build_model(load_recipe(workspace.root / "backbone.yaml"), vocab_size=50).image_encoder.patch_embed
    assert isinstance(backbone, Backbone)
    values = sum(part[0].numel() for part in backbone.parts(torch.zeros(1, 3, 32, 32)))
    assert found.cache_bytes == 24 * 8 * values * 2  # images to train and choose on, views, half precision
    assert found.cache_s > 0


def test_on_the_command_line_people_and_programs_can_read_it(workspace: Workspace) -> None:
    shared = ["--workspace", str(workspace.root), "--threads", "1", "--device", "cpu"]
    command = [*shared, "train", str(workspace.root / "tiny.yaml"), "--dry-run"]
    table = CliRunner().invoke(app, command)
    assert table.exit_code == 0, table.output
    assert "optimiser steps" in table.stdout
    assert "peak memory" in table.stdout
    document = json.loads(CliRunner().invoke(app, [*command, "--format", "json"]).stdout)
    assert document["steps"] == 9
    assert not (workspace.root / "runs").exists()


def test_costs_lie_on_the_line_through_what_was_measured() -> None:
    measured = {4: Cost(1.0, 100), 8: Cost(1.5, 180)}
    assert Cost.at(8, measured) == Cost(1.5, 180)
    assert Cost.at(64, measured) == Cost(1.5 + 56 * 0.125, 180 + 56 * 20)


def test_noise_makes_a_pair_cost_neither_less_than_half_nor_more_than_its_share() -> None:
    assert Cost.at(64, {4: Cost(2.0, 100), 8: Cost(1.6, 90)}) == Cost(1.6 + 56 * 0.1, 90)
    assert Cost.at(64, {4: Cost(0.1, 100), 8: Cost(1.6, 90)}) == Cost(1.6 + 56 * 0.2, 90)


def test_memory_that_is_kept_for_the_backward_pass_grows_with_the_pairs(tiny_recipe: MakeRecipe) -> None:
    recipe = tiny_recipe("losses.mlm=0")
    tokenizer = load_tokenizer(recipe.text_encoder, 12, ["a red roof"])
    model = build_model(recipe, tokenizer.vocab_size)
    learner = make_learner(recipe, tokenizer, CPU, model, model.parameter_origins())
    few, many = (measure(learner, pairs, ["a red roof"]).activation_bytes for pairs in (4, 8))
    assert 1.5 < many / few < 2.2
    weights = sum(4 * parameter.numel() for parameter in model.parameters())
    assert resident_bytes(learner) == 5 * weights  # weights, gradients, two moments, one average


def test_a_batch_in_chunks_costs_its_chunks_the_kept_tokens_and_the_scores(tiny_recipe: MakeRecipe) -> None:
    recipe = tiny_recipe("train.chunk_size=4", *ALIGNING)
    tokenizer = load_tokenizer(recipe.text_encoder, 12, ["a red roof"])
    model = build_model(recipe, tokenizer.vocab_size)
    learner = make_learner(recipe, tokenizer, CPU, model, model.parameter_origins())
    cost = in_chunks(learner, Cost(1.0, 1000), 12, ["a red roof"])
    images, tokens = 3 * 32 * 32, 64 * (1 + 1) + 5 * 128  # a map of 1 x 1 with its mean; [CLS], three words, [SEP]
    assert cost == Cost(3.0, 1000 + 4 * (12 * (images + 3 * tokens) + 12 * 12**2))


def test_an_unknown_data_set_cannot_be_forecast(workspace: Workspace) -> None:
    request = TrainRequest(str(workspace.root / "tiny.yaml"), data="nowhere")
    with pytest.raises(DataError, match="nowhere"):
        forecast(request, workspace, Silent(), CPU)


@pytest.mark.slow
@pytest.mark.parametrize("name", PAPER)
def test_a_paper_recipe_is_forecast_without_its_data_and_weights(tmp_path: Path, name: str) -> None:
    shared = ["--workspace", str(tmp_path), "--threads", "1", "--device", "cpu"]
    result = CliRunner().invoke(app, [*shared, "train", name, "--dry-run", "--format", "json"])
    assert result.exit_code == 0, result.output
    found, part = json.loads(result.stdout), load_recipe(name).train
    pairs = {"rsicd": 8734, "rsitmd": 3862, "ucm": 1680, "sydney": 497}[name]  # RSITMD's less a tenth for selection
    assert found["pairs"] == pairs
    assert found["steps"] == part.epochs * -(-pairs // part.batch_size)
    assert 1.4e8 < found["parameters"] < 2.2e8  # Swin-T, BERT-base, and what joins them
    assert any("hf:bert-base-uncased is not on this machine" in note for note in found["notes"])
    assert any("its published counts are taken" in note for note in found["notes"])
    assert 2 * 2**30 < found["peak_bytes"] < 40 * 2**30
    assert found["training_s"] > found["steps"] * found["step_s"] * 0.9


@pytest.mark.slow
@pytest.mark.parametrize("name", PAPER)
def test_an_optimiser_step_of_a_paper_recipe_changes_every_part_that_learns(name: str) -> None:
    recipe = load_recipe(name, ("image_encoder.weights=random", "text_encoder.weights=random"))
    captions = ("many planes are parked near a terminal", "a lake beside a forest", "two tennis courts")
    tokenizer = load_tokenizer(recipe.text_encoder, recipe.data.max_caption_tokens, captions)
    shape = BertShape(BERT_VOCABULARY, 768, 12, 12, 3072)
    model = build_model(recipe, tokenizer.vocab_size, text_shape=shape)
    learner = make_learner(recipe, tokenizer, CPU, model, model.parameter_origins())
    model.train()
    tokens = tokenizer(captions)
    images = torch.randn(3, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    batch = PairBatch(images, tokens.input_ids, tokens.attention_mask, torch.eye(3, dtype=torch.bool), captions)
    before = {part: _sum(model, part) for part in ("image_encoder.", "text_encoder.", "fusion_encoder.", "mlm_head.")}
    figures = accumulate(learner, [batch], epoch=0, step=0, with_shares=True)
    norm = update(learner, step=0, share=1.0)
    assert set(figures.terms) == {"itc", "triplet", "itm", "mlm"}
    assert set(figures.gradient_shares) == {"itc", "triplet", "itm", "mlm"}
    assert 0 < norm < float("inf")
    assert all(_sum(model, part) != value for part, value in before.items())


def _sum(model: torch.nn.Module, part: str) -> float:
    return sum(float(p.detach().double().abs().sum()) for name, p in model.named_parameters() if name.startswith(part))


def _captions(workspace: Workspace) -> tuple[str, ...]:
    return open_prepared(workspace.root / "data" / "squares").split("train").captions
