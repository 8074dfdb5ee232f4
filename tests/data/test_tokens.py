"""The corpus as tokens: every character of it, in the vocabulary that was asked for."""

import pytest
import torch

from allyouneed.data import austen, state_of_the_union
from allyouneed.data import tokens as module
from allyouneed.data.tokens import corpus_tokens, corpus_windows


def test_bytes_are_those_of_the_novels_and_the_addresses():
    novels, addresses = corpus_tokens(256, "test")
    assert bytes(novels.tolist()).decode() == austen("test")
    assert bytes(addresses.tolist()).decode() == state_of_the_union("test")


def test_byte_pairs_are_learned_from_the_training_split_alone(monkeypatch: pytest.MonkeyPatch):
    def text(split: str) -> str:
        return {"train": "aba aba aba", "test": "aba zzz zzz zzz"}[split]

    monkeypatch.setattr(module, "austen", text)
    monkeypatch.setattr(module, "state_of_the_union", text)
    # Without what other tests left.
    monkeypatch.setattr(module, "_byte_pairs", module._byte_pairs.__wrapped__)
    first, second = corpus_tokens.__wrapped__(258, "test")
    torch.testing.assert_close(first, second)
    # Both merges are of "aba", which becomes one token; each letter after it is one of its own.
    assert len(first) == len("aba zzz zzz zzz") - 2


def test_windows_are_of_both_texts_alike():
    windows = corpus_windows(256, "test", 16, 4, 128)
    # Four windows of each text, with the target after the last token.
    assert [tuple(batch.shape) for batch in windows] == [(4, 17), (4, 17)]
    for batch, text in zip(windows, corpus_tokens(256, "test"), strict=True):
        assert torch.equal(batch, text[:65].long().unfold(0, 17, 16))


def test_too_small_a_vocabulary_is_refused():
    with pytest.raises(ValueError, match="a vocabulary of 100 has no room for 256 bytes"):
        corpus_tokens(100, "train")
