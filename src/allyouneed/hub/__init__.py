"""Checkpoint formats, in and out: folders in the usual layout (`config.json` and safetensors), and GGUF files.

Knows no model: a room that owns an architecture derives it from `Pretrained` and says how its weights are named. No
pickle is ever read, and no file is believed: every count and length is checked against what is there.

Every key of a configuration that changes numbers is read, or refused by name with what would be accepted; a class that
is given another architecture's checkpoint says whose it is. Weights that a wrapper renamed (data parallelism,
`torch.compile`) are found, and a model saved without its output layer is read where that is the table of embeddings.
Where a table is padded beyond the tokenizer's vocabulary, the padding is never sampled (`Pretrained.decodable`).
"""

from .architecture import READERS, architecture_of, warn_of_head
from .config import PROBLEM_TYPES, canonical, label_entries, read_key_value_heads, read_labels, refuse_unless, required
from .errors import CheckpointFormatError, UnsupportedError, WeightsError
from .folder import SafetensorsFolder
from .names import Name, same, stacked, transposed
from .opening import model_path, open_model
from .pretrained import Pretrained
from .quantizing import Quantization
from .reading import read_json
from .rotary import RotaryParameters, read_rotary
from .scaling import rotary_scaling, scaling_entry
from .stored import QuantizedBlocks, StoredModel
from .writing import write_model

__all__ = [
    "PROBLEM_TYPES",
    "READERS",
    "CheckpointFormatError",
    "Name",
    "Pretrained",
    "Quantization",
    "QuantizedBlocks",
    "RotaryParameters",
    "SafetensorsFolder",
    "StoredModel",
    "UnsupportedError",
    "WeightsError",
    "architecture_of",
    "canonical",
    "label_entries",
    "model_path",
    "open_model",
    "read_json",
    "read_key_value_heads",
    "read_labels",
    "read_rotary",
    "refuse_unless",
    "required",
    "rotary_scaling",
    "same",
    "scaling_entry",
    "stacked",
    "transposed",
    "warn_of_head",
    "write_model",
]
