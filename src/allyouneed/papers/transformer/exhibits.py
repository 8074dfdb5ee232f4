"""What a trial leaves to look at: held-out verses as they were translated, and where the model looked."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib.figure import Figure
from torch import Tensor

from allyouneed.evidence import save_figure
from allyouneed.evidence.figures import _STYLE
from allyouneed.nn import EncoderDecoder
from allyouneed.text import Tokenizer, beam_search

from .transformer import cross_attention_weights
from .translation import BEGIN, END, encoded_pairs, translate

SHOWN = 10
# The verse whose attention is drawn is the first that is short enough to be read in a drawing.
FEWEST_WORDS, MOST_WORDS = 7, 10


def leave_exhibits(
    model: EncoderDecoder, tokenizer: Tokenizer, held_out: Sequence[tuple[str, str]], folder: Path
) -> None:
    """Write `translations.md` and `attention.svg`.

    The verses are chosen by their places, evenly over the held-out ones, before anything is translated.

    Args:
        model: trained.
        tokenizer: the one that it was trained with.
        held_out: sources with their human translations.
        folder: where to write.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shown = [held_out[place * len(held_out) // SHOWN] for place in range(min(SHOWN, len(held_out)))]
    found = translate(model, tokenizer, [source for source, _ in shown])
    rows = [f"| {source} | {target} | {ours} |" for (source, target), ours in zip(shown, found, strict=True)]
    table = ["| English | Reina-Valera 1909 | as it came out |", "|---|---|---|", *rows]
    (folder / "translations.md").write_text("\n".join(table) + "\n", encoding="utf-8")
    drawn = next((pair for pair in held_out if FEWEST_WORDS <= len(pair[0].split()) <= MOST_WORDS), held_out[0])
    save_figure(attention_figure(model, tokenizer, drawn[0]), folder / "attention.svg")


def attention_figure(model: EncoderDecoder, tokenizer: Tokenizer, text: str) -> Figure:
    """Draw, for each layer of the decoder, where it looked in a text while it translated it: the mean over the heads.

    Args:
        model: trained.
        tokenizer: the one that it was trained with.
        text: in the source language.
    """
    begin, end = tokenizer.special_tokens[BEGIN], tokenizer.special_tokens[END]
    ((source,), _) = encoded_pairs(tokenizer, [(text, "")])
    (hypothesis,) = beam_search(model, [source], begin=begin, end=end)
    device = model.output_weight.device
    # At the place of a token the model looks around for the next one.
    target = torch.tensor([[begin, *hypothesis.tokens]], device=device)
    weights: Tensor = cross_attention_weights(model, torch.tensor([source], device=device), target)
    layers = weights[:, 0].mean(1).float().cpu()

    def labels(tokens: Sequence[int]) -> list[str]:
        return [tokenizer.decode([token]).strip() or "␣" for token in tokens]

    with mpl.rc_context(_STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(9.0, 4.2), layout="constrained")
        panels = figure.subplots(1, len(layers), sharey=True, squeeze=False)[0]
        for number, (axes, layer) in enumerate(zip(panels, layers, strict=True), start=1):
            axes.imshow(layer.numpy(), cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto", interpolation="nearest")
            axes.set_xticks(range(len(source)), labels(source), rotation=90, fontsize=8)
            axes.set_yticks(range(target.shape[1]), labels([*hypothesis.tokens, end]), fontsize=8)
            axes.set_title(f"layer {number}", loc="left", fontsize=10)
        panels[0].set_ylabel("translation")
        figure.supxlabel("source")
    return figure
