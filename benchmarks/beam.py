"""Time beam search with four beams against greedy search, on the same sources, with the models of the translation room.

The models are not trained, and their end is made unlikely, so that both searches write as many tokens of each target.

    python benchmarks/beam.py [--repeat N]
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from allyouneed.nn import RecurrentEncoderDecoder
from allyouneed.papers.transformer import transformer
from allyouneed.text import Translator, beam_search

VOCABULARY, WIDTH, SENTENCES, BEGIN, END = 3000, 128, 128, 0, 1


def seconds(model: Translator, sources: list[list[int]], beam: int) -> float:
    """Give the time of a search."""
    began = time.perf_counter()
    found = beam_search(model, sources, begin=BEGIN, end=END, beam=beam, further=0)
    assert all(len(hypothesis.tokens) == len(source) for hypothesis, source in zip(found, sources, strict=True))
    return time.perf_counter() - began


def main() -> None:
    """Time both searches in turn, for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5, help="counted pairs, after one that is not")
    count = parser.parse_args().repeat
    torch.set_num_threads(1)
    torch.manual_seed(0)
    models: dict[str, nn.Module] = {
        "transformer": transformer(VOCABULARY, width=WIDTH, layers=3, heads=4),
        "GRU": RecurrentEncoderDecoder(VOCABULARY, VOCABULARY, WIDTH, shared=True),
    }
    lengths = torch.randint(10, 40, (SENTENCES,)).tolist()
    sources = [torch.randint(2, VOCABULARY, (length,)).tolist() for length in lengths]
    print(f"{SENTENCES} sources of 10 to 39 tokens, width {WIDTH}, vocabulary {VOCABULARY}, one thread")
    for name, model in models.items():
        assert isinstance(model, Translator)
        model.next_logits = without_end(model.next_logits)  # pyright: ignore[reportAttributeAccessIssue]
        pairs = [(seconds(model, sources, 4), seconds(model, sources, 1)) for _ in range(count + 1)][1:]
        beam, greedy = (statistics.median(side) for side in zip(*pairs, strict=True))
        ratio = statistics.median(four / one for four, one in pairs)
        print(f"{name}: beam 4 {beam:.2f} s, greedy {greedy:.2f} s, ratio {ratio:.2f} (to be 4.5 or less)")


def without_end(next_logits: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Wrap a model's logits so that the end comes at the limit alone."""

    def wrapped(*arguments: Any) -> Tensor:
        logits = next_logits(*arguments)
        logits[:, END] = -1e4
        return logits

    return wrapped


if __name__ == "__main__":
    main()
