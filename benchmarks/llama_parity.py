"""Hold our LLaMA and Qwen2 to transformers' on real checkpoints: logits, and greedy texts of 64 tokens.

Both sides have the weights of the same GGUF file: ours through `allyouneed.hub`, theirs through the reader of GGUF that
transformers has of its own. The tests compare fewer tokens.

    python benchmarks/llama_parity.py [--model NAME] [--prompts N] [--tokens N]
"""

import argparse
import time
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from allyouneed.data import fetch
from allyouneed.hub import open_model
from allyouneed.papers.readers import load_opened
from allyouneed.text import Sampling, generate

ASSET = "smollm2-135m-instruct"
PROMPTS = (
    "The capital of France is",
    "Water boils at a temperature of",
    "Once upon a time there was",
    "def fibonacci(n):",
    "The three laws of motion were",
    "In 1969, the first man",
    "To make an omelette, first",
    "La capitale de l'Italie est",
    "2 + 2 =",
    "The opposite of hot is",
    "Dear Sir or Madam,",
    "Photosynthesis is the process by which",
    "The largest planet in the solar system",
    "It was the best of times,",
    "A triangle has three",
    "import numpy as np\n",
    "My favourite colour is",
    "The Great Wall of China",
    "Ingredients: flour, sugar,",
    "Shakespeare wrote",
)


def reference(file: str) -> Any:
    """Load the file as transformers does, by its own reader; its `from_pretrained` would want one more package."""
    config: Any = load_gguf_checkpoint(file)["config"]
    numbers = {key: value for key, value in config.items() if key != "model_type"}
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(config["model_type"], **numbers))
    weights = load_gguf_checkpoint(file, return_tensors=True, model_to_load=model)["tensors"]
    weights.setdefault("lm_head.weight", weights["model.embed_tokens.weight"])
    model.load_state_dict(weights)
    return model.float().eval()


def main() -> None:
    """Compare, print what was found, and exit with an error where the two differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=64, help="written after each prompt")
    parser.add_argument("--model", default=ASSET, help="an asset that is one GGUF file")
    parser.add_argument("--prompts", type=int, default=len(PROMPTS), help="how many prompts to compare")
    options = parser.parse_args()
    count = options.tokens
    torch.set_num_threads(1)
    (file,) = fetch(options.model).glob("*.gguf")
    began = time.perf_counter()
    stored = open_model(options.model)
    loaded: Any = load_opened(stored)
    ours, tokenizer = loaded
    print(f"ours loaded in {time.perf_counter() - began:.1f} s")
    began = time.perf_counter()
    theirs = reference(str(file))
    print(f"theirs loaded in {time.perf_counter() - began:.1f} s")
    prompts = [tokenizer.encode(prompt) for prompt in PROMPTS[: options.prompts]]

    given = torch.tensor([[token for prompt in prompts for token in prompt]])
    with torch.no_grad():
        expected = theirs(given).logits
        error = float((ours(given) - expected).abs().max() / expected.abs().max())
    print(f"logits of {given.shape[1]} tokens: relative error {error:.1e}")

    # To the end that is asked for, whatever the model thinks of it.
    greedy = GenerationConfig(do_sample=False, max_new_tokens=count, pad_token_id=0)
    theirs.generation_config.eos_token_id = None
    equal = 0
    batched = generate(ours, prompts, new_tokens=count, sampling=Sampling.greedy())
    for prompt, together in zip(prompts, batched, strict=True):
        (alone,) = generate(ours, [prompt], new_tokens=count, sampling=Sampling.greedy())
        answer = theirs.generate(torch.tensor([prompt]), generation_config=greedy)[0, len(prompt) :].tolist()
        equal += alone == together == answer
        if not alone == together == answer:
            print(f"{tokenizer.decode(prompt)!r}\n  ours, alone: {tokenizer.decode(alone)!r}")
            print(f"  ours, batched: {tokenizer.decode(together)!r}\n  theirs: {tokenizer.decode(answer)!r}")
    print(f"greedy texts of {count} tokens: {equal} of {len(prompts)} equal")
    if error >= 1e-5 or equal < len(prompts):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
