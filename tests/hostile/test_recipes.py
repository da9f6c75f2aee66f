"""Recipes and overrides that are hostile or slips of the pen: each is refused by a sentence, none is guessed at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmpagl_core.errors import ExitCode, RecipeError
from cmpagl_core.plain_yaml import MAX_CHARACTERS, PlainYamlError, dump_plain_yaml, load_plain_yaml
from cmpagl_core.recipe import Recipe
from cmpagl_core.recipe_files import parse_recipe

Told = Callable[..., str]

REFUSED = {
    "a key twice": ("optim:\n  lr: 1.0e-3\n  lr: 1.0e-4", "r.yaml:3: the key 'lr' is given twice (first in line 2)"),
    "a part twice": ("train: {epochs: 6}\ntrain: {seed: 1}", "r.yaml:2: the key 'train' is given twice"),
    "no gammas": ("evaluate: {smr_gammas: []}", "evaluate.smr_gammas"),
    "yes is a word": ("train: {epochs: yes}", "train.epochs = 'yes'"),
    "true is no number": ("optim: {lr: true}", "optim.lr = True"),
    "a sexagesimal": ("train: {epochs: 1:30}", "train.epochs = '1:30'"),
    "a number without a point": ("optim: {lr: 1e-4}", "with a decimal point, as in 1.0e-4"),
    "a quoted number": ("optim: {lr: '0.1'}", "optim.lr = '0.1'"),
    "a number for a text": ("data: {dataset: 2024}", "put it in quotes"),
    "a word for a boolean": ("evaluate: {smr: no}", "write true or false"),
    "an underscored number": ("train: {epochs: 1_0}", "train.epochs = '1_0'"),
    "an octal number": ("train: {epochs: 010}", "train.epochs = '010'"),
    "an integer tag": ("train: {epochs: !!int ''}", "r.yaml:1: recipes have no tags (!)"),
    "a boolean tag": ("evaluate: {smr: !!bool x}", "recipes have no tags (!)"),
    "a timestamp tag": ("train: {epochs: !!timestamp x}", "recipes have no tags (!)"),
    "a tagged key": ("!!int x: 1", "a key must be a plain word"),
    "a set": ("train: !!set {a}", "recipes have no tags (!)"),
    "no date": ("train: {epochs: 2001-99-99}", "train.epochs = '2001-99-99'"),
    "5,000 digits": ("train: {epochs: " + "9" * 5_000 + "}", "a number of 5,000 characters"),
    "5,000 decimals": ("optim: {lr: 0." + "9" * 5_000 + "}", "a number of 5,002 characters"),
    "a thousand brackets": ("a: " + "[" * 1_000, "nested more than"),
    "a thousand braces": ("{a: " * 1_000, "nested more than"),
    "a hundred indents": ("\n".join(" " * i + "a:" for i in range(100)), "nested more than"),
    "an anchor": ("data: &a {dataset: x}", "no anchors or aliases"),
    "an alias": ("data: *a", "no anchors or aliases"),
    "a merge": ("train: {<<: {epochs: 1}}", "unknown key 'train.<<'"),
    "a second document": ("train: {epochs: 1}\n---\ntrain: {epochs: 2}", "r.yaml:2: it contains a second document"),
    "an escape out of range": ('data: {dataset: "\\UFFFFFFFF"}', "not valid YAML"),
    "half a character": ('data: {dataset: "\\ud800"}', "half a character"),
    "a control character": ("data: {dataset: '\x01'}", "not valid YAML"),
    "a directive": ("%YAML 99999999999999999999.1\n---\na: 1", "not valid YAML"),
    "a list as a key": ("? [a]\n: 1", "a key must be a plain word"),
    "a negative seed": ("train: {seed: -1}", "train.seed = -1"),
    "a long seed": ("train: {seed: 100000000000000000000000}", "train.seed = 100000000000000000000000"),
    "a huge ratio": ("image_encoder: {mlp_ratio: 1.0e300}", "image_encoder.mlp_ratio = 1e+300"),
    "a huge scale": ("losses: {logit_scale_init: 1.0e300}", "losses.logit_scale_init = 1e+300"),
    "an infinite number": ("optim: {lr: 1.0e999}", "optim.lr = inf"),
    "a wide embedding": ("losses: {embed_dim: 1000000000}", "losses.embed_dim = 1000000000"),
    "a large file": ("# " + "x" * MAX_CHARACTERS, "too large"),
}


@pytest.mark.parametrize(("text", "said"), REFUSED.values(), ids=REFUSED)
def test_a_hostile_recipe_has_its_sentence(text: str, said: str, told: Told, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(text, encoding="utf-8")
    assert said in told("recipe", "validate", "r.yaml", code=ExitCode.USAGE)


OVERRIDES = {
    "an integer tag": ("train.epochs=!!int ''", "tags (!)"),
    "a boolean tag": ("evaluate.smr=!!bool x", "tags (!)"),
    "no date": ("train.epochs=2001-99-99", "train.epochs = '2001-99-99'"),
    "5,000 digits": ("train.epochs=" + "9" * 5_000, "a number of 5,000 characters"),
    "a thousand brackets": ("train.epochs=" + "[" * 1_000, "nested more than"),
    "a key twice": ("train={epochs: 1, epochs: 2}", "the key 'epochs' is given twice"),
    "a deep path": (".".join(["a"] * 2_000) + "=1", "unknown key 'a"),
    "a negative seed": ("train.seed=-1", "train.seed = -1"),
    "no gammas": ("evaluate.smr_gammas=[]", "evaluate.smr_gammas"),
    "nothing": ("train.epochs=", "train.epochs = None"),
    "a null byte": ("train.epochs=\0", "not valid YAML"),
}


@pytest.mark.parametrize(("override", "said"), OVERRIDES.values(), ids=OVERRIDES)
def test_a_hostile_override_has_its_sentence(override: str, said: str, told: Told) -> None:
    assert said in told("recipe", "validate", "ucm-cpu", "--set", override, code=ExitCode.USAGE)


def test_the_same_key_cannot_be_overridden_twice(told: Told) -> None:
    both = ("--set", "train.epochs=1", "--set", "train.epochs=2")
    assert "'train.epochs' is overridden twice" in told("recipe", "validate", "ucm-cpu", *both, code=ExitCode.USAGE)


@pytest.mark.parametrize("seed", ["-1", "1" + "0" * 23])
def test_a_seed_out_of_bounds_is_refused_before_a_training(seed: str, told: Told) -> None:
    assert "train.seed" in told("train", "ucm-cpu", "--seed", seed, code=ExitCode.USAGE)


def test_a_text_that_looks_like_a_number_of_yaml_1_2_is_read_back_as_a_text() -> None:
    names = ("1.5e5", "-.5", "+.5E3", "yes", "1:30", "2001-01-01", "null", "~", "1e4", "0x1", "*a", "!b", "- c", "")
    for name in names:
        assert load_plain_yaml(dump_plain_yaml({"name": name})) == {"name": name}


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", 1), ("-1", -1), ("1.5", 1.5), ("1.0e-4", 1e-4), ("2.5E+3", 2500.0), ("true", True), ("False", False),
     ("~", None), ("", None), ("no", "no"), ("off", "off"), ("'1'", "1"), ("[1, [a]]", [1, ["a"]]), ("{}", {})],
)  # fmt: skip
def test_scalars_are_read_as_yaml_1_2_has_them(text: str, value: object) -> None:
    assert load_plain_yaml(text) == value
    assert type(load_plain_yaml(text)) is type(value)


@given(st.text(alphabet="{}[]!&*|>'\"%@`#:-?,.0123456789eE abc~\n\t\\xUu<=\ud800\u2028\u0085", max_size=40))
def test_no_text_breaks_the_plain_reader(text: str) -> None:
    with suppress(RecipeError):
        parse_recipe(text, "any.yaml")
    try:
        found = load_plain_yaml(text)
    except PlainYamlError:
        return
    assert load_plain_yaml(dump_plain_yaml(found)) == found


def numbers(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema of a number below this one, with its path."""
    if schema.get("type") in ("integer", "number"):
        yield path, schema
    for key in ("properties", "$defs"):
        for name, child in schema.get(key, {}).items():
            yield from numbers(child, f"{path}/{name}")
    for key in ("items", "anyOf", "prefixItems"):
        children = schema.get(key, [])
        for child in children if isinstance(children, list) else [children]:
            yield from numbers(child, path)


def test_every_number_of_a_recipe_has_both_bounds() -> None:
    found = list(numbers(Recipe.model_json_schema()))
    assert len(found) > 40
    lower, upper = {"minimum", "exclusiveMinimum"}, {"maximum", "exclusiveMaximum"}
    free = [(path, schema) for path, schema in found if not {"enum", "const"} & set(schema)]
    assert [path for path, schema in free if not (lower & set(schema) and upper & set(schema))] == []
