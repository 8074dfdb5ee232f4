"""A decoder's layers for a token at a time, in one call of compiled code.

Where a model continues a text it computes a token at a time, and hundreds of small operations, each called from Python,
take about as long as reading the weights. `compile_decoder` writes the layers down as a list of instructions for
`decode.cpp` once, and from then on each step is one call. Prompts and all that the instructions do not know
go the usual way. With weights in 32 bits results are the same but for rounding there.
"""

import ctypes
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .attention import AttentionPattern
from .cache import KeyValueCache
from .compiler import CompilerError, compiled
from .decoder import Decoder
from .inference import arrange_for_inference
from .instructions import Step, buffers, run
from .layer_cache import LayerCache
from .positions import Rotation
from .program import Program, UnknownPartError, Writer
from .quantized import QuantizedLinear


@dataclass(frozen=True)
class Compilation:
    """What came of compiling.

    Attributes:
        seconds: what the compiler took; 0 where its work was kept from before.
        reason: why the model goes the usual way; None where its steps are compiled.
    """

    seconds: float = 0.0
    reason: str | None = None

    def __str__(self) -> str:
        if self.reason is not None:
            return f"not compiled, and computed as usual: {self.reason}"
        return f"compiled in {self.seconds:.1f} s, and kept" if self.seconds else "compiled: kept from before"


def compile_decoder(model: Any) -> Compilation:
    """Let a model compute single tokens by compiled code, in place, and say what came of it.

    What is compiled is the layers of decoders whose blocks are of this library's attention, feed-forward layers and
    norms, with weights in 32, 8 or 4 bits on a CPU. Any other model is left as it is, and so are all where there is no
    C++ compiler. Weights in few bits are copied into the layout that the compiled code reads, in place of the copy that
    torch's kernel has read until then, and nothing is rounded to bfloat16 any more: results are those of the
    dequantised weights in 32 bits, which torch's kernel gives only roughly.

    Hooks on parts of the model do not see what the compiled code computes.
    """
    if not isinstance(model, Decoder):
        return Compilation(reason=f"a {type(model).__name__} is no decoder")
    if model.compiled is not None and model.compiled.is_current():
        return Compilation()
    try:
        arrange_for_inference(model)
        writer = Writer(model)
        built = compiled()
        for module in model.modules():
            if isinstance(module, QuantizedLinear):
                module.use_tiles()
        model.compiled = CompiledBlocks(model, writer.program())
    except (CompilerError, UnknownPartError) as error:
        return Compilation(reason=str(error))
    return Compilation(built.seconds)


class CompiledBlocks:
    """The blocks of a decoder as compiled code; made by `compile_decoder`.

    Args:
        decoder: whose they are.
        program: what was written of them.
    """

    def __init__(self, decoder: Decoder, program: Program):
        self._decoder, self._program = decoder, program

    def __deepcopy__(self, memo: object) -> None:
        # Its instructions are those of other weights.
        return None

    def is_current(self) -> bool:
        """Tell whether all weights lie where they lay: a model that was moved or converted must be compiled anew."""
        for module, name, address in self._program.sources:
            weight = module._parameters[name]
            if weight is None or weight.data_ptr() != address:
                return False
        return True

    def takes(self, hidden: Float[Tensor, "batch length width"], cache: KeyValueCache | None) -> bool:
        """Tell whether a step can be computed here: one token of each sequence, in 32 bits, without gradients."""
        return (
            cache is not None
            and hidden.shape[1] == 1
            and self._is_usual(hidden)
            and all(type(layer) is LayerCache for layer in cache.layers)
            and len({layer.room for layer in cache.layers}) == 1
            and self.is_current()
        )

    def step(
        self, hidden: Float[Tensor, "batch 1 width"], pattern: AttentionPattern, cache: KeyValueCache
    ) -> Float[Tensor, "batch 1 width"]:
        """Compute the layers for the next token of each sequence, and add its keys and values to the cache."""
        batch, heads, width = len(hidden), self._program.key_value_heads, self._program.head_width
        like = hidden.new_empty(batch, heads, 1, width)
        stored = [layer.extend(like) for layer in cache.layers]
        total, room = len(cache), stored[0][0].shape[2]
        step = Step(head_stride=room * width, block_size=room, most_blocks=1)
        blocks = torch.arange(batch) * (heads * room * width)
        counts = torch.full((batch,), total)
        mask = None if pattern.mask is None else _scores(pattern.mask)
        if mask is not None:
            step.mask = mask.data_ptr()
            step.mask_token_stride, step.mask_head_stride = (
                stride if size > 1 else 0 for size, stride in zip(mask.shape[:2], mask.stride()[:2], strict=True)
            )
        keys, values = ([pair[place].data_ptr() for pair in stored] for place in range(2))
        return self._run(hidden[:, 0], step, pattern.rotation, keys, values, blocks, counts)[:, None]

    def takes_paged(self, store: Float[Tensor, "layers 2 key_value_heads slots head_width"]) -> bool:
        """Tell whether `paged` may be called, with this store."""
        return self._is_usual(store) and self.is_current()

    def paged(
        self,
        hidden: Float[Tensor, "tokens width"],
        rotation: Rotation | None,
        store: Float[Tensor, "layers 2 key_value_heads slots head_width"],
        blocks: Int[Tensor, "tokens blocks"],
        counts: Int[Tensor, " tokens"],
        block_size: int,
    ) -> Float[Tensor, "tokens width"]:
        """Compute the layers for tokens of many sequences, whose keys and values lie in blocks.

        Args:
            hidden: the tokens; those of one sequence in order.
            rotation: of their positions.
            store: takes in their keys and values.
            blocks: the numbers of each token's blocks, its own last; what follows is not read.
            counts: how many tokens each looks at, itself included; it is the last of them.
            block_size: tokens of a block.
        """
        width = store.shape[-1]
        step = Step(head_stride=store.stride(2), block_size=block_size, most_blocks=blocks.shape[1])
        keys, values = ([layer[place].data_ptr() for layer in store] for place in range(2))
        return self._run(hidden, step, rotation, keys, values, blocks * (block_size * width), counts)

    def _is_usual(self, hidden: Tensor) -> bool:
        return (
            hidden.dtype == torch.float32
            and hidden.is_cpu
            and not self._decoder.training
            and not torch.is_grad_enabled()
            and not torch.is_autocast_enabled("cpu")
        )

    def _run(
        self,
        hidden: Tensor,
        step: Step,
        rotation: Rotation | None,
        keys: list[int],
        values: list[int],
        blocks: Tensor,
        counts: Tensor,
    ) -> Tensor:
        tokens, widths = len(hidden), self._program.widths
        # Not kept from step to step, so that several threads may compute at once.
        hidden = hidden.clone(memory_format=torch.contiguous_format)
        kept = [hidden, *(hidden.new_empty(tokens, width) for width in widths[1:])]
        described = buffers(kept)
        pointers = ctypes.c_void_p * len(keys)
        step.tokens, step.buffers = tokens, described
        step.keys, step.values = pointers(*keys), pointers(*values)
        blocks, counts = blocks.contiguous(), counts.contiguous()
        step.blocks, step.counts = blocks.data_ptr(), counts.data_ptr()
        if rotation is not None:
            cosine, sine = (part.flatten(0, -2).float().contiguous() for part in (rotation.cos, rotation.sin))
            step.cosine, step.sine = cosine.data_ptr(), sine.data_ptr()
            step.rotated, step.rotation_stride = cosine.shape[1], cosine.shape[1] * (len(cosine) > 1)
        run(self._program.instructions, step)
        return hidden


def _scores(mask: Tensor) -> Tensor:
    """Make a mask what is added to the scores."""
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape).masked_fill_(~mask, -torch.inf)
    return mask.float().contiguous()
