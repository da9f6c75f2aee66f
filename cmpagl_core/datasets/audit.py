"""Audit of a data set, alone or against another: what would make a measured recall misleading (section 6)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from cmpagl_core.datasets.audit_captions import CaptionLimits, caption_findings, caption_leaks
from cmpagl_core.datasets.audit_images import FeaturesOf, size_findings, twin_findings
from cmpagl_core.datasets.audited import AuditedSet, open_audited
from cmpagl_core.datasets.findings import Finding, Item
from cmpagl_core.imagery.near_duplicates import DEFAULT_MOST_BITS
from cmpagl_core.progress import Progress
from cmpagl_core.workspace import Workspace


@dataclass(frozen=True)
class AuditRequest:
    """data, against: as in `open_audited`. near_bits: hashes of near-duplicates differ in no more bits of 64; None:
    identical images alone.
    """

    data: str | None = None
    against: str | None = None
    limits: CaptionLimits = field(default_factory=CaptionLimits)
    near_bits: int | None = DEFAULT_MOST_BITS


@dataclass(frozen=True)
class Audit:
    """Everything found in `data`, and between it and `against`. images: whether image files were looked at."""

    data: str
    against: str | None
    images: bool
    findings: tuple[Finding, ...]

    @property
    def leaks(self) -> tuple[Finding, ...]:
        """Findings by which what is tested may have been seen in training."""
        return tuple(finding for finding in self.findings if finding.leak)

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "data": self.data,
            "against": self.against,
            "images": self.images,
            "leaks": len(self.leaks),
            "findings": [finding.document() for finding in self.findings],
        }


def audit(
    request: AuditRequest, workspace: Workspace, progress: Progress, features_of: FeaturesOf | None = None
) -> Audit:
    """Look for what is wrong with a data set's captions and images, and for what it shares with another.

    Images of prepared data sets are compared; annotations alone have captions alone. features_of: confirms
    near-duplicates. Raises DataError for data that cannot be read, UsageError without ImageHash.
    """
    own = open_audited(workspace, request.data)
    other = None if request.against is None else open_audited(workspace, request.against)
    findings = [*_left_out(own), *caption_findings(own, request.limits)]
    if other is not None:
        findings += caption_leaks(own, other)
    if own.images:
        findings += size_findings(own)
        compared = [own] if other is None or not other.images else [own, other]
        findings += twin_findings(compared, request.near_bits, features_of, progress)
    return Audit(own.name, None if other is None else other.name, bool(own.images), tuple(findings))


def _left_out(audited: AuditedSet) -> list[Finding]:
    items = [Item(dropped.what, dropped.why) for dropped in audited.left_out]
    if not items:
        return []
    return [Finding.of_items("left out by prepare", "all", items, len(audited) + len(items))]
