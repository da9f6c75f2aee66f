"""The typed recipe: every setting of a training run, validated when it is built."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from cmpagl_core.files import canonical_json, sha256_text
from cmpagl_core.plain_yaml import dump_plain_yaml
from cmpagl_core.recipe_data import DataPart
from cmpagl_core.recipe_distill import DistillPart
from cmpagl_core.recipe_fields import (
    AsTuple,
    BatchSize,
    Epochs,
    FourCounts,
    Fraction,
    Layers,
    Part,
    Seed,
    SidePx,
    StageNumber,
    Weight,
    Word,
)

RECIPE_VERSION = 1
STAGE_STRIDES = (4, 8, 16, 32)

_SIZE = "{size}"  # placeholder in the name of Swin weights, so that one line changes a recipe's size
_SIZES: dict[str, tuple[int, tuple[int, int, int, int], tuple[int, int, int, int]]] = {
    "tiny": (96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "small": (96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "base": (128, (2, 2, 18, 2), (4, 8, 16, 32)),
}


def _not_patch(value: Any) -> Any:
    if value == "patch":
        raise ValueError("'patch' was renamed: write 'none'")
    return value


class ImageEncoderPart(Part):
    """Gswin (docs/method.md, section 2)."""

    size: Annotated[Literal["tiny", "small", "base", "custom"], Word] = Field(
        "tiny", description="Swin's sizes; custom: as the next three fields say"
    )
    width: int = Field(96, ge=8, le=8_192, description="channels of stage 1; custom only")
    depths: FourCounts = Field((2, 2, 6, 2), description="branches per stage, two to a block; custom only")
    num_heads: FourCounts = Field((3, 6, 12, 24), description="attention heads per stage; custom only")
    window_size: int = Field(7, ge=2, le=64, description="side of a window in tokens; clipped to smaller maps")
    mlp_ratio: float = Field(
        4.0, ge=0.125, le=32.0, description="hidden width of the MLPs, as a multiple of their input width"
    )
    shifted_windows: bool = Field(True, description="false: every second branch has regular windows too (ablation)")
    drop_path: Fraction = Field(0.2, description="stochastic depth at the last block, growing linearly from 0")
    dropout: Fraction = Field(0.0, description="on the outputs of attention and MLPs")
    layer_scale_init: Weight = Field(
        0.0, description="ours: initial LayerScale on attention and MLP branches; 0: no LayerScale, as in Swin"
    )
    global_window: bool = Field(True, description="false: plain Swin")
    global_window_source: Annotated[Literal["conv", "avgpool", "random"], Word] = Field(
        "conv",
        description="how the global window is computed from the stage's map; random (ablation): fixed random tokens, "
        "the same for every image",
    )
    global_query: Annotated[Literal["local", "global"], Word] = Field(
        "local", description="local: local tokens query the global window; global: the reverse, as in GCViT"
    )
    branches: Annotated[Literal["sequential", "parallel"], Word] = Field(
        "sequential", description="parallel: both branches read the block's input; their concatenation is projected"
    )
    global_stages: Annotated[tuple[StageNumber, ...], AsTuple] = Field(
        (1, 2, 3, 4), description="stages with a global window"
    )
    init: Annotated[Literal["swin", "fan_in"], Word] = Field(
        "swin",
        description="standard deviation of random linear layers: swin is 0.02; ours: fan_in is 1 / sqrt(inputs), which "
        "a narrow encoder needs when trained from scratch",
    )
    weights: Annotated[str, Word] = Field(
        "random", description="timm:NAME, file:PATH or random; {size} is replaced by the size above"
    )
    backbone: Annotated[str, Word, BeforeValidator(_not_patch)] = Field(
        "none", description="none (Swin's patch embedding), or a timm feature extractor"
    )
    backbone_strides: Annotated[tuple[Literal[4, 8, 16, 32], ...], AsTuple] = Field(
        (16,),
        description="strides of the backbone's maps, concatenated at the finest; they replace the stages before it",
    )
    backbone_head: bool = Field(False, description="keep the backbone's last 1x1 convolution, after its widest map")
    backbone_skip: bool = Field(
        False,
        description="ours: image_features start as a linear probe of the pooled backbone; Gswin is added by a gate",
    )
    backbone_skip_dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="ours: dropout on pooled channels before that probe and those of extra_backbones",
    )
    backbone_weights: Annotated[str, Word] = Field("random", description="package:..., timm:NAME, file:PATH or random")
    extra_backbones: Annotated[tuple[Annotated[str, Word], ...], AsTuple] = Field(
        (), description="ours: more timm extractors, each with its own linear probe; the features are concatenated"
    )
    extra_backbone_weights: Annotated[tuple[Annotated[str, Word], ...], AsTuple] = Field(
        (), description="weights of each extra backbone, as in backbone_weights"
    )
    extra_backbone_px: Annotated[tuple[SidePx, ...], AsTuple] = Field(
        (), description="input size of each extra backbone in pixels; empty: image_size_px"
    )
    backbone_trainable: bool = Field(False, description="false: frozen, and its maps are cached on disk")
    backbone_unfreeze_epoch: Epochs = Field(0, description="first epoch in which a trainable backbone is trained")

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
            raise ValueError("backbone_skip_dropout needs backbone_skip: set image_encoder.backbone_skip true")
        if self.extra_backbones and not self.backbone_skip:
            raise ValueError(
                "extra_backbones needs the linear probe of backbone_skip: set image_encoder.backbone_skip true"
            )
        if len(self.extra_backbones) != len(self.extra_backbone_weights):
            raise ValueError("extra_backbone_weights needs one entry for each entry of extra_backbones")
        if self.extra_backbone_px and len(self.extra_backbone_px) != len(self.extra_backbones):
            raise ValueError("extra_backbone_px needs one entry for each entry of extra_backbones, or none")
        if self.backbone != "none":
            if not self.backbone_strides:
                raise ValueError("backbone_strides needs at least one stride")
            if any(self.depths[:first]):
                raise ValueError(
                    f"a backbone at stride {min(self.backbone_strides)} replaces the stages before stage {first + 1}: "
                    f"set their depths to 0 (size: custom)"
                )
            if self.weights != "random":
                raise ValueError("weights imports a complete Swin; with a backbone, use backbone_weights")
        if self.size == "custom" and _SIZE in self.weights:
            raise ValueError(f"weights contains {_SIZE}, but no Swin of a custom size is published: give a file")
        if not all(self.depths[first:]):
            raise ValueError("every stage needs a depth of at least 1")
        for stage in range(first, 4):
            if self.num_heads[stage] < 1 or self.stage_width(stage) % self.num_heads[stage]:
                raise ValueError(f"num_heads of stage {stage + 1} must divide its width {self.stage_width(stage)}")
        self._check_global_stages()
        if self.branches == "parallel" and any(depth % 2 for depth in self.depths):
            raise ValueError("parallel branches come in pairs: every depth must be even")
        return self

    def _check_global_stages(self) -> None:
        """Refuse stages without effect; the default, all four, means every stage that exists."""
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
        """`weights` with this size filled in."""
        return self.weights.replace(_SIZE, self.size)

    @property
    def probes(self) -> int:
        """Number of concatenated feature groups: one for each backbone with a linear probe, else 1."""
        return 1 + len(self.extra_backbones)

    @property
    def first_stage(self) -> int:
        """Index (0 to 3) of the first Gswin stage."""
        return 0 if self.backbone == "none" else STAGE_STRIDES.index(min(self.backbone_strides))

    def stage_width(self, stage: int) -> int:
        """Channels of stage 0 to 3."""
        return self.width * int(2**stage)


class TextEncoderPart(Part):
    """The lower half of BERT; `weights` also initialises the fusion encoder (section 1)."""

    size: Annotated[Literal["bert-base", "minilm-l6", "tiny"], Word] = Field(
        "bert-base", description="shape for random weights; pretrained weights determine their own"
    )
    weights: Annotated[str, Word] = Field("random", description="package:..., hf:NAME, file:PATH or random")
    layers: Layers | None = Field(None, description="layers of the text encoder; empty: half of BERT's")
    pooling: Annotated[Literal["cls", "mean"], Word] = Field(
        "cls", description="a caption's feature: its [CLS] token, or the mean of its tokens"
    )
    pooled_layers: Annotated[tuple[Layers, ...], AsTuple] = Field(
        (), max_length=12, description="ours: earlier layers whose pooled tokens are concatenated with the last layer's"
    )
    dropout: Fraction = Field(0.1, description="in BERT's layers")


class FusionEncoderPart(Part):
    """The upper half of BERT, cross-attending from text to image tokens (section 1)."""

    enabled: bool = Field(True, description="false: no fusion encoder, so neither ITM nor MLM")
    layers: Layers | None = Field(
        None,
        description="ours: number of BERT's last layers, copied if the text encoder has them too; empty: the rest",
    )
    dropout: Fraction = Field(0.1, description="in BERT's layers")


class LossesPart(Part):
    """The losses (section 3); a weight of 0 switches a term off."""

    embed_dim: int = Field(256, ge=2, le=16_384, description="width of image_features and text_features")
    pre_alignment: bool = Field(True, description="false: no ITC and no triplet loss; ITM alone ranks")
    itc: Weight = Field(1.0, description="weight of the image-text contrastive loss")
    itc_soft_targets: Fraction = Field(0.0, description="ours: share of ITC's target spread over similar captions")
    label_smoothing: Fraction = Field(0.0, description="ours: share of ITC's target spread evenly over the batch")
    triplet: Annotated[Literal["none", "plain", "intra", "circle", "supcon"], Word] = Field(
        "intra", description="intra (the paper's) adds lambda (1 - s_ii) to plain; circle and supcon replace it"
    )
    triplet_negatives: Annotated[Literal["sum", "hardest"], Word] = Field(
        "sum", description="sum over all negatives of the batch, or the hardest one"
    )
    triplet_weight: Weight = Field(1.0, description="weight of the loss chosen by triplet")
    margin_cosine: float = Field(0.2, ge=0.0, le=2.0, description="m: margin between a match and a negative")
    intra_weight: Weight = Field(1.0, description="lambda: how strongly the cosine of a match is pulled towards 1")
    hubness: Weight = Field(
        0.0, description="ours: weight of the variance of how near an item is to all others of the batch"
    )
    itm: Weight = Field(1.0, description="weight of image-text matching")
    itm_hardness: Weight = Field(
        1.0, description="scales the logits from which ITM's negatives are sampled; ours: 0.0 samples uniformly"
    )
    mlm: Weight = Field(1.0, description="weight of masked language modelling")
    mlm_probability: float = Field(0.15, gt=0.0, lt=1.0, description="share of tokens selected for masking")
    logit_scale_init: float = Field(1 / 0.07, ge=1.0, le=10_000.0, description="initial logit scale, learned")
    logit_scale_max: float = Field(100.0, ge=1.0, le=10_000.0, description="upper clamp of the logit scale")

    @property
    def uses_itc(self) -> bool:
        return self.pre_alignment and self.itc > 0

    @property
    def uses_triplet(self) -> bool:
        return self.pre_alignment and self.triplet != "none" and self.triplet_weight > 0

    @property
    def uses_hubness(self) -> bool:
        return self.aligns_features and self.hubness > 0

    @property
    def aligns_features(self) -> bool:
        """Whether cosine similarity is meaningful: some loss aligns the features before fusion."""
        return self.uses_itc or self.uses_triplet

    @property
    def uses_fusion(self) -> bool:
        return self.itm > 0 or self.mlm > 0


class OptimPart(Part):
    """AdamW with linear warm-up, then cosine decay to zero."""

    lr: float = Field(1.0e-4, gt=0.0, le=10.0, description="peak learning rate of new parameters")
    text_lr_scale: Weight = Field(0.1, description="pretrained BERT layers learn at lr times this; 0 freezes them")
    image_lr_scale: Weight = Field(
        0.1, description="pretrained Swin or backbone weights learn at lr times this; 0 freezes them"
    )
    weight_decay: Weight = Field(0.05, description="not applied to norms, biases, gates and bias tables")
    beta1: Fraction = Field(0.9, description="AdamW's")
    beta2: Fraction = Field(0.98, description="AdamW's")
    warmup_fraction: Fraction = Field(0.1, description="share of all steps")
    clip_norm: float = Field(1.0, gt=0.0, le=1.0e6, description="gradients are clipped to this norm")


class TrainPart(Part):
    """The training loop."""

    epochs: int = Field(
        40, ge=1, le=100_000, description="an epoch is one pass over the images, each with one of its captions"
    )
    batch_size: int = Field(64, ge=2, le=65_536, description="pairs per micro-batch; negatives are drawn from it")
    accumulate: BatchSize = Field(
        1,
        description="micro-batches per optimiser step; ITC, triplet and ITM see the negatives of one micro-batch, MLM "
        "is the same as in one large batch",
    )
    chunk_size: int = Field(
        0,
        ge=0,
        le=65_536,
        description="pairs encoded at once, with GradCache: memory grows with them, negatives and gradients are those "
        "of batch_size, the encoders run forward twice (docs/scale.md); 0: the whole batch",
    )
    checkpoint_activations: bool = Field(
        False,
        description="compute each block's activations again in the backward pass instead of keeping them: less memory, "
        "more time (docs/scale.md)",
    )
    precision: Annotated[Literal["fp32", "bf16", "fp16"], Word] = Field(
        "bf16", description="of autocast; without hardware support for it, the training runs in fp32"
    )
    ema_decay: Fraction = Field(
        0.0, description="decay of the weights' moving average, which is validated and saved; 0: no average"
    )
    balance_images: int = Field(
        0,
        ge=0,
        le=65_536,
        description="ours: evaluation has a stage `balanced`, which subtracts from each cosine how near its image and "
        "text are to at most so many train images and their captions (docs/method.md, section 4); 0: no such stage",
    )
    patience_epochs: Epochs = Field(0, description="stop after this many validations without a better mR; 0: never")
    validate_every_epochs: int = Field(
        1, ge=1, le=100_000, description="epochs between validations on the selection split"
    )
    seed: Seed = Field(0, description="seeds weights, order, captions, augmentation and dropout")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.chunk_size >= self.batch_size:
            raise ValueError(
                f"chunk_size {self.chunk_size} has no effect with batch_size {self.batch_size}: write less, or 0"
            )
        return self


class EvaluatePart(Part):
    """Encoding, and the stages after the cosine ranking (section 4)."""

    batch_size: BatchSize = Field(64, description="images encoded at once; features do not depend on it")
    tta: Annotated[Literal["none", "d4"], Word] = Field(
        "none",
        description="ours: test-time augmentation; d4 averages image_features over the 8 flips and 90-degree rotations",
    )
    itm_k: int = Field(16, ge=0, le=1_000_000, description="ITM candidates per query and direction; 0: no ITM stage")
    smr_form: Annotated[Literal["multiply", "add"], Word] = Field("multiply", description="SMR's form (section 4)")
    smr_gammas: Annotated[tuple[Weight, ...], AsTuple] = Field(
        (0.0, 0.25, 0.5, 1.0, 2.0, 4.0), min_length=1, max_length=100, description="grid searched for gamma1 and gamma2"
    )
    smr: bool = Field(True, description="re-rank with SMR")


class Recipe(Part):
    """A whole recipe. Frozen; equal recipes have equal hashes."""

    version: Literal[1] = Field(1, description="version of the recipe format")
    data: DataPart = DataPart()
    image_encoder: ImageEncoderPart = ImageEncoderPart()
    text_encoder: TextEncoderPart = TextEncoderPart()
    fusion_encoder: FusionEncoderPart = FusionEncoderPart()
    distill: DistillPart = DistillPart()
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
                "no loss trains the fusion encoder: set fusion_encoder.enabled false, or give losses.itm or "
                "losses.mlm a weight"
            )
        if not (losses.aligns_features or losses.itm > 0):
            raise ValueError("no loss trains a ranking: give losses.itc, losses.triplet or losses.itm a weight")
        if losses.itm > 0 and losses.pre_alignment and not losses.aligns_features:
            raise ValueError("without ITC and triplet there is no pre-alignment: set losses.pre_alignment false")
        if self.distill.epochs and (self.image_encoder.backbone != "none" or self.image_encoder.weights != "random"):
            raise ValueError(
                "distill gives Gswin its start, from patches: set image_encoder.backbone none and weights random, "
                "or distill.epochs 0"
            )
        if self.train.balance_images and not losses.uses_itc:
            raise ValueError(
                "balanced scores need the logit scale that ITC learns: give losses.itc a weight, or set "
                "train.balance_images to 0"
            )
        if losses.embed_dim % self.image_encoder.probes:
            raise ValueError(
                f"losses.embed_dim {losses.embed_dim} is not divisible by {self.image_encoder.probes}, the number of "
                f"backbones"
            )
        if self._caches_backbone and self.data.crop_scale_min < 1.0:
            raise ValueError(
                "a frozen backbone's maps are cached, which allows no random crops: set data.crop_scale_min to 1.0"
            )
        return self

    @property
    def matches_pairs(self) -> bool:
        """Whether the model has an ITM head."""
        return self.fusion_encoder.enabled and self.losses.itm > 0

    @property
    def _caches_backbone(self) -> bool:
        return self.image_encoder.backbone != "none" and not self.image_encoder.backbone_trainable

    def sha256(self) -> str:
        """Hash over every resolved field."""
        return sha256_text(canonical_json(self.model_dump(mode="json")))

    def to_yaml(self) -> str:
        """The recipe as resolved, every field written out."""
        return dump_plain_yaml(self.model_dump(mode="json"))


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple | list) else value
