"""Checkpoints: nothing that was trained is lost, and nothing that is not a checkpoint is taken for one."""

import contextlib
import errno
import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from allyouneed.nn import Attention, Block, Decoder, FeedForward, PreNorm, SinusoidalPositions
from allyouneed.training import (
    Checkpoint,
    CheckpointError,
    Cosine,
    Loss,
    TrainingConfig,
    TrainingResult,
    checkpoint,
    next_token_loss,
    train,
)


def decoder(width: int = 16, seed: int = 0) -> Decoder:
    torch.manual_seed(seed)
    block = Block(
        PreNorm(Attention(width, 4, dropout=0.2), nn.LayerNorm(width), dropout=0.2),
        PreNorm(FeedForward(width), nn.LayerNorm(width), dropout=0.2),
    )
    return Decoder(17, width, [block], positions=SinusoidalPositions(width), norm=nn.LayerNorm(width), dropout=0.2)


def drawn(step: int) -> Tensor:
    return torch.randint(17, (4, 9), generator=torch.Generator().manual_seed(step))


def loss(model: Any, batch: Tensor) -> Loss:
    """Draw from every global generator, Gaussians too, of which generators keep the second of a pair."""
    total, targets = next_token_loss(model, batch)
    return Loss(total * (1 + 0.1 * random.gauss(0, 1) + 0.1 * random.random() + 0.1 * np.random.randn()), targets)


def seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


CONFIG = TrainingConfig(9, 1e-2, schedule=Cosine(warmup=2), accumulate=2)


class StoppedError(Exception):
    pass


class TestResume:
    """A training that was interrupted ends in the weights of one that was not, bit for bit."""

    def run(self, path: Path | None, stop: int | None = None, seed: int = 0) -> tuple[Decoder, TrainingResult]:
        model = decoder(seed=seed)
        seed_all(seed)

        def batches(step: int) -> Tensor:
            if step == stop:
                raise StoppedError
            return drawn(step)

        kept = None if path is None else Checkpoint(path, every_seconds=0)
        return model, train(model, batches, loss, CONFIG, checkpoint=kept)

    @pytest.mark.parametrize("stops", [[1], [4], [8], [2, 3, 7]], ids=str)
    def test_equals_an_uninterrupted_training(self, tmp_path: Path, stops: list[int]):
        expected, result = self.run(None)
        for again, stop in enumerate(stops):
            with pytest.raises(StoppedError):
                # Other weights and random states at the start show that none of them survives.
                self.run(tmp_path / "state", stop, seed=again)
        actual, resumed = self.run(tmp_path / "state", seed=99)
        assert_same(actual.state_dict(), expected.state_dict())
        assert torch.equal(resumed.losses, result.losses)
        assert bool((resumed.step_seconds > 0).all())

    def test_a_finished_training_is_not_repeated(self, tmp_path: Path):
        expected, result = self.run(tmp_path / "state")
        actual, again = self.run(tmp_path / "state", stop=0, seed=5)
        assert_same(actual.state_dict(), expected.state_dict())
        assert torch.equal(again.losses, result.losses) and torch.equal(again.step_seconds, result.step_seconds)

    def test_without_random_states_it_would_differ(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        """The comparison above can fail: dropout and the loss's noise do depend on the generators."""
        expected, _ = self.run(None)
        with pytest.raises(StoppedError):
            self.run(tmp_path / "state", 4)
        monkeypatch.setattr(checkpoint, "_restore_random_state", lambda *_: None)
        actual, _ = self.run(tmp_path / "state", seed=99)
        assert not torch.equal(actual.embedding.weight, expected.embedding.weight)

    def test_refuses_the_checkpoint_of_a_longer_training(self, tmp_path: Path):
        self.run(tmp_path / "state")
        with pytest.raises(CheckpointError, match="step 9, beyond the 5"):
            train(decoder(), drawn, loss, TrainingConfig(5, 1e-2), checkpoint=Checkpoint(tmp_path / "state"))


CHILD = """
import os, random, time
import numpy as np
import torch
from torch import nn
from safetensors.torch import save_file
from allyouneed.nn import Attention, Block, Decoder, FeedForward, PreNorm, SinusoidalPositions
from allyouneed.training import Checkpoint, Loss, TrainingConfig, checkpoint, next_token_loss, train

torch.set_num_threads(1)
torch.manual_seed(seed), random.seed(seed), np.random.seed(seed)
block = Block(
    PreNorm(Attention(16, 4, dropout=0.2), nn.LayerNorm(16), dropout=0.2),
    PreNorm(FeedForward(16), nn.LayerNorm(16), dropout=0.2),
)
model = Decoder(17, 16, [block], positions=SinusoidalPositions(16), norm=nn.LayerNorm(16))
saves = 0

def save(tensors, path, metadata):
    global saves
    saves += 1
    save_file(tensors, path, metadata)
    if saves == stop:
        os.truncate(path, path.stat().st_size // 2)
        steps.send("writing")
        time.sleep(600)

def batches(step):
    steps.send(step)
    time.sleep(pause)
    return torch.randint(17, (4, 9), generator=torch.Generator().manual_seed(step))

def loss(model, batch):
    total, targets = next_token_loss(model, batch)
    return Loss(total * (1 + 0.1 * random.gauss(0, 1) + 0.1 * np.random.randn()), targets)

checkpoint.save_file = save
kept = Checkpoint(folder / "state", every_seconds=0)
result = train(model, batches, loss, TrainingConfig(12, 1e-2), checkpoint=kept)
save_file(model.state_dict() | {"losses": result.losses}, folder / "final")
"""


class Child:
    """A training in a new process, which sends each step that it begins. It shares nothing with this one or others."""

    def __init__(self, folder: Path, seed: int, stop: int = 0, pause: float = 0.0):
        folder.mkdir(exist_ok=True)
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["allyouneed.training", "safetensors.torch"])
        self.steps, sent = context.Pipe(duplex=False)
        scope = {"__name__": "child", "folder": folder, "seed": seed, "stop": stop, "pause": pause, "steps": sent}
        self.process = context.Process(target=exec, args=(CHILD, scope), daemon=True)
        self.process.start()
        sent.close()

    def next(self) -> int | str:
        assert self.steps.poll(120), "the child says nothing"
        return self.steps.recv()

    def kill(self) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.join()
        assert self.process.exitcode == -signal.SIGKILL

    def finish(self) -> list[int | str]:
        """Wait for the end; return the steps begun."""
        begun = []
        with contextlib.suppress(EOFError):
            while True:
                begun.append(self.next())
        self.process.join()
        assert self.process.exitcode == 0
        return begun


class TestKilled:
    """A process killed at any moment is continued by a new one, and ends in the weights of one that was not."""

    def test_while_a_checkpoint_is_half_written(self, tmp_path: Path):
        assert Child(tmp_path / "whole", seed=0).finish() == list(range(12))
        killed = Child(tmp_path / "killed", seed=0, stop=6)
        assert [killed.next() for _ in range(7)] == [0, 1, 2, 3, 4, 5, "writing"]
        killed.kill()
        assert sorted(path.name for path in (tmp_path / "killed").iterdir()) == ["state", "state.new"]
        # Five checkpoints were whole, so the sixth step is taken again.
        assert Child(tmp_path / "killed", seed=7).finish() == list(range(5, 12))
        assert_same(load_file(tmp_path / "killed" / "final"), load_file(tmp_path / "whole" / "final"))
        assert sorted(path.name for path in (tmp_path / "killed").iterdir()) == ["final", "state"]

    def test_again_and_again(self, tmp_path: Path):
        Child(tmp_path / "whole", seed=0).finish()
        for seed in range(5):
            # Slow, or on a busy machine a child would come to its end before it is killed.
            child = Child(tmp_path / "killed", seed, pause=0.2)
            # The second step of a process follows a checkpoint, so each gets further than the one before it.
            child.next(), child.next()
            time.sleep(0.05 * seed)
            child.kill()
        begun = Child(tmp_path / "killed", seed=9).finish()
        assert begun and begun[-1] == 11 and begun[0] not in (0, 1, 2, 3, 4)
        assert_same(load_file(tmp_path / "killed" / "final"), load_file(tmp_path / "whole" / "final"))


class State:
    """A model and its optimiser after some steps, to save and to load."""

    def __init__(self, width: int = 6, depth: int = 2, seed: int = 0, steps: int = 2, fused: bool = True):
        torch.manual_seed(seed)
        self.model = nn.Sequential(*(nn.Linear(width, width) for _ in range(depth)))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), fused=fused)
        for _ in range(steps):
            self.step()

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.model(torch.ones(2, self.model[0].in_features)).square().sum().backward()
        self.optimizer.step()

    def save(self, path: Path, **progress: Any) -> None:
        Checkpoint(path).save(self.model, self.optimizer, progress)

    def load(self, path: Path) -> dict[str, Any] | None:
        return Checkpoint(path).load(self.model, self.optimizer)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, State]:
    path, state = tmp_path / "folder" / "state", State()
    state.save(path, step=2)
    return path, state


def assert_restores(path: Path, expected: State) -> None:
    """The file is whole, and the steps after it are those after what was saved."""
    state = State(seed=5)
    assert state.load(path) == {"step": 2}
    assert_same(state.model.state_dict(), expected.model.state_dict())
    state.step()
    expected.step()
    assert_same(state.model.state_dict(), expected.model.state_dict())


class TestSaving:
    def test_restores_what_was_saved(self, saved: tuple[Path, State]):
        assert_restores(*saved)

    def test_there_may_be_none(self, tmp_path: Path):
        assert State().load(tmp_path / "state") is None

    def test_the_folder_is_made_and_nothing_else_is_left_in_it(self, saved: tuple[Path, State]):
        path, state = saved
        state.save(path, step=3)
        assert [file.name for file in path.parent.iterdir()] == ["state"]

    def test_progress_is_plain_values_and_tensors(self, tmp_path: Path):
        progress = {
            "step": 3,
            "name": "x",
            "best": 0.1 + 0.2,
            "list": [1, None],
            "losses": torch.rand(3),
            "no": torch.rand(0),
        }
        state = State()
        state.save(tmp_path / "state", **progress)
        loaded = state.load(tmp_path / "state")
        assert loaded is not None and loaded.keys() == progress.keys()
        for name, value in progress.items():
            assert torch.equal(loaded[name], value) if isinstance(value, Tensor) else loaded[name] == value

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
    def test_types_are_kept(self, tmp_path: Path, dtype: torch.dtype):
        def state() -> State:
            state = State(steps=0)
            state.model.to(dtype)
            return state

        first, second = state(), state()
        for _ in range(2):
            first.optimizer.zero_grad()
            first.model(torch.ones(1, 6, dtype=dtype)).sum().backward()
            first.optimizer.step()
        first.save(tmp_path / "state")
        second.load(tmp_path / "state")
        saved = [first.optimizer.state[p] for p in first.model.parameters()]
        loaded = [second.optimizer.state[p] for p in second.model.parameters()]
        for before, after in zip(saved, loaded, strict=True):
            assert_same(after, before)
            assert {name: value.dtype for name, value in after.items()} == {n: v.dtype for n, v in before.items()}

    def test_tied_weights_survive(self, tmp_path: Path):
        def tied() -> tuple[nn.Module, torch.optim.Optimizer]:
            model = nn.ModuleDict({"embedding": nn.Embedding(5, 4), "head": nn.Linear(4, 5, bias=False)})
            model["head"].weight = model["embedding"].weight
            return model, torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)

        model, optimizer = tied()
        assert len(model.state_dict()) == 2
        Checkpoint(tmp_path / "state").save(model, optimizer, {})
        other, other_optimizer = tied()
        Checkpoint(tmp_path / "state").load(other, other_optimizer)
        assert other["head"].weight is other["embedding"].weight
        assert_same(other.state_dict(), model.state_dict())

    def test_optimizers_with_plain_numbers_in_their_state(self, tmp_path: Path):
        states = []
        for seed in range(2):
            torch.manual_seed(seed)
            model = nn.Linear(3, 3)
            optimizer = torch.optim.NAdam(model.parameters())
            model(torch.ones(1, 3)).sum().backward()
            optimizer.step()
            next(iter(optimizer.state.values()))["plain"] = 0.1 + seed
            states.append((model, optimizer))
        Checkpoint(tmp_path / "state").save(*states[0], {})
        Checkpoint(tmp_path / "state").load(*states[1])
        before, after = (optimizer.state_dict() for _, optimizer in states)
        assert after["state"][0]["plain"] == 0.1 and before["state"].keys() == after["state"].keys()
        assert {k: type(v) for k, v in before["state"][1].items()} == {k: type(v) for k, v in after["state"][1].items()}

    def test_every_random_state_is_restored(self, tmp_path: Path):
        def draw() -> list[float]:
            return [random.gauss(0, 1), random.random(), np.random.randn(), np.random.rand(), float(torch.randn(()))]

        state = State()
        seed_all(3)
        # Half of a pair of Gaussians is drawn: the other half is a part of the state.
        random.gauss(0, 1), np.random.randn()
        state.save(tmp_path / "state")
        expected = [draw() for _ in range(3)]
        seed_all(4)
        assert draw() not in expected
        state.load(tmp_path / "state")
        assert [draw() for _ in range(3)] == expected

    def test_is_due_when_the_time_has_passed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        kept, state = Checkpoint(tmp_path / "state", every_seconds=60.0), State()
        now = time.monotonic()
        monkeypatch.setattr(checkpoint, "time", SimpleNamespace(monotonic=lambda: now))
        assert not kept.due
        now += 60.0
        assert kept.due
        kept.save(state.model, state.optimizer, {})
        assert not kept.due
        now += 59.9
        assert not kept.due
        now += 0.2
        assert kept.due


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        mount = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True, text=True
        )
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if mount.returncode:
        pytest.skip(f"a small disk cannot be mounted: {mount.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


class TestFullDisk:
    def check(self, path: Path, too_large: State, expected: State) -> None:
        files = sorted(path.parent.iterdir())
        with pytest.raises(CheckpointError, match=r"could not write .*MB.*Make room, then run again") as error:
            too_large.save(path, step=3)
        assert "the checkpoint before it is kept" in str(error.value) and str(path) in str(error.value)
        assert sorted(path.parent.iterdir()) == files
        assert_restores(path, expected)

    @pytest.mark.parametrize(
        "error", [OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EIO, "I/O error")]
    )
    def test_simulated(self, saved: tuple[Path, State], monkeypatch: pytest.MonkeyPatch, error: OSError):
        def half(tensors: Any, path: Path, metadata: Any) -> None:
            save_file(tensors, path, metadata)
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
            raise error

        monkeypatch.setattr(checkpoint, "save_file", half)
        self.check(saved[0], State(seed=8), saved[1])

    def test_for_real(self, small_disk: Path):
        state = State()
        state.save(small_disk / "state", step=2)
        self.check(small_disk / "state", State(width=100), state)
        (small_disk / "state").unlink()
        with pytest.raises(CheckpointError, match="there is none before it"):
            State(width=100).save(small_disk / "state", step=2)
        assert not list(small_disk.iterdir())

    def test_training_stops_with_the_error(self, small_disk: Path):
        with pytest.raises(CheckpointError, match="could not write"):
            train(decoder(64), drawn, loss, CONFIG, checkpoint=Checkpoint(small_disk / "state", every_seconds=0))

    @pytest.mark.parametrize("place", ["file/state", "file/folder/state", "folder"])
    def test_a_place_where_no_file_can_be(self, tmp_path: Path, place: str):
        (tmp_path / "file").write_text("in the way")
        (tmp_path / "folder").mkdir()
        with pytest.raises(CheckpointError, match="could not write"):
            State().save(tmp_path / place)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


class Evil:
    """Does harm when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


class TestDamage:
    def refused(self, path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"state is not a readable checkpoint.*Delete it to start anew"):
            State().load(path)

    @pytest.mark.parametrize("kept", [0, 1, 7, 8, 100, 0.5, 0.99, -1])
    def test_truncated(self, saved: tuple[Path, State], kept: float):
        content = saved[0].read_bytes()
        saved[0].write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
        self.refused(saved[0])

    @pytest.mark.parametrize("place", [0, 3, 8, 9])
    def test_corrupted_header(self, saved: tuple[Path, State], place: int):
        content = bytearray(saved[0].read_bytes())
        content[place] ^= 0xFF
        saved[0].write_bytes(content)
        self.refused(saved[0])

    @pytest.mark.parametrize("content", [b"", b"\0" * 4096, b"not a checkpoint at all", bytes(range(256)) * 40])
    def test_garbage(self, saved: tuple[Path, State], content: bytes):
        saved[0].write_bytes(content)
        self.refused(saved[0])

    def test_weights_without_a_state(self, saved: tuple[Path, State]):
        save_file(saved[1].model.state_dict(), saved[0])
        self.refused(saved[0])
        save_file(saved[1].model.state_dict(), saved[0], metadata={"format": "pt"})
        self.refused(saved[0])
        save_file(saved[1].model.state_dict(), saved[0], metadata={"state": "{"})
        self.refused(saved[0])

    def test_a_folder(self, tmp_path: Path):
        (tmp_path / "state").mkdir()
        with pytest.raises(CheckpointError, match="state is a folder: a checkpoint is one file"):
            State().load(tmp_path / "state")

    @pytest.mark.parametrize("kind", ["pickle", "torch", "torch legacy"])
    def test_a_pickle_is_refused_and_never_read(self, tmp_path: Path, kind: str):
        path, harm = tmp_path / "state", tmp_path / "harm"
        if kind == "pickle":
            path.write_bytes(pickle.dumps(Evil(harm)))
        else:
            torch.save({"model": Evil(harm)}, path, _use_new_zipfile_serialization=kind == "torch")
        self.refused(path)
        assert not harm.exists()

    @pytest.mark.parametrize("other", [{"width": 7}, {"depth": 3}, {"depth": 1}], ids=["wider", "deeper", "shallower"])
    def test_another_model(self, saved: tuple[Path, State], other: dict[str, int]):
        state = State(**other)
        before = random.getstate(), torch.get_rng_state()
        with pytest.raises(CheckpointError, match=r"(?s)does not fit this model.*Delete it to start anew"):
            state.load(saved[0])
        assert random.getstate() == before[0] and torch.equal(torch.get_rng_state(), before[1])

    def test_another_optimizer(self, saved: tuple[Path, State]):
        path, state = saved
        groups = [{"params": [p]} for p in state.model.parameters()]
        with pytest.raises(CheckpointError, match="does not fit"):
            Checkpoint(path).load(state.model, torch.optim.AdamW(groups))
