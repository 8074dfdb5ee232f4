"""Folders of sentence encoders, as the versions of sentence-transformers write them: what stands where."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from allyouneed.hub import SafetensorsFolder, UnsupportedError, WeightsError, read_json, refuse_unless, required

from .pooling import MODES, Dense, Normalize, Pooling

MODULES = "modules.json"
_PROMPTS = "config_sentence_transformers.json"
_LENGTH = "sentence_bert_config.json"
_TOKENIZER = "tokenizer_config.json"
_POOLING = "the configuration of pooling"
_LOOSE_POOLING = "pooling_config.json"

_LEGACY_MODES = {f"pooling_mode_{mode}{'' if mode.endswith('tokens') else '_tokens'}": mode for mode in MODES} | {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "lasttoken",
}
_ACTIVATIONS = {
    "torch.nn.modules.activation.Tanh": "tanh",
    "torch.nn.modules.activation.ReLU": "relu",
    "torch.nn.modules.activation.GELU": "gelu",
    "torch.nn.modules.activation.SiLU": "silu",
    "torch.nn.modules.activation.Sigmoid": "sigmoid",
    "torch.nn.modules.linear.Identity": "linear",
}


@dataclass(frozen=True)
class SentenceFolder:
    """What a folder says beside its encoder.

    Attributes:
        encoder: the folder of the encoder's own files.
        pooling: of its tokens' vectors.
        layers: what pooled vectors go through, in order.
        longest: the most tokens of a sentence; None where nothing is said.
        lowercase: whether letters are lowered before a sentence is cut into tokens.
        prompts: what is put before sentences, by name.
        default_prompt: the name of the one that is put there where none is asked for.
    """

    encoder: Path
    pooling: Pooling
    layers: nn.Sequential
    longest: int | None
    lowercase: bool
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None


def read_sentence_folder(folder: Path, width: int | None = None) -> SentenceFolder:
    """Read a folder of sentence-transformers; without its `modules.json` the mean is pooled, and that is all.

    Args:
        folder: as published.
        width: of the tokens' vectors, which pooling must be for; not checked where None.

    Raises:
        FileNotFoundError: the file that says how tokens are pooled is missing.
        UnsupportedError: a module, or a value of one, that is not built here, named; or none that pools.
        CheckpointFormatError: a damaged file.
        WeightsError: a dense layer whose weights are missing or of other shapes.
    """
    modules = _modules(folder)
    encoder = folder / modules[0][1]
    pooling = None if (folder / MODULES).is_file() else Pooling()
    layers: list[nn.Module] = []
    for place, (kind, path) in enumerate(modules[1:], 1):
        inner = folder / path
        if kind == "Pooling" and place == 1:
            pooling = _pooling(_stated_pooling(folder, path), width)
        elif kind == "Dense" and place > 1:
            layers.append(_dense(inner))
        elif kind == "Normalize" and place > 1:
            _check_names(_optional(inner / "config.json") or {}, f"{path}/config.json")
            layers.append(Normalize())
        elif kind != "Dropout":  # It drops nothing but in training.
            raise UnsupportedError(
                f"{MODULES}: module {place} is a {kind}; a Transformer, then a Pooling, then any of Dense and "
                "Normalize are supported here"
            )
    if pooling is None:
        raise UnsupportedError(
            f"{MODULES} lists no Pooling: there is no saying how a sentence's tokens become one vector"
        )
    prompts, default = _prompts(folder)
    longest, lowercase = _length(encoder)
    return SentenceFolder(encoder, pooling, nn.Sequential(*layers), longest, lowercase, prompts, default)


def _optional(path: Path) -> dict[str, Any] | None:
    return read_json(path) if path.is_file() else None


def _stated_pooling(folder: Path, path: str) -> dict[str, Any]:
    """Read how tokens are pooled, which is never taken for granted where a Pooling is listed."""
    stated = _optional(folder / path / "config.json")
    if stated is None:
        stated = _optional(folder / _LOOSE_POOLING)
    if stated is None:
        raise FileNotFoundError(f"{folder} lacks {path}/config.json, which says how its tokens are pooled")
    return stated


def _modules(folder: Path) -> list[tuple[str, str]]:
    """Give the kinds of the modules and their folders, in order."""
    if not (folder / MODULES).is_file():
        return [("Transformer", "")]
    listed = read_json(folder / MODULES, kind=list)
    found = [
        (str(entry.get("type")).rpartition(".")[2], str(entry.get("path", "")))
        for entry in listed
        if isinstance(entry, Mapping)
    ]
    if not found or found[0][0] != "Transformer" or any(".." in Path(path).parts for _, path in found):
        raise UnsupportedError(f"{MODULES} lists {found}; the first must be a Transformer, and all within the folder")
    return found


def _refuse_others(config: Mapping[str, Any], known: Collection[str], name: str) -> None:
    """Refuse keys that are not known and say something."""
    for key, value in config.items():
        if key not in known and value not in (None, False, {}, [], ""):
            raise UnsupportedError(f"{name}: {key} is {value!r}, which is not supported here")


def _pooling(config: Mapping[str, Any], width: int | None) -> Pooling:
    sizes = ("embedding_dimension", "word_embedding_dimension")
    _refuse_others(config, ("pooling_mode", "include_prompt", *sizes, *_LEGACY_MODES), _POOLING)
    for key in sizes:
        if width is not None:
            refuse_unless(config, key, (width, None), file=_POOLING)
    modes = config.get("pooling_mode")
    if modes is None:
        # In the order in which the library puts them side by side.
        asked = {mode for key, mode in _LEGACY_MODES.items() if required(config, key, bool, False, file=_POOLING)}
        modes = [mode for mode in MODES if mode in asked] or ["mean"]
    include_prompt = required(config, "include_prompt", bool, True, file=_POOLING)
    try:
        return Pooling([modes] if isinstance(modes, str) else modes, include_prompt=include_prompt)
    except (ValueError, TypeError) as error:
        raise UnsupportedError(f"{_POOLING}: pooling_mode: {error}") from error


def _dense(folder: Path) -> Dense:
    config = read_json(folder / "config.json")
    name = f"{folder.name}/config.json"
    activation = config.get("activation_function", "torch.nn.modules.activation.Tanh")
    if activation not in _ACTIVATIONS:
        raise UnsupportedError(f"{name}: activation_function is {activation!r}; known are {', '.join(_ACTIVATIONS)}")
    _check_names(config, name)
    known = ("in_features", "out_features", "bias", "activation_function", "use_residual")
    _refuse_others({key: value for key, value in config.items() if not key.startswith("module_")}, known, name)
    layer = Dense(
        required(config, "in_features", int, file=name),
        required(config, "out_features", int, file=name),
        activation=_ACTIVATIONS[activation],
        bias=required(config, "bias", bool, True, file=name),
        residual=required(config, "use_residual", bool, False, file=name),
    )
    stored = SafetensorsFolder(folder)
    wanted = {key: tuple(value.shape) for key, value in layer.state_dict().items()}
    there = {key: stored.shape(key) for key in stored.names()}
    if wanted != there:
        raise WeightsError(f"the weights in {folder} are {there}; {name} asks for {wanted}")
    layer.load_state_dict({key: stored.read(key) for key in wanted})
    return layer


def _check_names(config: Mapping[str, Any], name: str) -> None:
    """Refuse a layer that works on something else than the sentence's vector."""
    for key in ("module_input_name", "module_output_name"):
        if config.get(key) not in (None, "sentence_embedding"):
            raise UnsupportedError(f"{name}: {key} is {config[key]!r}; only 'sentence_embedding' is supported here")


def _prompts(folder: Path) -> tuple[dict[str, str], str | None]:
    config = _optional(folder / _PROMPTS) or {}
    refuse_unless(config, "model_type", ("SentenceTransformer", None), file=_PROMPTS)
    known = ("__version__", "prompts", "default_prompt_name", "similarity_fn_name", "model_type")
    _refuse_others(config, known, _PROMPTS)
    prompts, default = config.get("prompts") or {}, config.get("default_prompt_name")
    if not isinstance(prompts, Mapping) or not all(isinstance(text, str) for text in prompts.values()):
        raise UnsupportedError(f"{_PROMPTS}: prompts is {prompts!r}; it must give texts by their names")
    if default is not None and default not in prompts:
        raise UnsupportedError(f"{_PROMPTS}: default_prompt_name is {default!r}; there are {', '.join(prompts)}")
    return dict(prompts), default


def _length(encoder: Path) -> tuple[int | None, bool]:
    config = _optional(encoder / _LENGTH) or {}
    refuse_unless(config, "transformer_task", ("feature-extraction", None), file=_LENGTH)
    refuse_unless(config, "module_output_name", ("token_embeddings", None), file=_LENGTH)
    text = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}
    refuse_unless(config, "modality_config", (text, None), file=_LENGTH)
    known = ("max_seq_length", "do_lower_case", "transformer_task", "module_output_name", "modality_config")
    _refuse_others(config, known, _LENGTH)
    lowercase = required(config, "do_lower_case", bool, False, file=_LENGTH)
    if config.get("max_seq_length") is not None:
        return required(config, "max_seq_length", int, file=_LENGTH), lowercase
    longest = (_optional(encoder / _TOKENIZER) or {}).get("model_max_length")
    # Where nothing was known, the library wrote 10³⁰.
    return (int(longest) if isinstance(longest, int | float) and 0 < longest < 1e9 else None), lowercase
