"""Memory and time of loading: `python benchmarks/loading.py`.

Each load runs in a fresh process. Its peak is the largest resident memory that the system saw, less what the process
held before (imports, and a small load that brings in what a first load brings in); it is compared with the bytes of all
tensors that the model has in the end. Linux only: it asks the system through `/proc`.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

_CHILD = """
import json, sys, time
import torch
import allyouneed
from allyouneed.hub import open_model

path, dtype, quantize = sys.argv[1:4]
options = {"dtype": getattr(torch, dtype) if dtype else None, "quantize": quantize or None}
torch.set_num_threads(1)
allyouneed.load(sys.argv[4], **options)

def memory(kind):
    for line in open("/proc/self/status"):
        if line.startswith(kind):
            return int(line.split()[1]) * 1024

# Sets the largest resident memory back to the present one.
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
before = memory("VmRSS")
start = time.perf_counter()
model, tokenizer = allyouneed.load(path, **options)
seconds = time.perf_counter() - start
peak = memory("VmHWM")
# What it holds in the end, the copies that kernels read included; each once.
tensors = (value for module in model.modules() for part in ("_parameters", "_buffers", "__dict__")
           for value in getattr(module, part).values() if isinstance(value, torch.Tensor))
weights = sum({value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in tensors}.values())
print(json.dumps({"weights": weights, "peak": peak - before, "after": memory("VmRSS") - before, "seconds": seconds}))
"""


def measure(path: Path | str, warm: Path | str, *, dtype: str = "", quantize: str = "") -> dict[str, float]:
    """Load a model in a fresh process.

    Args:
        path: what to load.
        warm: a small model of the same kind, loaded before.
        dtype: of the weights; as stored where empty.
        quantize: `int8`, `int4`, or empty.

    Returns:
        `weights`, `peak` and `after` in bytes (of the process's resident memory, above what it was before), `seconds`.
    """
    command = [sys.executable, "-c", _CHILD, str(path), dtype, quantize, str(warm)]
    finished = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(finished.stdout.splitlines()[-1])


def main() -> None:
    """Load SmolLM2 from GGUF and from safetensors in 32 and 16 bits, and print a table."""
    import torch

    import allyouneed
    from allyouneed.data import fetch

    standin = Path(__file__).parents[1] / "tests" / "standins" / "smollm2-135m-instruct"
    name = "smollm2-135m-instruct"
    fetch(name)
    print(f"{'load':<34} {'weights':>9} {'peak':>9} {'ratio':>6} {'seconds':>8}")
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("float32", "bfloat16"):
            model, tokenizer = allyouneed.load(name, dtype=getattr(torch, kind))
            model.save_pretrained(Path(folder) / kind, tokenizer)
            del model
        cases = [
            ("GGUF to float32", name, "", ""),
            ("GGUF to bfloat16", name, "bfloat16", ""),
            ("GGUF, int8", name, "", "int8"),
            ("GGUF, int4", name, "", "int4"),
            ("safetensors float32", f"{folder}/float32", "", ""),
            ("safetensors float32 to bfloat16", f"{folder}/float32", "bfloat16", ""),
            ("safetensors bfloat16", f"{folder}/bfloat16", "", ""),
            ("safetensors bfloat16 to float32", f"{folder}/bfloat16", "float32", ""),
        ]
        for label, path, dtype, quantize in cases:
            found = measure(path, standin, dtype=dtype, quantize=quantize)
            ratio = found["peak"] / found["weights"]
            print(
                f"{label:<34} {found['weights'] / 1e6:>6.0f} MB {found['peak'] / 1e6:>6.0f} MB {ratio:>6.2f} "
                f"{found['seconds']:>8.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
