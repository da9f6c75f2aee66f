"""The typed recipe: every choice of a training run, validated once, then trusted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from cmpagl_core.files import canonical_json, sha256_text
from cmpagl_core.plain_yaml import dump_plain_yaml

RECIPE_VERSION = 1
STAGE_STRIDES = (4, 8, 16, 32)

_SIZE = "{size}"  # in the name of Swin weights, so that one line changes a recipe's size
_SIZES: dict[str, tuple[int, tuple[int, int, int, int], tuple[int, int, int, int]]] = {
    "tiny": (96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "small": (96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "base": (128, (2, 2, 18, 2), (4, 8, 16, 32)),
}

# Every number has a lower and an upper bound, far from what is useful and near enough that arithmetic holds.
_List = Field(strict=False)  # YAML's lists become tuples
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
StageNumber = Annotated[int, Field(ge=1, le=4)]
Weight = Annotated[float, Field(ge=0.0, le=1_000.0)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
Epochs = Annotated[int, Field(ge=0, le=100_000)]
BatchSize = Annotated[int, Field(ge=1, le=65_536)]
Layers = Annotated[int, Field(ge=1, le=100)]
_Count = Annotated[int, Field(ge=0, le=512)]
FourCounts = Annotated[tuple[_Count, _Count, _Count, _Count], _List]


def _word_not_boolean(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("true and false are no words; write the word none, or quote it")
    return value


def _not_patch(value: Any) -> Any:
    if value == "patch":
        raise ValueError("'patch' was renamed: write 'none'")
    return value


Word = BeforeValidator(_word_not_boolean)


class _Part(BaseModel):
    """Strict: a text or a boolean is no number, and a number no text."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class SelectionPart(_Part):
    """Where models and gammas are chosen: a split, or a seeded share of train kept out of training."""

    split: Annotated[Literal["val", "train", "test"], Word] = Field(
        "val", description="val, or train for a share of it; test is refused"
    )
    fraction: float = Field(0.1, gt=0.0, lt=1.0, description="share of train, by image; only for split train")
    seed: Seed = Field(0, description="of the share's draw")


class DataPart(_Part):
    """Which prepared data set, and how an image becomes numbers."""

    dataset: str = Field("", description="name or path of a prepared data set; empty: the newest")
    image_size_px: int = Field(224, ge=32, le=1024, description="images are squashed to this square")
    max_caption_tokens: int = Field(64, ge=8, le=512, description="longer captions are cut")
    augment: Annotated[Literal["none", "flips", "d4"], Word] = Field(
        "d4", description="flips, or the 8 flips and 90-degree rotations (d4); only for captions that name no direction"
    )
    crop_scale_min: float = Field(1.0, gt=0.0, le=1.0, description="smallest area share of a random crop; 1 is none")
    workers: int = Field(0, ge=0, le=64, description="threads that decode images ahead; 0: none")
    selection: SelectionPart = SelectionPart()


class ImageEncoderPart(_Part):
    """Gswin (section 2 of the method)."""

    size: Annotated[Literal["tiny", "small", "base", "custom"], Word] = Field(
        "tiny", description="Swin's sizes; custom takes the three fields below"
    )
    width: int = Field(96, ge=8, le=8_192, description="channels of stage 1; custom only")
    depths: FourCounts = Field((2, 2, 6, 2), description="branches per stage, two a block; custom only")
    num_heads: FourCounts = Field((3, 6, 12, 24), description="per stage; custom only")
    window_size: int = Field(7, ge=2, le=64, description="tokens along a side of a window; a smaller map shrinks it")
    mlp_ratio: float = Field(4.0, ge=0.125, le=32.0, description="hidden width of an MLP, times its input's")
    drop_path: Fraction = Field(0.2, description="at the last block; grows linearly from 0")
    dropout: Fraction = Field(0.0, description="in attention and MLP outputs")
    layer_scale_init: Weight = Field(
        0.0, description="ours: start of a per-channel factor on attention and MLP branches; 0: none, as in Swin"
    )
    global_window: bool = Field(True, description="false: plain Swin")
    global_window_source: Annotated[Literal["conv", "avgpool"], Word] = Field(
        "conv", description="how the global window is made from the stage's map"
    )
    global_query: Annotated[Literal["local", "global"], Word] = Field(
        "local", description="local: tokens ask the global window; global: GCViT's direction"
    )
    branches: Annotated[Literal["sequential", "parallel"], Word] = Field(
        "sequential", description="parallel: both branches read the block's input and are joined"
    )
    global_stages: Annotated[tuple[StageNumber, ...], _List] = Field(
        (1, 2, 3, 4), description="stages that have a global window"
    )
    weights: Annotated[str, Word] = Field(
        "random", description="timm:NAME, file:PATH or random; {size} in it stands for the size above"
    )
    backbone: Annotated[str, Word, BeforeValidator(_not_patch)] = Field(
        "none", description="none (Swin's patch embedding), or the name of a timm feature extractor"
    )
    backbone_strides: Annotated[tuple[Literal[4, 8, 16, 32], ...], _List] = Field(
        (16,), description="maps taken from the backbone, joined at the finest; which stages are left follows from it"
    )
    backbone_head: bool = Field(False, description="take the backbone's last 1x1 convolution with its widest map")
    backbone_skip: bool = Field(
        False,
        description="ours: image_features start as a linear probe of the backbone's average; Gswin joins by a gate",
    )
    backbone_skip_dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="ours: of the averaged map's channels before that probe, and before those of extra_backbones",
    )
    backbone_weights: Annotated[str, Word] = Field("random", description="package:..., timm:NAME, file:PATH or random")
    extra_backbones: Annotated[tuple[Annotated[str, Word], ...], _List] = Field(
        (), description="ours: more timm extractors; each adds a linear probe of its own, and features lie side by side"
    )
    extra_backbone_weights: Annotated[tuple[Annotated[str, Word], ...], _List] = Field(
        (), description="their weights, one for each, as in backbone_weights"
    )
    extra_backbone_px: Annotated[tuple[Annotated[int, Field(ge=32, le=1024)], ...], _List] = Field(
        (), description="side in pixels to which each brings the image first; empty: as it comes"
    )
    backbone_trainable: bool = Field(False, description="false: frozen, its maps are cached on disk")
    backbone_unfreeze_epoch: Epochs = Field(0, description="a trainable backbone stays frozen before this epoch")

    @model_validator(mode="before")
    @classmethod
    def _fill_size(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        size = values.get("size", "tiny")
        if not isinstance(size, str) or size not in _SIZES:
            return values
        given = dict(values)
        for key, value in zip(("width", "depths", "num_heads"), _SIZES[size], strict=True):
            if key in given and _plain(given[key]) != _plain(value):
                raise ValueError(f"{key} is fixed by size {size}: leave it out, or write size: custom")
            given[key] = value
        return given

    @model_validator(mode="after")
    def _check(self) -> Self:
        first = self.first_stage
        if self.backbone == "none" and self.backbone_skip:
            raise ValueError("backbone_skip needs a backbone: set image_encoder.backbone, or backbone_skip false")
        if self.backbone_skip_dropout and not self.backbone_skip:
            raise ValueError("backbone_skip_dropout is of backbone_skip's probes: set image_encoder.backbone_skip true")
        if self.extra_backbones and not self.backbone_skip:
            raise ValueError(
                "extra_backbones adds to the linear probe of backbone_skip: set image_encoder.backbone_skip true"
            )
        if len(self.extra_backbones) != len(self.extra_backbone_weights):
            raise ValueError("extra_backbone_weights needs one source for each extractor of extra_backbones")
        if self.extra_backbone_px and len(self.extra_backbone_px) != len(self.extra_backbones):
            raise ValueError("extra_backbone_px needs one side for each extractor of extra_backbones, or none at all")
        if self.backbone != "none":
            if not self.backbone_strides:
                raise ValueError("backbone_strides needs at least one stride")
            if any(self.depths[:first]):
                raise ValueError(
                    f"a backbone at stride {min(self.backbone_strides)} replaces the stages before stage {first + 1}: "
                    f"set their depths to 0 (size: custom)"
                )
            if self.weights != "random":
                raise ValueError("weights imports a whole Swin; with a backbone use backbone_weights")
        if self.size == "custom" and _SIZE in self.weights:
            raise ValueError(f"weights name {_SIZE}, and a custom size has no published Swin: name a file")
        if not all(self.depths[first:]):
            raise ValueError("every stage from the first on needs a depth of at least 1")
        for stage in range(first, 4):
            if self.num_heads[stage] < 1 or self.stage_width(stage) % self.num_heads[stage]:
                raise ValueError(f"num_heads of stage {stage + 1} must divide its width {self.stage_width(stage)}")
        self._check_global_stages()
        if self.branches == "parallel" and any(depth % 2 for depth in self.depths):
            raise ValueError("parallel branches come in pairs: every depth must be even")
        return self

    def _check_global_stages(self) -> None:
        """Refuse stages without effect; all four, the default, mean each stage that there is."""
        if not self.global_window:
            return
        if not self.global_stages:
            raise ValueError("global_window true with no global_stages is plain Swin: name a stage, or write false")
        gone = [stage for stage in self.global_stages if stage <= self.first_stage]
        if gone and set(self.global_stages) != {1, 2, 3, 4}:
            raise ValueError(
                f"global_stages names stage {gone[0]}, which the backbone at stride {min(self.backbone_strides)} "
                f"replaces: name stages from {self.first_stage + 1} on"
            )

    @property
    def swin_weights(self) -> str:
        """The source that `weights` names, of this size."""
        return self.weights.replace(_SIZE, self.size)

    @property
    def probes(self) -> int:
        """Groups of features that lie side by side, one for each extractor with a linear probe; else 1."""
        return 1 + len(self.extra_backbones)

    @property
    def first_stage(self) -> int:
        """Index (0 to 3) of the first Gswin stage."""
        return 0 if self.backbone == "none" else STAGE_STRIDES.index(min(self.backbone_strides))

    def stage_width(self, stage: int) -> int:
        """Channels of stage 0 to 3."""
        return self.width * int(2**stage)


class TextEncoderPart(_Part):
    """The lower half of BERT; its weights part also feeds the fusion half (section 1)."""

    size: Annotated[Literal["bert-base", "minilm-l6", "tiny"], Word] = Field(
        "bert-base", description="shape for random weights; other weights bring their own"
    )
    weights: Annotated[str, Word] = Field("random", description="package:..., hf:NAME, file:PATH or random")
    layers: Layers | None = Field(None, description="layers of the text half; empty: half of the depth")
    pooling: Annotated[Literal["cls", "mean"], Word] = Field(
        "cls", description="token that stands for the caption, or the mean of all"
    )
    dropout: Fraction = Field(0.1, description="in BERT's layers")


class FusionEncoderPart(_Part):
    """The upper half of BERT, cross-attending from text to image tokens (section 1)."""

    enabled: bool = Field(True, description="false: no fusion half, so neither ITM nor MLM")
    layers: Layers | None = Field(
        None,
        description="ours: BERT's last so many, copied where the text half has them too; empty: what is left",
    )
    dropout: Fraction = Field(0.1, description="in BERT's layers")


class LossesPart(_Part):
    """Section 3; a weight of 0 switches a term off."""

    embed_dim: int = Field(256, ge=2, le=16_384, description="width of image_features and text_features")
    pre_alignment: bool = Field(True, description="false removes ITC and triplet: ranking then comes from ITM")
    itc: Weight = Field(1.0, description="weight of the contrastive loss")
    itc_soft_targets: Fraction = Field(0.0, description="ours: share of the target spread by caption similarity")
    label_smoothing: Fraction = Field(0.0, description="ours: share of the ITC target spread over the batch")
    triplet: Annotated[Literal["none", "plain", "intra", "circle", "supcon"], Word] = Field(
        "intra", description="plain; intra adds lambda (1 - s_ii); circle and supcon take its place"
    )
    triplet_negatives: Annotated[Literal["sum", "hardest"], Word] = Field(
        "sum", description="every negative counts, or the hardest alone"
    )
    triplet_weight: Weight = Field(1.0, description="of whichever triplet stands above")
    margin_cosine: float = Field(0.2, ge=0.0, le=2.0, description="m: how far a negative must stay below its match")
    intra_weight: Weight = Field(1.0, description="lambda: how strongly a match is drawn towards 1")
    itm: Weight = Field(1.0, description="weight of image-text matching")
    itm_hardness: Weight = Field(
        1.0, description="factor on the logits that ITM's negatives are drawn by; ours: 0.0 takes any alike"
    )
    mlm: Weight = Field(1.0, description="weight of masked language modelling")
    mlm_probability: float = Field(0.15, gt=0.0, lt=1.0, description="share of the tokens that are masked")
    logit_scale_init: float = Field(1 / 0.07, ge=1.0, le=10_000.0, description="of the learned scale")
    logit_scale_max: float = Field(100.0, ge=1.0, le=10_000.0, description="the scale is clamped here")

    @property
    def uses_itc(self) -> bool:
        return self.pre_alignment and self.itc > 0

    @property
    def uses_triplet(self) -> bool:
        return self.pre_alignment and self.triplet != "none" and self.triplet_weight > 0

    @property
    def aligns_features(self) -> bool:
        """Whether cosines mean anything: some loss aligns the features before fusion."""
        return self.uses_itc or self.uses_triplet

    @property
    def uses_fusion(self) -> bool:
        return self.itm > 0 or self.mlm > 0


class OptimPart(_Part):
    """AdamW, warm-up, then cosine decay to zero."""

    lr: float = Field(1.0e-4, gt=0.0, le=10.0, description="of new parts")
    text_lr_scale: Weight = Field(0.1, description="of imported BERT layers, times lr; 0 freezes them")
    image_lr_scale: Weight = Field(0.1, description="of imported Swin or backbone weights, times lr; 0 freezes them")
    weight_decay: Weight = Field(0.05, description="not on norms and biases")
    beta1: Fraction = Field(0.9, description="of AdamW")
    beta2: Fraction = Field(0.98, description="of AdamW")
    warmup_fraction: Fraction = Field(0.1, description="share of all steps")
    clip_norm: float = Field(1.0, gt=0.0, le=1.0e6, description="gradient norm, after backward")


class TrainPart(_Part):
    """The loop."""

    epochs: int = Field(40, ge=1, le=100_000, description="each image once an epoch, with one of its captions")
    batch_size: int = Field(
        64, ge=2, le=65_536, description="pairs in one micro-batch; in-batch negatives come from it"
    )
    accumulate: BatchSize = Field(
        1,
        description="micro-batches per optimiser step: ITC, triplet and ITM see the negatives of their own micro-batch "
        "alone, MLM is as in one large batch",
    )
    precision: Annotated[Literal["fp32", "bf16", "fp16"], Word] = Field(
        "bf16", description="of autocast; fp32 is none, and is taken where the device has no instructions for the other"
    )
    ema_decay: Fraction = Field(0.0, description="0 is none; the averaged weights are validated and kept")
    patience_epochs: Epochs = Field(0, description="stop after so many validations without a better mR; 0: never")
    validate_every_epochs: int = Field(1, ge=1, le=100_000, description="how often mR on the selection split is taken")
    seed: Seed = Field(0, description="of weights, order, captions, augmentation, dropout")


class EvaluatePart(_Part):
    """Stages after the cosine ranking (section 4)."""

    batch_size: BatchSize = Field(64, description="images encoded at once; features do not depend on it")
    tta: Annotated[Literal["none", "d4"], Word] = Field(
        "none", description="ours: d4 averages image_features over the 8 flips and 90-degree rotations"
    )
    itm_k: int = Field(16, ge=0, le=1_000_000, description="candidates per query and direction; 0: no ITM stage")
    smr_form: Annotated[Literal["multiply", "add"], Word] = Field("multiply", description="section 4")
    smr_gammas: Annotated[tuple[Weight, ...], _List] = Field(
        (0.0, 0.25, 0.5, 1.0, 2.0, 4.0), min_length=1, max_length=100, description="the grid of gamma1 and gamma2"
    )
    smr: bool = Field(True, description="re-rank with SMR")


class Recipe(_Part):
    """A whole recipe. Frozen; equal recipes have equal hashes."""

    version: Literal[1] = Field(1, description="of the recipe format")
    data: DataPart = DataPart()
    image_encoder: ImageEncoderPart = ImageEncoderPart()
    text_encoder: TextEncoderPart = TextEncoderPart()
    fusion_encoder: FusionEncoderPart = FusionEncoderPart()
    losses: LossesPart = LossesPart()
    optim: OptimPart = OptimPart()
    train: TrainPart = TrainPart()
    evaluate: EvaluatePart = EvaluatePart()

    @model_validator(mode="after")
    def _no_contradiction(self) -> Self:
        losses, fusion = self.losses, self.fusion_encoder.enabled
        if losses.uses_fusion and not fusion:
            raise ValueError(
                "ITM and MLM need fusion layers: set fusion_encoder.enabled true, or losses.itm and losses.mlm to 0"
            )
        if fusion and not losses.uses_fusion:
            raise ValueError(
                "nothing trains the fusion half: set fusion_encoder.enabled false, or give losses.itm or "
                "losses.mlm a weight"
            )
        if not (losses.aligns_features or losses.itm > 0):
            raise ValueError("no loss ranks anything: give losses.itc, losses.triplet or losses.itm a weight")
        if losses.itm > 0 and losses.pre_alignment and not losses.aligns_features:
            raise ValueError("without ITC and triplet there is no pre-alignment: write losses.pre_alignment false")
        if losses.embed_dim % self.image_encoder.probes:
            raise ValueError(
                f"losses.embed_dim {losses.embed_dim} cannot be shared evenly by {self.image_encoder.probes} extractors"
            )
        if self._caches_backbone and self.data.crop_scale_min < 1.0:
            raise ValueError(
                "a frozen backbone's maps are cached for flips and 90-degree rotations only: crop_scale_min must be 1"
            )
        return self

    @property
    def _caches_backbone(self) -> bool:
        return self.image_encoder.backbone != "none" and not self.image_encoder.backbone_trainable

    def sha256(self) -> str:
        """Hash of every resolved field."""
        return sha256_text(canonical_json(self.model_dump(mode="json")))

    def to_yaml(self) -> str:
        """The recipe as resolved, every field written out."""
        return dump_plain_yaml(self.model_dump(mode="json"))


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple | list) else value
