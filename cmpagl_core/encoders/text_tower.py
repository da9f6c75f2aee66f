"""A run's text encoder in NumPy: everything a query needs, in one file, without torch (section 1; the port is ours).

A cold `cmpagl retrieve` would spend most of its time importing torch and transformers to encode one short sentence.
The tower has the same weights in float32 and computes the same layers, so its features are those of the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from cmpagl_core.encoders.tensor_file import TensorFile, open_tensor_file, write_tensor_file
from cmpagl_core.errors import DataError, MismatchError, check_format

if TYPE_CHECKING:  # a query on an index opens no run
    from cmpagl_core.runs import Run

TOWER_FORMAT = 3
TOWER_KIND = "text_tower"

Array = NDArray[np.float32]

_AGAIN = "rebuild the index with `cmpagl index`"
_ATTENTION = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")
_NORMS = ("attention.output.LayerNorm", "output.LayerNorm")
_IN_MODEL, _ONE_A_LAYER = "text_encoder.", ".attention.self.query.weight"
_EMBEDDINGS = ("word_embeddings", "position_embeddings", "token_type_embeddings")


@dataclass(frozen=True)
class TowerInfo:
    """The shape of the text encoder and its model."""

    model_sha256: str
    pooling: str
    layers: int
    num_heads: int
    layer_norm_eps: float
    max_tokens: int
    probes: int  # groups of features with equal length
    pooled_layers: tuple[int, ...]  # earlier layers that are pooled too
    format_version: int = TOWER_FORMAT


@dataclass(frozen=True)
class Reading:
    """A text as tokenized: the number of known tokens, and whether it was truncated at max_tokens."""

    known: int
    cut: bool


@dataclass(frozen=True, eq=False)
class TextTower:
    """Weights by the model's names, memory-mapped; `encode` turns texts into features."""

    weights: Mapping[str, Array]
    tokenizer_json: str
    info: TowerInfo

    def encode(self, texts: Sequence[str]) -> Array:
        """text_features, float32 [M, D] of unit length. Any text is accepted; long ones are truncated at max_tokens."""
        rows = [self._tokens(text).ids for text in texts]
        known = len(self.weights["embeddings.word_embeddings.weight"])
        if not all(ids and max(ids) < known for ids in rows):
            raise MismatchError("the tokenizer of the index does not belong to its text encoder", hint=_AGAIN)
        return np.stack([self._features(np.array(ids, dtype=np.int64)) for ids in rows])

    def read(self, text: str) -> Reading:
        """How much of a text the model reads."""
        encoded = self._tokens(text)
        words = [
            token for token, special in zip(encoded.tokens, encoded.special_tokens_mask, strict=True) if not special
        ]
        return Reading(sum(token != "[UNK]" for token in words), bool(encoded.overflowing))  # noqa: S105  # a word, no secret

    def _tokens(self, text: str) -> Encoding:
        return self._tokenizer.encode(text.encode("utf-8", "replace").decode("utf-8"))

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        try:
            tokenizer = Tokenizer.from_str(self.tokenizer_json)
        except Exception as error:  # the library raises bare exceptions
            raise MismatchError(f"the index has no valid tokenizer ({str(error)[:100]})", hint=_AGAIN) from error
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_length=self.info.max_tokens)
        return tokenizer

    def _features(self, input_ids: NDArray[np.int64]) -> Array:
        """input_ids: [L], one text, so there is no padding and no mask. Returns [D]."""
        x = self._embed(input_ids)  # [L, H]
        pooled_at = {}
        for layer in range(self.info.layers):
            x = self._layer(x, f"layers.{layer}")
            pooled_at[layer + 1] = x[0] if self.info.pooling == "cls" else x.mean(axis=0)
        pooled = np.concatenate([pooled_at[layer] for layer in (self.info.layers, *self.info.pooled_layers)])
        projected = self._linear(pooled[None], "text_projection")[0]
        grouped = projected.reshape(self.info.probes, -1)
        lengths = np.linalg.norm(grouped, axis=1, keepdims=True) * np.float32(self.info.probes**0.5)
        return np.asarray((grouped / lengths).reshape(-1), dtype=np.float32)

    def _embed(self, input_ids: NDArray[np.int64]) -> Array:
        words, positions, types = (self.weights[f"embeddings.{name}.weight"] for name in _EMBEDDINGS)
        return self._norm(words[input_ids] + types[0] + positions[: len(input_ids)], "embeddings.LayerNorm")

    def _layer(self, x: Array, name: str) -> Array:
        query, key, value, out = (f"{name}.{part}" for part in _ATTENTION)
        attended = _attend(*(self._heads(self._linear(x, part)) for part in (query, key, value)))
        x = self._norm(x + self._linear(attended, out), f"{name}.attention.output.LayerNorm")
        hidden = _gelu(self._linear(x, f"{name}.intermediate.dense"))
        return self._norm(x + self._linear(hidden, f"{name}.output.dense"), f"{name}.output.LayerNorm")

    def _heads(self, x: Array) -> Array:
        return x.reshape(len(x), self.info.num_heads, -1).transpose(1, 0, 2)  # [heads, L, d]

    def _linear(self, x: Array, name: str) -> Array:
        return np.asarray(x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"])

    def _norm(self, x: Array, name: str) -> Array:
        centred = x - x.mean(axis=-1, keepdims=True)
        deviation = np.sqrt((centred * centred).mean(axis=-1, keepdims=True) + np.float32(self.info.layer_norm_eps))
        return np.asarray(centred / deviation * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"])


def save_text_tower(path: Path, weights: Mapping[str, Array], tokenizer_json: str, info: TowerInfo) -> None:
    """Write a tower. weights: of the text encoder and `text_projection`, by the model's names."""
    dim, hidden = len(weights["text_projection.weight"]), weights["embeddings.word_embeddings.weight"].shape[1]
    inner = len(weights["layers.0.intermediate.dense.weight"])
    wanted = tower_shapes(info, hidden, inner, dim)
    arrays: dict[str, NDArray[Any]] = {name: weights[name].astype(np.float32, copy=False) for name in wanted}
    arrays["tokenizer"] = np.frombuffer(tokenizer_json.encode("utf-8"), dtype=np.uint8)
    write_tensor_file(path, arrays, {"kind": TOWER_KIND, **asdict(info)})


def open_text_tower(path: Path) -> TextTower:
    """Map a tower. Raises DataError if it is missing or broken, MismatchError for another version."""
    file = open_tensor_file(path)
    if file.about.get("kind") != TOWER_KIND:
        raise DataError(f"{path} is not a text tower", hint=_AGAIN)
    check_format(path, file.about.get("format_version"), TOWER_FORMAT, _AGAIN, MismatchError)
    info = _read_info(file)
    text = file.array("tokenizer", "|u1", (None,)).tobytes().decode("utf-8", "replace")
    return TextTower(_read_weights(file, info), text, info)


def run_text_tower(run: Run) -> TextTower | None:
    """A run's text encoder, mapped from the run's own weights; None if the run does not align its features.

    Raises DataError if they are broken.
    """
    recipe, shape = run.recipe, run.info.text_shape
    if not recipe.losses.aligns_features:
        return None
    file = open_tensor_file(run.weights_path)
    arrays = {name.removeprefix(_IN_MODEL): array for name, array in file.arrays.items()}
    info = TowerInfo(
        model_sha256=run.info.weights_sha256,
        pooling=recipe.text_encoder.pooling,
        layers=sum(name.startswith(f"{_IN_MODEL}layers.") and name.endswith(_ONE_A_LAYER) for name in file.arrays),
        num_heads=int(shape["num_heads"]),
        layer_norm_eps=float(shape["layer_norm_eps"]),
        max_tokens=recipe.data.max_caption_tokens,
        probes=recipe.image_encoder.probes,
        pooled_layers=recipe.text_encoder.pooled_layers,
    )
    weights = _read_weights(TensorFile(file.path, arrays, file.about), info)
    return TextTower(weights, run.tokenizer_path.read_text(encoding="utf-8"), info)


def tower_shapes(info: TowerInfo, hidden: int, inner: int, dim: int) -> dict[str, tuple[int | None, ...]]:
    """Every tensor of a tower by its name in the model, without `text_encoder.`, with its shape."""
    shapes: dict[str, tuple[int | None, ...]] = {f"embeddings.{name}.weight": (None, hidden) for name in _EMBEDDINGS}
    linear = {"text_projection": (dim, hidden * (1 + len(info.pooled_layers)))}
    norms = ["embeddings.LayerNorm"]
    for layer in range(info.layers):
        linear |= {f"layers.{layer}.{name}": (hidden, hidden) for name in _ATTENTION}
        linear |= {
            f"layers.{layer}.intermediate.dense": (inner, hidden),
            f"layers.{layer}.output.dense": (hidden, inner),
        }
        norms += [f"layers.{layer}.{name}" for name in _NORMS]
    for name, (rows, columns) in linear.items():
        shapes |= {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}
    for name in norms:
        shapes |= {f"{name}.weight": (hidden,), f"{name}.bias": (hidden,)}
    return shapes


def _read_info(file: TensorFile) -> TowerInfo:
    kinds: dict[str, type] = {
        "model_sha256": str, "pooling": str, "layer_norm_eps": float, "pooled_layers": tuple,
    }  # fmt: skip
    values = {field.name: file.about.get(field.name) for field in fields(TowerInfo)}
    given = values["pooled_layers"]
    pooled = tuple(given) if isinstance(given, list) else None
    values["pooled_layers"] = pooled
    sound = all(type(value) is kinds.get(name, int) for name, value in values.items())
    most = {"layers": 99, "num_heads": 999, "probes": 99}
    if (
        not sound
        or any(values[name] not in range(1, limit + 1) for name, limit in most.items())
        or any(type(layer) is not int or layer not in range(1, file.about["layers"]) for layer in pooled or ())
    ):
        raise DataError(f"{file.path} does not record its model", hint=_AGAIN)
    return TowerInfo(**values)  # type: ignore[arg-type]  # checked just above


def _read_weights(file: TensorFile, info: TowerInfo) -> dict[str, Array]:
    hidden = file.array("embeddings.word_embeddings.weight", "<f4", (None, None)).shape[1]
    inner = file.array("layers.0.intermediate.dense.weight", "<f4", (None, hidden)).shape[0]
    dim = file.array("text_projection.weight", "<f4", (None, None)).shape[0]
    shapes = tower_shapes(info, hidden, inner, dim)
    weights: dict[str, Array] = {name: file.array(name, "<f4", shape) for name, shape in shapes.items()}
    types, positions = (len(weights[f"embeddings.{name}.weight"]) for name in reversed(_EMBEDDINGS[1:]))
    if dim % info.probes or not types or not 2 <= info.max_tokens <= positions or hidden % info.num_heads:
        raise DataError(f"{file.path}: its shapes do not match", hint=_AGAIN)
    return weights


def _attend(query: Array, key: Array, value: Array) -> Array:
    """query, key, value: [heads, L, d]. Returns [L, heads * d]."""
    scores = query @ key.transpose(0, 2, 1) / np.float32(np.sqrt(query.shape[-1]))
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    mixed = (scores / scores.sum(axis=-1, keepdims=True)) @ value
    return np.asarray(mixed.transpose(1, 0, 2).reshape(query.shape[1], -1))


def _gelu(x: Array) -> Array:
    """x times the normal distribution function of x, whose error function NumPy lacks.

    Abramowitz and Stegun, Handbook of Mathematical Functions, formula 7.1.26: error at most 1.5e-7.
    """
    scaled = np.abs(x) * np.float32(2**-0.5)
    t = 1 / (1 + np.float32(0.3275911) * scaled)
    tail = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    erf = np.copysign(1 - tail * np.exp(-scaled * scaled), x)
    return np.asarray(x * np.float32(0.5) * (1 + erf), dtype=np.float32)
