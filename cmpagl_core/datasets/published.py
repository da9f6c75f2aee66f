"""The four public data sets: their counts, their known defects, and where to get them.

Counts are those of the public annotation files (section 6).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Literal

Scenes = Literal["name", "ucm", "none"]

UCM_CLASSES = (
    "agricultural", "airplane", "baseballdiamond", "beach", "buildings", "chaparral", "denseresidential", "forest",
    "freeway", "golfcourse", "harbor", "intersection", "mediumresidential", "mobilehomepark", "overpass", "parkinglot",
    "river", "runway", "sparseresidential", "storagetanks", "tenniscourt",
)  # fmt: skip
_UCM_CLASS_SIZE = 100
CAPTIONS_EACH = 5
_RSICD_PAGE = "https://github.com/201528014227051/RSICD_optimal"
_AMFMN_PAGE = "https://github.com/xiaoyuan1996/AMFMN"


@dataclass(frozen=True)
class PublishedSet:
    """One public data set; counts are images, each with five captions."""

    name: str
    title: str
    train: int
    val: int  # 0: the published files have no validation split
    test: int
    scenes: Scenes
    images: str  # which images, and where to get them
    annotations: str
    blank_captions: frozenset[str] = frozenset()  # stems of images whose published captions are blank

    @property
    def total(self) -> int:
        return self.train + self.val + self.test

    def fits(self, counts: Mapping[str, int]) -> bool:
        """Whether the images per split are the published ones.

        A layout without val has it in train (AMFMN's RSICD) or leaves it out (AMFMN's UCM and Sydney); if no validation
        split was published, any part of train may serve as one.
        """
        train, val = counts.get("train", 0), counts.get("val", 0)
        if counts.get("test", 0) != self.test or counts.get("", 0):
            return False
        if self.val == 0:
            return train + val == self.train
        return (train, val) in ((self.train, self.val), (self.train + self.val, 0), (self.train, 0))

    def expected(self) -> str:
        """The published counts in words."""
        val = f" / {self.val:,} val" if self.val else " (val among them)"
        return f"{self.train:,} train{val} / {self.test:,} test"

    def scene(self, stem: str) -> str:
        """The scene class in a file stem; "" if there is none."""
        if self.scenes == "ucm" and stem.isascii() and stem.isdigit():
            row = (int(stem) - 1) // _UCM_CLASS_SIZE if len(stem) < 6 else -1
            return UCM_CLASSES[row] if 0 <= row < len(UCM_CLASSES) else ""
        found = re.fullmatch(r"([A-Za-z]+)_\w+", stem) if self.scenes == "name" else None
        return found[1].lower() if found else ""

    def where_to_get(self, folder: Path) -> str:
        """Which files to put into `folder`, and where to get them."""
        return (
            f"put into {folder} the images ({self.images}), as a folder or a zip or tar archive, and the captions "
            f"({self.annotations}); or pass --images and --annotations"
        )


_SETS = (
    PublishedSet(
        "rsicd", "RSICD", 8734, 1094, 1093, "name",
        images=f"RSICD_images, 10,921 files such as airport_1.jpg, linked from {_RSICD_PAGE}",
        annotations=f"dataset_rsicd.json from {_RSICD_PAGE}, or the folder rsicd_precomp from {_AMFMN_PAGE}",
    ),
    PublishedSet(
        "rsitmd", "RSITMD", 4291, 0, 452, "name",
        images=f"RSITMD's images, 4,743 files such as boat_0.tif, linked from {_AMFMN_PAGE} under RSITMD",
        annotations=f"dataset_RSITMD.json or the folder rsitmd_precomp, from {_AMFMN_PAGE}",
        blank_captions=frozenset(("mountain_2378", "railwaystation_3254", "storagetanks_4367", "viaduct_4635")),
    ),
    PublishedSet(
        "ucm", "UCM-Captions", 1680, 210, 210, "ucm",
        images=f"1.tif to 2100.tif of UCM_captions, linked from {_RSICD_PAGE}, or the same images under their "
        "original names (agricultural00.tif ...) from http://weegee.vision.ucmerced.edu/datasets/landuse.html",
        annotations=f"dataset_ucm.json, named dataset.json in UCM_captions, linked from {_RSICD_PAGE}",
    ),
    PublishedSet(
        "sydney", "Sydney-Captions", 497, 58, 58, "none",
        images=f"1.tif to 613.tif of Sydney_captions, linked from {_RSICD_PAGE}",
        annotations=f"dataset_sydney.json, named dataset.json in Sydney_captions, linked from {_RSICD_PAGE}",
    ),
)  # fmt: skip
PUBLISHED: Mapping[str, PublishedSet] = MappingProxyType({one.name: one for one in _SETS})


def recognise(counts: Mapping[str, int]) -> PublishedSet | None:
    """The public set with these images per split, if any."""
    return next((one for one in PUBLISHED.values() if one.fits(counts)), None)


def ucm_number(image: str) -> str | None:
    """The number that UCM-Captions gives an image known by its UC Merced name; None for any other name.

    agricultural01 to 99 are 1 to 99 and agricultural00 is 100; in the other classes 00 to 99 count on in order.
    """
    found = re.fullmatch(r"([a-z]+)(\d\d)", PurePosixPath(image).stem.lower())
    if found is None or found[1] not in UCM_CLASSES:
        return None
    row, place = UCM_CLASSES.index(found[1]), int(found[2])
    first = (place or _UCM_CLASS_SIZE) if row == 0 else place + 1
    return str(row * _UCM_CLASS_SIZE + first)
