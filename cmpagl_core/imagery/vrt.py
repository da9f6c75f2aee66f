"""Which files a VRT reads, found in its XML before GDAL sees it: only images beside or below it."""

from __future__ import annotations

from pathlib import Path
from xml.parsers import expat

from cmpagl_core.errors import DataError

_MAX_BYTES = 64 << 20
_PLAIN = frozenset((
    "VRTDataset", "VRTRasterBand", "SRS", "GeoTransform", "Metadata", "MDI", "Description", "ColorInterp",
    "NoDataValue", "HideNoDataValue", "UnitType", "Offset", "Scale", "CategoryNames", "Category", "ColorTable",
    "Entry", "Histograms", "HistItem", "HistMin", "HistMax", "BucketCount", "IncludeOutOfRange", "Approximate",
    "HistCounts", "GCPList", "GCP", "OverviewList", "BlockXSize", "BlockYSize", "MaskBand", "SimpleSource",
    "ComplexSource", "AveragedSource", "SourceFilename", "SourceBand", "SourceProperties", "SrcRect", "DstRect",
    "NODATA", "UseMaskBand", "ScaleOffset", "ScaleRatio", "SrcMin", "SrcMax", "DstMin", "DstMax", "Clamp",
    "Exponent", "LUT", "ColorTableComponent", "Resampling",
))  # fmt: skip
_WAY_OUT = "write it as a GeoTIFF first (gdal_translate)"


def sources_of(path: Path) -> tuple[Path, ...]:
    """The images that a VRT is put together of, each once. Raises DataError where it is broken or names others."""
    try:
        content = path.read_bytes() if path.stat().st_size <= _MAX_BYTES else b""
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from error
    if not content:
        raise DataError(f"{path} is no VRT of a size that is read safely", hint=_WAY_OUT)
    found = _Names()
    try:
        found.read(content)
    except (expat.ExpatError, UnicodeError, ValueError) as error:
        raise DataError(f"{path} is a broken image (it is no XML: {error})") from error
    if found.unknown:
        raise DataError(f"{path} is a VRT with {found.unknown}, which is not read", hint=_WAY_OUT)
    return tuple(dict.fromkeys(_inside(path, name, relative) for name, relative in found.sources))


class _Names:
    """Elements and file names of a VRT's XML. Entities are refused, so that nothing small grows large."""

    def __init__(self) -> None:
        self.sources: list[tuple[str, bool]] = []
        self.unknown = ""
        self._text: list[str] | None = None
        self._relative = False

    def read(self, content: bytes) -> None:
        parser = expat.ParserCreate()
        parser.StartElementHandler, parser.EndElementHandler = self._start, self._end
        parser.CharacterDataHandler, parser.StartDoctypeDeclHandler = self._characters, self._doctype
        parser.Parse(content, True)

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        kind = attributes.get("subClass", "VRTSourcedRasterBand" if name == "VRTRasterBand" else "")
        if name not in _PLAIN:
            self.unknown = self.unknown or f"<{name[:40]}>"
        elif kind not in ("", "VRTSourcedRasterBand"):
            self.unknown = self.unknown or f"subClass {kind[:40]}"
        if name == "SourceFilename":
            self._text, self._relative = [], attributes.get("relativeToVRT") == "1"

    def _end(self, name: str) -> None:
        if name == "SourceFilename" and self._text is not None:
            self.sources.append(("".join(self._text), self._relative))
            self._text = None

    def _characters(self, text: str) -> None:
        if self._text is not None:
            self._text.append(text)

    def _doctype(self, *_: object) -> None:
        raise ValueError("it declares a document type")


def _inside(path: Path, name: str, relative: bool) -> Path:
    """A source by its whole path. Raises DataError for one that is not an image file in the VRT's own folder."""
    folder = path.parent.resolve()
    source = (path.parent / name if relative else Path(name)).absolute()
    odd = not name or any(sign in name for sign in ":<{\0") or name.startswith("/vsi")
    if odd or not source.resolve().is_relative_to(folder):
        raise DataError(
            f"{path} reads {name[:200]!r}, which is not in its own folder", hint=f"{_WAY_OUT}, or move it there"
        )
    if not source.is_file():
        raise DataError(f"{path} reads {name[:200]!r}, which is not there")
    return source
