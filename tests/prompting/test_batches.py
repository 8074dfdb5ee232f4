"""Many prompts in one call: equal answers however they are asked, kept under their content, failures named."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import pydantic
import pytest
import torch

from allyouneed.papers.readers import load_batch, load_chat
from allyouneed.papers.serving import EngineBatch
from allyouneed.prompting import (
    AnswerStore,
    BatchModel,
    ChatBatch,
    Completion,
    CompletionRequest,
    LocalBatch,
    OutputFormat,
    ScoreRequest,
    Scores,
    Usage,
    WorkerBatch,
    complete,
    score,
)
from allyouneed.text import Message, Sampling

STANDINS = Path(__file__).parents[1] / "standins"
NAME = "smollm2-135m-instruct"
GREEDY = Sampling.greedy()


def said(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


KIND: Message = {"role": "system", "content": "Be kind, be short, and say nothing that you do not know."}
QUESTIONS = [[KIND, *said(f"What is {place} and {place}?")] for place in range(20)]


@cache
def _engine() -> BatchModel:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALLYOUNEED_STANDINS", str(STANDINS))
        return load_batch(NAME, max_num_sequences=6, cache_megabytes=4)


@cache
def _alone() -> LocalBatch:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALLYOUNEED_STANDINS", str(STANDINS))
        chat = load_chat(NAME)
        return LocalBatch(chat.model, chat.tokenizer, chat.template)


@pytest.fixture
def engine() -> EngineBatch:
    made = _engine()
    assert isinstance(made, EngineBatch)
    return made


@pytest.fixture
def alone() -> LocalBatch:
    return _alone()


class Counting:
    """A model that says a number, and counts what it is asked; some prompts fail."""

    def __init__(self, answer: Callable[[CompletionRequest], str] | None = None, *, name: str = "counting"):
        self.identity = {"name": name}
        self.asked: list[CompletionRequest] = []
        self._answer = answer or (lambda request: f"{request.prompt} by {request.seed}")

    def complete(self, requests: Sequence[CompletionRequest], on_result: Callable[[int, Any], object]) -> None:
        for place, request in reversed(list(enumerate(requests))):
            self.asked.append(request)
            if "fail" in str(request.prompt):
                on_result(place, ValueError("cannot"))
            else:
                on_result(place, Completion(self._answer(request), "stop", Usage(3, 2, 1)))

    def score(self, requests: Sequence[ScoreRequest], on_result: Callable[[int, Any], object]) -> None:
        for place, request in enumerate(requests):
            self.asked.append(request)  # pyright: ignore[reportArgumentType]
            on_result(place, Scores(tuple(-float(len(one)) for one in request.continuations), (1, 2)))


class TestLocal:
    def test_an_engine_answers_as_one_by_one(self, engine: EngineBatch, alone: LocalBatch) -> None:
        prompts = [*QUESTIONS, "Once upon", " a time\n"]
        together = complete(engine, prompts, new_tokens=12, sampling=GREEDY)
        assert together.texts == complete(alone, prompts, new_tokens=12, sampling=GREEDY).texts
        assert together.failed == [] and together.asked == len(prompts)
        usage = together.usage
        assert usage.completion_tokens <= 12 * len(prompts) and usage.prompt_tokens > usage.cached_tokens > 0
        assert isinstance(alone, BatchModel) and isinstance(engine, BatchModel)
        assert engine.identity == alone.identity and engine.engine.statistics.allocated_blocks == 0

    def test_so_does_a_chat_model(self, engine: EngineBatch) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("ALLYOUNEED_STANDINS", str(STANDINS))
            model = ChatBatch(load_chat(NAME), {"name": NAME})
        found = complete(model, [*QUESTIONS[:5], "a text"], new_tokens=10, sampling=GREEDY)
        assert (
            found.texts[:5]
            if not found.failed
            else [result.text for result in found[:5]]
            == complete(engine, QUESTIONS[:5], new_tokens=10, sampling=GREEDY).texts
        )
        assert found.failed == [5] and "does not continue texts" in str(found[5].error)
        assert "no log probabilities" in str(score(model, QUESTIONS[:1], [["a"]])[0].error)
        held = complete(model, QUESTIONS[:1], new_tokens=300, schema={"enum": ["yes", "no"]})
        assert held[0].value in ("yes", "no")
        with pytest.raises(ValueError, match="identity"):
            ChatBatch(model.chat, {})

    def test_what_is_sampled_depends_on_the_seed_alone(self, engine: EngineBatch) -> None:
        prompts, sampling = [QUESTIONS[0]] * 4, Sampling(1.0)
        texts = complete(engine, prompts, new_tokens=10, sampling=sampling, seed=[1, 2, 1, 3]).texts
        assert texts[0] == texts[2] and len(set(texts)) == 3
        assert complete(engine, [QUESTIONS[0]], new_tokens=10, sampling=sampling, seed=2).texts == [texts[1]]

    def test_stop_strings_and_lengths_are_told(self, engine: EngineBatch, alone: LocalBatch) -> None:
        whole = complete(engine, QUESTIONS[:1], new_tokens=12, sampling=GREEDY)[0]
        stop = whole.text[3:5]
        for model in (engine, alone):
            cut = complete(model, QUESTIONS[:1], new_tokens=12, sampling=GREEDY, stop_strings=[stop])[0]
            assert cut.text == whole.text[: whole.text.index(stop)] and cut.answer.finish_reason == "stop"
            assert whole.answer.finish_reason == "length" and whole.answer.usage.completion_tokens == 12

    def test_prompts_that_cannot_be_answered_leave_others_alone(self, engine: EngineBatch, alone: LocalBatch) -> None:
        prompts = [QUESTIONS[0], said("long " * 2000), [{"role": "user", "content": 3}], QUESTIONS[1]]
        for model in (engine, alone):
            found = complete(model, prompts, new_tokens=5, sampling=GREEDY)
            assert found.failed == [1, 2] and found[0].text and found[3].text
            assert "context" in str(found[1].error) or "cache" in str(found[1].error)
            with pytest.raises(ValueError, match=r"context|cache"):
                _ = found.texts
        plain = LocalBatch(alone.model, alone.tokenizer)
        assert "no chat template" in str(complete(plain, [QUESTIONS[0]], new_tokens=2)[0].error)

    def test_an_engine_is_free_again_after_an_error_of_who_is_told(self, engine: EngineBatch) -> None:
        def refuse(place: int, result: Any) -> None:
            raise OSError("disk full")

        with pytest.raises(OSError, match="disk full"):
            engine.complete([CompletionRequest(own, 30) for own in QUESTIONS], refuse)
        told = engine.engine.statistics
        assert told.allocated_blocks == told.running == told.waiting == 0

    def test_scores_are_those_of_the_model_alone(self, engine: EngineBatch, alone: LocalBatch) -> None:
        prompts = [*QUESTIONS[:3], "Once upon a time", "Once upon"]
        options = [["yes", "no, never"], ["a"], ["b", "bb", " b"], [" there was"], [" a time"]]
        found, other = score(engine, prompts, options), score(alone, prompts, options)
        for place, (prompt, own) in enumerate(zip(prompts, options, strict=True)):
            tokens = alone.encode(prompt)
            for choice, text in enumerate(own):
                coded = alone.tokenizer.encode_continuation(text)
                with torch.no_grad():
                    logits = alone.model(torch.tensor([[*tokens, *coded]]))[0].log_softmax(-1)
                wanted = sum(float(logits[len(tokens) - 1 + n, token]) for n, token in enumerate(coded))
                for scores in (found[place].answer, other[place].answer):
                    assert scores.log_probabilities[choice] == pytest.approx(wanted, abs=2e-4)
                    assert scores.tokens[choice] == len(coded)
        assert "context" in str(score(engine, [said("long " * 4000)], [["a"]])[0].error)

    def test_the_identity_is_of_the_weights_in_memory(self, alone: LocalBatch) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("ALLYOUNEED_STANDINS", str(STANDINS))
            chat = load_chat(NAME)
        other = LocalBatch(chat.model, chat.tokenizer, chat.template)
        with torch.no_grad():
            next(iter(chat.model.parameters()))[0, 0] += 1e-3
        assert other.identity["weights"] != alone.identity["weights"]
        assert other.identity["tokenizer"] == alone.identity["tokenizer"]
        assert LocalBatch(alone.model, alone.tokenizer).identity != alone.identity


class TestWorkers:
    def test_processes_answer_as_one(self, engine: EngineBatch, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ALLYOUNEED_STANDINS", str(STANDINS))
        model = load_batch(NAME, max_num_sequences=6, cache_megabytes=4, workers=2)
        assert isinstance(model, WorkerBatch) and isinstance(model, BatchModel)
        prompts = [*QUESTIONS[:9], said("long " * 2000)]
        found = complete(model, prompts, new_tokens=8, sampling=GREEDY)
        assert [found[place].text for place in range(9)] == complete(
            engine, prompts[:9], new_tokens=8, sampling=GREEDY
        ).texts
        assert found.failed == [9] and model.identity == engine.identity
        scores = score(model, QUESTIONS[:3], [["a", "b"]] * 3)
        for own, other in zip(scores, score(engine, QUESTIONS[:3], [["a", "b"]] * 3), strict=True):
            assert own.answer.log_probabilities == pytest.approx(other.answer.log_probabilities, abs=2e-4)

        # One is killed: its prompts fail, the other's are answered.
        os.kill(model._processes[1].pid or 0, signal.SIGKILL)
        model._processes[1].join()
        rest = complete(model, QUESTIONS[:6], new_tokens=8, sampling=GREEDY)
        assert rest.failed == [1, 3, 5] and "ended by itself" in str(rest[1].error) and rest[4].text

        def refuse(place: int, result: Any) -> None:
            raise OSError("disk full")

        with pytest.raises(OSError, match="disk full"):
            model.complete([CompletionRequest(own, 8) for own in QUESTIONS], refuse)
        assert not any(process.is_alive() for process in model._processes)

    def test_what_cannot_be_loaded_says_so(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="config"):
            load_batch(tmp_path, workers=2)
        with pytest.raises(ValueError, match="workers 0"):
            load_batch(NAME, workers=0)


class TestStore:
    def test_nothing_is_asked_twice(self, tmp_path: Path) -> None:
        model, prompts = Counting(), ["a", "b", "a", "fail"]
        first = complete(model, prompts, store=tmp_path, seed=4)
        assert first[0].text == first[2].text == "a by 4" and first.failed == [3]
        assert len(model.asked) == 3 and first.asked == 2 and first.usage == Usage(6, 4, 2)
        again = complete(model, prompts, store=tmp_path, seed=4)
        # What failed is asked again.
        assert len(model.asked) == 4 and again.asked == 0 and again.usage == Usage()
        assert [result.from_store for result in again] == [True, True, True, False]
        assert [result.answer for result in again] == [result.answer for result in first]
        assert complete(model, ["b"], seed=4)[0].from_store is False

    def test_all_that_an_answer_depends_on_is_in_its_key(self) -> None:
        base = CompletionRequest("a", 5, Sampling(0.5), ("x",), 1, {"type": "object"})
        others = [
            replace(base, prompt="b"),
            replace(base, prompt=[{"role": "user", "content": "a"}]),
            replace(base, new_tokens=6),
            replace(base, sampling=None),
            replace(base, sampling=Sampling(0.5, top_k=3)),
            replace(base, sampling=Sampling(0.5, logit_bias={3: 1.0})),
            replace(base, stop_strings=()),
            replace(base, seed=2),
            replace(base, schema=None),
            replace(base, schema={"type": "array"}),
        ]
        keys = {one.key({"name": "m"}) for one in [base, *others]} | {base.key({"name": "n"})}
        assert len(keys) == len(others) + 2
        assert base.key({"a": 1, "b": 2}) == replace(base).key({"b": 2, "a": 1})
        assert ScoreRequest("a", ["b"]).key({}) != ScoreRequest("a", ["c"]).key({})

    def test_damaged_entries_are_redone_and_named(self, tmp_path: Path) -> None:
        prompts = ["a", "b", "c", "d", "e"]
        complete(Counting(), prompts, store=tmp_path)
        files = sorted(tmp_path.glob("??/*.json"))
        assert len(files) == 5
        files[0].write_text("")
        files[1].write_bytes(files[1].read_bytes()[:-9])
        altered = json.loads(files[2].read_text())
        altered["answer"]["text"] = "another"
        files[2].write_text(json.dumps(altered))
        files[3].write_bytes(files[4].read_bytes())
        model = Counting()
        again = complete(model, prompts, store=tmp_path)
        assert len(model.asked) == 4 and sorted(again.damaged) == files[:4]
        assert again.texts == [f"{prompt} by 0" for prompt in prompts]
        assert complete(model, prompts, store=tmp_path).damaged == [] and len(model.asked) == 4
        (tmp_path / "file").touch()
        with pytest.raises(ValueError, match="is a file"):
            AnswerStore(tmp_path / "file")

    def test_scores_are_kept_too(self, tmp_path: Path) -> None:
        model = Counting()
        first = score(model, ["a", "b"], [["x", "yy"], ["x", "y"]], store=tmp_path)
        again = score(model, ["a", "b"], [["x", "yy"], ["x", "y"]], store=tmp_path)
        assert len(model.asked) == 2 and again[1].from_store
        assert again[0].answer == first[0].answer == Scores((-1.0, -2.0), (1, 2))

    def test_a_killed_run_asks_for_the_rest_alone(self, tmp_path: Path) -> None:
        """For real: a process is ended by SIGKILL while an engine answers, and goes on where it was."""
        store, log = tmp_path / "store", tmp_path / "asked"
        script = f"""
import sys, time
from allyouneed.papers.readers import load_batch
from allyouneed.prompting import complete
from allyouneed.text import Sampling
model = load_batch({NAME!r}, max_num_sequences=2, cache_megabytes=4)
submit = model._submit
def logged(request):
    with open({str(log)!r}, "a") as file:
        print(request.prompt[0]["content"], file=file)
    time.sleep(0.05)
    return submit(request)
model._submit = logged
found = complete(model, [[{{"role": "user", "content": f"What is {{place}}?"}}] for place in range(24)],
                 new_tokens=8, sampling=Sampling.greedy(), store={str(store)!r})
print(found.asked, len(found.texts))
"""
        environment = os.environ | {"ALLYOUNEED_STANDINS": str(STANDINS), "PYTHONPATH": os.pathsep.join(sys.path)}
        process = subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE)
        deadline = time.monotonic() + 120
        while len(AnswerStore(store)) < 5 and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kept = len(AnswerStore(store))
        assert 5 <= kept < 24 and process.returncode == -signal.SIGKILL
        asked = len(log.read_text().splitlines())
        done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, check=True)
        assert done.stdout.split() == [str(24 - kept).encode(), b"24"]
        assert len(log.read_text().splitlines()) - asked == 24 - kept
        assert (len(AnswerStore(store)) == 24 and not list(store.glob("??/*.part"))) or kept < 24

    def test_processes_may_write_at_once(self, tmp_path: Path) -> None:
        script = f"""
from allyouneed.prompting import AnswerStore
store = AnswerStore({str(tmp_path)!r})
for number in range(300):
    key = f"{{number % 100:02d}}" * 32
    store.put(key, {{"text": "x" * 2000 + key}})
    found = store.get(key)
    assert found is not None and found["text"].endswith(key), key
assert store.damaged == []
"""
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        processes = [subprocess.Popen([sys.executable, "-c", script], env=environment) for _ in range(2)]
        assert [process.wait(120) for process in processes] == [0, 0]
        assert len(AnswerStore(tmp_path)) == 100


@dataclass
class Person:
    name: str
    age: int
    mood: Literal["good", "bad"] = "good"


class Point(pydantic.BaseModel):
    x: int
    y: float | None = None


class TestParsing:
    def test_values_by_dataclass_pydantic_and_schema(self) -> None:
        assert OutputFormat(Person).parse('{"name": "Ann", "age": 3}') == Person("Ann", 3)
        assert OutputFormat(Point).parse('Here it is:\n```json\n{"x": 1, "y": 2}\n```\n') == Point(x=1, y=2.0)
        assert OutputFormat(list[int]).parse(" [1, 2] ") == [1, 2]
        assert OutputFormat({"type": "object", "required": ["a"]}).parse('{"a": [1]}') == {"a": [1]}
        for text, message in (
            ("", "not JSON"),
            ("{'name': 1}", "not JSON"),
            ('{"name": "Ann"}', "'age' is a required property"),
            ('{"name": "Ann", "age": "3"}', r"\$.age"),
            ('{"name": "Ann", "age": NaN}', "NaN"),
            ("[" * 100_000, "nested too deeply"),
        ):
            with pytest.raises(ValueError, match=message):
                OutputFormat(Person).parse(text)
        with pytest.raises(ValueError, match="no JSON schema"):
            OutputFormat({"type": "strange"})
        with pytest.raises(ValueError, match="has no JSON schema"):
            OutputFormat(torch.Tensor)

    def test_what_cannot_be_parsed_is_asked_again_and_counted(self, tmp_path: Path) -> None:
        def answer(request: CompletionRequest) -> str:
            tries = request.seed // 1_000_000_007
            return '{"name": "Ann", "age": 3}' if tries >= int(str(request.prompt)) else "Ann, who is 3"

        model = Counting(answer)
        found = complete(model, ["0", "1", "2", "3"], schema=Person, constrain=False, store=tmp_path, seed=7)
        assert [result.attempts for result in found] == [1, 2, 3, 3]
        assert found.unparsed == [3] and found.failed == [] and found.asked == 9
        assert [result.value for result in found] == [*[Person("Ann", 3)] * 3, None]
        assert "not JSON" in str(found[3].parse_error) and found[3].text == "Ann, who is 3"
        # Told apart by servers that keep 32 bits of a seed, too.
        assert len({request.seed % 2**32 for request in model.asked}) == 3
        again = complete(model, ["0", "1", "2", "3"], schema=Person, constrain=False, store=tmp_path, seed=7)
        assert again.asked == 0 and all(result.from_store for result in again) and again.unparsed == [3]
        once = complete(Counting(answer), ["0", "1"], schema=Person, constrain=False, max_attempts=1)
        assert once.unparsed == [1] and once.asked == 2
        greedy = complete(Counting(answer), ["0", "1"], schema=Person, constrain=False, sampling=GREEDY)
        assert greedy.unparsed == [1] and greedy.asked == 2

    def test_an_engine_is_held_to_the_schema(self, engine: EngineBatch, alone: LocalBatch) -> None:
        kind = Literal["red", "green", "blue"]
        found = complete(engine, QUESTIONS, new_tokens=8, schema=kind, sampling=Sampling(2.0))
        assert found.unparsed == [] and {result.value for result in found} <= {"red", "green", "blue"}
        assert all(result.answer.finish_reason == "stop" and result.attempts == 1 for result in found)
        greedy = complete(engine, QUESTIONS[:3], new_tokens=8, schema=kind, sampling=GREEDY)
        assert greedy.texts == complete(alone, QUESTIONS[:3], new_tokens=8, schema=kind, sampling=GREEDY).texts
        cut = complete(engine, QUESTIONS[:1], new_tokens=2, schema=Person, max_attempts=1)
        assert cut.unparsed == [0] and "cut off at new_tokens" in str(cut[0].parse_error)
        refused = complete(engine, QUESTIONS[:1], schema={"type": "array", "uniqueItems": True})
        assert "uniqueItems" in str(refused[0].error)


def test_bad_calls_are_refused() -> None:
    model = Counting()
    for call, message in (
        (lambda: complete(model, "text"), "several texts or conversations"),
        (lambda: complete(model, [""]), "a prompt is empty"),
        (lambda: complete(model, [[]]), "must be a text"),
        (lambda: complete(model, [3]), "must be a text"),  # pyright: ignore[reportArgumentType]
        (lambda: complete(model, ["a"], new_tokens=0), "new_tokens 0"),
        (lambda: complete(model, ["a"], seed=-1), "seed -1"),
        (lambda: complete(model, ["a"], seed=[1, 2]), "2 seeds for 1 prompts"),
        (lambda: complete(model, ["a"], max_attempts=0), "max_attempts 0"),
        (lambda: complete(model, ["a"], stop_strings="x"), "one text"),
        (lambda: score(model, ["a"], []), "give as many"),
        (lambda: score(model, ["a"], [[]]), "one or more"),
        (lambda: score(model, ["a"], [["b", ""]]), "none of them empty"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert model.asked == [] and len(complete(model, [])) == 0


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[], list[str]]]:
    yield lambda: capsys.readouterr().err.splitlines()


def test_progress_is_a_line_where_there_is_no_terminal(lines: Callable[[], list[str]], tmp_path: Path) -> None:
    complete(Counting(), ["a", "b", "fail"], progress=True, store=tmp_path)
    assert lines() == ["asking, 1 failed: 3 of 3 prompts"]
    complete(Counting(), ["a", "b", "a", "c"], progress=True, store=tmp_path)
    assert lines() == ["asking, 3 kept: 4 of 4 prompts"]
    complete(Counting(), ["d"])
    assert lines() == []
