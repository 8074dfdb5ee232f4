"""Overlaps of tests with training text, and training text cleaned of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from allyouneed.papers.gpt3 import Filter, dirty, gram_length
from allyouneed.papers.gpt3.contamination import words

ALPHABET = [f"word{number}" for number in range(400)]
LETTERS = st.sampled_from("abc")


def text(first: int, last: int) -> str:
    return " ".join(ALPHABET[first:last])


def test_words_are_lower_case_without_punctuation():
    assert words("“Don't”, said  the\tQueen -- 3.5 (times)!") == ["“dont”", "said", "the", "queen", "35", "times"]
    assert words(" .,- \n") == []


class TestDirty:
    def test_an_example_is_dirty_by_a_single_gram_of_any_document(self):
        examples = [text(0, 20), text(30, 50), text(60, 68)]
        documents = [text(100, 140) + " " + text(5, 13), text(31, 38) + ". " + text(60, 68).upper() + "!"]
        # Seven words in common are too few; case and punctuation do not count.
        assert dirty(examples, documents, 8) == [True, False, True]
        assert dirty(examples, documents, 7) == [True, True, True]
        assert dirty(examples, [], 8) == [False] * 3

    def test_grams_do_not_reach_from_one_document_into_the_next(self):
        assert dirty([text(0, 8)], [text(0, 4), text(4, 8)], 8) == [False]
        assert dirty([text(0, 8)], [text(0, 4) + "\n" + text(4, 8)], 8) == [True]

    def test_a_shorter_example_is_clean(self):
        assert dirty([text(0, 7)], [text(0, 7)], 8) == [False]

    @given(
        st.lists(st.lists(st.sampled_from("abc"), max_size=9), max_size=4),
        st.lists(st.sampled_from("abc"), max_size=12),
    )
    def test_equals_a_search_for_the_words(self, examples: list[list[str]], document: list[str]):
        spelled = f" {' '.join(document)} "
        expected = [
            any(f" {' '.join(one[start : start + 3])} " in spelled for start in range(len(one) - 2)) for one in examples
        ]
        assert dirty([" ".join(one) for one in examples], [" ".join(document)], 3) == expected

    def test_documents_may_be_a_stream(self):
        assert dirty([text(0, 9)], (text(number, number + 8) for number in range(3)), 8) == [True]

    def test_a_length_of_nothing_is_refused(self):
        with pytest.raises(ValueError, match="grams of 0 words are out of range"):
            dirty(["a"], ["a"], 0)


class TestGramLength:
    def test_is_the_5th_percentile_between_its_bounds(self):
        assert gram_length([text(0, 10)] * 10) == 10
        assert gram_length([text(0, count) for count in range(101)]) == 8
        assert gram_length([text(0, 100)] * 19 + [text(0, 12)] * 2) == 12
        assert gram_length([text(0, 100)]) == 13
        assert gram_length(["a = b c"] * 5, least=1) == 3

    def test_nothing_has_no_length(self):
        with pytest.raises(ValueError, match="no examples"):
            gram_length([])


class TestFilter:
    def test_a_gram_is_taken_out_with_a_window(self):
        document = "x" * 300 + " " + text(0, 13) + " " + "y" * 500
        tests = ["before " + text(0, 13).upper() + " after"]
        grams = Filter().colliding([document], tests)
        assert grams == {tuple(words(text(0, 13)))}
        pieces = Filter().cleaned(document, grams)
        assert pieces == ["y" * 301]  # What stands before it, 101 characters, is too short to be kept.
        longer = "x" * 500 + " " + text(0, 13) + " " + "y" * 500
        assert Filter().cleaned(longer, grams) == ["x" * 301, "y" * 301]
        assert Filter().cleaned("untouched and short", grams) == ["untouched and short"]

    def test_neighbouring_grams_are_one_cut(self):
        document = "x" * 500 + " " + text(0, 20) + " " + "y" * 500
        grams = Filter().colliding([document], [text(0, 20)])
        assert len(grams) == 8
        assert Filter().cleaned(document, grams) == ["x" * 301, "y" * 301]

    def test_a_document_that_falls_to_pieces_goes_whole(self):
        part = "z" * 700 + " " + text(0, 13) + " "
        grams = Filter().colliding([part], [text(0, 13)])
        assert len(Filter().cleaned(part * 9, grams)) == 9
        assert Filter().cleaned(part * 10, grams) == []

    def test_what_many_documents_say_is_common_property(self):
        tests = [text(0, 13), text(20, 33)]
        documents = [text(0, 13)] * 11 + [text(20, 33)] * 10
        assert Filter().colliding(documents, tests) == {tuple(words(text(20, 33)))}

    def test_twelve_words_in_common_are_too_few(self):
        assert Filter().colliding([text(0, 12)], [text(0, 13)]) == set()
