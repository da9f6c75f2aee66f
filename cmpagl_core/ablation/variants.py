"""Variants of a recipe: one switch per claim of the paper, alone or combined (sections 2 to 4)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

from cmpagl_core.ablation.matched import Measure, widened
from cmpagl_core.errors import RecipeError, UsageError
from cmpagl_core.evaluation.stages import Base
from cmpagl_core.ranking.rerank import Reranking
from cmpagl_core.recipe import Recipe
from cmpagl_core.recipe_files import override_recipe

BASELINE = "baseline"
MAX_VARIANTS = 128


@dataclass(frozen=True)
class Switch:
    """One level of one factor: its overrides, and the claim that it tests."""

    name: str
    factor: str
    overrides: tuple[str, ...]
    claim: str
    reranking: Reranking | None = None  # instead of SMR
    matched: Measure | None = None  # plain Swin as costly as the recipe's Gswin, in place of overrides that are fixed

    def overrides_of(self, recipe: Recipe) -> tuple[str, ...]:
        """What it changes in a recipe; nothing where that has no part that it is about."""
        return self.overrides if self.matched is None else widened(recipe, self.matched)


@dataclass(frozen=True)
class Variant:
    """A recipe with some switches applied. `notes` lists what else had to change to make it valid."""

    name: str
    recipe: Recipe
    switches: tuple[Switch, ...]
    notes: tuple[str, ...] = ()

    @property
    def reranking(self) -> Reranking | None:
        """The re-ranking of the last scores."""
        other = next((switch.reranking for switch in self.switches if switch.reranking is not None), None)
        return other or ("smr" if self.recipe.evaluate.smr else None)

    def stage(self, wanted: Base | None) -> str:
        """The stage by which this variant is compared: its last scores, or the `wanted` ones, re-ranked."""
        bases = bases_of(self.recipe)
        base = wanted if wanted is not None and wanted in bases else bases[-1]
        if self.reranking is None:
            return base
        plain = self.reranking != "smr" and base == bases[0]
        return self.reranking if plain else f"{base}+{self.reranking}"


_LOSS = "the loss term helps"
SWITCHES: dict[str, Switch] = {
    switch.name: switch
    for switch in (
        Switch("no-global-window", "global_window", ("image_encoder.global_window=false",), "the global window helps"),
        Switch(
            "no-global-window-same-flops",
            "global_window",
            (),
            "the global window helps more than as many operations elsewhere (ours)",
            matched="flops",
        ),
        Switch(
            "no-global-window-same-parameters",
            "global_window",
            (),
            "the global window helps more than as many parameters elsewhere (ours)",
            matched="parameters",
        ),
        Switch(
            "global-window-source-avgpool",
            "global_window_source",
            ("image_encoder.global_window_source=avgpool",),
            "the global window is best made by convolutions (ours)",
        ),
        Switch(
            "global-window-source-random",
            "global_window_source",
            ("image_encoder.global_window_source=random",),
            "what the global window says of the image helps, not the attention to it alone (ours)",
        ),
        Switch(
            "no-shifts",
            "shifted_windows",
            ("image_encoder.shifted_windows=false",),
            "shifting every second branch's windows helps (Swin's)",
        ),
        Switch(
            "global-query-global",
            "global_query",
            ("image_encoder.global_query=global",),
            "local tokens ask the global window, not the other way round (ours)",
        ),
        Switch(
            "branches-parallel",
            "branches",
            ("image_encoder.branches=parallel",),
            "the two branches of a block work one after the other (ours)",
        ),
        Switch("no-pre-alignment", "pre_alignment", ("losses.pre_alignment=false",), "alignment before fusion helps"),
        Switch("no-itc", "itc", ("losses.itc=0.0",), _LOSS),
        Switch("no-triplet", "triplet", ("losses.triplet=none",), "the triplet term helps beside ITC"),
        Switch("triplet-plain", "triplet", ("losses.triplet=plain",), "the intra-class distance term helps"),
        Switch("triplet-intra", "triplet", ("losses.triplet=intra",), "the intra-class distance term helps"),
        Switch(
            "triplet-hardest",
            "triplet",
            ("losses.triplet=intra", "losses.triplet_negatives=hardest"),
            "all negatives count, not the hardest alone (ours)",
        ),
        Switch(
            "triplet-sum",
            "triplet",
            ("losses.triplet=intra", "losses.triplet_negatives=sum"),
            "the hardest negatives count, not all (ours)",
        ),
        Switch("triplet-circle", "triplet", ("losses.triplet=circle",), "the triplet term beats circle loss"),
        Switch("triplet-supcon", "triplet", ("losses.triplet=supcon",), "it beats supervised contrastive loss"),
        Switch("no-itm", "itm", ("losses.itm=0.0",), _LOSS),
        Switch(
            "itm-negatives-any",
            "itm_hardness",
            ("losses.itm_hardness=0.0",),
            "ITM learns more from hard negatives than from any (ours)",
        ),
        Switch("no-mlm", "mlm", ("losses.mlm=0.0",), _LOSS),
        Switch("no-smr", "smr", ("evaluate.smr=false",), "SMR improves the ranking"),
        Switch("smr-add", "smr", ("evaluate.smr=true", "evaluate.smr_form=add"), "SMR's form (ours)"),
        Switch("smr-multiply", "smr", ("evaluate.smr=true", "evaluate.smr_form=multiply"), "SMR's form (ours)"),
        Switch("galr", "smr", (), "SMR beats GaLR's re-ranking", "galr"),
        Switch("csls", "smr", (), "SMR beats CSLS", "csls"),
        Switch("dual-softmax", "smr", (), "SMR beats dual softmax", "dual_softmax"),
        Switch("sinkhorn", "smr", (), "SMR beats a Sinkhorn plan (ours)", "sinkhorn"),
    )
}
STUDIES: dict[str, tuple[str, ...]] = {
    "gswin": ("no-global-window", "global-window-source-avgpool", "global-query-global", "branches-parallel"),
    "global-window": ("no-global-window", "no-global-window-same-flops"),
    "global-window-parts": (
        "global-window-source-avgpool",
        "no-shifts",
        "no-global-window-same-parameters",
        "global-window-source-random",
    ),
    "pre-alignment": ("no-pre-alignment", "no-itc", "no-triplet", "no-itm", "itm-negatives-any", "no-mlm"),
    "triplet": (
        "no-triplet",
        "triplet-plain",
        "triplet-intra",
        "triplet-hardest",
        "triplet-sum",
        "triplet-circle",
        "triplet-supcon",
    ),
    "smr": ("no-smr", "smr-add", "smr-multiply", "galr", "csls", "dual-softmax"),
}
ALL_STUDIES = "all"


def bases_of(recipe: Recipe) -> tuple[Base, ...]:
    """The plain scores of this recipe's evaluation, in order."""
    aligned = recipe.losses.aligns_features
    matched = recipe.losses.itm > 0 and (recipe.evaluate.itm_k > 0 or not aligned)
    return (*(("cosine",) if aligned else ()), *(("itm",) if matched else ()))


def text_split(layers: int) -> Switch:
    """`layers` for the text encoder, the rest for the fusion encoder. The paper gives each half of the depth."""
    return Switch(f"text-split-{layers}", "text_split", (f"text_encoder.layers={layers}",), "halving the depth is best")


def switches_of(names: Iterable[str] = (), studies: Iterable[str] = (), splits: Iterable[int] = ()) -> list[Switch]:
    """The named switches, those of complete studies, and text splits, without duplicates. Raises UsageError."""
    chosen: dict[str, Switch] = {}
    for name in names:
        if name not in SWITCHES:
            raise UsageError(f"there is no switch {name!r}", hint=f"choose from {', '.join(SWITCHES)}")
        chosen[name] = SWITCHES[name]
    for study in studies:
        if study not in (*STUDIES, ALL_STUDIES):
            raise UsageError(f"there is no study {study!r}", hint=f"choose from {', '.join(STUDIES)} and {ALL_STUDIES}")
        parts = STUDIES if study == ALL_STUDIES else (study,)
        chosen.update((name, SWITCHES[name]) for part in parts for name in STUDIES[part])
    chosen.update((switch.name, switch) for switch in map(text_split, splits))
    if not chosen:
        raise UsageError("no switch is given", hint="for instance --no-global-window, or --study gswin")
    return list(chosen.values())


def baseline_of(recipe: Recipe) -> Variant:
    """The unchanged recipe."""
    return Variant(BASELINE, recipe, ())


def one_at_a_time(recipe: Recipe, switches: Sequence[Switch]) -> tuple[Variant, ...]:
    """The baseline, then one variant per switch; switches that change nothing in this recipe are left out.

    Raises UsageError for a switch that makes the recipe invalid.
    """
    variants = [baseline_of(recipe)]
    for switch in switches:
        variant = _thrown(recipe, (switch,))
        if variant is not None:
            variants.append(variant)
    return _different(variants)


def full_factorial(recipe: Recipe, switches: Sequence[Switch]) -> tuple[Variant, ...]:
    """Every combination of one level per factor; invalid combinations are left out.

    Raises UsageError for more than MAX_VARIANTS.
    """
    factors: dict[str, list[tuple[Switch, ...]]] = {}
    for switch in switches:
        factors.setdefault(switch.factor, [()]).append((switch,))
    count = 1
    for levels in factors.values():
        count *= len(levels)
    if count > MAX_VARIANTS:
        raise UsageError(
            f"{count} combinations are more than the {MAX_VARIANTS} allowed", hint="use fewer switches at once"
        )
    variants = []
    for combination in product(*factors.values()):
        thrown = tuple(switch for level in combination for switch in level)
        try:
            variant = _thrown(recipe, thrown) if thrown else baseline_of(recipe)
        except UsageError:
            continue
        if variant is not None:
            variants.append(variant)
    return _different(variants)


def left_out(switches: Sequence[Switch], variants: Sequence[Variant]) -> list[str]:
    """Names of switches without a variant, since they change nothing in this recipe."""
    used = {switch.name for variant in variants for switch in variant.switches}
    return [switch.name for switch in switches if switch.name not in used]


def _thrown(recipe: Recipe, switches: tuple[Switch, ...]) -> Variant | None:
    """The recipe with switches applied, adjusted where they contradict it; None if nothing changes."""
    overrides = [override for switch in switches for override in switch.overrides_of(recipe)]
    name = "+".join(switch.name for switch in switches)
    wanted, notes = _mended(recipe, overrides)
    try:
        changed = override_recipe(recipe, wanted, where=name)
    except RecipeError as error:
        raise UsageError(f"{name} makes the recipe invalid ({error.message})", error.hint) from error
    if changed == recipe and not any(switch.reranking for switch in switches):
        return None
    return Variant(" ".join([name, *(f"({note})" for note in notes)]), changed, switches, tuple(notes))


def _mended(recipe: Recipe, overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Overrides with the further changes that keep the recipe valid, and notes about these."""
    given = dict(override.split("=", 1) for override in overrides)
    losses = recipe.losses
    itm = float(given.get("losses.itm", losses.itm))
    mlm = float(given.get("losses.mlm", losses.mlm))
    itc = float(given.get("losses.itc", losses.itc))
    triplet = given.get("losses.triplet", losses.triplet)
    pre_alignment = given.get("losses.pre_alignment", str(losses.pre_alignment).lower()) == "true"
    wanted, notes = list(overrides), []
    if recipe.fusion_encoder.enabled and itm == 0 and mlm == 0:
        wanted.append("fusion_encoder.enabled=false")
        notes.append("no fusion half")
    if pre_alignment and itc == 0 and (triplet == "none" or losses.triplet_weight == 0) and itm > 0:
        wanted.append("losses.pre_alignment=false")
        notes.append("no pre-alignment")
    return wanted, notes


def _different(variants: Sequence[Variant]) -> tuple[Variant, ...]:
    """Distinct variants; the first of equal ones is kept."""
    kept: dict[tuple[str, str | None], Variant] = {}
    for variant in variants:
        kept.setdefault((_effective(variant.recipe).sha256(), variant.reranking), variant)
    return tuple(kept.values())


def _effective(recipe: Recipe) -> Recipe:
    """The recipe with fields without effect at their defaults, so that equal trainings compare equal."""
    inert = []
    if not recipe.image_encoder.global_window:
        inert += ["image_encoder.global_window_source=conv", "image_encoder.global_query=local"]
    if not recipe.losses.pre_alignment:
        inert += ["losses.itc=1.0", "losses.triplet=intra", "losses.triplet_negatives=sum"]
    if recipe.losses.triplet == "none":
        inert.append("losses.triplet_negatives=sum")
    if recipe.losses.itm == 0:
        inert.append("losses.itm_hardness=1.0")
    return override_recipe(recipe, inert)
