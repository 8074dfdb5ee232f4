"""A model in several processes, each with a core of its own and a part of the prompts."""

import contextlib
import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import wait
from typing import Any

import torch

from .requests import BatchModel, Completion, CompletionRequest, ScoreRequest, Scores

Load = Callable[[], BatchModel]
"""Loads a model; a function of a module, or a `functools.partial` of one, since it is called in another process."""


class WorkerBatch:
    """Deals prompts out to processes, each of which loads the model and computes with one thread.

    Answers are those of one process. Each process has weights and cache of its own. Where a program is a script, what
    makes one stands under `if __name__ == "__main__":`, as for all processes that are spawned. A process that ends
    leaves its prompts failed; `close` ends all.

    Args:
        load: makes the model, in each process.
        workers: processes; no more than there are cores.

    Raises:
        ValueError: fewer than one worker.
        Exception: what loading fails of.
    """

    def __init__(self, load: Load, workers: int):
        if workers < 1:
            raise ValueError(f"workers {workers} is out of range: it must be at least 1")
        spawn = multiprocessing.get_context("spawn")
        self._identity: Mapping[str, Any] | None = None
        self._pipes: list[Any] = []
        self._processes = []
        for _ in range(workers):
            ours, theirs = spawn.Pipe()
            process = spawn.Process(target=_serve, args=(load, theirs), daemon=True)
            process.start()
            # Held here too, a pipe would not tell that its process has ended.
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        try:
            for pipe in self._pipes:
                if isinstance(said := _received(pipe), Exception):
                    raise said
        except BaseException:
            self.close()
            raise

    @property
    def identity(self) -> Mapping[str, Any]:
        """The identity of the model that the processes have loaded."""
        if self._identity is None:
            self._pipes[0].send(("identity", ()))
            said = _received(self._pipes[0])
            if isinstance(said, Exception):
                raise said
            self._identity = dict(said)
        return self._identity

    def complete(
        self, requests: Sequence[CompletionRequest], on_result: Callable[[int, Completion | Exception], object]
    ) -> None:
        """Complete prompts in all processes."""
        self._deal("complete", requests, on_result)

    def score(self, requests: Sequence[ScoreRequest], on_result: Callable[[int, Scores | Exception], object]) -> None:
        """Score continuations in all processes."""
        self._deal("score", requests, on_result)

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join()
        for pipe in self._pipes:
            pipe.close()

    def _deal(self, what: str, requests: Sequence[Any], on_result: Callable[[int, Any], object]) -> None:
        count = len(self._pipes)
        left = {pipe: set(range(start, len(requests), count)) for start, pipe in enumerate(self._pipes)}
        for start, pipe in enumerate(self._pipes):
            with contextlib.suppress(OSError):
                pipe.send((what, requests[start::count]))
        whole = False
        try:
            while open_ := [pipe for pipe, places in left.items() if places]:
                for pipe in wait(open_):
                    said = _received(pipe)
                    if isinstance(said, Exception):
                        failed, left[pipe] = left[pipe], set()
                        for place in sorted(failed):
                            on_result(place, said)
                    else:
                        place = said[0] * count + self._pipes.index(pipe)
                        left[pipe].discard(place)
                        on_result(place, said[1])
            whole = True
        finally:
            if not whole:
                # What is still on its way would be taken for the next call's.
                self.close()


def _serve(load: Load, pipe: Any) -> None:
    """Load a model, and answer whatever comes, until the other end is closed."""
    torch.set_num_threads(1)
    with contextlib.suppress(EOFError, KeyboardInterrupt, BrokenPipeError):
        try:
            model = load()
        except Exception as error:
            pipe.send(error)
            return
        pipe.send(None)
        while True:
            what, requests = pipe.recv()
            try:
                if what == "identity":
                    pipe.send(model.identity)
                else:
                    getattr(model, what)(requests, lambda place, result: pipe.send((place, result)))
            except (EOFError, BrokenPipeError):
                return
            except Exception as error:
                pipe.send(error)


def _received(pipe: Any) -> Any:
    """Give what a process says, or an error where it has ended."""
    try:
        return pipe.recv()
    except (EOFError, OSError):
        return RuntimeError("a process that computes the model has ended by itself: it may have lacked memory")
