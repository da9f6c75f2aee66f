"""`cmpagl recipe`: list and show the shipped recipes, and validate your own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cmpagl_cli.commands.options import FormatOption, OutputFormat, RecipeArgument, SetOption
from cmpagl_cli.views import Column, echo, emit, note

if TYPE_CHECKING:
    from cmpagl_core.recipe import Recipe


def recipe_list(format: FormatOption = "table") -> None:
    """List the shipped recipes.

    Examples:
      cmpagl recipe list
      cmpagl recipe list --format json
    """
    from cmpagl_core.recipe_files import recipe_purpose, shipped_recipes

    rows = [
        {"name": name, "purpose": recipe_purpose(path), "path": str(path)} for name, path in shipped_recipes().items()
    ]
    columns = [Column("name"), Column("purpose")]
    emit(rows, columns if format == "table" else [*columns, Column("path")], format)


def recipe_show(
    name: RecipeArgument,
    overrides: SetOption = None,
    resolved: Annotated[bool, typer.Option("--resolved", help="Show every field, including defaults.")] = False,
    summary: Annotated[
        bool, typer.Option("--summary", help="Show parameters and FLOPs of each part of the model instead.")
    ] = False,
    format: Annotated[OutputFormat, typer.Option("--format", help="Format of the summary.")] = "table",
) -> None:
    """Show a recipe: its file with comments, or resolved with --resolved or --set.

    FLOPs are for one image, one caption of 16 tokens, or one pair; a multiply-add counts as two.

    Examples:
      cmpagl recipe show ucm-cpu
      cmpagl recipe show ucm-cpu --resolved > mine.yaml
      cmpagl recipe show rsicd --summary
      cmpagl recipe show ucm --set image_encoder.size=small
    """
    from cmpagl_core.recipe_files import find_recipe, load_recipe, read_recipe_text

    recipe = load_recipe(name, overrides or ())
    if summary:
        _show_summary(recipe, name, format)
        return
    echo((recipe.to_yaml() if resolved or overrides else read_recipe_text(find_recipe(name))).rstrip("\n"))


def _show_summary(recipe: Recipe, name: str, format: OutputFormat) -> None:
    from dataclasses import asdict

    from cmpagl_core.models.summary import summarise_recipe

    found, remark = summarise_recipe(recipe)
    columns = [Column("part"), Column("parameters"), Column("trained"), Column("flops", "FLOPs")]
    emit([asdict(row) for row in found], columns, format, title=name)
    if remark:
        note(remark)


def recipe_validate(
    names: Annotated[list[str], typer.Argument(metavar="RECIPE...", help="Recipe files or names.")],
    overrides: SetOption = None,
) -> None:
    """Validate recipes; the first wrong key or value is reported with exit code 2.

    Examples:
      cmpagl recipe validate mine.yaml
      cmpagl recipe validate ucm-cpu --set optim.lr=2.0e-4
    """
    from cmpagl_core.recipe_files import load_recipe

    for name in names:
        recipe = load_recipe(name, overrides or ())
        echo(f"{name}: valid, sha256 {recipe.sha256()[:12]}")


def recipe_schema() -> None:
    """Print the JSON Schema of recipes, for editors and other programs.

    Examples:
      cmpagl recipe schema > recipe.schema.json
    """
    import json

    from cmpagl_core.recipe import Recipe

    echo(json.dumps(Recipe.model_json_schema(), indent=2))
