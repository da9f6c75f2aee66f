"""What of a recipe decides a result: every field, but for those that are named as exceptions, each with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cmpagl_core.recipe import Recipe


def keyed_fields(recipe: Recipe, left_out: Mapping[str, str]) -> dict[str, Any]:
    """The fields of a resolved recipe that are not at their default, as JSON, to be hashed.

    left_out: reasons by the path of a field or of a whole part. A field at its default does not count, so that a
    result outlives a field that is added later; who changes a default raises the version that stands in the key.
    Raises ValueError for a path that no recipe has.
    """
    content: dict[str, Any] = recipe.model_dump(mode="json", exclude_defaults=True)
    everything = recipe.model_dump(mode="json")
    for path in left_out:
        *parents, name = path.split(".")
        there, kept = everything, content
        for parent in parents:
            there, kept = there[parent], kept.get(parent, {})
        if name not in there:
            raise ValueError(f"{path} is no field of a recipe")
        kept.pop(name, None)
    return {name: part for name, part in content.items() if part != {}}
