"""The engine: texts are what they are alone, whoever else is served, and no block is ever lost."""

import copy
import random
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from torch import Tensor, nn

from allyouneed.nn import (
    Attention,
    Block,
    Decoder,
    DynamicScaling,
    FeedForward,
    PreNorm,
    RotaryPositions,
    YarnScaling,
    arrange_for_inference,
    compile_decoder,
    quantize_int8,
)
from allyouneed.papers.alibi import ALiBi
from allyouneed.papers.gpt2 import GPT2, GPT2Config
from allyouneed.papers.llama1 import Llama, LlamaConfig, Qwen2, Qwen3, QwenConfig
from allyouneed.papers.serving import (
    BlockPool,
    BlockTable,
    Engine,
    Gathered,
    Limits,
    NGramDraft,
    QueueFullError,
    RefusedError,
    Request,
    Scheduler,
    StaticScheduler,
    StoppedError,
    TimeLimitError,
)
from allyouneed.papers.serving.costs import bytes_per_token
from allyouneed.papers.serving.paged import PagedCache, Segment, paged_logits
from allyouneed.text import Sampling, generate

GREEDY = Sampling.greedy()
VOCABULARY = 128
PENALTIES = Sampling(presence_penalty=0.8, frequency_penalty=0.4, logit_bias={5: 4.0, 6: -3.0})


@cache
def llama(layers: int = 2) -> Llama:
    """Widths are multiples of 16, so that vectors of a row never share a processor's register with another row's."""
    torch.manual_seed(0)
    config = LlamaConfig(VOCABULARY, 32, layers, 4, 64, key_value_heads=2, context=200, initial_deviation=0.3)
    return Llama(config).eval()


def with_alibi() -> Decoder:
    torch.manual_seed(0)
    blocks = [
        Block(PreNorm(Attention(32, 4), nn.LayerNorm(32)), PreNorm(FeedForward(32), nn.LayerNorm(32))) for _ in range(2)
    ]
    return Decoder(VOCABULARY, 32, blocks, positions=ALiBi(4), norm=nn.LayerNorm(32)).eval()


def gpt2() -> GPT2:
    torch.manual_seed(0)
    return GPT2(GPT2Config(vocabulary=VOCABULARY, positions=200, width=32, layers=2, heads=4)).eval()


def windows() -> Qwen2:
    """Biases, and windows of a block and more or less in some of the layers."""
    torch.manual_seed(0)
    numbers = (VOCABULARY, 32, 3, 4, 64)
    config = QwenConfig(*numbers, 2, context=200, initial_deviation=0.3, window=6, windowed=(True, False, True))
    return Qwen2(config).eval()


def norms() -> Qwen3:
    torch.manual_seed(0)
    numbers = (VOCABULARY, 32, 2, 4, 64)
    scaling = YarnScaling(4.0, 50)
    return Qwen3(QwenConfig(*numbers, 2, context=200, initial_deviation=0.3, head_width=16, scaling=scaling)).eval()


def compiled(model: Any) -> Any:
    own = copy.deepcopy(model)
    outcome = compile_decoder(own)
    if outcome.reason is not None and ("compiler" in outcome.reason or "AVX-512" in outcome.reason):
        pytest.skip(outcome.reason)
    assert outcome.reason is None, outcome
    return own


MODELS = {
    "llama": llama,
    "alibi": with_alibi,
    "gpt2": gpt2,
    "windows": windows,
    "norms": norms,
    "compiled llama": lambda: compiled(llama()),
    "compiled norms": lambda: compiled(norms()),
    "compiled gpt2": lambda: compiled(gpt2()),
}


def prompts(count: int, longest: int = 60, seed: int = 0) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(VOCABULARY) for _ in range(draw.randint(1, longest))] for _ in range(count)]


@cache
def alone(
    prompt: tuple[int, ...], new_tokens: int, sampling: Sampling = GREEDY, seed: int = 0, choice: int = 0
) -> list[int]:
    """Give what plain generation writes; a choice's text is that of a row with its number."""
    rows = generate(llama(), [prompt] * (choice + 1), new_tokens=new_tokens, sampling=sampling, seed=seed)
    return rows[choice]


def check(engine: Engine) -> None:
    engine.pool.check(text.table for text in engine.scheduler)


def finish(engine: Engine) -> None:
    for _ in range(10_000):
        check(engine)
        if not engine.step():
            break
    check(engine)
    assert engine.statistics.allocated_blocks == engine.statistics.running == engine.statistics.waiting == 0


class TestPass:
    """One pass over pieces of many sequences."""

    @pytest.mark.parametrize("kind", MODELS)
    def test_gives_the_models_own_logits(self, kind: str) -> None:
        model = MODELS[kind]().double()
        pool = BlockPool(30, 4)
        cache = PagedCache(model, pool)
        rows = prompts(3, 20)
        tables = [BlockTable(pool) for _ in rows]
        for table, row in zip(tables, rows, strict=True):
            table.allocate(len(row))
        given = paged_logits(
            model, cache, [Segment(row, table, len(row)) for row, table in zip(rows, tables, strict=True)]
        )
        for row, logits in zip(rows, given, strict=True):
            torch.testing.assert_close(logits, model(torch.tensor([row]))[0], rtol=1e-9, atol=1e-9)
        if kind == "llama":
            llama.cache_clear()

    @pytest.mark.parametrize("kind", MODELS)
    def test_gives_the_same_bits_whoever_else_is_in_it(self, kind: str) -> None:
        """And however a prompt is cut, wherever its blocks lie, computed at once or token by token."""
        model = arrange_for_inference(MODELS[kind]())
        row = prompts(1, 1, seed=4)[0] + list(range(52))

        def logits(cuts: Sequence[int], others: int, scattered: bool) -> Tensor:
            pool = BlockPool(600, 8, sharing=False)
            cache = PagedCache(model, pool)
            table, draw = BlockTable(pool), random.Random(others)
            elsewhere = [BlockTable(pool) for _ in range(others)]
            parts = []
            for start, end in zip([0, *cuts], [*cuts, len(row)], strict=True):
                segments = [
                    Segment([draw.randrange(VOCABULARY) for _ in range(draw.randint(1, 3))], other, 1)
                    for other in elsewhere
                ]
                segments.insert(others // 2, Segment(row[start:end], table, end - start))
                for segment in segments:
                    if scattered:
                        # Whoever grows finds the next block taken.
                        BlockTable(pool).allocate(1)
                    segment.table.allocate(len(segment.tokens))
                parts.append(paged_logits(model, cache, segments)[others // 2])
                for segment in segments:
                    segment.table.advance([], len(segment.tokens))
            return torch.cat(parts)

        expected = logits([], 0, False)
        for cuts, others, scattered in [
            ([], 7, False),
            ([16, 32, 48], 0, False),
            ([1, 2, 11, 40], 3, True),
            (list(range(1, 53)), 0, False),
            (list(range(1, 53, 3)), 6, True),
        ]:
            assert torch.equal(logits(cuts, others, scattered), expected), (cuts, others)

    def test_quantised_maps_give_the_same_bits_too(self) -> None:
        torch.manual_seed(0)
        model = quantize_int8(Llama(LlamaConfig(VOCABULARY, 32, 2, 4, 64, context=100, initial_deviation=0.3)).eval())
        engine = Engine(model, limits=Limits(max_num_sequences=8, max_batched_tokens=30))
        rows = prompts(8, 20)
        together = engine.generate(rows, new_tokens=10, sampling=GREEDY)
        by_itself = Engine(model, limits=Limits(max_num_sequences=1, max_batched_tokens=7), sharing=False)
        assert together == [by_itself.generate([row], new_tokens=10, sampling=GREEDY)[0] for row in rows]
        with pytest.raises(ValueError, match="at most 31"):
            Engine(model, limits=Limits(max_num_sequences=8, max_batched_tokens=64))

    def test_compiled_quantised_layers_give_the_same_bits_too(self) -> None:
        torch.manual_seed(0)
        config = LlamaConfig(VOCABULARY, 32, 2, 4, 64, context=100, initial_deviation=0.3)
        model = compiled(quantize_int8(Llama(config).eval()))
        rows = prompts(8, 20)
        together = Engine(model, limits=Limits(max_num_sequences=8, max_batched_tokens=200))
        by_itself = Engine(model, limits=Limits(max_num_sequences=1, max_batched_tokens=2), sharing=False)
        expected = [by_itself.generate([row], new_tokens=10, sampling=GREEDY)[0] for row in rows]
        assert together.generate(rows, new_tokens=10, sampling=GREEDY) == expected
        assert expected == [generate(model, [row], new_tokens=10, sampling=GREEDY)[0] for row in rows]

    def test_nothing_is_read_from_blocks_that_were_another_texts(self) -> None:
        """Not even as zero times infinity."""
        model, pool = llama(), BlockPool(4, 8)
        cache = PagedCache(model, pool)
        cache.store.fill_(torch.inf)
        table = BlockTable(pool)
        taken, _ = table.allocate(5)
        cache.clear(taken)
        (logits,) = paged_logits(model, cache, [Segment([1, 2, 3, 4, 5], table, 1)])
        assert bool(logits.isfinite().all())

    def test_counts_bytes(self) -> None:
        model = llama()
        cache = PagedCache(model, BlockPool(3, 8))
        assert bytes_per_token(model) * 24 == cache.store.numel() * 4

    def test_refuses_what_it_cannot_compute(self) -> None:
        model, pool = llama(), BlockPool(2, 8)
        with pytest.raises(ValueError, match="needs tokens"):
            paged_logits(model, PagedCache(model, pool), [])
        with pytest.raises(ValueError, match=r"\[0\] attention layers"):
            PagedCache(Decoder(3, 3, [Block(nn.Identity(), nn.Identity())], positions=RotaryPositions(2)), pool)
        blocks = [Block(PreNorm(Attention(8, heads), nn.LayerNorm(8)), nn.Identity()) for heads in (2, 4)]
        with pytest.raises(ValueError, match="different heads"):
            PagedCache(Decoder(3, 8, blocks, positions=RotaryPositions(2)), pool)
        growing = Decoder(3, 8, blocks[:1], positions=RotaryPositions(4, scaling=DynamicScaling(2.0, 16)))
        with pytest.raises(ValueError, match=r"depends on the sequence's length .*cannot be paged"):
            PagedCache(growing, pool)


class TestTexts:
    """Together they are what they are alone."""

    @pytest.mark.parametrize("kind", MODELS)
    @pytest.mark.parametrize(
        "limits", [Limits(), Limits(max_num_sequences=3, max_batched_tokens=5)], ids=["usual limits", "narrow limits"]
    )
    def test_greedy_texts_equal_plain_generation(self, kind: str, limits: Limits) -> None:
        model, rows = MODELS[kind](), prompts(7, 40)
        texts = Engine(model, limits=limits).generate(rows, new_tokens=12, sampling=GREEDY)
        assert texts == [generate(model, [row], new_tokens=12, sampling=GREEDY)[0] for row in rows]

    @pytest.mark.parametrize(
        "sampling",
        [Sampling(), Sampling(0.7, top_k=20, top_p=0.9), Sampling(repetition_penalty=1.5), PENALTIES],
        ids=str,
    )
    def test_drawn_texts_equal_plain_generation(self, sampling: Sampling) -> None:
        rows = prompts(6)
        texts = Engine(llama()).generate(rows, new_tokens=20, sampling=sampling, seed=5)
        assert texts == [alone(tuple(row), 20, sampling, 5) for row in rows]

    def test_choices_are_the_rows_of_plain_generation_and_share_the_prompts_blocks(self) -> None:
        engine, own = Engine(llama(), block_size=8), Gathered()
        prompt = list(range(21))
        engine.submit(Request(prompt, 10, own, Sampling(), seed=2, choices=4))
        engine.step()
        # Two full blocks and one in part, held by four texts.
        assert engine.statistics.allocated_blocks == 3 and engine.statistics.running == 4
        engine.step()
        assert engine.statistics.allocated_blocks == 6
        finish(engine)
        assert own.tokens == {choice: alone(tuple(prompt), 10, Sampling(), 2, choice) for choice in range(4)}
        assert own.reasons == dict.fromkeys(range(4), "length")

    def test_texts_that_lose_their_blocks_go_on_as_if_they_had_not(self) -> None:
        rows = prompts(6, 12)
        engine = Engine(
            llama(),
            cache_tokens=80,
            block_size=8,
            limits=Limits(max_num_sequences=6, max_batched_tokens=40),
            sharing=False,
        )
        gathered = [Gathered() for _ in rows]
        for row, own in zip(rows, gathered, strict=True):
            engine.submit(Request(row, 20, own, GREEDY))
        finish(engine)
        assert engine.statistics.preemptions >= 3
        assert [own.tokens[0] for own in gathered] == [alone(tuple(row), 20) for row in rows]

    def test_what_others_have_computed_is_found_again(self) -> None:
        engine = Engine(llama(), block_size=8)
        common = (prompts(1, 60, seed=1)[0] * 40)[:36]
        first, second = [*common, 1, 2, 3], [*common, 4]
        texts = engine.generate([first], new_tokens=12, sampling=GREEDY)
        assert engine.statistics.cache_hit_tokens == 0
        texts += engine.generate([second], new_tokens=12, sampling=GREEDY)
        assert engine.statistics.cache_hit_tokens == 32
        # What was written is found too: the next turn of a conversation.
        longer = [*first, *texts[0], 9]
        texts += engine.generate([longer], new_tokens=12, sampling=GREEDY)
        assert engine.statistics.cache_hit_tokens == 32 + 48
        assert texts == [alone(tuple(row), 12) for row in (first, second, longer)]
        alike = Engine(llama(), block_size=8, sharing=False)
        assert alike.generate([first, second, longer], new_tokens=12, sampling=GREEDY) == texts
        assert alike.statistics.cache_hit_tokens == 0

    def test_a_prompt_that_ends_on_a_blocks_edge_sent_twice(self) -> None:
        """Its last block is computed again: the logits after it are in no cache."""
        engine = Engine(llama(), block_size=8)
        prompt = (prompts(1, 60, seed=3)[0] * 40)[:32]
        for hits in (0, 24, 48):
            assert engine.generate([prompt], new_tokens=9, sampling=GREEDY) == [alone(tuple(prompt), 9)]
            assert engine.statistics.cache_hit_tokens == hits
        finish(engine)

    def test_equal_blocks_after_other_beginnings_are_not_shared(self) -> None:
        """Keys and values depend on all that came before, places included."""
        engine = Engine(llama(), block_size=8)
        same = list(range(40, 64))
        rows = [[1] * 8 + same, [2] * 8 + same, [*same, 3], [*same[8:], 3]]
        texts = [engine.generate([row], new_tokens=9, sampling=GREEDY)[0] for row in rows]
        assert engine.statistics.cache_hit_tokens == 0
        assert texts == [alone(tuple(row), 9) for row in rows]

    def test_two_hundred_cancelled_requests_leave_no_trace(self) -> None:
        """Blocks are given back, and who stays has the same tokens with the same log probabilities, bit for bit."""
        rows, draw = prompts(3, 30, seed=9), random.Random(4)

        def stay(engine: Engine) -> list[Gathered]:
            gathered = [Gathered() for _ in rows]
            for row, own in zip(rows, gathered, strict=True):
                engine.submit(Request(row, 100, own, GREEDY, logprobs=3))
            return gathered

        engine = Engine(llama(), cache_tokens=640, block_size=8, limits=Limits(max_queue=300))
        busy = stay(engine)
        open_requests: list[int] = []
        for _ in range(200):
            row = [draw.randrange(VOCABULARY) for _ in range(draw.randint(1, 90))]
            sampling = draw.choice([GREEDY, Sampling()])
            new_tokens, choices = draw.randint(5, 60), draw.choice([1, 1, 3])
            open_requests.append(engine.submit(Request(row, new_tokens, Gathered(), sampling, choices=choices)))
            if len(open_requests) > 12:
                engine.cancel(open_requests.pop(draw.randrange(len(open_requests))))
            if draw.random() < 0.6:
                engine.step()
                check(engine)
        for number in open_requests:
            engine.cancel(number)
        finish(engine)
        limits = Limits(max_num_sequences=1, max_batched_tokens=7)
        quiet_engine = Engine(llama(), block_size=8, limits=limits, sharing=False)
        expected = stay(quiet_engine)
        finish(quiet_engine)
        for own, other in zip(busy, expected, strict=True):
            assert own.tokens == other.tokens and len(own.tokens[0]) == 100
            assert own.logprobs == other.logprobs

    def test_a_batch_by_request_writes_the_same_and_waits_for_its_longest(self) -> None:
        engine = Engine(llama(), limits=Limits(max_num_sequences=2, max_batched_tokens=10), scheduler=StaticScheduler)
        rows, gathered = prompts(3, 9), [Gathered() for _ in range(3)]
        for row, own, new_tokens in zip(rows, gathered, (4, 30, 5), strict=True):
            engine.submit(Request(row, new_tokens, own, GREEDY))
        while not gathered[2].tokens:
            assert engine.step()
        assert gathered[1].reasons == {0: "length"}
        finish(engine)
        for row, own, new_tokens in zip(rows, gathered, (4, 30, 5), strict=True):
            assert own.tokens[0] == alone(tuple(row), new_tokens)

    def test_stop_tokens_and_listeners_end_texts(self) -> None:
        (row,) = prompts(1, 9)
        whole = alone(tuple(row), 30)
        engine, own = Engine(llama()), Gathered()
        engine.submit(Request(row, 30, own, GREEDY, stop={whole[7]}))
        finish(engine)
        assert own.tokens[0] == whole[: whole.index(whole[7])] and own.reasons == {0: "stop"}

        class Enough(Gathered):
            def token(self, choice: int, token: int, logprobs: Any) -> object:
                super().token(choice, token, logprobs)
                return len(self.tokens[choice]) == 4

        ended = Enough()
        engine.submit(Request(row, 30, ended, GREEDY))
        finish(engine)
        assert ended.tokens[0] == whole[:4] and ended.reasons == {0: "stop"}

    def test_log_probabilities_are_the_models(self) -> None:
        (row,) = prompts(1, 9)
        engine, own = Engine(llama()), Gathered()
        engine.submit(Request(row, 5, own, Sampling(2.0, top_k=3), logprobs=4))
        finish(engine)
        logits = llama()(torch.tensor([row + own.tokens[0]])).detach()[0, len(row) - 1 : -1].log_softmax(-1)
        for token, told, expected in zip(own.tokens[0], own.logprobs[0], logits, strict=True):
            assert told.token == pytest.approx(float(expected[token]), abs=1e-4)
            values, ids = expected.topk(4)
            assert list(told.top) == ids.tolist()
            assert list(told.top.values()) == pytest.approx(values.tolist(), abs=1e-4)

    @pytest.mark.parametrize("tokens_of_a_step", [5, 64])
    def test_log_probabilities_of_a_prompt(self, tokens_of_a_step: int) -> None:
        row, others = (prompts(1, 60, seed=3)[0] * 40)[:40], prompts(4, 12)
        limits = Limits(max_num_sequences=4, max_batched_tokens=tokens_of_a_step)

        class Unlucky(Scheduler):
            """Takes the blocks away once, half way through the prompt."""

            def step(self) -> Any:
                half = [one for one in self.running if one.request.prompt_logprobs is not None and one.table.length]
                if half and not self.preemptions:
                    self._preempt(half[0], [])
                return super().step()

        engine = Engine(llama(), cache_tokens=160, block_size=8, limits=limits, scheduler=Unlucky)
        engine.generate([row], new_tokens=1)
        for sampled in (0, 3):
            own, rest = Gathered(), [Gathered() for _ in others]
            for other, kept in zip(others, rest, strict=True):
                engine.submit(Request(other, 20, kept, GREEDY))
            engine.submit(Request(row, sampled, own, GREEDY, prompt_logprobs=2))
            finish(engine)
            logits = llama()(torch.tensor([row])).detach()[0].log_softmax(-1)
            assert [told.token for told in own.prompt_logprobs] == pytest.approx(
                logits[:-1].gather(-1, torch.tensor(row[1:])[:, None]).flatten().tolist(), abs=1e-4
            )
            assert [list(told.top) for told in own.prompt_logprobs] == logits[:-1].topk(2).indices.tolist()
            assert own.tokens.get(0, []) == alone(tuple(row), 3)[:sampled] and own.reasons == {0: "length"}
            assert own.cached_tokens == 0
            assert [kept.tokens[0] for kept in rest] == [alone(tuple(other), 20) for other in others]
        assert engine.scheduler.preemptions

    def test_choices_of_no_tokens_end_at_once(self) -> None:
        engine, own = Engine(llama()), Gathered()
        engine.submit(Request([1, 2, 3], 0, own, choices=2, prompt_logprobs=0))
        finish(engine)
        assert own.reasons == {0: "length", 1: "length"} and not own.tokens
        assert [dict(told.top) for told in own.prompt_logprobs] == [{}, {}]

    def test_cached_tokens_are_told(self) -> None:
        engine, first, second = Engine(llama(), block_size=8), Gathered(), Gathered()
        for own in (first, second):
            engine.submit(Request([3] * 20, 2, own, GREEDY))
            finish(engine)
        assert (first.cached_tokens, second.cached_tokens) == (0, 16)

    def test_stop_tokens_do_not_end_a_text_early(self) -> None:
        (row,) = prompts(1, 9)
        stop = alone(tuple(row), 30)[2]
        own = Gathered()
        engine = Engine(llama(), limits=Limits(max_draft_tokens=3, max_num_sequences=2), draft=NGramDraft())
        engine.submit(Request(row, 30, own, GREEDY, stop={stop, 10**6}, min_new_tokens=8))
        finish(engine)
        assert len(own.tokens[0]) >= 8 and stop not in own.tokens[0][:8]
        assert own.tokens[0][:2] == alone(tuple(row), 30)[:2]


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"prompt": []}, "prompt is empty"),
            ({"new_tokens": 0}, "new_tokens 0 is out of range"),
            ({"choices": 0}, "choices 0 is out of range"),
            ({"seed": -1}, "seed -1 is out of range"),
            ({"seconds": 0.0}, "seconds 0.0 is out of range"),
            ({"logprobs": -1}, "logprobs -1 is out of range"),
            ({"prompt_logprobs": -1}, "prompt_logprobs -1 is out of range"),
            ({"min_new_tokens": 4}, "min_new_tokens 4 are more than new_tokens 3"),
            ({"sampling": Sampling(logit_bias={128: 1.0})}, "logit_bias has token 128, but ids are 0 to 127"),
            ({"prompt": [VOCABULARY]}, "token 128 is not in the vocabulary"),
            ({"prompt": [-1]}, "token -1 is not in the vocabulary"),
            ({"new_tokens": 199}, "2 tokens of prompt and 199 new ones are more than the model's context of 200"),
            ({"new_tokens": 96}, "do not fit into a cache of 96 tokens"),
            ({"choices": 17}, "17 choices are more than max_num_sequences 16"),
        ],
    )
    def test_says_what_is_wrong(self, options: dict[str, Any], said: str) -> None:
        engine = Engine(llama(), cache_tokens=96)
        with pytest.raises(RefusedError, match=said):
            engine.submit(Request(**{"prompt": [1, 2], "new_tokens": 3, "listener": Gathered()} | options))
        assert not engine.step()
        check(engine)

    def test_what_just_fits_is_answered(self) -> None:
        engine = Engine(llama(), cache_tokens=96)
        prompt = prompts(1, 1)[0] * 92
        assert engine.generate([prompt], new_tokens=5, sampling=GREEDY) == [alone(tuple(prompt), 5)]
        prompt = prompts(1, 1)[0] * 196
        assert Engine(llama()).generate([prompt], new_tokens=4, sampling=GREEDY) == [alone(tuple(prompt), 4)]

    def test_a_full_queue(self) -> None:
        engine = Engine(llama(), limits=Limits(max_num_sequences=1, max_batched_tokens=4, max_queue=2))
        for _ in range(2):
            engine.submit(Request([1], 2, Gathered()))
        with pytest.raises(QueueFullError, match="2 requests wait already"):
            engine.submit(Request([1], 2, Gathered()))
        engine.step()
        engine.submit(Request([1], 2, Gathered()))
        finish(engine)

    @pytest.mark.parametrize(
        ("limits", "said"),
        [
            ({"max_num_sequences": 0}, "max_num_sequences 0"),
            ({"max_batched_tokens": 16}, "no room for a prompt"),
            ({"max_queue": 0}, "max_queue 0"),
        ],
    )
    def test_limits_out_of_range(self, limits: dict[str, int], said: str) -> None:
        with pytest.raises(ValueError, match=said):
            Limits(**limits)

    def test_pools_and_tables(self) -> None:
        with pytest.raises(ValueError, match="a pool of 0 blocks"):
            BlockPool(0)
        pool = BlockPool(2, 4)
        with pytest.raises(ValueError, match="no table holds it"):
            pool.free(0)
        table = BlockTable(pool)
        table.allocate(5)
        with pytest.raises(ValueError, match="do not fit into 2 blocks"):
            table.advance(range(9), 9)
        with pytest.raises(ValueError, match="only an empty one"):
            table.reuse_cached([1])
        with pytest.raises(RuntimeError, match="held"):
            pool.check([])


class TestFailures:
    def test_an_error_in_a_pass_fails_those_in_it_and_no_others(self) -> None:
        torch.manual_seed(0)
        model = Llama(LlamaConfig(VOCABULARY, 32, 2, 4, 64, context=200, initial_deviation=0.3)).eval()
        engine, first, second = (
            Engine(model, limits=Limits(max_num_sequences=1, max_batched_tokens=8)),
            Gathered(),
            Gathered(),
        )
        engine.submit(Request([1, 2], 5, first, GREEDY))
        engine.submit(Request([3], 5, second, GREEDY))

        def fail(*_: object) -> None:
            raise MemoryError("no memory")

        engine.step()
        hook = model.norm.register_forward_pre_hook(fail)
        engine.step()
        hook.remove()
        assert isinstance(first.error, MemoryError) and first.tokens[0] and not first.reasons
        finish(engine)
        assert second.error is None and second.tokens[0] == generate(model, [[3]], new_tokens=5, sampling=GREEDY)[0]

    def test_numbers_that_are_none_fail_their_own_request(self) -> None:
        torch.manual_seed(0)
        model = Llama(LlamaConfig(VOCABULARY, 32, 2, 4, 64, context=200, initial_deviation=0.3)).eval()
        with torch.no_grad():
            model.embedding.weight[7] = torch.nan
        engine, bad, good = Engine(model, block_size=4), Gathered(), Gathered()
        engine.submit(Request([1, 2, 7], 5, bad, GREEDY))
        engine.submit(Request([3], 5, good, GREEDY))
        finish(engine)
        assert isinstance(bad.error, ValueError) and "must be finite" in str(bad.error)
        assert good.error is None and len(good.tokens[0]) == 5

    def test_a_listener_that_fails(self) -> None:
        class Failing(Gathered):
            def token(self, choice: int, token: int, logprobs: Any) -> object:
                raise OSError("gone")

        engine, bad, good = Engine(llama()), Failing(), Gathered()
        engine.submit(Request([1, 2], 5, bad, GREEDY, choices=3))
        engine.submit(Request([3], 5, good, GREEDY))
        finish(engine)
        assert isinstance(bad.error, OSError) and good.tokens[0] == alone((3,), 5)

    def test_time_limits(self) -> None:
        now = [0.0]
        engine, late, other = (
            Engine(llama(), limits=Limits(max_num_sequences=1, max_batched_tokens=4), clock=lambda: now[0]),
            Gathered(),
            Gathered(),
        )
        engine.submit(Request([1, 2], 50, late, GREEDY, seconds=3.0))
        engine.submit(Request([1, 3], 5, other, GREEDY, seconds=1000.0))
        waiting = Gathered()
        engine.submit(Request([1, 4], 5, waiting, GREEDY, seconds=2.0))
        for _ in range(6):
            engine.step()
            now[0] += 0.5
        assert isinstance(waiting.error, TimeLimitError) and not waiting.tokens
        now[0] = 3.5
        finish(engine)
        assert isinstance(late.error, TimeLimitError) and "its 3.0 seconds" in str(late.error)
        assert other.error is None and len(other.tokens[0]) == 5


class TestThread:
    def test_answers_whoever_asks_from_whichever_thread(self) -> None:
        engine = Engine(llama())
        engine.start()
        with pytest.raises(RuntimeError, match="started already"):
            engine.start()
        with pytest.raises(RuntimeError, match="computes already"):
            engine.generate([[1]], new_tokens=1)
        rows, gathered = prompts(10), [Gathered() for _ in range(10)]
        numbers = [engine.submit(Request(row, 20, own, GREEDY)) for row, own in zip(rows, gathered, strict=True)]
        engine.stop()
        assert len(set(numbers)) == 10
        assert [own.tokens[0] for own in gathered] == [alone(tuple(row), 20) for row in rows]
        with pytest.raises(StoppedError):
            engine.submit(Request([1], 1, Gathered()))
        check(engine)

    def test_what_takes_too_long_is_not_waited_for(self) -> None:
        engine, own = Engine(llama()), Gathered()
        engine.start()
        engine.submit(Request([1, 2], 190, own, GREEDY))
        engine.stop(0.0)
        assert isinstance(own.error, StoppedError) or own.reasons == {0: "length"}
        check(engine)
        assert engine.statistics.allocated_blocks == 0

    def test_a_cancelled_request_gives_its_blocks_back(self) -> None:
        engine, own = Engine(llama()), Gathered()
        number = engine.submit(Request([1, 2], 190, own, GREEDY, choices=2))
        for _ in range(3):
            engine.step()
        engine.cancel(number)
        engine.cancel(number + 100)
        assert not engine.step()
        assert own.reasons == {0: "cancelled", 1: "cancelled"} and len(own.tokens[0]) == 3
        finish(engine)


class Arrivals(RuleBasedStateMachine):
    """Requests come, are cancelled, fail and run out of blocks, in any order; what is finished is right."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.engine = Engine(
            llama(),
            cache_tokens=96,
            block_size=4,
            limits=Limits(max_num_sequences=4, max_batched_tokens=12, max_queue=5),
        )
        self.asked: list[tuple[int, Request, Gathered]] = []
        self.failing = False
        self.hook = self.engine.model.norm.register_forward_pre_hook(self.fail)

    def fail(self, *_: object) -> None:
        if self.failing:
            raise MemoryError("no memory")

    def teardown(self) -> None:
        self.failing = False
        for _ in range(3000):
            check(self.engine)
            if not self.engine.step():
                break
        self.hook.remove()
        check(self.engine)
        assert self.engine.statistics.allocated_blocks == 0
        for _, request, own in self.asked:
            assert own.error is not None or own.reasons.keys() == set(range(request.choices))
            for choice, reason in own.reasons.items():
                written = own.tokens.get(choice, [])
                whole = alone(tuple(request.prompt), 16, request.sampling, request.seed, choice)
                assert written == whole[: len(written)]
                assert reason == "cancelled" or len(written) == request.new_tokens

    @rule(
        start=st.sampled_from([(), (1, 2, 3, 4, 5, 6, 7, 8), (1, 2, 3, 4, 9)]),
        end=st.lists(st.integers(0, 3), min_size=1, max_size=20),
        new_tokens=st.integers(1, 16),
        choices=st.integers(1, 3),
        sampling=st.sampled_from([GREEDY, Sampling()]),
    )
    def ask(self, start: tuple[int, ...], end: list[int], new_tokens: int, choices: int, sampling: Sampling) -> None:
        own = Gathered()
        request = Request([*start, *end], new_tokens, own, sampling, choices=choices)
        try:
            self.asked.append((self.engine.submit(request), request, own))
        except QueueFullError:
            assert len(self.engine.scheduler.waiting) >= 5

    @rule(passes=st.integers(1, 12))
    def compute(self, passes: int) -> None:
        for _ in range(passes):
            self.engine.step()
            check(self.engine)

    @rule(which=st.integers(0, 1000))
    def cancel(self, which: int) -> None:
        if self.asked:
            self.engine.cancel(self.asked[which % len(self.asked)][0])

    @rule()
    def lose_a_pass(self) -> None:
        self.failing = True
        self.engine.step()
        self.failing = False

    @invariant()
    def no_block_is_lost(self) -> None:
        check(self.engine)


TestArrivals = Arrivals.TestCase
TestArrivals.settings = settings(max_examples=6, stateful_step_count=20, deadline=None)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Models are shared between tests: none may be left changed."""
    before = {name: value.clone() for name, value in llama().state_dict().items()}
    yield
    after = llama().state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
