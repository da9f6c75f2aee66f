"""A pydantic validation error of a recipe as one sentence."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ValidationError

from cmpagl_core.errors import RecipeError

_SHOWN = 200  # characters of a path of keys

RENAMED_KEYS = {
    "image_encoder.stem": "backbone",
    "image_encoder.stem_strides": "backbone_strides",
    "image_encoder.stem_head": "backbone_head",
    "image_encoder.stem_skip": "backbone_skip",
    "image_encoder.stem_skip_dropout": "backbone_skip_dropout",
    "image_encoder.stem_weights": "backbone_weights",
    "image_encoder.stem_trainable": "backbone_trainable",
    "image_encoder.stem_unfreeze_epoch": "backbone_unfreeze_epoch",
    "image_encoder.stem_also": "extra_backbones",
    "image_encoder.stem_also_weights": "extra_backbone_weights",
    "image_encoder.stem_also_px": "extra_backbone_px",
    "evaluate.views": "tta",
}
RENAMED_VALUES = {
    ("data.augment", "dihedral"): "d4",
    ("evaluate.tta", "dihedral"): "d4",
    ("evaluate.tta", "one"): "none",
}


def one_sentence(error: ValidationError, where: str, model: type[BaseModel]) -> RecipeError:
    """The first error with its place and the offending value, shortened, and the nearest valid key for a wrong one."""
    first = error.errors(include_url=False)[0]
    keys = [str(key) for key in first["loc"]]
    path = ".".join(keys)[:_SHOWN]
    if first["type"] == "extra_forbidden":
        if path in RENAMED_KEYS:
            return RecipeError(f"{where}: the key {path!r} was renamed", hint=f"write {RENAMED_KEYS[path]!r}")
        known = _known_keys(model, keys[:-1])
        hint = nearest(keys[-1], known).removeprefix("; ") or f"known here: {', '.join(known)}"
        return RecipeError(f"{where}: unknown key {path!r}", hint=hint)
    message = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "value_error" and not isinstance(first["input"], str | int | float | bool):
        return RecipeError(f"{where}: {path + ': ' if path else ''}{message}")
    said = f"{where}: {path} = {reprlib.repr(first['input'])[:120]}: {message}"
    return RecipeError(said, hint=_way_out(path, first["type"], first["input"]))


def _way_out(path: str, kind: str, found: object) -> str | None:
    """How to fix the value: the new name of an old word, or the right type."""
    if isinstance(found, str) and (path, found) in RENAMED_VALUES:
        return f"{found!r} was renamed: write {RENAMED_VALUES[path, found]!r}"
    if path == "version" and type(found) is int and found > 0:
        return "update cmpagl: a newer one wrote this"
    if kind == "float_type" and isinstance(found, str):
        return "write a number with a decimal point, as in 1.0e-4, and without quotes"
    if kind == "bool_type":
        return "write true or false"
    if kind == "string_type" and isinstance(found, int | float):
        return "put it in quotes"
    return None


def _known_keys(model: type[BaseModel], keys: list[str]) -> list[str]:
    part: Any = model
    for key in keys:
        field = getattr(part, "model_fields", {}).get(key)
        part = field.annotation if field is not None else None
    return list(getattr(part, "model_fields", {}))


def nearest(word: str, known: Iterable[str]) -> str:
    """ "; did you mean ...?" if a known word is close, else an empty text."""
    found = difflib.get_close_matches(word[:_SHOWN], list(known), n=1, cutoff=0.5)
    return f"; did you mean {found[0]!r}?" if found else ""
