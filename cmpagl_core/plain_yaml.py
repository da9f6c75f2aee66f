"""The subset of YAML that recipes use: mappings, lists and plain scalars, read event by event.

Scalars follow YAML 1.2, so `no` and `1:30` are text; tags, anchors, dates and duplicate keys are refused with their
line, and depth and size are bounded, so a hostile file can only be refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

MAX_CHARACTERS = 200_000
MAX_DEPTH = 12

_MAX_NUMBER = 40  # characters; bounds of the recipe say the rest
_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_BOOLEANS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")

_Events = Iterator[yaml.Event]


class PlainYamlError(ValueError):
    """What is wrong, and in which line (from 1; 0 if unknown)."""

    def __init__(self, problem: str, line: int = 0) -> None:
        super().__init__(problem)
        self.line = line


def load_plain_yaml(text: str) -> Any:
    """Dictionaries, lists, texts, numbers, booleans and None from YAML; None for an empty text.

    Raises PlainYamlError for anything else.
    """
    if len(text) > MAX_CHARACTERS:
        raise PlainYamlError(f"it is too large ({len(text):,} characters, at most {MAX_CHARACTERS:,})")
    try:
        return _document(yaml.parse(text, Loader=yaml.SafeLoader))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "it cannot be parsed"
        raise PlainYamlError(f"not valid YAML ({problem})", 0 if mark is None else mark.line + 1) from error
    except (OverflowError, LookupError, RecursionError) as error:  # of PyYAML's scanner, on escapes out of range
        raise PlainYamlError("not valid YAML (it cannot be parsed)") from error
    except ValueError as error:
        if isinstance(error, PlainYamlError):
            raise
        raise PlainYamlError("not valid YAML (it cannot be parsed)") from error


def dump_plain_yaml(tree: Any) -> str:
    """YAML that `load_plain_yaml` reads back unchanged; keys keep their order."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=100, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    """Also quotes text that is a number in YAML 1.2 but not in YAML 1.1."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_implicit_resolver("!number", _FLOAT, list("-+.0123456789"))


def _document(events: _Events) -> Any:
    found: Any = None
    documents = 0
    for event in events:
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                raise PlainYamlError("it contains a second document", _line(event))
        elif isinstance(event, yaml.NodeEvent):
            found = _value(event, events, 1)
    return found


def _value(event: yaml.Event, events: _Events, depth: int) -> Any:
    if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
        raise PlainYamlError("recipes have no anchors or aliases (& and *); quote text that starts with one",
                             _line(event))  # fmt: skip
    if getattr(event, "tag", None) is not None:
        raise PlainYamlError("recipes have no tags (!); quote text that starts with one", _line(event))
    if depth > MAX_DEPTH:
        raise PlainYamlError(f"it is nested more than {MAX_DEPTH} deep", _line(event))
    if isinstance(event, yaml.MappingStartEvent):
        return _mapping(events, depth)
    if isinstance(event, yaml.SequenceStartEvent):
        return list(_items(events, depth))
    return _scalar(event)


def _items(events: _Events, depth: int) -> Iterator[Any]:
    while not isinstance(event := next(events), yaml.SequenceEndEvent):
        yield _value(event, events, depth + 1)


def _mapping(events: _Events, depth: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    lines: dict[str, int] = {}
    while not isinstance(event := next(events), yaml.MappingEndEvent):
        if not isinstance(event, yaml.ScalarEvent) or event.tag is not None or event.anchor is not None:
            raise PlainYamlError("a key must be a plain word", _line(event))
        key = event.value
        if key in found:
            raise PlainYamlError(f"the key {key[:60]!r} is given twice (first in line {lines[key]})", _line(event))
        lines[key] = _line(event)
        found[key] = _value(next(events), events, depth + 1)
    return found


def _scalar(event: Any) -> Any:
    text: str = event.value
    if any("\ud800" <= sign <= "\udfff" for sign in text):
        raise PlainYamlError("a text contains half a character (a lone surrogate)", _line(event))
    if event.style is not None:  # quoted or a block: always text
        return text
    if text in _NULLS:
        return None
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    number = int if _INTEGER.fullmatch(text) else float if _FLOAT.fullmatch(text) else None
    if number is None:
        return text
    if len(text) > _MAX_NUMBER:
        raise PlainYamlError(f"a number of {len(text):,} characters", _line(event))
    return number(text)


def _line(event: yaml.Event) -> int:
    return 0 if event.start_mark is None else int(event.start_mark.line) + 1
