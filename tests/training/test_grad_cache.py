"""Less memory, the same step: GradCache and activation checkpointing change no loss and no gradient."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cmpagl_core.datasets.prepared import PreparedDataset
from cmpagl_core.datasets.splits import selection_splits
from cmpagl_core.errors import CmpaglError, RecipeError
from cmpagl_core.models.cmpagl import build_model
from cmpagl_core.models.kernels.use import use_kernels
from cmpagl_core.models.tokenizer import load_tokenizer
from cmpagl_core.recipe import Recipe
from cmpagl_core.training import grad_cache
from cmpagl_core.training.learner import Learner, make_learner
from cmpagl_core.training.setup import make_plan
from cmpagl_core.training.step import StepFigures, accumulate

CPU = torch.device("cpu")
STILL = ("text_encoder.dropout=0", "fusion_encoder.dropout=0", "image_encoder.drop_path=0")
ALIGNING = ("losses.itm=0", "losses.mlm=0", "fusion_encoder.enabled=false")
CASES = {
    "every loss": ("losses.itc_soft_targets=0.3", "losses.label_smoothing=0.1", "losses.hubness=0.5"),
    "hardest, accumulated": ("losses.triplet_negatives=hardest", "train.accumulate=2"),
    "aligning": ALIGNING,
    "matching alone": ("losses.pre_alignment=false",),
    "masked words alone": ("losses.itm=0",),
    "frozen": ("optim.image_lr_scale=0", "optim.text_lr_scale=0"),
}

MakeRecipe = Callable[..., Recipe]
Step = tuple[StepFigures, dict[str, Tensor]]


def learner_of(recipe: Recipe, prepared: PreparedDataset) -> Learner:
    tokenizer = load_tokenizer(recipe.text_encoder, recipe.data.max_caption_tokens, prepared.split("train").captions)
    model = build_model(recipe, tokenizer.vocab_size)
    with torch.no_grad():  # open the gates, so that all parts take part
        for name, parameter in model.named_parameters():
            if name.endswith(".gate"):
                parameter.fill_(0.3)
    return make_learner(recipe, tokenizer, CPU, use_kernels(model, CPU), model.parameter_origins())


def step_of(recipe: Recipe, prepared: PreparedDataset) -> Step:
    """Figures and gradients of a first step of 6 pairs, or of 6 and 5."""
    learner = learner_of(recipe, prepared)
    loader = make_plan(learner, prepared, *selection_splits(prepared, recipe.data.selection)).loader(learner, 0)
    learner.model.train()
    figures = accumulate(learner, list(loader.epoch(0))[: recipe.train.accumulate], 0, 0, with_shares=True)
    return figures, {name: p.grad for name, p in learner.model.named_parameters() if p.grad is not None}


def assert_same(found: Step, expected: Step) -> None:
    assert found[0].terms == pytest.approx(expected[0].terms, abs=1e-5)
    assert found[0].loss == pytest.approx(expected[0].loss, abs=1e-5)
    assert found[0].unmatched_cosine == pytest.approx(expected[0].unmatched_cosine, abs=1e-6)
    assert found[0].gradient_shares == pytest.approx(expected[0].gradient_shares, abs=1e-4)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize(("case", "chunk_size"), [*((case, 4) for case in CASES), ("every loss", 1)])
def test_pairs_encoded_in_chunks_have_the_gradients_of_the_whole_batch(
    squares: PreparedDataset, tiny_recipe: MakeRecipe, case: str, chunk_size: int
) -> None:
    """Chunks of 4 and 2 pairs, of 4 and 1, or of one each."""
    whole = step_of(tiny_recipe(*STILL, *CASES[case]), squares)
    assert_same(step_of(tiny_recipe(*STILL, *CASES[case], f"train.chunk_size={chunk_size}"), squares), whole)


def test_a_chunk_is_encoded_again_with_the_same_dropout(
    squares: PreparedDataset, tiny_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one chunk for all pairs, dropout and drop path are drawn as without."""
    recipe = tiny_recipe(*ALIGNING, "image_encoder.drop_path=0.5", "text_encoder.dropout=0.3")
    whole = step_of(recipe, squares)
    monkeypatch.setattr(grad_cache.CachedStep, "chunk_size", 6)
    chunked = tiny_recipe(*ALIGNING, "image_encoder.drop_path=0.5", "text_encoder.dropout=0.3", "train.chunk_size=5")
    assert_same(step_of(chunked, squares), whole)


@pytest.mark.parametrize("overrides", [(), ("train.chunk_size=4",)])
def test_activations_computed_again_have_the_same_gradients(
    squares: PreparedDataset, tiny_recipe: MakeRecipe, overrides: tuple[str, ...]
) -> None:
    """Dropout and drop path included."""
    whole = step_of(tiny_recipe(*overrides), squares)
    again = step_of(tiny_recipe(*overrides, "train.checkpoint_activations=true"), squares)
    assert_same(again, whole)
    assert len(again[0].gradient_shares) == 4


def test_checkpointing_keeps_fewer_bytes_for_the_backward_pass(
    squares: PreparedDataset, tiny_recipe: MakeRecipe
) -> None:
    def kept(*overrides: str) -> int:
        sizes: list[int] = []

        def keep(tensor: Tensor) -> Tensor:
            sizes.append(tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            step_of(tiny_recipe(*overrides), squares)
        return sum(sizes)

    assert kept("train.checkpoint_activations=true") < kept() / 2


def test_features_that_are_not_finite_end_a_step_in_chunks(squares: PreparedDataset, tiny_recipe: MakeRecipe) -> None:
    recipe = tiny_recipe("train.chunk_size=4")
    learner = learner_of(recipe, squares)
    with torch.no_grad():
        learner.model.image_projection.weight.fill_(torch.nan)
    loader = make_plan(learner, squares, *selection_splits(squares, recipe.data.selection)).loader(learner, 0)
    with pytest.raises(CmpaglError, match="the features are not finite at step 1 of epoch 1"):
        accumulate(learner, [next(loader.epoch(0))], 0, 0, with_shares=False)


def test_a_chunk_as_large_as_the_batch_is_refused(tiny_recipe: MakeRecipe) -> None:
    with pytest.raises(RecipeError, match="chunk_size 6 has no effect with batch_size 6"):
        tiny_recipe("train.chunk_size=6")
