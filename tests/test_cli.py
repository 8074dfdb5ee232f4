"""The command line: what each command shows, what it refuses and how, and with which status it ends."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from allyouneed import catalog, cli, evidence, library
from allyouneed.cli.common import console

sys.path.insert(0, str(Path(__file__).parent / "evidence"))

import sample
from sample import SampleConfig

ALIBI = catalog.find("alibi")
PLANNED = next(paper for paper in catalog.papers() if not (paper.folder / "experiment.py").is_file())
recorded_alibi = pytest.mark.skipif(not ALIBI.results("laptop").is_file(), reason="ALiBi's results are not recorded")


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep runs and caches out of the user's own folders, and lines as long as they are."""
    monkeypatch.setenv("ALLYOUNEED_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("ALLYOUNEED_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(console, "width", 250)
    monkeypatch.delenv("ALLYOUNEED_STANDINS", raising=False)
    return tmp_path / "runs"


def call(*arguments: str, status: int = 0) -> Result:
    result = CliRunner().invoke(cli.app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == status, result.output
    return result


def refused(*arguments: str, status: int = 2) -> str:
    """Give what a command says that refuses: one line on stderr, and nothing that looks like a result."""
    result = call(*arguments, status=status)
    assert result.stderr.startswith("allyouneed: ")
    assert "Traceback" not in result.stderr
    return result.stderr


def use(monkeypatch: pytest.MonkeyPatch, arms: Mapping[str, SampleConfig], **options: Any) -> None:
    """Put an experiment with these arms in the place of every room's."""
    monkeypatch.setattr(library, "experiment_of", lambda paper: sample.experiment(arms, **options))


# list


def test_list_has_every_paper() -> None:
    lines = call("list").stdout.splitlines()
    assert len(lines) == 1 + 51
    for line, paper in zip(lines[1:], catalog.papers(), strict=True):
        assert line.split()[:2] == [str(paper.number), paper.room]
        assert paper.title[:40] in line
        assert line.split()[-2:] == [str(paper.year), paper.status]


def test_list_gives_the_papers_of_a_family() -> None:
    lines = call("list", "--family", "scaling").stdout.splitlines()
    assert [line.split()[1] for line in lines[1:]] == [
        paper.room for paper in catalog.papers() if paper.family == "scaling"
    ]
    message = refused("list", "--family", "poetry")
    assert '"poetry"' in message
    assert all(family in message for family in catalog.families())


def test_list_as_json_has_every_field() -> None:
    listed = json.loads(call("list", "--json").stdout)
    assert [entry["number"] for entry in listed] == list(range(1, 52))
    assert listed[18]["room"] == "alibi"
    assert {"title", "authors", "year", "link", "family", "idea", "builds_on", "aliases", "status"} <= set(listed[18])
    assert len(json.loads(call("list", "--json", "--family", "scaling").stdout)) < 51


def test_list_answers_at_once() -> None:
    """It imports neither torch nor NumPy, and takes a blink of the processor's time."""
    code = """
import resource, sys
from allyouneed.cli import app
app(["list"], standalone_mode=False)
used = resource.getrusage(resource.RUSAGE_SELF)
heavy = sorted({"torch", "numpy", "scipy", "matplotlib", "joblib", "lightning_fabric"} & set(sys.modules))
print(used.ru_utime + used.ru_stime, heavy, file=sys.stderr)
"""
    seconds = []
    for _ in range(5):
        ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
        used, heavy = ended.stderr.split(" ", 1)
        assert heavy.strip() == "[]"
        assert ended.stdout.count("\n") == 52
        seconds.append(float(used))
    # torch alone takes a second or more; what is left are the libraries of the command line.
    assert min(seconds) < 0.5


# show


def test_show_a_paper_that_is_planned() -> None:
    shown = call("show", str(PLANNED.number)).stdout
    assert PLANNED.title in shown
    assert PLANNED.link in shown
    assert "no experiment yet" in shown


@recorded_alibi
def test_show_gives_note_report_code_and_verdicts() -> None:
    shown = call("show", "ALiBi").stdout
    assert "Train Short, Test Long" in shown
    assert "Use it" in shown
    assert "experiment.py" in shown
    assert "<!--" not in shown
    lines = (ALIBI.folder / "alibi.py").read_text().splitlines()
    first = lines[0].strip('"')
    assert f"alibi.py ({len(lines)} lines): {first}" in shown
    for claim in evidence.read_results(ALIBI.results("laptop"))["claims"]:
        assert claim["verdict"] in shown


@pytest.mark.parametrize("command", [("show",), ("run",), ("run", "alibi")])
def test_an_unknown_name_gives_the_nearest(command: tuple[str, ...]) -> None:
    message = refused(*command, "alibbi")
    assert '"alibbi"' in message
    assert "nearest: alibi" in message
    assert '"52"' in refused(*command, "52")


# run


def test_a_planned_paper_is_not_run() -> None:
    message = refused("run", "alibi", PLANNED.slug)
    assert f"{PLANNED.room} " in message
    assert "is planned" in message
    assert re.search(r"these run: .*\balibi\b", message)


def test_alibi_runs_at_the_smoke_scale_in_ten_seconds_of_one_core(runs: Path) -> None:
    code = """
import resource, sys
from allyouneed.cli import app
try:
    app(["run", "19", "--scale", "smoke", "--workers", "1"])
finally:
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(used.ru_utime + used.ru_stime, file=sys.stderr)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert float(ended.stderr.splitlines()[-1]) < 10
    assert "4/4" in ended.stdout
    assert "no verdict is drawn" in ended.stdout
    figure, page = (runs / "alibi" / "smoke" / name for name in ("figure.svg", "report.html"))
    assert str(figure) in ended.stdout
    assert str(page) in ended.stdout
    assert "perplexity" in figure.read_text()
    written = page.read_text()
    assert ALIBI.title in written
    assert "<svg" in written
    # Every trial is kept: the same command has nothing to do.
    again = call("run", "alibi", "--scale", "smoke", "--workers", "1").stdout
    assert again.count("kept from an earlier run") == 4


def test_settings_seeds_and_workers_are_honoured(monkeypatch: pytest.MonkeyPatch, runs: Path, tmp_path: Path) -> None:
    marked = tmp_path / "marks"
    use(monkeypatch, {"small": SampleConfig(size=1), "large": SampleConfig(size=1)})
    arguments = ("--set", "size=2.5", "--set", f"marks={marked}", "--seeds", "2", "--workers", "1")
    shown = call("run", "alibi", "--scale", "laptop", *arguments).stdout
    assert "4/4 large, seed 1: finished" in shown
    begun = sorted(mark.rsplit(" ", 1)[0] for mark in sample.marks(marked))
    assert begun == ["large 0", "large 1", "small 0", "small 1"]
    results = [json.loads(path.read_text()) for path in runs.rglob("result.json")]
    assert sorted(result["metrics"]["size"] for result in results) == [2.5, 2.5, 3.5, 3.5]
    call("run", "alibi", *arguments, "--fresh")
    assert len(sample.marks(marked)) == 8


def test_a_pilot_says_how_fine_the_tests_measure(monkeypatch: pytest.MonkeyPatch, runs: Path) -> None:
    use(monkeypatch, sample.TWO_ARMS, seeds=3, claims=(sample.SMALLER,))
    shown = call("run", "alibi", "--pilot", "--workers", "1", "--checkpoint-seconds", "1").stdout
    assert "what the pilot promises" in shown and "small_is_smaller" in shown
    assert "reproduced" not in shown and "No verdict is drawn" in shown
    assert len(list(runs.glob("sample/laptop/small/seed100?-*/result.json"))) == 3
    # Other trials than those of a run that may be recorded.
    assert not list(runs.glob("sample/laptop/small/seed0-*"))


def test_verdicts_are_shown_as_they_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, sample.TWO_ARMS, seeds=3, claims=(sample.SMALLER,))
    shown = " ".join(call("run", "alibi", "--workers", "1").stdout.split())
    assert sample.SMALLER.statement in shown
    assert "reproduced" in shown
    assert "−1" in shown


def test_a_failed_trial_is_shown_with_its_log_and_the_status_is_not_0(
    monkeypatch: pytest.MonkeyPatch, runs: Path
) -> None:
    use(monkeypatch, {"small": SampleConfig(size=1), "large": SampleConfig("fail", size=2)}, claims=(sample.SMALLER,))
    shown = call("run", "alibi", "--workers", "1", status=1).stdout
    assert "failed: large, seed 0: ArithmeticError: size 2 is too much" in shown
    (log,) = runs.rglob("large/*/log.txt")
    assert str(log) in shown.replace("\n", "")
    assert "inconclusive" in shown
    assert (runs / "sample" / "laptop" / "figure.svg").is_file()
    shown = call("run", "alibi", "--workers", "1", "--scale", "smoke", status=1).stdout
    assert "Every line ran" not in shown


def test_nothing_to_judge_where_no_trial_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, {"one": SampleConfig("fail"), "two": SampleConfig("exit")})
    assert "nothing to judge" in call("run", "alibi", "--workers", "1", status=1).stdout


def test_a_later_paper_runs_though_an_earlier_one_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = iter([{"one": SampleConfig("fail")}, {"two": SampleConfig()}])
    monkeypatch.setattr(library, "experiment_of", lambda paper: sample.experiment(next(tried)))
    shown = call("run", "alibi", "bert", "--workers", "1", status=1).stdout
    assert "1/1 one, seed 0: failed" in shown
    assert "1/1 two, seed 0: finished" in shown


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--scale", "huge"), ('"huge"', "smoke, laptop, gpu")),
        (("--set", "steps"), ('"steps"', "--set KEY=VALUE")),
        (("--set", "=3"), ('"=3"', "--set KEY=VALUE")),
        (("--set", "speed=3"), ("'speed'", "steps (int)", "learning_rate (float)")),
        (("--set", "steps=many"), ("'steps'", "int", "'many'")),
        (("--set", "positions=rotary"), ("'positions'", "apart")),
        (("--set", "steps=3", "--set", "steps=4"), ("twice", "steps=3", "steps=4")),
        (("--seeds", "0"), ("0 seeds",)),
        (("--workers", "0"), ("0 workers",)),
        (("--device", "abacus"), ('"abacus"', "cpu, cuda and mps")),
        (("--device", "cuda:1"), ('"cuda:1"', "cpu, cuda and mps")),
        (("--record", "--set", "steps=3"), ("--record", "--set")),
        (("--record", "--seeds", "3"), ("--record", "--seeds")),
        (("--record", "--precision", "64-true"), ("--record", "--precision")),
        (("--record", "--scale", "smoke"), ("--record", "smoke")),
        (("--record", "--pilot"), ("--record", "--pilot")),
        (("--checkpoint-seconds", "-3"), ("checkpoint_seconds", "-3")),
    ],
    ids=lambda value: " ".join(value),
)
def test_what_cannot_be_run_is_said_before_anything_runs(
    runs: Path, arguments: tuple[str, ...], told: tuple[str, ...]
) -> None:
    message = refused("run", "alibi", *arguments)
    for words in told:
        assert words in message
    assert not runs.exists()


@pytest.mark.parametrize("arguments", [("--device", "cuda"), ("--scale", "gpu")])
def test_a_gpu_that_is_not_there_is_said(
    runs: Path, arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "there is no cuda device here; `allyouneed doctor`" in refused("run", "alibi", *arguments)
    assert not runs.exists()


def test_an_unknown_option_is_refused() -> None:
    assert "--speed" in call("run", "alibi", "--speed", "3", status=2).stderr


def test_runs_that_cannot_be_written_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("ALLYOUNEED_RUNS", str(tmp_path / "file"))
    assert str(tmp_path / "file") in refused("run", "alibi", "--scale", "smoke", "--workers", "1", status=1)


def test_a_page_that_cannot_be_written_loses_no_trial(monkeypatch: pytest.MonkeyPatch, runs: Path) -> None:
    use(monkeypatch, sample.TWO_ARMS)
    (runs / "sample" / "smoke" / "report.html").mkdir(parents=True)
    message = refused("run", "alibi", "--scale", "smoke", "--workers", "1", status=1)
    assert "the trials are kept" in message
    assert len(list(runs.rglob("result.json"))) == 2


def test_record_keeps_results_figure_and_generated_text(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    written = []
    use(monkeypatch, sample.TWO_ARMS, seeds=3, claims=(sample.SMALLER,))
    monkeypatch.setattr(catalog.Paper, "results", lambda paper, scale: tmp_path / "results" / f"{scale}.json")
    monkeypatch.setattr(library, "write_generated", lambda: written.append("all"))
    shown = call("run", "alibi", "--workers", "1", "--record").stdout
    assert f"recorded: {tmp_path / 'results' / 'laptop.json'}" in shown.replace("\n", "")
    contents = evidence.read_results(tmp_path / "results" / "laptop.json")
    evidence.verify(sample.experiment(sample.TWO_ARMS, seeds=3, claims=(sample.SMALLER,)), contents)
    assert written == ["all"]


def test_a_run_with_missing_trials_is_not_recorded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use(monkeypatch, {"small": SampleConfig(), "large": SampleConfig("fail")}, claims=(sample.SMALLER,))
    monkeypatch.setattr(catalog.Paper, "results", lambda paper, scale: tmp_path / "results" / f"{scale}.json")
    message = refused("run", "alibi", "--workers", "1", "--record", status=1)
    assert "missing trials is not recorded: large, seed 0" in message
    assert not (tmp_path / "results").exists()


# report, fetch, doctor


def test_report_writes_one_page(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert str(page) in call("report", "--output", str(page)).stdout
    text = page.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>")
    assert text.rstrip().endswith("</html>")
    assert "<script" not in text
    for paper in catalog.papers():
        shown = re.search(rf"allyouneed run {paper.room}\b", text) is not None
        assert shown == paper.results("laptop").is_file()


def test_a_report_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    assert "missing" in refused("report", "-o", str(tmp_path / "missing" / "page.html"), status=1)


def test_results_that_were_edited_are_neither_shown_nor_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    edited = tmp_path / "alibi" / "results" / "laptop.json"
    edited.parent.mkdir(parents=True)
    edited.write_text('{"paper": "alibi", "verdict": "reproduced"}')
    real = catalog.Paper.results
    monkeypatch.setattr(
        catalog.Paper, "results", lambda paper, scale: edited if paper.room == "alibi" else real(paper, scale)
    )
    for command in (("show", "alibi"), ("report", "-o", str(tmp_path / "page.html"))):
        message = refused(*command, status=1)
        assert str(edited) in message
        assert "allyouneed run alibi --scale laptop --record" in message
    assert not (tmp_path / "page.html").exists()


def test_fetch_lists_what_there_is() -> None:
    from allyouneed.data import ASSETS

    listed = call("fetch").stdout
    for name in ASSETS:
        assert name in listed
    assert "not fetched" in listed


def test_an_unknown_asset_is_refused_before_any_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from allyouneed.data import ASSETS

    monkeypatch.setenv("ALLYOUNEED_OFFLINE", "1")
    name = next(iter(ASSETS))
    message = refused("fetch", name, "cifar-1000")
    assert '"cifar-1000"' in message
    assert name in message
    assert not (tmp_path / "cache").exists()
    assert "ALLYOUNEED_OFFLINE" in refused("fetch", name, status=1)


def test_fetch_gives_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    standins = Path(__file__).parent / "standins"
    monkeypatch.setenv("ALLYOUNEED_STANDINS", str(standins))
    assert f"mnist: {standins / 'mnist'}" in call("fetch", "mnist").stdout
    assert re.search(r"^mnist: .*present$", call("fetch").stdout, re.MULTILINE)


# chat


def talk(lines: str, *arguments: str, status: int = 0) -> Result:
    result = CliRunner().invoke(cli.app, ["chat", "--new-tokens", "8", *arguments], input=lines)
    assert not isinstance(result.exception, ValueError)
    assert result.exit_code == status, result.output
    return result


@pytest.fixture
def standins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALLYOUNEED_STANDINS", str(Path(__file__).parent / "standins"))


@pytest.mark.parametrize("options", [(), ("--quantize", "int8"), ("--quantize", "int4")])
def test_chat_answers_each_line(standins: None, options: tuple[str, ...]) -> None:
    first = talk("Hello\nAnd you?\n", "--seed", "3", *options)
    # Weights drawn at random say nothing that can be read, but always the same.
    assert first.stdout and first.stdout == talk("Hello\nAnd you?\n", "--seed", "3", *options).stdout
    assert first.stdout != talk("Hello\nAnd you?\n", "--seed", "4", *options).stdout
    assert first.stdout != talk("Hello\nAnd you?\n", "--seed", "3", "--system", "Be brief.", *options).stdout
    assert "do not rely on" in first.stderr and "loading" in first.stderr


def test_chat_says_what_it_cannot_do(standins: None, tmp_path: Path) -> None:
    for arguments, message in {
        ("--temperature", "-1"): "temperature -1.0 is out of range",
        ("--top-p", "0"): "top_p 0.0 is out of range",
        ("--repetition-penalty", "0"): "repetition_penalty 0.0 is out of range",
        ("--seed", "-1"): "seed -1 must be at least 0",
        ("--new-tokens", "0"): "new_tokens 0 at least 1",
        ("--quantize", "int3"): "'int3'",
        ("--model", "all-minilm-l6-v2"): "no chat template",
        ("--model", str(tmp_path / "nothing")): "nothing",
    }.items():
        refused_talk = talk("Hello\n", *arguments, status=2)
        assert "allyouneed: " in refused_talk.stderr and message in refused_talk.stderr
        assert refused_talk.stdout == ""


def test_chat_without_a_line_leaves(standins: None) -> None:
    assert talk("").stdout == ""


# serve


def test_serve_says_what_it_cannot_do(standins: None, tmp_path: Path) -> None:
    for arguments, message in {
        ("smollm2-135m-instruct", "--quantize", "int3"): "'int3'",
        ("smollm2-135m-instruct", "--port", "65536"): "port 65536 is out of range",
        ("smollm2-135m-instruct", "--max-num-sequences", "0"): "max_num_sequences 0 is out of range",
        ("smollm2-135m-instruct", "--speculate", "magic"): "speculate is 'magic'",
        ("smollm2-135m-instruct", "--cors", "localhost:3000"): "cors 'localhost:3000' is no origin",
        ("smollm2-135m-instruct", "--finish-seconds", "0"): "finish_seconds 0.0 is out of range",
        ("smollm2-135m-instruct", "--quantize", "int8", "--max-num-sequences", "31"): "it must be at most 30",
        ("all-minilm-l6-v2",): "must be a decoder",
        (str(tmp_path / "nothing"),): "nothing",
    }.items():
        # What is said before is that the model is loaded.
        *_, last = call("serve", *arguments, status=2).stderr.strip().splitlines()
        assert last.startswith("allyouneed: ") and message in last


def test_doctor_says_what_is_here(tmp_path: Path) -> None:
    said = call("doctor").stdout
    for words in ("python", "torch", "cores", "threads", "gpu", "cache", "runs", "rooms"):
        assert re.search(rf"^{words}\b", said, re.MULTILINE)
    assert str(tmp_path / "cache") in said
    assert str(tmp_path / "runs") in said
    assert "of 51" in said


def test_without_a_command_there_is_help() -> None:
    shown = CliRunner().invoke(cli.app, []).output
    for command in ("list", "show", "run", "report", "fetch", "chat", "doctor"):
        assert command in shown


def test_the_module_is_the_command() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "allyouneed.cli", "show", "no such paper"],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"COLUMNS": "40"},
    )
    assert ended.returncode == 2
    assert ended.stderr == 'allyouneed: unknown paper "no such paper" (`allyouneed list` shows all)\n'
