"""Structured output in the engine: the texts of `generate`, with and without draft tokens, whoever else is served."""

import json
from collections import Counter
from functools import cache

import jsonschema
import pytest
import torch
from scipy.stats import chisquare

from allyouneed.papers.llama1 import Llama, LlamaConfig
from allyouneed.papers.serving import Draft, Engine, Gathered, Limits, ModelDraft, NGramDraft, Request
from allyouneed.text import ByteTokenizer, ConstraintError, Grammar, Sampling, generate

TOKENIZER = ByteTokenizer()
END = 256
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 6}, "sizes": {"type": "array", "items": {"enum": [1, 22]}}},
    "required": ["name", "sizes"],
    "additionalProperties": False,
}
LIMITS = Limits(max_num_sequences=4, max_batched_tokens=32, max_draft_tokens=3)
PROMPTS = [list(b"Ann is 3"), list(b"a"), list(b'{"name": "Ann", "sizes": [1, 22, 1, 22, 1, 22]}')]


@cache
def model(deviation: float = 0.3) -> Llama:
    torch.manual_seed(0)
    return Llama(LlamaConfig(300, 16, 1, 2, 32, context=400, initial_deviation=deviation)).eval()


def engine(draft: Draft | None) -> Engine:
    limits = LIMITS if draft is not None else Limits(max_num_sequences=4, max_batched_tokens=32)
    return Engine(model(), limits=limits, draft=draft, block_size=4, cache_tokens=800)


@pytest.mark.parametrize("kind", ["none", "ngram", "draft", "itself"])
@pytest.mark.parametrize("sampling", [Sampling.greedy(), Sampling(1.2, top_p=0.95, repetition_penalty=1.1)])
def test_constrained_texts_are_those_of_generate(kind: str, sampling: Sampling) -> None:
    draft = {"none": None, "ngram": NGramDraft(), "draft": ModelDraft(model(0.1)), "itself": ModelDraft(model())}[kind]
    constraint = Grammar.json_schema(SCHEMA).constraint(TOKENIZER)
    own = engine(draft)
    gathered = [Gathered() for _ in range(4)]
    for prompt, listener, wanted in zip([*PROMPTS, PROMPTS[1]], gathered, [constraint] * 3 + [None], strict=True):
        own.submit(Request(prompt, 60, listener, sampling, {END}, seed=2, choices=1, constraint=wanted))
    while own.step():
        own.pool.check(sequence.table for sequence in own.scheduler)
    assert own.statistics.allocated_blocks == 0
    for prompt, listener in zip(PROMPTS, gathered, strict=False):
        tokens = listener.tokens[0]
        if sampling.temperature == 0 or draft is None:
            constraints = [constraint]
            assert (
                tokens
                == generate(
                    model(), [prompt], new_tokens=60, sampling=sampling, stop={END}, seed=2, constraints=constraints
                )[0]
            )
        if listener.reasons[0] == "stop":
            jsonschema.validate(json.loads(bytes(tokens)), SCHEMA)
        else:
            assert len(tokens) == 60 and not constraint.is_finished
    assert any(listener.reasons[0] == "stop" for listener in gathered[:3])


@pytest.mark.parametrize("kind", ["none", "ngram", "draft"])
def test_constrained_choices_have_the_models_distribution_renormalised(kind: str) -> None:
    draft = {"none": None, "ngram": NGramDraft(shortest=1), "draft": ModelDraft(model(0.1))}[kind]
    constraint = Grammar.choice(["aba", "abb", "b"]).constraint(TOKENIZER)
    counted: Counter[str] = Counter()
    own, prompt = engine(draft), list(b"ab ab b")
    for seed in range(50):
        gathered = Gathered()
        own.submit(Request(prompt, 5, gathered, Sampling(), {END}, seed=seed, choices=4, constraint=constraint))
        while own.step():
            pass
        assert gathered.reasons == dict.fromkeys(range(4), "stop")
        counted.update(bytes(tokens).decode() for tokens in gathered.tokens.values())
    with torch.no_grad():
        first = model()(torch.tensor([prompt]))[0, -1, [97, 98]].double().softmax(0)
        third = model()(torch.tensor([[*prompt, 97, 98]]))[0, -1, [97, 98]].double().softmax(0)
    expected = [float(first[0] * third[0]) * 200, float(first[0] * third[1]) * 200, float(first[1]) * 200]
    assert chisquare([counted["aba"], counted["abb"], counted["b"]], expected).pvalue > 0.001


def test_choices_of_a_request_each_have_their_own_place_in_the_grammar() -> None:
    gathered = Gathered()
    own = engine(None)
    constraint = Grammar.regex("(ab|cd){3}").constraint(TOKENIZER)
    own.submit(Request([1, 2], 20, gathered, Sampling(), (), seed=1, choices=4, constraint=constraint))
    while own.step():
        pass
    texts = [bytes(gathered.tokens[choice]).decode() for choice in range(4)]
    assert all(len(text) == 6 and {text[place : place + 2] for place in (0, 2, 4)} <= {"ab", "cd"} for text in texts)
    assert len(set(texts)) > 1 and gathered.reasons == dict.fromkeys(range(4), "stop")


def test_a_text_that_nothing_may_follow_fails_its_request_alone() -> None:
    own, failed, fine = engine(None), Gathered(), Gathered()
    constraint = Grammar.regex("é").constraint(TOKENIZER)
    constraint.advance("é".encode()[0])
    constraint.advance("é".encode()[1])
    own.submit(Request([1], 5, failed, constraint=constraint))
    own.submit(Request([1], 5, fine))
    while own.step():
        pass
    assert isinstance(failed.error, ConstraintError) and len(fine.tokens[0]) == 5
    assert own.statistics.allocated_blocks == 0
