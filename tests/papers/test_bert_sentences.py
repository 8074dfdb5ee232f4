"""Sentence encoders as they are published; the reference implementation is sentence-transformers."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from allyouneed.hub import CheckpointFormatError, UnsupportedError, WeightsError
from allyouneed.papers.bert import Bert, SentenceEmbedder

STANDIN = Path(__file__).parents[1] / "standins" / "all-minilm-l6-v2"
TEXTS = ("In the beginning God created the heaven and the earth.", "", "Short.", "And the earth was without form. " * 9)
WIDTH = 32


def published(folder: Path, *layers: nn.Module, modes: Any = "mean", **options: Any) -> Any:
    """Save a small encoder with these layers as sentence-transformers does, and give it."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    pooling = Pooling(WIDTH, modes, options.pop("include_prompt", True))
    transformer = Transformer(str(STANDIN), max_seq_length=options.pop("longest", 256))
    model = SentenceTransformer(modules=[transformer, pooling, *layers], device="cpu", **options)
    model.save(str(folder))
    return model


def expected(model: Any, **options: Any) -> torch.Tensor:
    return torch.from_numpy(model.encode(list(TEXTS), batch_size=3, show_progress_bar=False, **options))


def change(folder: Path, file: str, **values: Any) -> None:
    path = folder / file
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content | values))


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-5)


MODES = ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken", ("lasttoken", "mean", "max")]
LEGACY = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}


@pytest.mark.parametrize("modes", MODES, ids=str)
def test_every_pooling_in_both_layouts(modes: Any, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    model = published(tmp_path, modes=modes)
    close(SentenceEmbedder.from_pretrained(tmp_path).embed(TEXTS), expected(model))
    # As versions before 5 wrote it; their order of several was the library's own.
    asked = [modes] if isinstance(modes, str) else modes
    switches = {key: mode in asked for mode, key in LEGACY.items()}
    (tmp_path / "1_Pooling" / "config.json").unlink()
    change(tmp_path, "1_Pooling/config.json", word_embedding_dimension=WIDTH, **switches)
    theirs = expected(SentenceTransformer(str(tmp_path), device="cpu"))
    close(SentenceEmbedder.from_pretrained(tmp_path).embed(TEXTS, batch=2), theirs)


@pytest.mark.parametrize(
    ("widths", "options"),
    [
        ((24,), {}),
        ((24, 12), {"activation_function": nn.Identity(), "bias": False}),
        ((WIDTH,), {"activation_function": nn.GELU(), "use_residual": True}),
        ((20,), {"activation_function": nn.ReLU(), "use_residual": True}),
        ((20,), {"activation_function": nn.SiLU()}),
        ((20,), {"activation_function": nn.Sigmoid()}),
    ],
    ids=str,
)
def test_dense_layers_and_normalisation(widths: tuple[int, ...], options: dict[str, Any], tmp_path: Path) -> None:
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize

    torch.manual_seed(0)
    sizes = (WIDTH, *widths)
    layers = [Dense(*pair, **options) for pair in zip(sizes, widths, strict=False)]
    model = published(tmp_path, *layers, Normalize())
    ours = SentenceEmbedder.from_pretrained(tmp_path).embed(TEXTS)
    close(ours, expected(model))
    close(ours.norm(dim=1), torch.ones(len(TEXTS)))


def test_vectors_are_scaled_only_where_the_folder_says_so(tmp_path: Path) -> None:
    model = published(tmp_path)
    ours = SentenceEmbedder.from_pretrained(tmp_path)
    close(ours.embed(TEXTS), expected(model))
    assert (ours.embed(TEXTS).norm(dim=1) - 1).abs().min() > 0.1


def test_modules_stand_in_the_order_of_the_list(tmp_path: Path) -> None:
    theirs = published(tmp_path, modes="cls")
    modules = json.loads((tmp_path / "modules.json").read_text())
    for module in modules:
        del module["idx"]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    close(SentenceEmbedder.from_pretrained(tmp_path).embed(TEXTS), expected(theirs))


def test_the_published_asset_s_layout(tmp_path: Path) -> None:
    """Its configuration of pooling lies beside the weights, and `1_Pooling` is no folder."""
    shutil.copytree(STANDIN, tmp_path, dirs_exist_ok=True)
    embedder = SentenceEmbedder.from_pretrained(tmp_path)
    assert embedder.pooling.modes == ("mean",) and embedder.longest == 256
    close(embedder.embed(TEXTS).norm(dim=1), torch.ones(len(TEXTS)))
    change(tmp_path, "pooling_config.json", pooling_mode_mean_tokens=False, pooling_mode_cls_token=True)
    assert SentenceEmbedder.from_pretrained(tmp_path).pooling.modes == ("cls",)


def test_the_longest_sentence_wherever_it_stands(tmp_path: Path) -> None:
    model = published(tmp_path, longest=9)
    assert not (tmp_path / "vocab.txt").exists()
    embedder = SentenceEmbedder.from_pretrained(tmp_path)
    assert embedder.longest == 9
    close(embedder.embed(TEXTS), expected(model))
    (tmp_path / "sentence_bert_config.json").unlink()
    assert SentenceEmbedder.from_pretrained(tmp_path).longest == 9
    change(tmp_path, "sentence_bert_config.json", max_seq_length=7)
    assert SentenceEmbedder.from_pretrained(tmp_path).longest == 7
    change(tmp_path, "sentence_bert_config.json", max_seq_length=None)
    change(tmp_path, "tokenizer_config.json", model_max_length=10**30)
    assert SentenceEmbedder.from_pretrained(tmp_path).longest == 512


def test_an_encoder_in_a_folder_of_its_own(tmp_path: Path) -> None:
    model = published(tmp_path)
    inner = tmp_path / "0_Transformer"
    inner.mkdir()
    for path in [path for path in tmp_path.iterdir() if path.is_file()]:
        if path.name not in ("modules.json", "config_sentence_transformers.json", "README.md"):
            shutil.move(path, inner / path.name)
    modules = json.loads((tmp_path / "modules.json").read_text())
    (tmp_path / "modules.json").write_text(json.dumps([{**modules[0], "path": "0_Transformer"}, *modules[1:]]))
    close(SentenceEmbedder.from_pretrained(tmp_path).embed(TEXTS), expected(model))


def test_a_plain_encoder_is_pooled_as_the_library_pools_it(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copy(STANDIN / name, tmp_path)
    theirs = SentenceTransformer(str(tmp_path), device="cpu")
    embedder = SentenceEmbedder.from_pretrained(tmp_path)
    assert embedder.longest == theirs.max_seq_length
    close(embedder.embed(TEXTS), expected(theirs))


@pytest.mark.parametrize("include_prompt", [True, False])
def test_prompts(include_prompt: bool, tmp_path: Path) -> None:
    prompts = {"query": "the earth and: ", "document": "heaven "}
    for modes in ("mean", "cls", "weightedmean"):
        model = published(
            tmp_path, modes=modes, include_prompt=include_prompt, prompts=prompts, default_prompt_name="query"
        )
        embedder = SentenceEmbedder.from_pretrained(tmp_path)
        assert embedder.prompts == prompts
        # Nothing but a prompt, which is left out, has no vector in either.
        chosen = [text for text in TEXTS if text]
        for options in ({}, {"prompt_name": "document"}):
            theirs = torch.from_numpy(model.encode(chosen, show_progress_bar=False, **options))
            close(embedder.embed(chosen, **options), theirs)
    with pytest.raises(ValueError, match="there is no prompt 'passage': there are 'document', 'query'"):
        embedder.embed(TEXTS, prompt_name="passage")


Change = Callable[[Path], None]


def to(file: str, **values: Any) -> Change:
    return lambda folder: change(folder, file, **values)


def module(place: int, kind: str) -> Change:
    def write(folder: Path) -> None:
        path = folder / "modules.json"
        listed = json.loads(path.read_text())
        listed[place]["type"] = f"sentence_transformers.models.{kind}"
        path.write_text(json.dumps(listed))

    return write


def only(*kinds: str) -> Change:
    listed = [{"idx": place, "name": "", "path": f"{place}_", "type": kind} for place, kind in enumerate(kinds)]
    listed[0]["path"] = ""
    return lambda folder: (folder / "modules.json").write_text(json.dumps(listed)) and None


def unsaid(folder: Path) -> None:
    (folder / "1_Pooling" / "config.json").unlink()


def pickled(folder: Path) -> None:
    (folder / "2_Dense" / "model.safetensors").rename(folder / "2_Dense" / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("altered", "error", "said"),
    [
        (module(2, "LayerNorm"), UnsupportedError, r"modules\.json: module 2 is a LayerNorm; a Transformer, then"),
        (module(2, "Pooling"), UnsupportedError, r"modules\.json: module 2 is a Pooling"),
        (module(0, "WordEmbeddings"), UnsupportedError, r"the first must be a Transformer"),
        (only("Transformer"), UnsupportedError, r"modules\.json lists no Pooling"),
        (only("Transformer", "Dropout"), UnsupportedError, r"modules\.json lists no Pooling"),
        (unsaid, FileNotFoundError, "lacks 1_Pooling/config.json, which says how"),
        (to("1_Pooling/config.json", pooling_mode="median"), UnsupportedError, "pooling_mode: modes are .'median'"),
        (to("1_Pooling/config.json", embedding_dimension=7), UnsupportedError, "embedding_dimension is 7; only 32"),
        (to("1_Pooling/config.json", other=True), UnsupportedError, "other is True, which is not supported"),
        (to("2_Dense/config.json", activation_function="my.Own"), UnsupportedError, "activation_function is 'my.Own'"),
        (to("2_Dense/config.json", module_input_name="token_embeddings"), UnsupportedError, "module_input_name is"),
        (to("2_Dense/config.json", out_features=21), WeightsError, "2_Dense/config.json asks for"),
        (pickled, UnsupportedError, "2_Dense has its weights in pytorch_model.bin, which is never read"),
        (to("sentence_bert_config.json", max_seq_length="long"), UnsupportedError, "max_seq_length is 'long'"),
        (to("sentence_bert_config.json", transformer_task="fill-mask"), UnsupportedError, "transformer_task is 'fill"),
        (to("sentence_bert_config.json", model_args={"a": 1}), UnsupportedError, "model_args is {'a': 1}, which"),
        (to("config_sentence_transformers.json", truncate_dim=8), UnsupportedError, "truncate_dim is 8, which is not"),
        (to("config_sentence_transformers.json", model_type="CrossEncoder"), UnsupportedError, "is 'CrossEncoder'"),
        (to("config_sentence_transformers.json", default_prompt_name="x"), UnsupportedError, "default_prompt_name is"),
        (lambda folder: (folder / "modules.json").write_text("{}"), CheckpointFormatError, "holds a dict, not a list"),
    ],
)
def test_what_is_not_built_is_refused_by_name(altered: Change, error: Any, said: str, tmp_path: Path) -> None:
    from sentence_transformers.sentence_transformer.modules import Dense

    published(tmp_path, Dense(WIDTH, 20))
    SentenceEmbedder.from_pretrained(tmp_path)
    altered(tmp_path)
    with pytest.raises(error, match=said):
        SentenceEmbedder.from_pretrained(tmp_path)


def test_lowering_letters_is_the_tokenizers_affair(tmp_path: Path) -> None:
    published(tmp_path)
    change(tmp_path, "sentence_bert_config.json", do_lower_case=True)
    SentenceEmbedder.from_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text())
    content["normalizer"]["lowercase"] = False
    path.write_text(json.dumps(content))
    with pytest.raises(UnsupportedError, match="do_lower_case is True beside a tokenizer that tells A from a"):
        SentenceEmbedder.from_pretrained(tmp_path)


def test_from_the_hub_all_of_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the client's own filter lets through is enough to embed with."""
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects
    from sentence_transformers.sentence_transformer.modules import Dense

    source, cache = tmp_path / "source", tmp_path / "cache"
    model = published(source, Dense(WIDTH, 20))
    (source / "pytorch_model.bin").write_bytes(b"pickle")

    def download(repository: str, *, allow_patterns: list[str], local_files_only: bool) -> str:
        files = [str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()]
        for name in filter_repo_objects(files, allow_patterns=allow_patterns):
            (cache / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / name, cache / name)
        return str(cache)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setenv("ALLYOUNEED_OFFLINE", "0")
    close(SentenceEmbedder.from_pretrained("owner/name").embed(TEXTS), expected(model))
    assert not list(cache.rglob("*.bin"))


def test_the_encoder_alone_is_read_from_such_a_folder(tmp_path: Path) -> None:
    published(tmp_path)
    assert Bert.from_pretrained(tmp_path).config.width == WIDTH
