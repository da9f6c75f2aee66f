"""What a training, a trial and a cached map are known by: all that decides them, field by field."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import torch
from pydantic import BaseModel

from cmpagl_core.ablation.keys import Computation, training_key, trial_key
from cmpagl_core.ablation.trials import TrialFacts, saved_result
from cmpagl_core.encoders.backbone_cache import NOT_IN_BACKBONE, backbone_settings
from cmpagl_core.files import read_json
from cmpagl_core.progress import Silent
from cmpagl_core.recipe import Recipe
from cmpagl_core.recipe_files import override_recipe
from cmpagl_core.recipe_keys import keyed_fields

COMPUTED = Computation("a" * 64, "cpu", "fp32", 7)
STUDY = Path(__file__).parent.parent / "docs" / "study" / "results"

# The fields that may change without another key. All others change it, those too that are added later.
SAME_TRAINING = {
    "data.dataset", "data.workers", "distill.datasets", "evaluate.batch_size", "evaluate.itm_k", "evaluate.smr",
    "evaluate.smr_form", "evaluate.smr_gammas",
}  # fmt: skip
SAME_TRIAL = {"data.dataset", "data.workers", "distill.datasets", "evaluate.batch_size"}
# The fields of which a cached map of a frozen backbone is made; its weights, its precision and its device stand beside.
OTHER_BACKBONE = {
    "data.image_size_px", "data.augment", "image_encoder.backbone", "image_encoder.backbone_strides",
    "image_encoder.extra_backbones", "image_encoder.extra_backbone_px",
}  # fmt: skip


def other_value(value: Any, annotation: Any) -> Any:
    """Something else of the same kind."""
    if get_origin(annotation) is Literal:
        return next(option for option in get_args(annotation) if option != value)
    if isinstance(value, tuple):
        inner = get_args(annotation)[0]
        return (*value[1:], other_value(value[0], inner)) if value else (_of_kind(inner),)
    if isinstance(value, bool):
        return not value
    if value is None or isinstance(value, int):
        return (value or 0) + 1
    return value + 0.25 if isinstance(value, float) else f"{value}x"


def _of_kind(annotation: Any) -> Any:
    """Any value that suits an annotation, Annotated or not."""
    kind = get_args(annotation)[0] if get_origin(annotation) is not None else annotation
    return 96 if kind is int else "another"


def changed(part: BaseModel, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every field by its path, with the part that has another value there."""
    for name, field in type(part).model_fields.items():
        value = getattr(part, name)
        if isinstance(value, BaseModel):
            for inner, other in changed(value, f"{path}{name}."):
                yield inner, part.model_copy(update={name: other})
        elif f"{path}{name}" != "version":  # of the format: there is one
            yield f"{path}{name}", part.model_copy(update={name: other_value(value, field.annotation)})


def test_every_field_of_a_recipe_changes_the_keys_but_for_those_that_are_named() -> None:
    recipe = Recipe()
    same: dict[str, set[str]] = {"training": set(), "trial": set(), "backbone": set()}
    paths = set()
    for path, other in changed(recipe):
        paths.add(path)
        assert other != recipe, path
        if training_key(other, COMPUTED) == training_key(recipe, COMPUTED):
            same["training"].add(path)
        if trial_key(other, COMPUTED, "test") == trial_key(recipe, COMPUTED, "test"):
            same["trial"].add(path)
        if backbone_key(other) == backbone_key(recipe):
            same["backbone"].add(path)
    assert len(paths) > 80
    assert same["training"] == SAME_TRAINING
    assert same["trial"] == SAME_TRIAL
    assert paths - same["backbone"] == OTHER_BACKBONE
    plain = override_recipe(recipe, ["data.augment=none"])  # else the views of augmentation hold all others
    assert backbone_key(plain) != backbone_key(override_recipe(plain, ["evaluate.tta=d4"]))


def backbone_key(recipe: Recipe) -> str:
    """Without the precision, which a machine may not have."""
    return replace(backbone_settings(recipe, torch.device("cpu")), precision="").key("w")


def test_data_device_precision_and_versions_change_the_keys() -> None:
    recipe = Recipe()
    others = [
        replace(COMPUTED, **change)  # type: ignore[arg-type]
        for change in (
            {"manifest_sha256": "b" * 64},
            {"device": "cuda"},
            {"precision": "bf16"},
            {"training_version": 8},
            {"start_key": "s"},
        )
    ]
    assert len({training_key(recipe, computed) for computed in (COMPUTED, *others)}) == 6
    keys = {trial_key(recipe, computed, "test") for computed in (COMPUTED, *others)}
    keys |= {trial_key(recipe, COMPUTED, "val"), trial_key(recipe, COMPUTED, "test", 99)}
    assert len(keys) == 8
    settings = backbone_settings(recipe, torch.device("cpu"))
    assert (
        len({one.key("w") for one in (settings, replace(settings, precision="x"), replace(settings, device="x"))}) == 3
    )
    assert settings.key("w") != settings.key("v")


def test_a_kept_result_outlives_a_field_that_is_added_to_the_recipe() -> None:
    recipe = Recipe()

    class WithMore(type(recipe.train)):  # type: ignore[misc]
        later: int = 3

    class LaterRecipe(Recipe):
        train: WithMore = WithMore()

    later = LaterRecipe.model_validate(recipe.model_dump())
    other = LaterRecipe.model_validate(recipe.model_dump() | {"train": recipe.train.model_dump() | {"later": 4}})
    for key in (lambda one: training_key(one, COMPUTED), lambda one: trial_key(one, COMPUTED, "test")):
        assert key(later) == key(recipe) != key(other)


def test_an_exception_that_is_no_field_is_our_own_mistake() -> None:
    with pytest.raises(ValueError, match=r"train\.sede is not a recipe field"):
        keyed_fields(Recipe(), {"train.sede": "a slip"})
    assert all(NOT_IN_BACKBONE.values())


def test_the_studys_kept_trials_are_found_by_what_they_say_of_themselves() -> None:
    paths = sorted(STUDY.glob("*.trial.json"))
    assert len(paths) == 39
    for path in paths:
        facts = TrialFacts(**read_json(path))
        found = saved_result(STUDY, facts.key, facts.stages_asked, Silent())
        assert found is not None, path
        stamp = found.report.stamp
        computed = Computation(stamp.manifest_sha256, facts.device, facts.precision, facts.training_version)
        recipe = Recipe.model_validate(facts.recipe)
        assert facts.training_key == training_key(recipe, computed), path
        assert facts.key == trial_key(recipe, computed, stamp.split, facts.evaluation_version), path
        assert path.name.endswith(f"-{facts.key[:8]}.trial.json")
        assert (found.facts.name, found.facts.seed) == (facts.name, recipe.train.seed)
