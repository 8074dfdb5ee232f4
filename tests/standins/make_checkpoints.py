"""Make the small stand-ins for the published models: `python tests/standins/make_checkpoints.py`.

Random weights and vocabularies learnt from the texts that come with the package, in the formats of the real files: the
same tensor types, metadata and quirks, such as the query and key rows that GGUF interleaves.
"""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from allyouneed.data import addresses, verses

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>"]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def texts() -> Iterator[str]:
    """Give a little of what comes with the package."""
    for english, _ in verses("train")[:2000]:
        yield english
    yield from addresses("train")[:20]


def chat_vocabulary(size: int) -> tuple[list[str], list[str]]:
    """Learn byte pairs as SmolLM2 splits text, and give tokens and merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts(), trainer)
    content = json.loads(tokenizer.to_str())["model"]
    ordered = sorted(content["vocab"], key=content["vocab"].__getitem__)
    return ordered, [" ".join(pair) for pair in content["merges"]]


def interleaved(rows: np.ndarray, heads: int) -> np.ndarray:
    """Put the rows of a query or key projection into GGUF's order."""
    return rows.reshape(heads, 2, -1, rows.shape[-1]).swapaxes(1, 2).reshape(rows.shape)


def write_chat_model(
    path: Path,
    *,
    vocabulary: int = 512,
    width: int = 64,
    hidden: int = 96,
    layers: int = 2,
    heads: int = 4,
    key_value_heads: int = 2,
    context: int = 512,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.Q4_1,
    tied: bool = True,
) -> None:
    """Write a LLaMA with SmolLM2's metadata: linear layers in Q4_1, the embedding in Q8_0, norms in F32."""
    random = np.random.default_rng(0)
    tokens, merges = chat_vocabulary(vocabulary)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("Stand-in")
    writer.add_context_length(context)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(hidden)
    writer.add_head_count(heads)
    writer.add_head_count_kv(key_value_heads)
    writer.add_rope_freq_base(100_000.0)
    writer.add_rope_dimension_count(width // heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_add_bos_token(False)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_token_types([control if token in SPECIAL else normal for token in tokens])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)

    def add(name: str, values: np.ndarray, stored: gguf.GGMLQuantizationType) -> None:
        quantized = gguf.quants.quantize(np.ascontiguousarray(values), stored)
        writer.add_tensor(name, quantized, raw_dtype=stored)

    def weights(*shape: int) -> np.ndarray:
        return random.normal(0, 0.08, shape).astype(np.float32)

    plain = gguf.GGMLQuantizationType.F32
    add("token_embd.weight", weights(len(tokens), width), gguf.GGMLQuantizationType.Q8_0)
    narrow = width // heads * key_value_heads
    for layer in range(layers):
        add(f"blk.{layer}.attn_norm.weight", 1 + weights(width), plain)
        add(f"blk.{layer}.ffn_down.weight", weights(width, hidden), kind)
        add(f"blk.{layer}.ffn_gate.weight", weights(hidden, width), kind)
        add(f"blk.{layer}.ffn_up.weight", weights(hidden, width), kind)
        add(f"blk.{layer}.ffn_norm.weight", 1 + weights(width), plain)
        add(f"blk.{layer}.attn_k.weight", interleaved(weights(narrow, width), key_value_heads), kind)
        add(f"blk.{layer}.attn_output.weight", weights(width, width), kind)
        add(f"blk.{layer}.attn_q.weight", interleaved(weights(width, width), heads), kind)
        add(f"blk.{layer}.attn_v.weight", weights(narrow, width), kind)
    add("output_norm.weight", 1 + weights(width), plain)
    if not tied:
        add("output.weight", weights(len(tokens), width), kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def word_pieces(words: int, endings: int) -> Tokenizer:
    """Make an uncased WordPiece of frequent words, endings and letters, padding and truncating as MiniLM's file does.

    The library's own training breaks ties at random.
    """
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    normalizer, split = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    counts = Counter(word for text in texts() for word, _ in split.pre_tokenize_str(normalizer.normalize_str(text)))
    tails = Counter()
    for word, count in counts.items():
        tails.update({f"##{word[cut:]}": count for cut in range(2, len(word))})
    letters = sorted(set("".join(counts)))
    frequent = [word for word, _ in counts.most_common(words)] + [tail for tail, _ in tails.most_common(endings)]
    pieces = dict.fromkeys([*special, *letters, *(f"##{letter}" for letter in letters), *frequent])
    vocabulary = {piece: place for place, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, split
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    ends = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0", pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1", special_tokens=ends
    )
    tokenizer.enable_truncation(128)
    tokenizer.enable_padding(length=128)
    return tokenizer


def write_encoder(folder: Path, *, width: int = 32, hidden: int = 64, layers: int = 2, limit: int = 512) -> None:
    """Write a BERT with MiniLM's files and names of tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = word_pieces(300, 150)
    vocabulary = tokenizer.get_vocab_size()
    random = torch.Generator().manual_seed(0)

    def weights(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random) * 0.1

    tensors = {"embeddings.position_ids": torch.arange(limit)[None]}
    for name, rows in (("word", vocabulary), ("position", limit), ("token_type", 2)):
        tensors[f"embeddings.{name}_embeddings.weight"] = weights(rows, width)
    norms = ["embeddings.LayerNorm"]
    maps = {"pooler.dense": (width, width)}
    for layer in range(layers):
        place = f"encoder.layer.{layer}"
        maps |= {f"{place}.attention.self.{part}": (width, width) for part in ("query", "key", "value")}
        maps |= {f"{place}.attention.output.dense": (width, width)}
        maps |= {f"{place}.intermediate.dense": (hidden, width), f"{place}.output.dense": (width, hidden)}
        norms += [f"{place}.attention.output.LayerNorm", f"{place}.output.LayerNorm"]
    for name, shape in maps.items():
        tensors |= {f"{name}.weight": weights(*shape), f"{name}.bias": weights(shape[0])}
    for name in norms:
        tensors |= {f"{name}.weight": 1 + weights(width), f"{name}.bias": weights(width)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # The library lets only the owner read it.
    tokenizer.save(str(folder / "tokenizer.json"))
    ordered = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in ordered), encoding="utf-8")
    names = {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]"}
    names["mask_token"] = "[MASK]"
    config = {
        "architectures": ["BertModel"],
        "attention_probs_dropout_prob": 0.1,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": width,
        "initializer_range": 0.02,
        "intermediate_size": hidden,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": limit,
        "model_type": "bert",
        "num_attention_heads": 4,
        "num_hidden_layers": layers,
        "pad_token_id": 0,
        "position_embedding_type": "absolute",
        "type_vocab_size": 2,
        "vocab_size": vocabulary,
    }
    steps = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    kind = "sentence_transformers.models."
    files = {
        "config.json": config,
        "special_tokens_map.json": names,
        "tokenizer_config.json": {"do_lower_case": True, "tokenizer_class": "BertTokenizer", **names},
        "sentence_bert_config.json": {"max_seq_length": 256, "do_lower_case": False},
        "modules.json": [
            {"idx": place, "name": str(place), "path": path, "type": kind + name}
            for place, (path, name) in enumerate(steps)
        ],
        "pooling_config.json": {"word_embedding_dimension": width, "pooling_mode_mean_tokens": True},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    here = Path(__file__).parent
    (here / "smollm2-135m-instruct").mkdir(exist_ok=True)
    write_chat_model(here / "smollm2-135m-instruct" / "SmolLM2-135M-Instruct.Q4_1.gguf")
    write_encoder(here / "all-minilm-l6-v2")
