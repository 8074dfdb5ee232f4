"""What the headline's trials leave to look at: held-out verses as they were translated, and where the model looked."""

from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from allyouneed.evidence import Context
from allyouneed.evidence.figures import panels, svg
from allyouneed.nn import EncoderDecoder
from allyouneed.text import Tokenizer, Translator, beam_search

from .transformer import cross_attention_weights
from .translation import BEGIN, END, encoded_pairs, translate

SHOWN = 10
# The verse whose attention is drawn is the first that is short enough to be read in a drawing.
FEWEST_WORDS, MOST_WORDS = 7, 10


def leave_exhibits(
    model: Translator, tokenizer: Tokenizer, held_out: Sequence[tuple[str, str]], context: Context
) -> None:
    """Leave a table of translations and, of a Transformer, a picture of its cross-attention.

    The verses are chosen by their places, evenly over the held-out ones, before anything is translated.

    Args:
        model: trained.
        tokenizer: the one that it was trained with.
        held_out: sources with their human translations.
        context: the trial's.
    """
    count = min(SHOWN, len(held_out))
    shown = [held_out[place * len(held_out) // count] for place in range(count)]
    found = translate(model, tokenizer, [source for source, _ in shown])
    rows = [f"| {source} | {target} | {ours} |" for (source, target), ours in zip(shown, found, strict=True)]
    table = ["| English | Reina-Valera 1909 | as it came out |", "|---|---|---|", *rows]
    context.exhibit("translations.md", "\n".join(table) + "\n")
    if isinstance(model, EncoderDecoder):
        drawn = next((pair for pair in held_out if FEWEST_WORDS <= len(pair[0].split()) <= MOST_WORDS), held_out[0])
        context.exhibit("attention.svg", svg(attention_figure(model, tokenizer, drawn[0])))


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

    figure, drawn = panels(len(layers))
    for number, (axes, layer) in enumerate(zip(drawn, layers, strict=True), start=1):
        axes.grid(False)
        axes.imshow(layer.numpy(), cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto", interpolation="nearest")
        axes.set_xticks(range(len(source)), labels(source), rotation=90, fontsize=8)
        axes.set_yticks(range(target.shape[1]), labels([*hypothesis.tokens, end]), fontsize=8)
        axes.set_title(f"layer {number}", loc="left", fontsize=10)
        axes.set_xlabel("source")
    drawn[0].set_ylabel("translation")
    return figure
