"""Annotations in JSON: the Karpathy layout, and the lists that ALBEF, X-VLM and PIR read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cmpagl_core.datasets.annotations import AnnotatedImage, Annotations, group_by_name, read_split, split_word
from cmpagl_core.errors import DataError

_NAME_KEYS = ("image", "filename", "file_name", "img_path", "image_path", "file")
_CAPTION_KEYS = ("caption", "captions", "text", "sentences")


def is_karpathy(content: Any) -> bool:
    """Whether parsed JSON has the Karpathy shape: {"images": [{"filename", "split", "sentences": [{"raw"}]}]}."""
    return isinstance(content, dict) and isinstance(content.get("images"), list)


def is_list(content: Any) -> bool:
    """Whether parsed JSON is a list of objects with an image."""
    return (
        isinstance(content, list)
        and bool(content)
        and isinstance(content[0], dict)
        and _key(content[0], _NAME_KEYS) != ""
    )


def read_karpathy(content: dict[str, Any], path: Path) -> Annotations:
    """Annotations from the Karpathy layout. Raises DataError with the entry's place."""
    entries = []
    for row, item in enumerate(content["images"]):
        where = f"{path}: images[{row}]"
        if not isinstance(item, dict):
            raise DataError(f"{where} is not an object")
        name = _text(item, "filename", where)
        sentences = item.get("sentences")
        if not isinstance(sentences, list):
            raise DataError(f"{where}: {name[:60]!r} has no list of sentences")
        captions = tuple(_sentence(sentence, f"{where}.sentences[{place}]") for place, sentence in enumerate(sentences))
        split = read_split(_text(item, "split", where), where) if "split" in item else ""
        entries.append(AnnotatedImage(name, captions, split, where))
    return Annotations("karpathy", tuple(entries), (path,))


def read_lists(contents: dict[Path, Any]) -> Annotations:
    """Annotations from one or several JSON lists, each of the split in its file name (`rsicd_train.json`).

    An entry may name its own split. A caption is a text or a list of texts; an image may have several entries, one
    per caption. Raises DataError with the entry's place.
    """
    entries: list[AnnotatedImage] = []
    for path, content in contents.items():
        entries += _read_list(content, path, split_of_file(path) or "")
    return Annotations("json-list", group_by_name(entries), tuple(contents))


def split_of_file(path: Path) -> str | None:
    """The split in a file name, as in `rsicd_train.json`; None if there is none or several."""
    words = {split_word(word) for word in re.split(r"[^A-Za-z]+", path.stem)} - {None}
    return words.pop() if len(words) == 1 else None


def _read_list(content: Any, path: Path, split: str) -> Iterator[AnnotatedImage]:
    for row, item in enumerate(content):
        where = f"{path}: [{row}]"
        if not isinstance(item, dict):
            raise DataError(f"{where} is not an object")
        name = _text(item, _key(item, _NAME_KEYS) or "image", where)
        found = item.get(_key(item, _CAPTION_KEYS) or "caption")
        texts = found if isinstance(found, list) else [found]
        captions = tuple(_sentence(text, f"{where}: {name[:60]!r}") for text in texts)
        own = read_split(_text(item, "split", where), where) if "split" in item else split
        yield AnnotatedImage(name, captions, own, where)


def _key(item: dict[str, Any], keys: tuple[str, ...]) -> str:
    return next((key for key in keys if key in item), "")


def _text(item: dict[str, Any], key: str, where: str) -> str:
    value = item.get(key)
    if not isinstance(value, str):
        raise DataError(f"{where}: {key} is {'missing' if value is None else f'not a text but {str(value)[:40]}'}")
    return value


def _sentence(sentence: Any, where: str) -> str:
    """A caption from a text, an object with "raw", or one with only "tokens"."""
    if isinstance(sentence, dict):
        tokens = sentence.get("tokens")
        if "raw" not in sentence and isinstance(tokens, list) and all(isinstance(token, str) for token in tokens):
            return " ".join(tokens)
        sentence = sentence.get("raw")
    if not isinstance(sentence, str):
        raise DataError(f"{where}: a caption is {'missing' if sentence is None else 'not a text'}")
    return sentence
