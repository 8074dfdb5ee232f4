"""A chat template that was made to do harm ends soon, in an error of ours."""

import json
import time
from pathlib import Path

import pytest

from allyouneed.text import ByteTokenizer, ChatTemplate, load_tokenizer
from allyouneed.text.bounded_templates import MAX_SOURCE

HELLO = [{"role": "user", "content": "hello"}]
HOSTILE = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "long range": "{% for a in range(10**9) %}a{% endfor %}",
    "macros": "{% macro f(n) %}{{ f(n - 1) }}{{ f(n - 1) }}{% endmacro %}{{ f(40) }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "doubling by +": "{% set n = namespace(s='ab') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "doubling by ~": "{% set n = namespace(s='ab') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "doubling by a list": "{% set n = namespace(s=[1]) %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "times": "{{ 'a' * 10**10 }}",
    "list times": "{{ [1] * 10**10 }}",
    "powers": "{{ 10 ** (10 ** 10) }}",
    "width": "{{ '%10000000000d' % 1 }}",
    "format": "{{ '{:>10000000000}'.format(1) }}",
    "format by an argument": "{{ '{:>{w}}'.format(1, w=10**10) }}",
    "center": "{{ 'a' | center(10**10) }}",
    "ljust": "{{ 'a'.ljust(10**10) }}",
    "indent": "{{ 'a\nb' | indent(10**10) }}",
    "replace": "{% set s = 'a' * 10**6 %}{{ s | replace('a', s) }}",
    "output": "{% for a in range(1000) %}{{ 'a' * 10**6 }}{% endfor %}",
    "outside": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "unknown": "{{ nothing.at.all }}",
    "no such filter": "{{ 'a' | nofilter }}",
    "deep": "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "long": "a" * (MAX_SOURCE + 1),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_it_is_refused_soon(name: str) -> None:
    began = time.process_time()
    with pytest.raises(ValueError, match="the chat template") as refused:
        ChatTemplate(HOSTILE[name], ByteTokenizer()).encode(HELLO)
    assert len(str(refused.value)) < 300
    assert time.process_time() - began < 20


def test_long_conversations_are_no_harm() -> None:
    template = ChatTemplate(
        "{% for m in messages %}{{ m.role + ': ' ~ m.content ~ '\n' }}{% endfor %}", ByteTokenizer()
    )
    conversation = [{"role": "user", "content": "word " * 20}] * 3000
    for _ in range(3):
        assert len(template.encode(conversation)) == 3000 * 107


@pytest.mark.parametrize("kind", ["BPE", "WordPiece"])
def test_an_expression_that_backtracks_for_ever_is_an_ordinary_error(kind: str, tmp_path: Path) -> None:
    model = {"type": kind, "vocab": {"a": 0, "b": 1}, "unk_token": "a", "max_input_chars_per_word": 100}
    model |= {"merges": [], "continuing_subword_prefix": "##"}
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    content = {"version": "1.0", "added_tokens": [], "pre_tokenizer": split, "model": model}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = load_tokenizer(tmp_path)
    began = time.process_time()
    with pytest.raises(ValueError, match="the tokenizer cannot read this: its library gave up"):
        tokenizer.encode("a" * 40 + "b")
    assert tokenizer.encode("ab")
    assert time.process_time() - began < 20
