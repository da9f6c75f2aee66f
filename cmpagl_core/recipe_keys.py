"""The recipe fields that affect a result: all except listed ones, each with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cmpagl_core.recipe import Recipe


def keyed_fields(recipe: Recipe, left_out: Mapping[str, str]) -> dict[str, Any]:
    """The fields of a resolved recipe that are not at their default, as JSON for hashing.

    left_out: reasons by the path of a field or part. Fields at their default do not count, so that a key stays valid
    when a field is added; whoever changes a default must increment the version in the key.
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
            raise ValueError(f"{path} is not a recipe field")
        kept.pop(name, None)
    return {name: part for name, part in content.items() if part != {}}
