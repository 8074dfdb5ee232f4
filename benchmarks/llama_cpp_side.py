"""The side of llama.cpp in `generation.py`: a process that continues prompts, and says how long each step took.

It runs in a Python that has `llama-cpp-python`, which need not be the one that has this library. Requests are lines of
JSON on the standard input, `{"prompts": [[token, ...], ...], "new_tokens": N}`; answers are lines with the seconds from
the beginning to each step's tokens, all greedy, and the tokens of the first prompt. All prompts of a request are
sequences of one batch, decoded together by `llama_decode`.

    python benchmarks/llama_cpp_side.py FILE.gguf THREADS SEQUENCES TOKENS_OF_A_SEQUENCE
"""

import ctypes
import json
import sys
import time
from typing import Any

import llama_cpp as llama  # pyright: ignore[reportMissingImports]
import numpy as np


class Side:
    """A model and a context for some sequences."""

    def __init__(self, path: str, threads: int, sequences: int, room: int):
        llama.llama_backend_init()
        quiet = llama.llama_log_callback(lambda level, text, data: None)
        llama.llama_log_set(quiet, ctypes.c_void_p(0))
        self._quiet = quiet
        self._model = llama.llama_model_load_from_file(path.encode(), llama.llama_model_default_params())
        settings = llama.llama_context_default_params()
        settings.n_ctx = sequences * room
        settings.n_batch = settings.n_ubatch = 512
        settings.n_seq_max = sequences
        settings.n_threads = settings.n_threads_batch = threads
        self._context = llama.llama_init_from_model(self._model, settings)
        if not self._context:
            raise RuntimeError(f"llama.cpp has made no context for {sequences} sequences of {room} tokens")
        self._batch = llama.llama_batch_init(512, 0, 1)
        self._vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self._model))

    def run(self, prompts: list[list[int]], new_tokens: int) -> dict[str, Any]:
        """Continue prompts of equal length, of at most 512 tokens each."""
        llama.llama_memory_clear(llama.llama_get_memory(self._context), True)
        length = len(prompts[0])
        seconds, first = [], []
        began = time.perf_counter()
        latest = [
            self._decode([(row, place, token, place == length - 1) for place, token in enumerate(prompt)])[0]
            for row, prompt in enumerate(prompts)
        ]
        for step in range(new_tokens):
            if step:
                latest = self._decode([(row, length + step - 1, token, True) for row, token in enumerate(latest)])
            seconds.append(time.perf_counter() - began)
            first.append(latest[0])
        return {"seconds": seconds, "tokens": first}

    def _decode(self, tokens: list[tuple[int, int, int, bool]]) -> list[int]:
        """Decode tokens, each with its sequence, position, id and whether what follows is wanted; give these."""
        batch = self._batch
        batch.n_tokens = len(tokens)
        for place, (row, position, token, wanted) in enumerate(tokens):
            batch.token[place], batch.pos[place], batch.n_seq_id[place] = token, position, 1
            batch.seq_id[place][0], batch.logits[place] = row, wanted
        if status := llama.llama_decode(self._context, batch):
            raise RuntimeError(f"llama_decode has failed with {status}")
        return [
            int(np.ctypeslib.as_array(llama.llama_get_logits_ith(self._context, place), (self._vocabulary,)).argmax())
            for place, (_, _, _, wanted) in enumerate(tokens)
            if wanted
        ]


def main() -> None:
    """Answer requests until there are none."""
    path, threads, sequences, room = sys.argv[1:]
    side = Side(path, int(threads), int(sequences), int(room))
    print(json.dumps({"ready": llama.__version__}), flush=True)
    for line in sys.stdin:
        print(json.dumps(side.run(**json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
