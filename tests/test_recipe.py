"""A recipe is validated once: every wrong key, value and contradiction has its sentence."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from cmpagl_core.errors import RecipeError
from cmpagl_core.recipe import EvaluatePart, ImageEncoderPart, Recipe
from cmpagl_core.recipe_data import DataPart
from cmpagl_core.recipe_errors import RENAMED_KEYS, RENAMED_VALUES
from cmpagl_core.recipe_files import (
    find_recipe,
    load_recipe,
    override_recipe,
    parse_recipe,
    recipe_purpose,
    shipped_recipes,
)

TWO_BACKBONES = (
    "image_encoder: {size: custom, width: 8, depths: [0, 0, 0, 2], num_heads: [1, 1, 1, 4], backbone: resnet10t, "
    "backbone_strides: [32], backbone_skip: true, extra_backbones: [resnet18], extra_backbone_weights: [random]}\n"
)
RECIPE_PARTS: dict[str, type[BaseModel]] = {
    "data": DataPart,
    "image_encoder": ImageEncoderPart,
    "evaluate": EvaluatePart,
}
NO_FUSION = "fusion_encoder: {enabled: false}\n"


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_every_shipped_recipe_is_valid_and_says_what_it_is_for(name: str) -> None:
    assert isinstance(load_recipe(name), Recipe)
    assert recipe_purpose(find_recipe(name))


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_every_shipped_recipe_comments_every_field_that_it_sets(name: str) -> None:
    text = find_recipe(name).read_text(encoding="utf-8")
    bare = [line for line in text.splitlines() if line.startswith("  ") and line.strip() and "#" not in line]
    assert bare == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("optim: {lerning_rate: 1.0e-4}", r"unknown key 'optim\.lerning_rate'"),
        ("lossses: {itc: 1}", "unknown key 'lossses'; did you mean 'losses'"),
        ("losses: {tripplet: plain}", r"'losses\.tripplet'; did you mean 'triplet'"),
        ("optim: {zzz: 1}", "known here: lr, text_lr_scale"),
        ("losses: {triplet: off}", r"losses\.triplet = 'off': Input should be 'none', 'plain'"),
        ("losses: {triplet: strong}", r"losses\.triplet = 'strong'"),
        ("train: {epochs: 0}", r"train\.epochs = 0"),
        ("optim: {lr: .nan}", r"optim\.lr"),
        ("optim: {lr: .inf}", r"optim\.lr"),
        ("losses: {itm_hardness: .inf}", r"losses\.itm_hardness"),
        ("data: {image_size_px: 10000}", r"data\.image_size_px = 10000"),
        ("- a list", "a recipe is a mapping of parts, not a list"),
        ("just text", "a mapping of parts, not a str"),
        ("a: [1,\nb: }", "mine.yaml:2: not valid YAML"),
        ("? [a, b]\n: 1", "mine.yaml:1: a key must be a plain word"),
        ("version: 2", "version = 2"),
        ("!!python/object/apply:os.system ['true']", r"mine.yaml:1: recipes have no tags \(!\)"),
        ("image_encoder: {size: tiny, depths: [2, 2, 2, 2]}", "depths is fixed by size tiny"),
        ("image_encoder: {size: custom, width: 90, num_heads: [4, 4, 4, 4]}", "num_heads of stage 1 must divide"),
        ("image_encoder: {backbone: tf_efficientnet_lite0}", "set their depths to 0"),
        (
            "image_encoder: {backbone: a, backbone_skip: true, extra_backbones: [b], "
            "extra_backbone_weights: [random], extra_backbone_px: [64, 64]}",
            "extra_backbone_px needs one entry",
        ),
        ("image_encoder: {backbone_skip_dropout: 0.5}", "backbone_skip_dropout needs backbone_skip"),
        (
            "image_encoder: {extra_backbones: [a], extra_backbone_weights: [random]}",
            "set image_encoder.backbone_skip true",
        ),
        (TWO_BACKBONES.replace("[random]", "[]"), "needs one entry for each entry"),
        (TWO_BACKBONES + "losses: {embed_dim: 255}", "255 is not divisible by 2, the number of backbones"),
        ("image_encoder: {global_stages: []}", "global_window true with no global_stages is plain Swin"),
        (
            TWO_BACKBONES.replace("backbone_skip", "global_stages: [2, 4], backbone_skip"),
            "stage 2, which the backbone at stride 32",
        ),
        (TWO_BACKBONES.replace("backbone_skip", "global_stages: [3], backbone_skip"), "name stages from 4 on"),
        ("image_encoder: {branches: parallel, size: custom, depths: [1, 2, 2, 2]}", "come in pairs"),
        ("losses: {itm: 1.0}\n" + NO_FUSION, "ITM and MLM need fusion layers"),
        ("losses: {itm: 0.0, mlm: 0.0}", "no loss trains the fusion encoder"),
        ("losses: {itc: 0.0, triplet: none, itm: 0.0, mlm: 0.0}\n" + NO_FUSION, "no loss trains a ranking"),
        ("distill: {epochs: 1}", "list prepared data sets in distill.datasets"),
        ("distill: {epochs: 1, datasets: [ucm], teachers: []}", "one entry for each teacher"),
        ("distill: {epochs: 1, datasets: [ucm], feature: 0.0, local: 0.0, relation: 0.0}", "distill has no loss"),
        ("distill: {epochs: 1, datasets: [ucm], batch_size: 1}", "must be at least 2"),
        (TWO_BACKBONES + "distill: {epochs: 1, datasets: [ucm]}", "distill gives Gswin its start, from patches"),
        ("losses: {itc: 0.0, triplet: none}", r"set losses\.pre_alignment false"),
    ],
)
def test_a_wrong_recipe_has_its_sentence(text: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said) as caught:
        parse_recipe(text, "mine.yaml")
    assert str(caught.value).startswith("mine.yaml")
    assert "\n" not in str(caught.value)


def test_a_huge_file_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(RecipeError, match="too large"):
        parse_recipe("# " + "x" * 2_000_000, "huge.yaml")


@given(st.text(max_size=60))
def test_no_text_breaks_the_reader(text: str) -> None:
    found, said = Recipe(), "any.yaml"
    try:
        found = parse_recipe(text, "any.yaml")
    except RecipeError as error:
        said = str(error)
    assert found == Recipe()  # no short text happens to name a field
    assert said.startswith("any.yaml")


def test_an_empty_recipe_is_all_defaults() -> None:
    assert parse_recipe("", "x") == Recipe()


def test_a_recipe_reads_back_as_it_was_written() -> None:
    recipe = parse_recipe("image_encoder: {size: small}\nlosses: {margin_cosine: 0.3}", "x")
    assert parse_recipe(recipe.to_yaml(), "again") == recipe
    assert parse_recipe(recipe.to_yaml(), "again").sha256() == recipe.sha256()


@pytest.mark.parametrize("override", ["train.seed=1", "losses.margin_cosine=0.25", "data.dataset=ucm"])
def test_every_difference_is_another_hash(override: str) -> None:
    assert override_recipe(Recipe(), [override]).sha256() != Recipe().sha256()


def test_overrides_are_yaml_values() -> None:
    recipe = parse_recipe("", "x", ["image_encoder.global_stages=[1, 2]", "losses.triplet=plain", "optim.lr=2.0e-4"])
    assert recipe.image_encoder.global_stages == (1, 2)
    assert recipe.losses.triplet == "plain"
    assert recipe.optim.lr == 2e-4


def test_the_size_of_a_resolved_recipe_can_be_overridden() -> None:
    assert override_recipe(Recipe(), ["image_encoder.size=base"]).image_encoder.width == 128


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optim.lr", "is not KEY=VALUE"),
        ("=1", "is not KEY=VALUE"),
        ("optim..lr=1", "is not KEY=VALUE"),
        ("optim.lr.x=1", "'lr' is a value"),
        ("optim.lr=[1", "not valid YAML"),
        ("optim.lt=1", r"unknown key 'optim\.lt'; did you mean 'lr'"),
    ],
)
def test_a_wrong_override_has_its_sentence(override: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        override_recipe(Recipe(), [override])


@pytest.mark.parametrize(("key", "new"), sorted(RENAMED_KEYS.items()))
def test_a_renamed_key_is_refused_with_its_new_name(key: str, new: str) -> None:
    part, _, old = key.partition(".")
    assert old not in RECIPE_PARTS[part].model_fields
    assert new in RECIPE_PARTS[part].model_fields
    with pytest.raises(RecipeError, match=rf"the key '{part}\.{old}' was renamed; write '{new}'"):
        override_recipe(Recipe(), [f"{key}=1"])


@pytest.mark.parametrize(
    ("key", "old", "new"),
    [*((key, old, new) for (key, old), new in RENAMED_VALUES.items()), ("image_encoder.backbone", "patch", "none")],
)
def test_a_renamed_value_is_refused_with_its_new_name(key: str, old: str, new: str) -> None:
    override_recipe(Recipe(), [f"{key}={new}"])
    with pytest.raises(RecipeError, match=rf"'{old}' was renamed: write '{new}'"):
        override_recipe(Recipe(), [f"{key}={old}"])


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_no_shipped_recipe_uses_an_old_word(name: str) -> None:
    load_recipe(name)
    old_words = r"\b(stem\w*|views?|dihedral|pictures?|heat|by heart|right angles|anew)\b"
    lines = find_recipe(name).read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if re.search(old_words, line)] == []


def test_an_unknown_recipe_lists_the_names(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="there is no recipe 'ucm-gpu'"):
        load_recipe("ucm-gpu")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="cannot be read as UTF-8"):
        load_recipe(tmp_path / "binary.yaml")


def test_a_recipe_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Recipe().train.epochs = 3  # type: ignore[misc]


def parts(model: type[BaseModel], path: str = "") -> list[tuple[str, Any]]:
    found = []
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found += parts(field.annotation, f"{path}{name}.")
        else:
            found.append((f"{path}{name}", field))
    return found


def test_every_field_is_read_somewhere_in_the_core() -> None:
    root = Path(__file__).parent.parent / "cmpagl_core"
    source = "\n".join(path.read_text(encoding="utf-8") for path in root.rglob("*.py"))
    unread = [path for path, _ in parts(Recipe) if f".{path.rsplit('.', 1)[-1]}" not in source]
    assert set(unread) <= {"version"}  # pydantic itself refuses another one


def test_yaml_of_a_recipe_is_plain() -> None:
    assert yaml.safe_load(Recipe().to_yaml())["losses"]["triplet"] == "intra"
