"""Audits captions: blank, short, long, repeated, shared, and those that are tested here and trained on there."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from cmpagl_core.datasets.audited import AuditedSet
from cmpagl_core.datasets.findings import Check, Finding, Item
from cmpagl_core.datasets.same_caption import caption_key

_TESTED = ("val", "test", "")


@dataclass(frozen=True)
class CaptionLimits:
    """Captions with fewer words than `least_words` are short, with more than `most_words` long."""

    least_words: int = 3
    most_words: int = 62  # 64 tokens, the recipes' default, of which two are [CLS] and [SEP]


def caption_findings(audited: AuditedSet, limits: CaptionLimits) -> list[Finding]:
    """What is wrong with a data set's captions, split by split, and which tested ones are in its train split too.

    Scenes of one data set naturally share phrases, so the latter are no leaks.
    """
    keys = [caption_key(text) for text in audited.captions]
    found = [one for split in audited.split_names for one in _of_split(audited, keys, split, limits)]
    if "train" in audited.split_names:
        found += _also_trained_on(audited, keys, audited, keys, leak=False)
    return found


def caption_leaks(first: AuditedSet, second: AuditedSet) -> list[Finding]:
    """Tested captions of one data set that the other has in its train split, both ways."""
    keys = [[caption_key(text) for text in one.captions] for one in (first, second)]
    there = _also_trained_on(first, keys[0], second, keys[1], leak=True)
    return [*there, *_also_trained_on(second, keys[1], first, keys[0], leak=True)]


def _of_split(audited: AuditedSet, keys: list[str], split: str, limits: CaptionLimits) -> list[Finding]:
    rows = audited.caption_rows(split)
    words = {row: len(keys[row].split()) for row in rows if keys[row]}
    owner = audited.caption_image.tolist()
    times = Counter((owner[row], keys[row]) for row in words)
    images = Counter(key for _, key in times)
    chosen: dict[Check, list[int]] = {
        "blank captions": [row for row in rows if row not in words],
        "short captions": [row for row in words if words[row] < limits.least_words],
        "long captions": [row for row in words if words[row] > limits.most_words],
        "captions repeated for an image": _repeated(owner, keys, list(words)),
        "captions shared by images": [row for row in words if images[keys[row]] > 1],
    }
    return [_finding(audited, check, split, found, len(rows)) for check, found in chosen.items() if found]


def _repeated(owner: list[int], keys: list[str], rows: list[int]) -> list[int]:
    """The captions that their image has already."""
    seen: set[tuple[int, str]] = set()
    again = []
    for row in rows:
        if (owner[row], keys[row]) in seen:
            again.append(row)
        seen.add((owner[row], keys[row]))
    return again


def _also_trained_on(
    tested: AuditedSet, keys: list[str], trained: AuditedSet, trained_keys: list[str], leak: bool
) -> list[Finding]:
    splits = [split for split in ("train", "") if split in trained.split_names]
    known = {trained_keys[row] for split in splits for row in trained.caption_rows(split)} - {""}
    findings = []
    for split in (one for one in tested.split_names if one in _TESTED):
        rows = tested.caption_rows(split)
        found = [row for row in rows if keys[row] in known]
        if found and leak:
            where = f"{_named(tested, split)} / {_named(trained, splits[0])}"
            items = [_item(tested, row) for row in found]
            findings.append(Finding.of_items("captions also in train", where, items, len(rows), leak))
        elif found:
            findings.append(_finding(tested, "captions also in train", split, found, len(rows)))
    return findings


def _finding(audited: AuditedSet, check: Check, split: str, rows: list[int], of: int) -> Finding:
    return Finding.of_items(check, split or "all", [_item(audited, row) for row in rows], of)


def _item(audited: AuditedSet, caption: int) -> Item:
    return Item(audited.image_ids[int(audited.caption_image[caption])], audited.captions[caption])


def _named(audited: AuditedSet, split: str) -> str:
    return f"{audited.name} {split}".strip()
