"""Time a training step of our models against their peers, both sides in turn in one process.

Same size, same weights, same batch, same optimiser, one thread, in 32 bits and under bf16 autocast, each as a user gets
it. A line shows that both sides start from the same loss.

- GPT-2 of our room and transformers' GPT2LMHeadModel: ours with the loss that holds no matrix of logits, theirs with
  the loss on whole logits.
- LLaMA of our room and transformers' LlamaForCausalLM, with half as many key-value heads as query heads: ours with the
  same loss, theirs with the loss on whole logits.
- GPT of our room and transformers' OpenAIGPTLMHeadModel, with the same losses.
- BERT of our room and transformers' BertForMaskedLM, on rows of which 15 % of the tokens are to be restored.
- The Transformer of our room and torch.nn.Transformer, between the same embeddings and output projection, on sources
  and targets of different lengths with padding: ours with that loss, theirs with the loss on whole logits.
- T5 of our room and transformers' T5ForConditionalGeneration, on such sources and targets and with the same losses.
- RWKV of our room and transformers' RwkvForCausalLM, which writes its recurrence as a loop where no GPU is.
- Mixtral of our room and transformers' MixtralForCausalLM, with 2 of 8 experts a token, without the loss on the router.
- The Vision Transformer of our room and transformers' ViTForImageClassification, on images of 64 × 64.

    python benchmarks/training.py [--steps N]
"""

import argparse
import copy
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    BertForMaskedLM,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    MixtralForCausalLM,
    OpenAIGPTLMHeadModel,
    RwkvForCausalLM,
    T5ForConditionalGeneration,
    ViTForImageClassification,
)

from allyouneed.hub import Pretrained
from allyouneed.nn import EncoderDecoder
from allyouneed.papers.bert import IGNORED, Bert, BertConfig, MaskedLanguageModel, masked_loss
from allyouneed.papers.gpt1 import GPT1, GPT1Config
from allyouneed.papers.gpt2 import GPT2, GPT2Config
from allyouneed.papers.llama1 import Llama, LlamaConfig, swiglu_hidden
from allyouneed.papers.moe_explained import Mixtral, MixtralConfig
from allyouneed.papers.rwkv import Rwkv, RwkvConfig
from allyouneed.papers.t5 import T5, T5Config
from allyouneed.papers.transformer import transformer, translation_loss
from allyouneed.papers.vit import ImageClassifier, Vit, VitConfig
from allyouneed.training import LanguageModel, next_token_loss

WIDTH, LAYERS, HEADS, LENGTH, BATCH, VOCABULARY = 256, 6, 8, 128, 32, 4096
# Of the encoder–decoder: layers of each stack, tokens of the longest sentence, sentences, and the token that pads.
STACK, SENTENCE, SENTENCES, PADDING = 3, 32, 64, 0


def our_decoder() -> GPT2:
    """Make our GPT-2, without dropout."""
    return GPT2(
        GPT2Config(
            vocabulary=VOCABULARY,
            positions=LENGTH,
            width=WIDTH,
            layers=LAYERS,
            heads=HEADS,
            embedding_dropout=0.0,
            attention_dropout=0.0,
            residual_dropout=0.0,
        )
    )


def read_by(kind: Any, ours: Pretrained, **options: Any) -> Any:
    """Let a class of transformers read a model of ours from its file, whatever its parts are called in memory."""
    with tempfile.TemporaryDirectory() as folder:
        ours.save_pretrained(folder)
        theirs = kind.from_pretrained(folder, dtype=torch.float32, **options)
        for parameter in theirs.parameters():
            # Off the file, which goes with the folder.
            parameter.data = parameter.data.clone()
    return theirs.train()


def steps(loss: Callable[[], Tensor], model: nn.Module, bf16: bool) -> Callable[[], float]:
    """Give a function that takes one optimiser step and returns the seconds it took."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> float:
        began = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            value = loss()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        return time.perf_counter() - began

    return step


class TorchTransformer(nn.Module):
    """`torch.nn.Transformer` between the embeddings, positions and output projection of ours, with its weights."""

    def __init__(self, ours: EncoderDecoder):
        super().__init__()
        self.source: Any = ours.encoder
        self.target: Any = ours.decoder
        self.stacks = nn.Transformer(WIDTH, HEADS, STACK, STACK, 4 * WIDTH, dropout=0.0, batch_first=True)
        # Its norms after the stacks are not in the paper.
        self.stacks.encoder.norm = self.stacks.decoder.norm = None
        weights = {}
        for stack, names in (("encoder", ["self_attn"]), ("decoder", ["self_attn", "multihead_attn"])):
            for index, block in enumerate(getattr(ours, stack).blocks):
                for number, name in enumerate(names, start=1):
                    wrapper = block.attention if name == "self_attn" else block.cross_attention
                    joint = [wrapper.sublayer.query, wrapper.sublayer.key, wrapper.sublayer.value]
                    for kind in ("weight", "bias"):
                        prefix = f"{stack}.layers.{index}"
                        weights[f"{prefix}.{name}.in_proj_{kind}"] = torch.cat([getattr(part, kind) for part in joint])
                        weights[f"{prefix}.{name}.out_proj.{kind}"] = getattr(wrapper.sublayer.output, kind)
                        weights[f"{prefix}.norm{number}.{kind}"] = getattr(wrapper.norm, kind)
                for name, part in {
                    f"norm{len(names) + 1}": block.feed_forward.norm,
                    "linear1": block.feed_forward.sublayer.inner,
                    "linear2": block.feed_forward.sublayer.output,
                }.items():
                    for kind in ("weight", "bias"):
                        weights[f"{stack}.layers.{index}.{name}.{kind}"] = getattr(part, kind)
        self.stacks.load_state_dict(weights)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Give the logits of the token that follows each target token."""
        embedded = []
        for stack, tokens in ((self.source, source), (self.target, target)):
            places = torch.arange(tokens.shape[1])[None]
            embedded.append(stack.positions.embed(stack.embedding(tokens) * math.sqrt(WIDTH), places))
        missing = source == PADDING
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        hidden = self.stacks(
            *embedded, tgt_mask=mask, src_key_padding_mask=missing, memory_key_padding_mask=missing, tgt_is_causal=True
        )
        return hidden @ self.source.embedding.weight.T


def compare(
    ours: nn.Module,
    theirs: nn.Module,
    our_loss: Callable[[], Tensor],
    their_loss: Callable[[], Tensor],
    peer: str,
    count: int,
) -> None:
    """Time both and print the medians and the median of the ratios pair by pair."""
    print(f"loss: ours {our_loss().item():.6f}, {peer} {their_loss().item():.6f}")
    for bf16 in (False, True):
        our_step, their_step = steps(our_loss, ours, bf16), steps(their_loss, theirs, bf16)
        pairs = [(our_step(), their_step()) for _ in range(count + 2)][2:]
        our_time, their_time = (statistics.median(side) for side in zip(*pairs, strict=True))
        ratios = sorted(theirs / ours for ours, theirs in pairs)
        print(
            f"{'bf16' if bf16 else 'fp32'}: ours {our_time:.3f} s, {peer} {their_time:.3f} s a step, "
            f"ratio {statistics.median(ratios):.2f} (of {count} pairs: {ratios[0]:.2f} to {ratios[-1]:.2f})"
        )


def compare_decoders(count: int) -> None:
    """Compare with transformers' GPT-2."""
    torch.manual_seed(0)
    ours = our_decoder()
    theirs = read_by(GPT2LMHeadModel, ours)
    window = torch.randint(VOCABULARY, (BATCH, LENGTH + 1))
    print(f"decoder of width {WIDTH}, {LAYERS} layers, length {LENGTH}, batch {BATCH}, vocabulary {VOCABULARY}")
    compare(ours, theirs, *language_losses(ours, theirs, window), "transformers", count)


def compare_llamas(count: int) -> None:
    """Compare with transformers' LLaMA."""
    torch.manual_seed(0)
    ours = Llama(
        LlamaConfig(VOCABULARY, WIDTH, LAYERS, HEADS, swiglu_hidden(WIDTH, 64), key_value_heads=HEADS // 2, tied=True)
    )
    theirs = read_by(LlamaForCausalLM, ours)
    window = torch.randint(VOCABULARY, (BATCH, LENGTH + 1))
    print(f"LLaMA of width {WIDTH}, {LAYERS} layers, length {LENGTH}, batch {BATCH}, vocabulary {VOCABULARY}")
    compare(ours, theirs, *language_losses(ours, theirs, window), "transformers", count)


def compare_first_gpts(count: int) -> None:
    """Compare with transformers' GPT."""
    torch.manual_seed(0)
    sizes = GPT1Config(
        VOCABULARY, LENGTH, WIDTH, LAYERS, HEADS, embedding_dropout=0.0, attention_dropout=0.0, residual_dropout=0.0
    )
    ours = GPT1(sizes)
    theirs = read_by(OpenAIGPTLMHeadModel, ours)
    window = torch.randint(VOCABULARY, (BATCH, LENGTH + 1))
    print(f"GPT of width {WIDTH}, {LAYERS} layers, length {LENGTH}, batch {BATCH}, vocabulary {VOCABULARY}")
    compare(ours, theirs, *language_losses(ours, theirs, window), "transformers", count)


def compare_masked_models(count: int) -> None:
    """Compare with transformers' BERT."""
    torch.manual_seed(0)
    sizes = BertConfig(VOCABULARY, WIDTH, LAYERS, HEADS, 4 * WIDTH, LENGTH, dropout=0.0, attention_dropout=0.0)
    ours = MaskedLanguageModel(Bert(sizes))
    theirs = read_by(BertForMaskedLM, ours)
    tokens = torch.randint(1, VOCABULARY, (BATCH, LENGTH))
    segments = torch.zeros_like(tokens)
    targets = torch.where(torch.rand(tokens.shape) < 0.15, tokens, IGNORED)

    def our_loss() -> Tensor:
        total, number = masked_loss(ours, (tokens, segments, targets))
        return total / number

    def their_loss() -> Tensor:
        return theirs(tokens, token_type_ids=segments, labels=targets).loss

    print(f"masked model of width {WIDTH}, {LAYERS} layers, length {LENGTH}, batch {BATCH}, vocabulary {VOCABULARY}")
    compare(ours, theirs, our_loss, their_loss, "transformers", count)


def language_losses(
    ours: LanguageModel, theirs: nn.Module, window: Tensor
) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """Give the loss of the next token as each side computes it."""
    tokens, targets = window[:, :-1], window[:, 1:]

    def our_loss() -> Tensor:
        total, number = next_token_loss(ours, window)
        return total / number

    def their_loss() -> Tensor:
        logits = theirs(tokens).logits
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    return our_loss, their_loss


def sentences() -> tuple[Tensor, Tensor]:
    """Draw sources and targets of different lengths, padded."""
    lengths = torch.randint(SENTENCE // 2, SENTENCE + 1, (2, SENTENCES, 1))
    lengths[:, 0] = SENTENCE
    tokens = torch.randint(1, VOCABULARY, (2, SENTENCES, SENTENCE))
    source, target = torch.where(torch.arange(SENTENCE) < lengths, tokens, PADDING)
    return source, target


def compare_encoder_decoders(count: int) -> None:
    """Compare with torch's Transformer."""
    torch.manual_seed(0)
    ours = transformer(VOCABULARY, width=WIDTH, layers=STACK, heads=HEADS, dropout=0.0)
    theirs = TorchTransformer(ours)
    # A copy of the tables, so that the two sides do not train each other's.
    theirs.source, theirs.target = copy.deepcopy((ours.encoder, ours.decoder))
    source, target = sentences()

    def our_loss() -> Tensor:
        total, number = translation_loss(ours, (source, target), padding=PADDING)
        return total / number

    def their_loss() -> Tensor:
        logits = theirs(source, target[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1), target[:, 1:].flatten(), ignore_index=PADDING)

    print(
        f"encoder–decoder of width {WIDTH}, {STACK} + {STACK} layers, sentences of up to {SENTENCE}, "
        f"batch {SENTENCES}, vocabulary {VOCABULARY}"
    )
    compare(ours, theirs, our_loss, their_loss, "torch", count)


def compare_text_to_text(count: int) -> None:
    """Compare with transformers' T5."""
    torch.manual_seed(0)
    ours = T5(
        T5Config(
            vocabulary=VOCABULARY,
            width=WIDTH,
            head_width=WIDTH // HEADS,
            hidden=4 * WIDTH,
            layers=STACK,
            heads=HEADS,
            dropout=0.0,
            padding=PADDING,
        )
    )
    theirs = read_by(T5ForConditionalGeneration, ours)
    source, target = sentences()
    # Every target begins with the token that also pads.
    target[:, 0] = PADDING
    present = source != PADDING

    def our_loss() -> Tensor:
        total, number = translation_loss(ours, (source, target), padding=PADDING)
        return total / number

    def their_loss() -> Tensor:
        logits = theirs(input_ids=source, attention_mask=present, decoder_input_ids=target[:, :-1]).logits
        return F.cross_entropy(logits.flatten(0, 1), target[:, 1:].flatten(), ignore_index=PADDING)

    print(
        f"T5 of width {WIDTH}, {STACK} + {STACK} layers, sentences of up to {SENTENCE}, batch {SENTENCES}, "
        f"vocabulary {VOCABULARY}"
    )
    compare(ours, theirs, our_loss, their_loss, "transformers", count)


def compare_recurrent_decoders(count: int) -> None:
    """Compare with transformers' RWKV."""
    torch.manual_seed(0)
    ours = Rwkv(RwkvConfig(VOCABULARY, WIDTH, LAYERS, context=LENGTH))
    # Without a cache, which its loop would fill.
    theirs = read_by(RwkvForCausalLM, ours, use_cache=False)
    window = torch.randint(VOCABULARY, (BATCH, LENGTH + 1))
    print(f"RWKV of width {WIDTH}, {LAYERS} layers, length {LENGTH}, batch {BATCH}, vocabulary {VOCABULARY}")
    compare(ours, theirs, *language_losses(ours, theirs, window), "transformers", count)


def compare_mixtures(count: int) -> None:
    """Compare with transformers' Mixtral."""
    torch.manual_seed(0)
    ours = Mixtral(
        MixtralConfig(VOCABULARY, WIDTH, LAYERS, HEADS, 2 * WIDTH, key_value_heads=HEADS // 2, context=LENGTH)
    )
    theirs = read_by(MixtralForCausalLM, ours)
    window = torch.randint(VOCABULARY, (BATCH, LENGTH + 1))
    print(f"Mixtral of width {WIDTH}, {LAYERS} layers, length {LENGTH}, batch {BATCH}, vocabulary {VOCABULARY}")
    compare(ours, theirs, *language_losses(ours, theirs, window), "transformers", count)


def compare_image_classifiers(count: int) -> None:
    """Compare with transformers' Vision Transformer."""
    torch.manual_seed(0)
    labels = [str(label) for label in range(10)]
    sizes = VitConfig(image=64, patch=8, width=WIDTH, layers=LAYERS, heads=HEADS, hidden=4 * WIDTH)
    ours = ImageClassifier(Vit(sizes, pooler=False), labels)
    theirs = read_by(ViTForImageClassification, ours)
    images, targets = torch.randn(BATCH, sizes.channels, 64, 64), torch.randint(len(labels), (BATCH,))
    print(f"ViT of width {WIDTH}, {LAYERS} layers, {(64 // 8) ** 2} patches, batch {BATCH}")
    compare(
        ours,
        theirs,
        lambda: F.cross_entropy(ours(images), targets),
        lambda: F.cross_entropy(theirs(images).logits, targets),
        "transformers",
        count,
    )


def main() -> None:
    """Time all comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=15, help="counted pairs of steps, after two that are not")
    count = parser.parse_args().steps
    torch.set_num_threads(1)
    print("one thread; ratios above 1 say that ours is faster")
    compare_decoders(count)
    compare_llamas(count)
    compare_first_gpts(count)
    compare_masked_models(count)
    compare_encoder_decoders(count)
    compare_text_to_text(count)
    compare_recurrent_decoders(count)
    compare_mixtures(count)
    compare_image_classifiers(count)


if __name__ == "__main__":
    main()
