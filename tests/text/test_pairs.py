"""Prompts and answers as tokens: what a model is asked with, and what it should have generated."""

from typing import Any

import pytest
import tokenizers
import torch
from tokenizers import models, pre_tokenizers

from allyouneed.data.labelled import IGNORE_INDEX, label_pairs
from allyouneed.text import BytePairTokenizer, ByteTokenizer, ChatTemplate, PublishedTokenizer, encode_pairs

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TALK: list[Any] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is the time?"},
    {"role": "assistant", "content": "It is noon. <|im_end|>"},
]


@pytest.fixture(scope="module")
def tokenizer() -> BytePairTokenizer:
    tokenizer = BytePairTokenizer.train(["system user assistant It is noon. What is the time?\n"] * 4, 290, SPECIAL)
    tokenizer.special_tokens_map = {"eos_token": "<|endoftext|>"}
    return tokenizer


def test_an_answer_ends_with_the_tokenizers_own_token(tokenizer: BytePairTokenizer):
    ((prompt, answer),) = encode_pairs(tokenizer, [("What is", " the time?")])
    assert tokenizer.decode(prompt) == "What is"
    assert tokenizer.decode(answer) == " the time?<|endoftext|>"
    assert encode_pairs(tokenizer, [("a", "b")], end=7) == [(tokenizer.encode("a"), [*tokenizer.encode("b"), 7])]


def test_an_answer_goes_on_where_its_prompt_ends():
    """Where a vocabulary has a space before a text's first word, the answer's has none, but behind special tokens."""
    names = ["<s>", "</s>", "▁", *"tobe"]
    ids = {name: place for place, name in enumerate(dict.fromkeys(names))}
    made: Any = tokenizers.Tokenizer(models.BPE(vocab=ids, merges=[]))
    made.add_special_tokens(names[:2])
    made.pre_tokenizer = pre_tokenizers.Metaspace("▁", "always", split=False)
    tokenizer = PublishedTokenizer(made)
    prompt, begin, end, answer = tokenizer.encode("to"), 0, 1, [ids["b"], ids["e"]]
    assert encode_pairs(tokenizer, [("to", "be")], end=end) == [(prompt, [*answer, end])]
    template = ChatTemplate("{% for one in messages %}{{ one.content }}<s>{% endfor %}", tokenizer)
    [(asked, answered)] = encode_pairs(
        tokenizer, [([{"role": "user", "content": "to"}], "be")], template=template, end=end
    )
    assert asked == [*prompt, begin]
    assert answered == [ids["▁"], *answer, end]


def test_a_conversation_is_what_the_template_makes_of_it(tokenizer: BytePairTokenizer):
    """The whole conversation, its last message a target with the token that ends it, names in it only text."""
    template = ChatTemplate(CHATML, tokenizer)
    ((prompt, answer),) = encode_pairs(tokenizer, [(TALK[:2], TALK[2]["content"])], template=template)
    assert prompt == template.encode(TALK[:2])
    whole = template.encode(TALK, answering=False)
    assert prompt + answer == whole[: len(prompt + answer)]
    assert tokenizer.decode(whole[len(prompt + answer) :]) == "\n"
    assert answer[-1] == tokenizer.special_tokens["<|im_end|>"] and answer.count(answer[-1]) == 1


def test_labels_are_those_of_the_answers(tokenizer: BytePairTokenizer):
    pairs = encode_pairs(tokenizer, [("What is", " the time?"), ("It", " is noon.")])
    batch = label_pairs(pairs, pad=0)
    learned = [tokenizer.decode(labels[labels != IGNORE_INDEX].tolist()) for labels in batch.labels]
    assert learned == [" the time?<|endoftext|>", " is noon.<|endoftext|>"]
    assert torch.equal(batch.present.sum(1), torch.tensor([len(prompt + answer) for prompt, answer in pairs]))


@pytest.mark.parametrize(
    ("prompt", "message"), [("What is", "give its id as `end`"), (TALK[:2], "no template to encode it with")]
)
def test_refuses(prompt: Any, message: str):
    with pytest.raises(ValueError, match=message):
        encode_pairs(ByteTokenizer(), [(prompt, "x")])
