"""What the server says in text, with vocabularies that spell by bytes and put spaces before words: nothing is lost."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from allyouneed.papers.llama1 import Llama, LlamaConfig
from allyouneed.text import LocalChat, Sampling, Tokenizer, generate, generate_text

from ..test_text_streams import gemma, llama
from .test_serving_server import HELLO, NAME, Running, running

GREEDY = Sampling.greedy()
TEMPLATE = "{% for message in messages %}<s>{{ message.role }} {{ message.content }}</s>{% endfor %}"
TEXTS = ["to be", "or not", "日本 to"]


@pytest.fixture(scope="module", params=[llama, gemma])
def made(request: pytest.FixtureRequest) -> tuple[Any, Tokenizer, str]:
    tokenizer = request.param()
    torch.manual_seed(3)
    model = Llama(LlamaConfig(vocabulary=tokenizer.vocabulary, width=32, layers=1, heads=2, hidden=48, context=512))
    return model.eval(), tokenizer, TEMPLATE


@pytest.fixture(scope="module")
def server(made: tuple[Any, Tokenizer, str]) -> Iterator[Running]:
    with running(made) as server:
        yield server


def test_completions_go_on_where_prompts_end(server: Running, made: tuple[Any, Tokenizer, str]) -> None:
    model, tokenizer, _ = made
    ask = server.client.completions.create
    for text in TEXTS:
        prompt = tokenizer.encode_prompt(text)
        assert prompt[0] == tokenizer.special_tokens["<s>"]
        [tokens] = generate(model, [prompt], new_tokens=40, sampling=GREEDY, stop=[2])
        whole = tokenizer.decode([*prompt, *tokens])
        expected = whole.removeprefix(tokenizer.decode(prompt))
        assert generate_text(model, tokenizer, [text], new_tokens=40, sampling=GREEDY, stop=[2]) == [expected]
        for given in (text, tokenizer.decode(prompt[:1]) + text, prompt):
            answer = ask(model=NAME, prompt=given, max_tokens=40, temperature=0, extra_body={"stop_token_ids": [2]})
            assert answer.choices[0].text == expected
            assert answer.usage is not None and answer.usage.prompt_tokens == len(prompt)
            streamed = ask(
                model=NAME,
                prompt=given,
                max_tokens=40,
                temperature=0,
                stream=True,
                extra_body={"stop_token_ids": [2]},
            )
            assert "".join(chunk.choices[0].text for chunk in streamed) == expected


def test_chats_are_what_plain_generation_answers(server: Running, made: tuple[Any, Tokenizer, str]) -> None:
    plain = "".join(LocalChat(*made).reply(HELLO, new_tokens=40, sampling=GREEDY))
    assert server.chat(max_tokens=40).choices[0].message.content == plain
    pieces = server.chat(max_tokens=40, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in pieces if chunk.choices) == plain
