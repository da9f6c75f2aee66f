"""Captions to token ids: the tokenizer of the text weights, or a small WordPiece built from the captions (ours)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.decoders import WordPiece as WordPieceDecoder
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from cmpagl_core.errors import MismatchError
from cmpagl_core.models.weights import parse_source, text_files
from cmpagl_core.recipe import TextEncoderPart

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_MAX_WORDS = 8000
_MAX_WORD_CHARACTERS = 40


@dataclass(frozen=True)
class TokenBatch:
    """Captions as input of the text encoder, padded to the longest of the batch."""

    input_ids: Tensor  # [B, L] int64
    attention_mask: Tensor  # [B, L] bool, true at tokens


@dataclass(frozen=True)
class CaptionTokenizer:
    """A BERT-style tokenizer that truncates captions to `max_tokens`, including [CLS] and [SEP]."""

    backend: Tokenizer
    max_tokens: int

    def __post_init__(self) -> None:
        missing = [token for token in SPECIAL_TOKENS if self.backend.token_to_id(token) is None]
        if missing:
            raise MismatchError(
                f"this tokenizer has no {', '.join(missing)}", hint="only BERT's tokenizers are supported"
            )
        self.backend.no_padding()
        self.backend.enable_truncation(max_length=self.max_tokens)

    def __call__(self, texts: Sequence[str]) -> TokenBatch:
        """Token ids of each text, padded on the right. Any text is accepted, even an empty one."""
        encoded = self.backend.encode_batch_fast([_printable(text) for text in texts])
        lengths = np.array([len(one.ids) for one in encoded], dtype=np.int64)
        input_ids = np.full((len(encoded), int(lengths.max(initial=1))), self.pad_id, dtype=np.int64)
        for row, one in enumerate(encoded):
            input_ids[row, : len(one.ids)] = one.ids
        attention_mask = np.arange(input_ids.shape[1]) < lengths[:, None]
        return TokenBatch(torch.from_numpy(input_ids), torch.from_numpy(attention_mask))

    @property
    def vocab_size(self) -> int:
        return int(self.backend.get_vocab_size())

    @property
    def pad_id(self) -> int:
        return self._id("[PAD]")

    @property
    def cls_id(self) -> int:
        return self._id("[CLS]")

    @property
    def sep_id(self) -> int:
        return self._id("[SEP]")

    @property
    def mask_id(self) -> int:
        return self._id("[MASK]")

    def _id(self, token: str) -> int:
        token_id = self.backend.token_to_id(token)
        assert token_id is not None  # checked when this was made
        return token_id

    def token(self, token_id: int) -> str:
        """The text of one token id ("[UNK]" for one that is not in the vocabulary)."""
        return self.backend.id_to_token(token_id) or "[UNK]"

    def word_positions(self, text: str) -> list[tuple[str, list[int]]]:
        """The words of a text with the positions of their tokens, without punctuation and truncated words."""
        printable = _printable(text)
        encoded = self.backend.encode(printable)
        positions: dict[int, list[int]] = {}
        spans: dict[int, tuple[int, int]] = {}
        for position, (word, (start, end)) in enumerate(zip(encoded.word_ids, encoded.offsets, strict=True)):
            if word is not None:
                positions.setdefault(word, []).append(position)
                spans[word] = (spans.get(word, (start, end))[0], end)
        found = [(printable[slice(*spans[word])], places) for word, places in positions.items()]
        return [(word, places) for word, places in found if any(letter.isalnum() for letter in word)]

    def to_json(self) -> str:
        """The tokenizer as the text of a `tokenizer.json`."""
        return str(self.backend.to_str(pretty=False))

    @classmethod
    def from_json(cls, text: str, max_tokens: int) -> CaptionTokenizer:
        """Read what `to_json` wrote, or a published `tokenizer.json`. Raises MismatchError."""
        try:
            backend = Tokenizer.from_str(text)
        except Exception as error:
            raise MismatchError(f"this is not a tokenizer.json ({str(error)[:100]})") from error
        return cls(backend, max_tokens)


def load_tokenizer(cfg: TextEncoderPart, max_tokens: int, captions: Sequence[str]) -> CaptionTokenizer:
    """The tokenizer of the recipe's text weights, or for random weights one built from `captions`.

    Raises MismatchError if the weights come with another kind of tokenizer.
    """
    source = parse_source(cfg.weights)
    if source.kind == "random":
        return CaptionTokenizer(_wordpiece(captions), max_tokens)
    return CaptionTokenizer.from_json(text_files(source).tokenizer.read_text(encoding="utf-8"), max_tokens)


def _wordpiece(captions: Sequence[str]) -> Tokenizer:
    """Words by frequency, then single characters, so that any word of these letters can be encoded."""
    normalizer, splitter = BertNormalizer(), BertPreTokenizer()
    counts: Counter[str] = Counter()
    for caption in captions:
        text = normalizer.normalize_str(_printable(caption))
        counts.update(word for word, _ in splitter.pre_tokenize_str(text))
    words = [word for word, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
    kept = [word for word in words if len(word) <= _MAX_WORD_CHARACTERS][:_MAX_WORDS]
    letters = sorted({letter for word in kept for letter in word} | set("abcdefghijklmnopqrstuvwxyz0123456789"))
    pieces = dict.fromkeys([*SPECIAL_TOKENS, *letters, *(f"##{letter}" for letter in letters), *kept])
    backend = Tokenizer(WordPiece({piece: index for index, piece in enumerate(pieces)}, unk_token="[UNK]"))  # noqa: S106  # a word, no secret
    backend.add_special_tokens(list(SPECIAL_TOKENS))
    backend.normalizer = normalizer
    backend.pre_tokenizer = splitter
    backend.decoder = WordPieceDecoder()
    backend.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[(token, SPECIAL_TOKENS.index(token)) for token in ("[CLS]", "[SEP]")],
    )
    return backend


def _printable(text: str) -> str:
    """Replace lone surrogates, which tokenizers do not accept, by question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")
