"""Matches annotated names to image files: by stem, ignoring extension, case and folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cmpagl_core.datasets.annotations import AnnotatedImage

Parts = tuple[str, ...]


def image_ids(images: Sequence[AnnotatedImage]) -> list[str]:
    """An id for each annotated image: its stem, or if names share a stem the path, if need be with its extension.

    Entries with the same name have the same id.
    """
    spellings: tuple[Callable[[AnnotatedImage], str], ...] = (
        lambda image: image.stem,
        lambda image: "/".join((*image.parts[:-1], image.stem)),
        lambda image: "/".join(image.parts),
    )
    names = len({_folded(image.parts) for image in images})
    for spell in spellings:
        ids = [spell(image) for image in images]
        if len({one.casefold() for one in ids}) == names:
            break
    return ids


@dataclass(frozen=True)
class ImageIndex:
    """The image files of a folder by stem."""

    by_stem: dict[str, list[tuple[Parts, Path]]]
    by_path: bool  # annotated names share a stem, so folders must match too

    @classmethod
    def of(
        cls,
        root: Path,
        files: Iterable[Path],
        images: Sequence[AnnotatedImage],
        alias: Callable[[str], str | None] | None = None,
    ) -> ImageIndex:
        """Index `files`, which are under `root`. `alias` may give a file a second stem."""
        by_stem: dict[str, list[tuple[Parts, Path]]] = {}
        for path in files:
            stem = (alias(path.name) if alias is not None else None) or path.stem
            by_stem.setdefault(stem.casefold(), []).append((path.relative_to(root).parts, path))
        stems = {image.stem.casefold() for image in images}
        return cls(by_stem, by_path=len(stems) < len({_folded(image.parts) for image in images}))

    def find(self, image: AnnotatedImage) -> list[Path]:
        """The files that match the name: one is the match, none means missing, several mean ambiguous."""
        found = self.by_stem.get(image.stem.casefold(), [])
        agreeing = [one for one in found if _agree(one[0], image.parts)]
        if self.by_path:
            found = agreeing
        for narrower in (
            agreeing,
            [one for one in found if PurePosixPath(one[0][-1]).stem == image.stem],
            [one for one in found if one[0][-1].casefold() == image.parts[-1].casefold()],
        ):
            narrowed = [one for one in found if one in narrower]
            found = narrowed or found
        return [path for _, path in found]


def _agree(first: Parts, second: Parts) -> bool:
    """Whether the folders of two paths agree, as far as both have them."""
    shared = min(len(first), len(second)) - 1
    return _folded(first[-1 - shared : -1]) == _folded(second[-1 - shared : -1])


def _folded(parts: Parts) -> Parts:
    return tuple(part.casefold() for part in parts)
