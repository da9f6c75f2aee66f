"""`cmpagl report`: one run, or several side by side, on one page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cmpagl_core.errors import UsageError
from cmpagl_core.evaluation.protocol import Stamp, require_one_column
from cmpagl_core.evaluation.result import RetrievalReport
from cmpagl_core.html_page import render_page
from cmpagl_core.imagery.image_ref import ImageRef
from cmpagl_core.imagery.thumbnail import thumbnail
from cmpagl_core.ranking.rerank import Step
from cmpagl_core.report.charts import LineChart, RowChart, Value, line_chart, row_chart
from cmpagl_core.report.evidence import Curves, Evidence, recipe_differences
from cmpagl_core.runs import Run

_SCENES = 40
_THUMBNAIL_PX = 160


@dataclass(frozen=True)
class _Shown:
    """An image of the gallery with its thumbnail."""

    image_id: str
    data: str


@dataclass(frozen=True)
class _Text:
    caption: str
    rank: float
    own: _Shown
    found: tuple[_Shown, ...]


@dataclass(frozen=True)
class _Image:
    own: _Shown
    rank: float
    captions: tuple[str, ...]
    found: tuple[str, ...]


@dataclass(frozen=True)
class _OnPage:
    """A run in the form that the template needs."""

    side: int
    name: str
    run: Run
    report: RetrievalReport
    curves: Curves
    recipe: str
    texts: tuple[_Text, ...]
    images: tuple[_Image, ...]


def render_runs(evidence: Sequence[Evidence], mix: bool = False) -> str:
    """The page as text. Runs whose results are not comparable are refused unless `mix`.

    Raises GuardError, and UsageError without any run.
    """
    if not evidence:
        raise UsageError("there is no run to report on")
    names = _distinct([one.name for one in evidence])
    mixed = require_one_column(
        {name: one.report.stamp for name, one in zip(names, evidence, strict=True)}, mix=mix
    )  # fmt: skip
    notes = [f"shown side by side although {what}" for what in mixed]
    for name, one in zip(names, evidence, strict=True):
        notes += [f"{name}: {note}" if len(names) > 1 else note for note in one.report.notes]
    thumbnails = _Thumbnails()
    return render_page(
        "cmpagl_core.report",
        "report.html",
        names=names,
        stamp=evidence[0].report.stamp,
        notes=notes,
        runs=[
            _on_page(side, name, one, thumbnails) for side, (name, one) in enumerate(zip(names, evidence, strict=True))
        ],
        stages=_stages(names, evidence),
        scenes=_scenes(names, evidence),
        curves=_curves(names, evidence),
        differences=recipe_differences([one.run.recipe for one in evidence]),
        facts=_facts(evidence),
    )


class _Thumbnails:
    """Each image once."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def of(self, images: Sequence[ImageRef]) -> tuple[_Shown, ...]:
        missing = [image for image in images if str(image.path) not in self._known]
        for image in missing:
            self._known[str(image.path)] = thumbnail(image, _THUMBNAIL_PX).uri
        return tuple(_Shown(image.image_id, self._known[str(image.path)]) for image in images)


def _on_page(side: int, name: str, one: Evidence, thumbnails: _Thumbnails) -> _OnPage:
    texts = tuple(
        _Text(query.caption, query.rank, thumbnails.of([query.own])[0], thumbnails.of(query.found))
        for query in one.worst_texts
    )
    images = tuple(
        _Image(thumbnails.of([query.own])[0], query.rank, query.captions, query.found) for query in one.worst_images
    )
    return _OnPage(side, name, one.run, one.report, one.curves, one.run.recipe.to_yaml(), texts, images)


def _stages(names: Sequence[str], evidence: Sequence[Evidence]) -> RowChart:
    return row_chart(
        [
            Value(
                row.stage,
                side,
                row.mr,
                *row.ci95.mr,
                title=f"{names[side]}, {row.stage}: mR {row.mr:.2f} ({row.ci95.mr[0]:.2f} – {row.ci95.mr[1]:.2f})",
            )
            for side, one in enumerate(evidence)
            for row in one.report.rows
        ]
    )


def _scenes(names: Sequence[str], evidence: Sequence[Evidence]) -> RowChart | None:
    """Scenes from best to worst for the first run with scene classes."""
    known = [row for one in evidence for row in one.scenes if row.mr is not None]
    order = {row.group: row.mr or 0.0 for row in reversed(known)}
    ranked = sorted(order, key=lambda group: -order[group])[:_SCENES]
    values = [
        Value(group, side, row.mr, title=f"{names[side]}, {group}: mR {row.mr:.1f}, {row.images} images")
        for group in ranked
        for side, one in enumerate(evidence)
        for row in one.scenes
        if row.group == group and row.mr is not None
    ]
    return row_chart(values, from_zero=True) if values else None


def _curves(names: Sequence[str], evidence: Sequence[Evidence]) -> list[LineChart]:
    mr = line_chart(
        "mR on the selection split", [(n, one.curves.mr) for n, one in zip(names, evidence, strict=True)], True
    )
    loss = line_chart("training loss", [(n, one.curves.loss) for n, one in zip(names, evidence, strict=True)], False)
    return [chart for chart in (mr, loss) if chart is not None]


def _facts(evidence: Sequence[Evidence]) -> list[tuple[str, list[str]]]:
    stamps = [one.report.stamp for one in evidence]
    infos = [one.run.info for one in evidence]
    return [
        ("protocol", [stamp.protocol for stamp in stamps]),
        ("data set, split", [f"{stamp.dataset}, {stamp.split}" for stamp in stamps]),
        ("split sha256", [stamp.split_sha256[:16] for stamp in stamps]),
        ("manifest sha256", [stamp.manifest_sha256[:16] for stamp in stamps]),
        ("model sha256", [stamp.model_sha256[:16] for stamp in stamps]),
        ("re-ranking", [_reranking(stamp) for stamp in stamps]),
        ("ITM candidates", [_candidates(stamp) for stamp in stamps]),
        ("best epoch", [f"{info.best.epoch}, mR {info.best.mr:.2f} on the selection split" for info in infos]),
        ("parameters", [f"{info.parameters:,}" for info in infos]),
        ("training", [f"{info.elapsed_s / 60:.1f} min, {info.epochs} epochs, seed {info.seed}" for info in infos]),
        ("trained on", [info.device for info in infos]),
        ("code", [" ".join(filter(None, (info.code.version, (info.code.commit or "")[:12]))) for info in infos]),
        ("started at", [info.started_at for info in infos]),
    ]  # fmt: skip


def _reranking(stamp: Stamp) -> str:
    shown = [f"{stage}: {', '.join(map(_step, steps))}" for stage, steps in stamp.rerank.items()]
    return "; ".join(shown) or "none that has parameters"


def _step(step: Step) -> str:
    if step.smr is None:
        return f"{step.reranking} T = {step.temperature:g}, chosen on {step.chosen_on}"
    gammas = f"gamma1 {step.smr.gamma1:g}, gamma2 {step.smr.gamma2:g}"
    return f"{step.smr.form}, {gammas}, chosen on {step.chosen_on}"


def _candidates(stamp: Stamp) -> str:
    if stamp.itm_k is None:
        return "no ITM"
    return "every pair" if stamp.itm_k == 0 else f"{stamp.itm_k} per query and direction"


def _distinct(names: Sequence[str]) -> list[str]:
    """Distinct names: equal ones are numbered."""
    return [name if names.count(name) == 1 else f"{name} ({place + 1})" for place, name in enumerate(names)]
