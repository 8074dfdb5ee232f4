"""What makes a model loadable: a mixin that reads published weights into it and writes them back."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_args

import torch
from torch import nn

from allyouneed.nn import arrange_for_inference
from allyouneed.text import GenerationConfig, Tokenizer

from .architecture import check_architecture
from .building import bounded_by
from .filling import check_copies, check_filled, fill, plan
from .names import Name
from .opening import open_model
from .quantizing import Quantization, fill_quantized
from .stored import StoredModel
from .token_ids import generation_entries
from .wrappers import unwrapped
from .writing import SHARD_BYTES, write_model

# Not `Self`, which type checkers at run time do not take outside a class that they decorate.
_Model = TypeVar("_Model", bound="Pretrained")


class Pretrained(nn.Module):
    """Loading and saving in the usual layout; derive a model from it first: `class Llama(Pretrained, Decoder)`.

    The model says how it is configured and how its weights are named outside. It is built on torch's meta device and
    filled tensor by tensor, so that it must not compute with values, nor hold buffers, when it is constructed.

    Attributes:
        model_types: the values of `config.json`'s `model_type` that it reads; where it says none, the architecture must
            be one of these.
        architectures: the values of `config.json`'s `architectures` that it reads, the first being what it writes.
        ignored: regular expressions of stored names that carry nothing to load, such as causal masks; each must match
            a whole name.
        decodable: the tokens, from 0, that its tokenizer knows, where those are fewer than it has embeddings for, which
            are often padded; the others are never sampled. None where nothing is known, as without a tokenizer.
        prefix: of the names of all but the output layer; they are accepted with and without it, as `transformer.` in
            GPT-2's checkpoints.
        generation: which tokens begin, end and pad texts; a new model states none, and they can be set.
        chat_template: the Jinja source by which conversations become prompts; None where there is none.
    """

    model_types: ClassVar[tuple[str, ...]] = ()
    architectures: ClassVar[tuple[str, ...]]
    ignored: ClassVar[tuple[str, ...]] = ()
    prefix: ClassVar[str] = ""
    decodable: int | None = None

    generation: GenerationConfig = GenerationConfig()
    chat_template: str | None = None

    @classmethod
    def from_config(cls: type[_Model], config: Mapping[str, Any]) -> _Model:
        """Build the model that a `config.json` describes, with new weights.

        Raises:
            UnsupportedError: a value that is not supported, named.
        """
        raise NotImplementedError

    @classmethod
    def for_stored(cls: type[_Model], stored: StoredModel) -> _Model:
        """Build the model that an opened checkpoint holds; one with parts that may be left out overrides this."""
        return cls.from_config(stored.config)

    def to_config(self) -> dict[str, Any]:
        """Give the `config.json` that describes this model."""
        raise NotImplementedError

    def weight_names(self) -> Sequence[Name]:
        """Name every parameter once, and the stored tensor that holds it."""
        raise NotImplementedError

    def copies(self) -> Mapping[str, str]:
        """Give stored names that may be there as copies of another, which they must equal: tied output weights."""
        return {}

    @classmethod
    def from_pretrained(
        cls: type[_Model],
        name_or_folder: str | Path,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        quantize: Quantization | None = None,
    ) -> _Model:
        """Load published weights; the model comes in evaluation mode.

        Args:
            name_or_folder: an asset's name, a folder, a GGUF file, or a hub repository.
            dtype: of the weights; the narrowest that holds them as they are stored where None.
            device: where to put them; the CPU where None.
            quantize: run the linear layers in 8 bits, or in the checkpoint's own 4-bit groups.

        Raises:
            CheckpointFormatError: a damaged file.
            UnsupportedError: an architecture, configuration or type that is not supported, named.
            WeightsError: weights that are missing, left over, or of other shapes, named.
            ValueError: no model's name, a type that weights cannot have, or a device that is not here.
        """
        return cls.from_stored(open_model(name_or_folder), dtype=dtype, device=device, quantize=quantize)

    @classmethod
    def from_stored(
        cls: type[_Model],
        stored: StoredModel,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        quantize: Quantization | None = None,
    ) -> _Model:
        """Load from an opened checkpoint; as `from_pretrained`."""
        if quantize is not None and quantize not in get_args(Quantization):
            raise ValueError(f"quantize is {quantize!r}; it must be {' or '.join(map(repr, get_args(Quantization)))}")
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise ValueError(f"dtype is {dtype!r}; weights must be of a floating-point type, such as torch.bfloat16")
        check_architecture(stored, cls, Pretrained)
        device = _checked_device(device)
        with bounded_by(stored):
            model = cls.for_stored(stored)
        names, copies = model.weight_names(), model.copies()
        weights = unwrapped(stored, [*(name.theirs for name in names), *copies], cls.prefix)
        fillings = plan(model, weights, names, ignored=cls.ignored, copies=copies, prefix=cls.prefix)
        check_copies(weights, copies, cls.prefix)
        dtype = dtype or weights.common_dtype()
        if quantize is None:
            fill(model, weights, fillings, dtype=dtype, device=device)
            arrange_for_inference(model)
        else:
            fill_quantized(model, weights, fillings, kind=quantize, dtype=dtype)
            model.to(device)
        check_filled(model)
        model.generation, model.chat_template = stored.generation, stored.chat_template
        return model.eval()

    @classmethod
    def read_tokenizer(cls, stored: StoredModel) -> Tokenizer:
        """Make the tokenizer of an opened checkpoint; a model whose room has its own kind overrides this.

        Raises:
            FileNotFoundError: the checkpoint has none.
            ValueError: it is damaged, or of a kind that is not supported.
        """
        return stored.tokenizer()

    def save_pretrained(
        self,
        folder: str | Path,
        tokenizer: Tokenizer | None = None,
        *,
        chat_template: str | None = None,
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        """Write config and weights in the usual layout, which `from_pretrained` and `transformers` read.

        The tokens of `generation` go with them, and the chat template.

        What is there is replaced at once at the end; files of other names stay.

        Args:
            folder: made where it is missing.
            tokenizer: saved beside the weights where one is given.
            chat_template: in place of the model's own.
            shard_bytes: the most that one file of weights holds, but for a tensor that is larger alone.

        Raises:
            ValueError: the model was quantised, so that its weights are no longer there to be written.
            OSError: the folder cannot be written; what was there is untouched.
        """
        names = self.weight_names()
        parameters = dict(self.named_parameters(remove_duplicate=False))
        gone = [ours for name in names for ours in name.ours if ours not in parameters]
        if gone:
            raise ValueError(
                f"{', '.join(gone[:3])} and others are not there in full, since the model was quantised: "
                "save the model as it was loaded without `quantize`"
            )
        types = {str(parameters[ours].dtype).removeprefix("torch.") for name in names for ours in name.ours}
        config = {**self.to_config(), **self.generation.token_ids()}
        if "vocab_size" in config:
            # Said outright, since for what is absent transformers takes a default of its class.
            config = {"bos_token_id": None, "eos_token_id": None, **config}
        if len(types) == 1:
            config = {**config, "torch_dtype": types.pop()}
        joined = ((name.theirs, name.join([parameters[ours].detach() for ours in name.ours])) for name in names)
        write_model(
            folder,
            config,
            joined,
            tokenizer=tokenizer,
            chat_template=self.chat_template if chat_template is None else chat_template,
            generation={**self.generation.other, **generation_entries(config)},
            shard_bytes=shard_bytes,
        )


def _checked_device(device: torch.device | str | None) -> torch.device:
    """Give the device, the CPU where None.

    Raises:
        ValueError: torch does not know it, or cannot use it here; or it holds no numbers.
    """
    try:
        found = torch.device(device or "cpu")
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device is {device!r}; it must be one that torch knows, such as 'cpu' or 'cuda'") from error
    if found.type == "meta":
        raise ValueError("device is 'meta', which holds no weights; it must be one such as 'cpu' or 'cuda'")
    try:
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError, ImportError) as error:
        raise ValueError(f"device is {device!r}, which torch cannot use here: {str(error).splitlines()[0]}") from error
    return found
