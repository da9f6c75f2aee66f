"""Compare the step of several processes with that of one on the joint batch; run by ranked.py."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from forked import in_processes
from torch import Tensor

from cmpagl_core import losses
from cmpagl_core.datasets.loading import PairBatch
from cmpagl_core.datasets.prepared import PreparedDataset, open_prepared
from cmpagl_core.datasets.splits import selection_splits
from cmpagl_core.losses import MaskedTokens
from cmpagl_core.models.cmpagl import build_model
from cmpagl_core.models.tokenizer import CaptionTokenizer, load_tokenizer
from cmpagl_core.ranks import ALONE, Ranks
from cmpagl_core.recipe import LossesPart, Recipe
from cmpagl_core.recipe_files import load_recipe
from cmpagl_core.training import joint_objective, step
from cmpagl_core.training.learner import Learner, make_learner
from cmpagl_core.training.setup import make_plan
from cmpagl_core.training.validate import validate

CPU = torch.device("cpu")
STILL = ("text_encoder.dropout=0", "fusion_encoder.dropout=0", "image_encoder.drop_path=0")
CASES: dict[str, tuple[str, ...]] = {
    "every loss": ("losses.itc_soft_targets=0.3", "losses.label_smoothing=0.1", "losses.hubness=0.5"),
    "hardest, accumulated": ("losses.triplet_negatives=hardest", "train.accumulate=2"),
    "circle": ("losses.triplet=circle", "losses.itm=0"),
    "supcon, by matching": ("losses.triplet=supcon", "losses.mlm=0"),
    "matching alone": ("losses.pre_alignment=false",),
    "in chunks": ("train.chunk_size=2", "train.checkpoint_activations=true"),
}
OF_THREE = ("hardest, accumulated",)  # with parts of two sizes; the rest are compared with two processes


def mask_every_third(
    cfg: LossesPart, tokenizer: CaptionTokenizer, batch: PairBatch, generator: torch.Generator
) -> MaskedTokens | None:
    if cfg.mlm == 0:
        return None
    chosen = (torch.arange(batch.input_ids.shape[1]) % 3 == 1) & batch.attention_mask
    return MaskedTokens(batch.input_ids.masked_fill(chosen, tokenizer.mask_id), chosen)


def nearest_negatives(logits: Tensor, positives: Tensor, generator: torch.Generator) -> Tensor:
    nearest = logits.detach().masked_fill(positives, -torch.inf).argmax(dim=1)
    return nearest.masked_fill(positives.all(dim=1), -1)


def learner_of(recipe: Recipe, prepared: PreparedDataset, ranks: Ranks) -> Learner:
    tokenizer = load_tokenizer(recipe.text_encoder, recipe.data.max_caption_tokens, prepared.split("train").captions)
    model = build_model(recipe, tokenizer.vocab_size)
    with torch.no_grad():  # open the gates, so that all parts take part
        for name, parameter in model.named_parameters():
            if name.endswith(".gate"):
                parameter.fill_(0.3)
    return make_learner(recipe, tokenizer, CPU, model, model.parameter_origins(), ranks)


def one_step(recipe: Recipe, prepared: PreparedDataset, ranks: Ranks) -> dict[str, Any]:
    """Figures, gradients and a validation of the second step: its batches are of 5 pairs, or of 6 and 5."""
    learner = learner_of(recipe, prepared, ranks)
    plan = make_plan(learner, prepared, *selection_splits(prepared, recipe.data.selection))
    loader = plan.loader(learner, 0)
    first = 2 - recipe.train.accumulate
    batches = list(loader.epoch(0))[first : first + recipe.train.accumulate]
    learner.model.train()
    figures = step.accumulate(learner, batches, epoch=0, step=0, with_shares=True)
    gradients = {name: p.grad for name, p in learner.model.named_parameters() if p.grad is not None}
    return {
        "figures": asdict(figures),
        "gradients": gradients,
        "pairs": [len(batch) for batch in batches],
        "validation": asdict(validate(learner, plan, cached=False)),
    }


def compare(data: Path, recipe: Path, out: Path) -> dict[str, Any]:
    """The greatest differences by case and number of processes."""
    torch.set_num_threads(1)
    step.mask_batch = mask_every_third  # chance differs by process
    losses.hard_negatives = joint_objective.hard_negatives = nearest_negatives
    prepared = open_prepared(data)
    recipes = {name: load_recipe(recipe, (*STILL, *overrides)) for name, overrides in CASES.items()}
    whole = {name: one_step(one, prepared, ALONE) for name, one in recipes.items()}
    found: dict[str, Any] = {}
    for count in (2, 3):
        store, cases = out / f"store-{count}", OF_THREE if count == 3 else tuple(CASES)

        def rank_work(rank: int, count: int = count, store: Path = store, cases: tuple[str, ...] = cases) -> None:
            dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=count)
            for name in cases:
                parts = one_step(recipes[name], prepared, Ranks(rank, count))
                torch.save(parts, out / f"{name}-{count}-{rank}.pt")
            dist.destroy_process_group()

        in_processes(rank_work, count)
        for name in cases:
            parts = [torch.load(out / f"{name}-{count}-{rank}.pt", weights_only=True) for rank in range(count)]
            found[f"{name}, {count}"] = differences(whole[name], parts)
    return found


def differences(whole: dict[str, Any], parts: list[dict[str, Any]]) -> dict[str, Any]:
    gradients: dict[str, Tensor] = whole["gradients"]
    figures = whole["figures"]

    def greatest(name: str) -> float:
        gaps = (abs(part["figures"][name][key] - value) for part in parts for key, value in figures[name].items())
        return max(gaps, default=0.0)

    assert all(part["gradients"].keys() == gradients.keys() for part in parts)
    gaps = [(part["gradients"][name] - gradient).abs().max() for part in parts for name, gradient in gradients.items()]
    return {
        "pairs": [part["pairs"] for part in parts],
        "loss": max(abs(part["figures"]["loss"] - figures["loss"]) for part in parts),
        "terms": greatest("terms"),
        "cosine": max(abs(part["figures"]["unmatched_cosine"] - figures["unmatched_cosine"]) for part in parts),
        "shares": greatest("gradient_shares"),
        "gradients": float(max(gaps)),
        "greatest": max(float(gradient.abs().max()) for gradient in gradients.values()),
        "validations": [whole["validation"], *(part["validation"] for part in parts)],
    }
