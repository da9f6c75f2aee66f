"""Recipes as YAML: read from a file or found by name among the shipped ones, and overridden key by key."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cmpagl_core.errors import RecipeError
from cmpagl_core.plain_yaml import MAX_CHARACTERS, PlainYamlError, load_plain_yaml
from cmpagl_core.recipe import Recipe
from cmpagl_core.recipe_errors import nearest, one_sentence

_SHOWN = 120  # characters of a user's text that an error repeats


def parse_recipe(text: str, where: str, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe from YAML text and apply `key.path=value` overrides.

    Raises RecipeError with the place, the offending value and the nearest valid key.
    """
    try:
        tree = load_plain_yaml(text)
    except PlainYamlError as error:
        line = f":{error.line}" if error.line else ""
        raise RecipeError(f"{where}{line}: {error}") from error
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise RecipeError(f"{where}: a recipe is a mapping of parts, not a {type(tree).__name__}")
    given = tuple(overrides)
    require_distinct(given)
    _apply_overrides(tree, given)
    return _validate(tree, where)


def override_recipe(recipe: Recipe, overrides: Iterable[str], where: str = "the overrides") -> Recipe:
    """A new recipe with `key.path=value` overrides applied. Raises RecipeError."""
    tree = recipe.model_dump(mode="json")
    _apply_overrides(tree, overrides)
    return _validate(tree, where)


def recipe_folder() -> Path:
    """Folder of the shipped recipes, installed or in a checkout."""
    installed = Path(__file__).parent / "recipes"
    return installed if installed.is_dir() else Path(__file__).parent.parent / "recipes"


def shipped_recipes() -> dict[str, Path]:
    """Name and file of each shipped recipe."""
    return {path.stem: path for path in sorted(recipe_folder().glob("*.yaml"))}


def load_recipe(name_or_path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """A recipe from a file, or a shipped one by name. Raises RecipeError."""
    path = find_recipe(name_or_path)
    return parse_recipe(read_recipe_text(path), str(path), overrides)


def read_recipe_text(path: Path) -> str:
    """A recipe file with its comments. Raises RecipeError if it cannot be read."""
    try:
        size = path.stat().st_size
        if size > 4 * MAX_CHARACTERS:  # UTF-8 takes at most four bytes per character
            raise RecipeError(f"{path} is too large for a recipe ({size:,} bytes)")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} cannot be read as UTF-8 text") from error


def recipe_purpose(path: Path) -> str:
    """What a recipe is for: the first comment line of its file."""
    first, _, _ = read_recipe_text(path).partition("\n")
    return first.lstrip("# ").strip() if first.startswith("#") else ""


def find_recipe(name_or_path: str | Path) -> Path:
    """The file of a recipe given by path or by name. Raises RecipeError listing the names."""
    path, shipped = Path(name_or_path), shipped_recipes()
    if path.is_file():
        return path
    if str(name_or_path) in shipped:
        return shipped[str(name_or_path)]
    raise RecipeError(
        f"there is no recipe {str(name_or_path)!r}, neither as a file nor among the shipped ones",
        hint=f"the shipped ones are {', '.join(shipped)}" + nearest(str(name_or_path), shipped),
    )


def _validate(tree: dict[str, Any], where: str) -> Recipe:
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise one_sentence(error, where, Recipe) from error


def require_distinct(overrides: Iterable[str]) -> None:
    """Refuse two overrides of one key, of which the last would silently win. Raises RecipeError."""
    seen: set[str] = set()
    for override in overrides:
        path = override.partition("=")[0].strip()
        if path in seen:
            raise RecipeError(f"override {_short(override)}: {_short(path)} is overridden twice", hint="give it once")
        seen.add(path)


def _apply_overrides(tree: dict[str, Any], overrides: Iterable[str]) -> None:
    for override in overrides:
        path, equals, text = override.partition("=")
        keys = path.strip().split(".")
        if not equals or not all(keys):
            raise RecipeError(
                f"override {_short(override)} is not KEY=VALUE", hint="write for instance optim.lr=1.0e-4"
            )
        _apply_override(tree, keys, text, _short(override))


def _apply_override(tree: dict[str, Any], keys: list[str], text: str, shown: str) -> None:
    try:
        value = load_plain_yaml(text)
    except PlainYamlError as error:
        raise RecipeError(f"override {shown}: {error}") from error
    node = tree
    for key in keys[:-1]:
        child = node.setdefault(key, {})
        if not isinstance(child, dict):
            raise RecipeError(f"override {shown}: {_short(key)} is a value, not a part with keys")
        node = child
    node[keys[-1]] = value
    if keys[:-1] == ["image_encoder"] and keys[-1] == "size":
        for fixed in ("width", "depths", "num_heads"):
            node.pop(fixed, None)


def _short(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")
