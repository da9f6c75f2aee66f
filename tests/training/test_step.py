"""One optimiser step computes what it says: pairs in groups, accumulation, clipping, shares of the gradient."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cmpagl_core.datasets.loading import PairBatch
from cmpagl_core.encoders.backbone_cache import views_needed
from cmpagl_core.errors import CmpaglError
from cmpagl_core.losses import ItmPairs, MaskedTokens
from cmpagl_core.models.cmpagl import TextEncoding, build_model
from cmpagl_core.models.tokenizer import CaptionTokenizer, load_tokenizer
from cmpagl_core.recipe import LossesPart, Recipe
from cmpagl_core.training import step
from cmpagl_core.training.learner import Learner, caches_until, gates_by_stage, make_learner
from cmpagl_core.training.monitor import EpochFigures, TrainingMonitor
from cmpagl_core.training.objective import encode_batch_texts, match_logits
from cmpagl_core.training.step import accumulate, gradient_shares, update

CPU = torch.device("cpu")
CAPTIONS = (
    "a lake",
    "two tennis courts beside a road",
    "a forest",
    "many planes near a long terminal with cars",
    "a road",
    "houses and trees",
)
STILL = ("text_encoder.dropout=0", "fusion_encoder.dropout=0", "image_encoder.drop_path=0")

MakeRecipe = Callable[..., Recipe]


def learner_of(recipe: Recipe) -> Learner:
    tokenizer = load_tokenizer(recipe.text_encoder, recipe.data.max_caption_tokens, CAPTIONS)
    model = build_model(recipe, tokenizer.vocab_size)
    with torch.no_grad():  # open the gates, so that all parts take part
        for name, parameter in model.named_parameters():
            if name.endswith(".gate"):
                parameter.fill_(0.3)
    return make_learner(recipe, tokenizer, CPU, model, model.parameter_origins())


def batch_of(learner: Learner, rows: slice = slice(0, 6)) -> PairBatch:
    tokens = learner.tokenizer(CAPTIONS)
    images = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    positives = torch.eye(6, dtype=torch.bool)[rows, rows]
    return PairBatch(images[rows], tokens.input_ids[rows], tokens.attention_mask[rows], positives, CAPTIONS[rows])


def gradients(learner: Learner) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in learner.model.named_parameters() if p.grad is not None}


def test_matching_in_groups_of_like_length_is_matching_pair_by_pair(tiny_recipe: MakeRecipe) -> None:
    learner = learner_of(tiny_recipe(*STILL))
    model, batch = learner.model.eval(), batch_of(learner)
    texts = model.encode_texts(batch.input_ids, batch.attention_mask)
    images = model.encode_images(batch.images)
    rng = torch.Generator().manual_seed(1)
    pairs = ItmPairs(
        torch.randint(6, (11,), generator=rng), torch.randint(6, (11,), generator=rng), torch.arange(11) % 2 == 0
    )
    found, matches = match_logits(model, texts, model.cross_attention_cache(images.tokens), pairs)
    order = batch.attention_mask.sum(dim=1)[pairs.texts].argsort(stable=True)
    assert torch.equal(matches, pairs.matches[order])
    for row, (image, text) in enumerate(zip(pairs.images[order].tolist(), pairs.texts[order].tolist(), strict=True)):
        length = int(batch.attention_mask[text].sum())
        alone = TextEncoding(
            texts.tokens[text : text + 1, :length],
            texts.features[text : text + 1],
            torch.ones(1, length, dtype=torch.bool),
        )
        expected = model.itm_logits(model.fuse(alone, images.tokens[image : image + 1]))
        torch.testing.assert_close(found[row : row + 1], expected, atol=1e-5, rtol=1e-5)


def test_accumulation_changes_nothing_for_mlm(tiny_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    def mask_every_third(
        cfg: LossesPart, tokenizer: CaptionTokenizer, batch: PairBatch, generator: torch.Generator
    ) -> MaskedTokens:
        chosen = (torch.arange(batch.input_ids.shape[1]) % 3 == 1) & batch.attention_mask
        return MaskedTokens(batch.input_ids.masked_fill(chosen, tokenizer.mask_id), chosen)

    monkeypatch.setattr(step, "mask_batch", mask_every_third)
    learner = learner_of(tiny_recipe(*STILL, "losses.pre_alignment=false", "losses.itm=1.0e-12"))
    whole = accumulate(learner, [batch_of(learner)], epoch=0, step=0, with_shares=False)
    at_once = gradients(learner)
    parts = [batch_of(learner, slice(0, 2)), batch_of(learner, slice(2, 6))]  # of different sizes
    in_parts = accumulate(learner, parts, epoch=0, step=0, with_shares=False)
    assert in_parts.terms["mlm"] == pytest.approx(whole.terms["mlm"], rel=1e-5)
    for name, gradient in gradients(learner).items():
        if not name.startswith("itm_head"):
            torch.testing.assert_close(gradient, at_once[name], atol=1e-6, rtol=1e-4, msg=name)


ONE_LOSS = {
    "itc": ("losses.itm=0", "losses.mlm=0", "losses.triplet=none", "fusion_encoder.enabled=false"),
    "triplet": ("losses.itm=0", "losses.mlm=0", "losses.itc=0", "fusion_encoder.enabled=false"),
    "itm": ("losses.mlm=0", "losses.pre_alignment=false"),
}


@pytest.mark.parametrize("name", ONE_LOSS)
def test_accumulation_lets_a_loss_with_negatives_see_its_micro_batch_alone(tiny_recipe: MakeRecipe, name: str) -> None:
    """Micro-batches of two pairs, so that ITM's hard negatives are no matter of chance: there is one each."""
    learner = learner_of(tiny_recipe(*STILL, *ONE_LOSS[name]))
    parts = [batch_of(learner, slice(start, start + 2)) for start in (0, 2, 4)]
    together = accumulate(learner, parts, epoch=0, step=0, with_shares=False)
    assert list(together.terms) == [name]
    summed = gradients(learner)
    means: dict[str, Tensor] = {}
    losses = []
    for part in parts:
        losses.append(accumulate(learner, [part], epoch=0, step=0, with_shares=False).loss)
        for key, gradient in gradients(learner).items():
            means[key] = means.get(key, torch.zeros_like(gradient)) + gradient / 3
    assert together.loss == pytest.approx(sum(losses) / 3, rel=1e-5)
    for key, gradient in summed.items():
        torch.testing.assert_close(gradient, means[key], atol=1e-6, rtol=1e-4, msg=key)
    whole = accumulate(learner, [batch_of(learner)], epoch=0, step=0, with_shares=False)
    at_once = gradients(learner)
    assert abs(whole.loss - together.loss) > 1e-5 * whole.loss  # six pairs have more negatives than two
    assert any(not torch.allclose(at_once[key], summed[key], rtol=1e-2) for key in summed)


def test_the_same_step_is_the_same_and_another_draws_anew(tiny_recipe: MakeRecipe) -> None:
    learner = learner_of(tiny_recipe())
    learner.model.train()
    batch = batch_of(learner)
    first = accumulate(learner, [batch], epoch=1, step=4, with_shares=False)
    torch.rand(100)  # what others draw does not matter
    assert accumulate(learner, [batch], epoch=1, step=4, with_shares=True).loss == first.loss
    assert accumulate(learner, [batch], epoch=1, step=5, with_shares=False).loss != first.loss
    assert accumulate(learner, [batch], epoch=2, step=4, with_shares=False).loss != first.loss


def test_gradients_are_clipped_and_their_norm_is_told(tiny_recipe: MakeRecipe) -> None:
    learner = learner_of(tiny_recipe("optim.clip_norm=0.01"))
    accumulate(learner, [batch_of(learner)], epoch=0, step=0, with_shares=False)
    norm = torch.cat([gradient.double().flatten() for gradient in gradients(learner).values()]).norm()
    assert update(learner, step=0, share=1.0) == pytest.approx(float(norm), rel=1e-4)
    clipped = torch.cat([gradient.flatten() for gradient in gradients(learner).values()]).norm()
    assert float(clipped) == pytest.approx(0.01, rel=1e-3)


def test_a_gradient_that_is_no_number_stops_before_the_weights_are_touched(tiny_recipe: MakeRecipe) -> None:
    learner = learner_of(tiny_recipe())
    accumulate(learner, [batch_of(learner)], epoch=0, step=0, with_shares=False)
    before = [p.detach().clone() for p in learner.model.parameters()]
    gradient = learner.model.logit_scale.grad
    assert gradient is not None
    gradient.fill_(float("nan"))
    with pytest.raises(CmpaglError, match="the gradient is not finite at step 8; train again with a lower"):
        update(learner, step=7, share=1.0)
    assert all(torch.equal(p, old) for p, old in zip(learner.model.parameters(), before, strict=True))


def test_the_logit_scale_is_held_at_its_clamp_and_told(tiny_recipe: MakeRecipe) -> None:
    learner = learner_of(tiny_recipe("losses.logit_scale_max=15"))
    with torch.no_grad():
        learner.model.logit_scale.fill_(9.0)
    accumulate(learner, [batch_of(learner)], epoch=0, step=0, with_shares=False)
    update(learner, step=0, share=1.0)
    scale = learner.model.logit_scale.exp().item()
    assert scale == pytest.approx(15.0)
    figures = EpochFigures(1, False, 1.0, {}, 0.0, scale, 15.0, {}, {}, 0.0)
    assert re.match("logit scale at its clamp", TrainingMonitor().epoch(figures)[0].sentence)


def test_shares_of_the_gradient_are_those_of_each_loss_alone() -> None:
    tokens = torch.ones(4, requires_grad=True)
    shares = gradient_shares({"a": 3 * tokens.sum(), "b": tokens[0] * 6, "c": torch.ones(1).sum()}, tokens)
    assert shares == pytest.approx({"a": 0.5, "b": 0.5, "c": 0.0})
    assert gradient_shares({"a": torch.ones(1).sum()}, torch.ones(4)) == {}


@pytest.mark.parametrize("gate", [0.0, 0.3])
def test_no_share_of_the_gradient_is_told_where_a_skip_leads_past_the_image_tokens(
    backbone_recipe: MakeRecipe, gate: float
) -> None:
    learner = learner_of(
        backbone_recipe("image_encoder.backbone_skip=true", "losses.itm=1.0", "fusion_encoder.enabled=true")
    )
    with torch.no_grad():
        learner.model.get_parameter("backbone_skip.gate").fill_(gate)
    assert accumulate(learner, [batch_of(learner)], epoch=0, step=0, with_shares=True).gradient_shares == {}


def test_gates_are_told_by_stage(tiny_recipe: MakeRecipe) -> None:
    learner = learner_of(tiny_recipe("image_encoder.global_stages=[2, 4]"))
    assert gates_by_stage(learner.model) == pytest.approx({"stage 2": 0.3, "stage 4": 0.3})
    assert gates_by_stage(learner_of(tiny_recipe("image_encoder.global_window=false")).model) == {}


def test_a_cache_serves_frozen_backbones_and_those_that_stay_frozen_for_long(backbone_recipe: MakeRecipe) -> None:
    late = "image_encoder.backbone_trainable=true"
    views = views_needed(backbone_recipe())
    assert views == tuple(range(8))
    assert caches_until(backbone_recipe(), views) == 2
    assert caches_until(backbone_recipe(late), views) == 0
    assert caches_until(backbone_recipe(late, "image_encoder.backbone_unfreeze_epoch=8"), views) == 0
    assert caches_until(backbone_recipe(late, "image_encoder.backbone_unfreeze_epoch=9"), views) == 9
    assert caches_until(backbone_recipe(late, "optim.image_lr_scale=0"), views) == 2
    assert views_needed(backbone_recipe("evaluate.tta=none", "data.augment=flips")) == (0, 2, 4, 6)
    assert views_needed(backbone_recipe("evaluate.tta=none", "data.augment=none")) == (0,)


def test_captions_encoded_once_each_in_groups_are_as_if_encoded_together(tiny_recipe: MakeRecipe) -> None:
    learner = learner_of(tiny_recipe(*STILL))
    model = learner.model.eval()
    texts = [CAPTIONS[row] for row in (3, 0, 1, 3, 5, 0, 2, 4, 3)]
    tokens = learner.tokenizer(texts)
    together = model.encode_texts(tokens.input_ids, tokens.attention_mask)
    grouped = encode_batch_texts(model, tokens.input_ids, tokens.attention_mask)
    assert torch.allclose(grouped.features, together.features, atol=1e-5)
    real = tokens.attention_mask[..., None]
    assert torch.allclose(grouped.tokens * real, together.tokens * real, atol=1e-5)
    assert torch.equal(grouped.attention_mask, tokens.attention_mask)


def test_a_caption_that_comes_twice_gets_the_gradient_of_both(tiny_recipe: MakeRecipe) -> None:
    learner = learner_of(tiny_recipe(*STILL))
    model = learner.model.eval()
    tokens = learner.tokenizer([CAPTIONS[row] for row in (1, 0, 1)])
    weights = torch.randn(3, model.text_projection.out_features, generator=torch.Generator().manual_seed(0))

    def gradient(encode: Callable[..., TextEncoding]) -> Tensor:
        model.zero_grad()
        (encode(tokens.input_ids, tokens.attention_mask).features * weights).sum().backward()
        found = model.text_projection.weight.grad
        assert found is not None
        return found.clone()

    expected = gradient(model.encode_texts)
    assert torch.allclose(gradient(lambda ids, mask: encode_batch_texts(model, ids, mask)), expected, atol=1e-5)
