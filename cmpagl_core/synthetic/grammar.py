"""Five captions for a scene, true by construction: counts, colours and relations from the scene itself (ours)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from cmpagl_core.synthetic.truth import Relation, SceneObject
from cmpagl_core.synthetic.words import (
    COUNTED,
    FRAMES,
    GROUNDS,
    GROUNDS_BETWEEN,
    LEADS,
    MUTUAL,
    RELATIONS,
    number_in_words,
)

_T = TypeVar("_T")

CAPTIONS = 5
_EXACT_UP_TO = 8


@dataclass(frozen=True)
class Phrase:
    """A noun phrase and whether its verb is plural."""

    text: str
    plural: bool

    @property
    def be(self) -> str:
        return "are" if self.plural else "is"


def describe(
    scene: str, objects: tuple[SceneObject, ...], relations: tuple[Relation, ...], rng: np.random.Generator
) -> tuple[str, ...]:
    """Five different captions of a scene; the first, third and fifth tell how its main thing lies.

    Raises ValueError if the scene's main thing is not among the objects.
    """
    lead = LEADS[scene]
    if all(thing.name != lead for thing in objects):
        raise ValueError(f"a scene {scene!r} without any {lead!r} cannot be described")
    speaker = _Speaker(rng, lead, objects, relations)
    captions: list[str] = []
    plan = (speaker.main, speaker.counts, speaker.main, speaker.listing, speaker.main_with_parts)
    for place in range(CAPTIONS):
        for attempt in range(40):
            say = plan[place] if attempt < 20 else speaker.framed
            caption = speaker.punctuated(say())
            if all(_plain(caption) != _plain(known) for known in captions):
                captions.append(caption)
                break
    if len(captions) != CAPTIONS:
        raise ValueError(f"the grammar has only {len(captions)} captions for {objects}")
    return tuple(captions)


class _Speaker:
    def __init__(
        self, rng: np.random.Generator, lead: str, objects: tuple[SceneObject, ...], relations: tuple[Relation, ...]
    ) -> None:
        self._rng, self._lead, self._relations = rng, lead, relations
        self._groups: dict[str, list[SceneObject]] = {}
        for thing in objects:
            self._groups.setdefault(thing.name, []).append(thing)
        about = [relation for relation in relations if lead in (relation[0], relation[2]) and relation[1] != "in"]
        self._main = about or list(relations)

    def main(self) -> str:
        """How the main thing lies; in a scene without relations, what it is."""
        return self._related(self._one(self._main[:1] * 3 + self._main[1:])) if self._main else self.framed()

    def main_with_parts(self) -> str:
        """`an airport with three planes near the sea`."""
        mutual = [r for r in self._main if r[1] in MUTUAL and self._lead in (r[0], r[2])]
        parts = self._parts()
        if not mutual or not parts:
            return self.main()
        subject, word, target = self._one(mutual[:1] * 3 + mutual[1:])
        other = target if subject == self._lead else subject
        if other in parts:
            parts.remove(other)
        if not parts:
            return self.main()
        lead, part = self._phrase(self._lead), self._phrase(self._one(parts))
        place = f"{self._word(word)} {self._phrase(other).text}"
        forms = (
            f"{lead.text} with {part.text} {lead.be} {place}",
            f"{lead.text} with {part.text} {place}",
            f"there {lead.be} {lead.text} with {part.text} {place}",
        )
        return self._one(forms)

    def counts(self) -> str:
        """How many of something there are, with their colour where it has one."""
        counted = [name for name in self._groups if name in COUNTED and name != "tree"]
        if not counted:
            return self.framed()
        favoured = [name for name in counted if name in (self._lead, "plane", "boat", "car", "house", "storage tank")]
        name = self._one(favoured * 2 + counted)
        phrase = self._phrase(name, exact=True)
        if (name, "in", self._lead) in self._relations and self._rng.random() < 0.7:
            inside = f"in {self._phrase(self._lead).text}"
            return self._one((f"there {phrase.be} {phrase.text} {inside}", f"{phrase.text} {inside}"))
        forms = (
            f"there {phrase.be} {phrase.text} in the image",
            f"{phrase.text} can be seen from above",
            f"we can see {phrase.text}",
            f"there {phrase.be} {phrase.text}",
        )
        return self._one(forms)

    def listing(self) -> str:
        """Two or three of the things side by side."""
        others = [name for name in self._groups if name != self._lead]
        if not others:
            return self.framed()
        order = [others[place] for place in self._rng.permutation(len(others))[:2].tolist()]
        names = [self._lead, *order]
        phrases = [self._phrase(name).text for name in names]
        listed = ", ".join(phrases[:-1]) + f" and {phrases[-1]}"
        return self._one((f"{listed} can be seen", f"the image shows {listed}", listed, f"here are {listed}"))

    def framed(self) -> str:
        """The main thing and one other, in a frame that any scene bears."""
        lead = self._phrase(self._lead)
        others = [name for name in self._groups if name != self._lead]
        if others and self._rng.random() < 0.6:
            lead = Phrase(f"{lead.text} and {self._phrase(self._one(others)).text}", True)
        return self._one(FRAMES).format(lead.text, these="these are" if lead.plural else "this is")

    def punctuated(self, text: str) -> str:
        """A sentence with capital and stop, or all lower case: people write both."""
        return text[0].upper() + text[1:] + "." if self._rng.random() < 0.5 else text + "."

    def _related(self, relation: Relation) -> str:
        subject, word, target = relation
        first = self._phrase(subject)
        split = word == "between"
        second = Phrase(self._one(GROUNDS_BETWEEN[target]), True) if split else self._phrase(target)
        spoken = self._word(word)
        forms = [
            f"{first.text} {first.be} {spoken} {second.text}",
            f"{first.text} {spoken} {second.text}",
            f"there {first.be} {first.text} {spoken} {second.text}",
        ]
        if word in MUTUAL:
            forms += [
                f"{second.text} {second.be} {spoken} {first.text}",
                f"{first.text} and {second.text} side by side",
            ]
        if subject in ("road", "river"):
            runs = "run" if first.plural else "runs"
            forms += [f"{first.text} {runs} {spoken} {second.text}"]
        if word in ("over", "across"):
            forms += [f"{first.text} {'cross' if first.plural else 'crosses'} {second.text}"]
        return self._one(tuple(forms))

    def _phrase(self, name: str, exact: bool = False) -> Phrase:
        group = self._groups[name]
        if name == "farmland" and self._rng.random() < 0.6:
            return self._farmland(group)
        if name in GROUNDS:
            return Phrase(self._one(GROUNDS[name]).format(colour=group[0].colour), False)
        singular, plural = self._one(COUNTED[name])
        total = sum(thing.count for thing in group)
        colours = [thing for thing in group if thing.colour]
        if name == "tree":
            return Phrase("many trees" if total > 9 else "some trees" if total > 1 else "a tree", total > 1)
        if len(group) == 2 and len(colours) == 2 and max(thing.count for thing in group) <= _EXACT_UP_TO and exact:
            first, second = (f"{number_in_words(thing.count)} {thing.colour}" for thing in group)
            return Phrase(f"{first} and {second} {plural if group[-1].count > 1 else singular}", True)
        if len(group) > 1 and exact and self._rng.random() < 0.4:
            part = self._one(tuple(group))
            return self._counted(part.count, part.colour, singular, plural, exact)
        colour = group[0].colour if len(group) == 1 and self._rng.random() < 0.6 else ""
        return self._counted(total, colour, singular, plural, exact)

    def _counted(self, count: int, colour: str, singular: str, plural: str, exact: bool) -> Phrase:
        described = f"{colour} " if colour else ""
        if count == 1:
            article = "an" if (described + singular)[0] in "aeiou" else "a"
            return Phrase(f"{article} {described}{singular}", False)
        words = [number_in_words(count)] * 2 if count <= _EXACT_UP_TO else []
        if count > _EXACT_UP_TO:
            words = ["many", "many", "lots of", "a lot of"]
        elif count > 2 and not exact:
            words += ["several"]
        if not exact and count <= _EXACT_UP_TO:
            words += ["some"]
        return Phrase(f"{self._one(tuple(words))} {described}{plural}", True)

    def _farmland(self, group: list[SceneObject]) -> Phrase:
        total = sum(thing.count for thing in group)
        colours = " and ".join(thing.colour for thing in group[:2]) if len(group) <= 2 else "colourful"
        many = "many" if total > 9 else "several" if total > 2 else "some"
        return Phrase(f"{many} pieces of {colours} farmland", True)

    def _parts(self) -> list[str]:
        """What the main thing has: whatever lies in it, over it or beside it and is counted."""
        held = [
            subject
            for subject, word, target in self._relations
            if target == self._lead and word in ("in", "over", "on")
        ]
        return held or [
            name for name in self._groups if name in ("car", "boat", "tree", "building") and name != self._lead
        ]

    def _word(self, word: str) -> str:
        return self._one(RELATIONS[word])

    def _one(self, items: tuple[_T, ...] | list[_T]) -> _T:
        return items[int(self._rng.integers(0, len(items)))]


def _plain(caption: str) -> str:
    return caption.lower().rstrip(".")
