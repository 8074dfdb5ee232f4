"""Rows of prompts and answers: what is padding, what is learned, and what gives way where a row is too long."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from allyouneed.data.labelled import IGNORE_INDEX, LabelledBatch, ShuffledPairs, label_pairs

PAIRS = [([1, 2], [3, 4, 5]), ([6], [7])]


def rows(batch: LabelledBatch) -> list[tuple[list[int], list[int]]]:
    """Give each row's tokens without its padding, and its labels."""
    return [
        (tokens[present].tolist(), labels[present].tolist()) for tokens, labels, present in zip(*batch, strict=True)
    ]


def test_answers_have_labels_and_prompts_and_padding_have_none():
    batch = label_pairs(PAIRS, pad=9)
    assert batch.tokens.tolist() == [[1, 2, 3, 4, 5], [6, 7, 9, 9, 9]]
    assert batch.labels.tolist() == [[-100, -100, 3, 4, 5], [-100, 7, -100, -100, -100]]
    assert batch.present.tolist() == [[True] * 5, [True, True, False, False, False]]
    left = label_pairs(PAIRS, pad=9, side="left")
    assert left.tokens.tolist()[1] == [9, 9, 9, 6, 7] and left.labels.tolist()[1] == [-100] * 4 + [7]
    assert left.present.tolist()[1] == [False] * 3 + [True] * 2
    assert rows(left) == rows(batch)


@pytest.mark.parametrize(
    ("length", "truncation", "prompt", "answer"),
    [
        (9, None, [1, 2, 3, 4], [5, 6, 7, 8]),
        (8, None, [1, 2, 3, 4], [5, 6, 7, 8]),
        (7, "prompt", [2, 3, 4], [5, 6, 7, 8]),
        (5, "prompt", [4], [5, 6, 7, 8]),
        (3, "prompt", [4], [5, 6]),
        (2, "prompt", [4], [5]),
        (7, "answer", [1, 2, 3, 4], [5, 6, 7]),
        (5, "answer", [1, 2, 3, 4], [5]),
        (3, "answer", [3, 4], [5]),
        (2, "answer", [4], [5]),
    ],
)
def test_what_gives_way(length: int, truncation: Any, prompt: list[int], answer: list[int]):
    batch = label_pairs([([1, 2, 3, 4], [5, 6, 7, 8])], pad=0, length=length, truncation=truncation)
    assert rows(batch) == [(prompt + answer, [IGNORE_INDEX] * len(prompt) + answer)]


@pytest.mark.parametrize("truncation", ["prompt", "answer"])
def test_without_a_prompt_the_first_token_has_nothing_before_it(truncation: Any):
    assert rows(label_pairs([([], [5, 6, 7])], pad=0)) == [([5, 6, 7], [-100, 6, 7])]
    assert rows(label_pairs([([], [5, 6, 7])], pad=0, length=2, truncation=truncation)) == [([5, 6], [-100, 6])]


@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 9), max_size=6), st.lists(st.integers(0, 9), min_size=2, max_size=6)),
        min_size=1,
        max_size=5,
    ),
    st.integers(2, 12),
    st.sampled_from(["prompt", "answer"]),
    st.sampled_from(["left", "right"]),
)
def test_every_row_fits_and_has_something_to_learn(pairs: Any, length: int, truncation: Any, side: Any):
    batch = label_pairs(pairs, pad=0, length=length, truncation=truncation, side=side)
    assert batch.tokens.shape[1] == min(length, max(len(prompt) + len(answer) for prompt, answer in pairs))
    for (tokens, labels), (prompt, answer) in zip(rows(batch), pairs, strict=True):
        assert len(tokens) == min(length, len(prompt) + len(answer))
        learned = [label for label in labels if label != IGNORE_INDEX]
        # A stretch of prompt and answer, whole where it fits, of which the labels are the answer's.
        assert str(tokens)[1:-1] in str(prompt + answer) and learned
        assert labels[0] == IGNORE_INDEX and learned == tokens[len(tokens) - len(learned) :]
    assert not (batch.labels[~batch.present] != IGNORE_INDEX).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pairs": []}, "no pairs"),
        ({"pairs": [([1], [2]), ([1], [])]}, "the answer of pair 1 has no tokens"),
        ({"pairs": [([], [2])]}, "pair 0 is a single token"),
        ({"pairs": [([1, -100], [2])]}, "pair 0 has the token -100"),
        ({"length": 4}, r"pair 0 has 2 \+ 3 tokens, more than the length of 4"),
        ({"length": 1, "truncation": "prompt"}, "length is 1"),
        ({"pad": -1}, "pad is -1"),
    ],
)
def test_refuses(options: dict[str, Any], message: str):
    given: dict[str, Any] = {"pairs": PAIRS, "pad": 0} | options
    with pytest.raises(ValueError, match=message):
        label_pairs(given.pop("pairs"), **given)


class TestShuffled:
    def pairs(self) -> list[tuple[list[int], list[int]]]:
        return [([number], [number] * (1 + number % 4)) for number in range(11)]

    def test_each_epoch_has_each_pair_once_in_an_order_of_its_own(self):
        batches = ShuffledPairs(self.pairs(), 3, seed=4, pad=0)
        assert batches.batches_per_epoch == 3
        epochs = [[row[0][0] for step in range(3) for row in rows(batches(3 * epoch + step))] for epoch in range(3)]
        assert all(len(set(epoch)) == 9 for epoch in epochs) and len({tuple(epoch) for epoch in epochs}) == 3

    @pytest.mark.parametrize("side", ["left", "right"])
    def test_a_batch_is_that_of_its_pairs(self, side: Any):
        pairs = self.pairs()
        batches = ShuffledPairs(pairs, 3, seed=4, pad=0, side=side, length=3, truncation="answer")
        for step in (5, 0, 7, 5):
            batch = batches(step)
            chosen = [pairs[tokens[0]] for tokens, _ in rows(batch)]
            expected = label_pairs(chosen, pad=0, side=side, length=3, truncation="answer")
            assert all(torch.equal(one, other) for one, other in zip(batch, expected, strict=True))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"batch": 12}, "a batch of 12"),
            ({"length": 4}, "pair 3 has"),
            ({"seed": -1}, "seed -1"),
            ({"pad": -1}, "pad is -1"),
        ],
    )
    def test_refuses_before_the_training_begins(self, options: dict[str, Any], message: str):
        given: dict[str, Any] = {"batch": 2, "seed": 0, "pad": 0} | options
        with pytest.raises(ValueError, match=message):
            ShuffledPairs(self.pairs(), **given)
