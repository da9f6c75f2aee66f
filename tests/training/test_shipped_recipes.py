"""Every recipe that comes with cmpagl trains all that it says it trains: one real step, every parameter looked at."""

from __future__ import annotations

import pytest
import torch

from cmpagl_core.datasets.loading import PairBatch
from cmpagl_core.models.bert import BertShape, bert_shape
from cmpagl_core.models.cmpagl import CmpaglModel, build_model
from cmpagl_core.models.summary import BERT_VOCABULARY
from cmpagl_core.models.tokenizer import load_tokenizer
from cmpagl_core.models.weights import reachable
from cmpagl_core.recipe import Recipe
from cmpagl_core.recipe_files import load_recipe, shipped_recipes
from cmpagl_core.training.learner import Learner, make_learner
from cmpagl_core.training.step import accumulate

CAPTIONS = (
    "many planes are parked near a terminal",
    "a lake beside a forest and some houses",
    "two tennis courts",
    "a bridge over a wide river with boats",
)
BERT_BASE = BertShape(BERT_VOCABULARY, 768, 12, 12, 3072)


def learner_of(recipe: Recipe) -> Learner:
    """With the recipe's own weights where they are at hand, else random ones of their shape."""
    packaged = reachable(recipe.text_encoder.weights)
    if not packaged:
        random = recipe.text_encoder.model_copy(update={"weights": "random"})
        recipe = recipe.model_copy(update={"text_encoder": random})
    tokenizer = load_tokenizer(recipe.text_encoder, recipe.data.max_caption_tokens, CAPTIONS)
    shape = bert_shape(recipe.text_encoder, tokenizer.vocab_size) if packaged else BERT_BASE
    model = build_model(recipe, shape.vocab_size, pretrained=packaged, text_shape=shape)
    return make_learner(recipe, tokenizer, torch.device("cpu"), model, model.parameter_origins())


def open_gates(model: CmpaglModel) -> None:
    """As after some steps: at step 0 a gate is 0, and what lies behind it has no gradient yet."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".gate"):
                parameter.fill_(0.5)


def meant_to_stay(learner: Learner, name: str) -> bool:
    """What the recipe says does not learn: a frozen backbone, and a scale that no loss uses."""
    recipe = learner.recipe
    if name.startswith("image_encoder.patch_embed.") and learner.backbone is not None:
        cfg = recipe.image_encoder
        return not cfg.backbone_trainable or recipe.optim.image_lr_scale == 0
    if learner.origins[name] == "imported_text":
        return recipe.optim.text_lr_scale == 0
    return name == "logit_scale" and not recipe.losses.uses_itc


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_every_parameter_of_a_shipped_recipe_gets_a_gradient(name: str) -> None:
    learner = learner_of(load_recipe(name, ["image_encoder.drop_path=0"]))  # four images may all be dropped
    learner.freeze_backbone_until_due(learner.recipe.train.epochs - 1)
    model = learner.model.train()
    open_gates(model)
    tokens, size = learner.tokenizer(CAPTIONS), learner.recipe.data.image_size_px
    images = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0))
    batch = PairBatch(images, tokens.input_ids, tokens.attention_mask, torch.eye(4, dtype=torch.bool), CAPTIONS)
    accumulate(learner, [batch], epoch=0, step=0, with_shares=False)
    without = {key for key, one in model.named_parameters() if one.grad is None or not bool(one.grad.abs().sum() > 0)}
    assert without == {key for key, _ in model.named_parameters() if meant_to_stay(learner, key)}
    optimised = {id(one) for group in learner.optimizer.param_groups for one in group["params"]}
    late = learner.recipe.image_encoder.backbone_unfreeze_epoch > 0
    for key, one in model.named_parameters():
        assert id(one) in optimised or key in without or (late and key.startswith("image_encoder.patch_embed.")), key
