"""`allyouneed.load` finds the room that reads an architecture, and says what it cannot load."""

import importlib
import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import allyouneed
from allyouneed.hub import Pretrained, UnsupportedError, WeightsError, open_model, write_model
from allyouneed.hub.architecture import IMAGE_READERS, READERS
from allyouneed.text import BytePairTokenizer, ByteTokenizer, ChatTemplate, Sampling, generate, generate_text

STANDINS = Path(__file__).parent / "standins"


@pytest.fixture
def standins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ALLYOUNEED_STANDINS", str(STANDINS))
    monkeypatch.setenv("ALLYOUNEED_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ALLYOUNEED_OFFLINE", "1")


@pytest.mark.parametrize("kind", READERS)
def test_each_reader_is_a_class_that_can_be_filled(kind: str) -> None:
    module, _, name = READERS[kind].partition(":")
    reader = getattr(importlib.import_module(module), name)
    assert issubclass(reader, Pretrained)
    assert reader.architectures


@pytest.mark.usefixtures("standins")
def test_a_chat_model_by_name_and_by_every_kind_of_path(tmp_path: Path) -> None:
    model, tokenizer = allyouneed.load("smollm2-135m-instruct")
    assert isinstance(tokenizer, BytePairTokenizer)
    tokens = torch.tensor([tokenizer.encode("In the beginning")])
    with torch.no_grad():
        expected = model(tokens)
    template = open_model("smollm2-135m-instruct").chat_template
    model.save_pretrained(tmp_path / "model", tokenizer, chat_template=template)
    assert open_model(tmp_path / "model").chat_template == template
    folder = STANDINS / "smollm2-135m-instruct"
    for name in (folder, str(folder), folder / "SmolLM2-135M-Instruct.Q4_1.gguf", tmp_path / "model"):
        again, same = allyouneed.load(name)
        assert type(again) is type(model)
        assert same.encode("In the beginning 12") == tokenizer.encode("In the beginning 12")
        with torch.no_grad():
            assert torch.equal(again(tokens), expected), name


@pytest.mark.usefixtures("standins")
def test_a_chat_model_needs_no_more_than_its_name(tmp_path: Path) -> None:
    chat = allyouneed.load_chat("smollm2-135m-instruct")
    stored = open_model("smollm2-135m-instruct")
    template = ChatTemplate(str(stored.chat_template), stored.tokenizer())
    talk = [{"role": "user", "content": "In the beginning"}]
    assert chat.template.encode(talk) == template.encode(talk)
    assert chat.stop == {*stored.generation.eos_token_ids, *template.end_tokens()} != set()
    model, tokenizer = allyouneed.load(stored.source)
    model.save_pretrained(tmp_path, tokenizer)
    again = allyouneed.load_chat(open_model(tmp_path))
    assert (again.stop, again.template.encode(talk)) == (chat.stop, chat.template.encode(talk))
    answers = ["".join(one.reply(talk, new_tokens=12, sampling=Sampling.greedy())) for one in (chat, again)]
    assert answers[0] == answers[1] != ""
    with pytest.raises(ValueError, match="all-minilm-l6-v2 has no chat template: it was not made for conversations"):
        allyouneed.load_chat("all-minilm-l6-v2")


@pytest.mark.usefixtures("standins")
@pytest.mark.parametrize("shard_bytes", [50_000, 1 << 30])
def test_what_was_saved_is_what_transformers_loads(tmp_path: Path, shard_bytes: int) -> None:
    transformers = pytest.importorskip("transformers")
    model, tokenizer = allyouneed.load("smollm2-135m-instruct")
    model.save_pretrained(tmp_path, tokenizer, shard_bytes=shard_bytes)
    assert len(list(tmp_path.glob("*.safetensors"))) == (6 if shard_bytes == 50_000 else 1)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    tokens = torch.tensor([tokenizer.encode("In the beginning God created the heavens")])
    with torch.no_grad():
        ours, expected = model(tokens), theirs(tokens).logits
    assert float((ours - expected).norm() / expected.norm()) < 1e-5
    assert theirs.config.eos_token_id == 2
    text = "In the 12th year<|im_end|> \u00e9"
    reference = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert reference.encode(text, add_special_tokens=False, split_special_tokens=True) == tokenizer.encode(text)


@pytest.mark.usefixtures("standins")
def test_types_and_quantisation_reach_the_model() -> None:
    model, _ = allyouneed.load("smollm2-135m-instruct", dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    model, _ = allyouneed.load("smollm2-135m-instruct", quantize="int4")
    assert any(type(module).__name__ == "Int4Linear" for module in model.modules())


@pytest.mark.usefixtures("standins")
def test_a_sentence_encoder() -> None:
    pytest.importorskip("allyouneed.papers.bert")
    model, tokenizer = allyouneed.load("all-minilm-l6-v2")
    stored = open_model("all-minilm-l6-v2")
    assert tokenizer.vocabulary == stored.config["vocab_size"]
    assert not model.training
    assert sum(parameter.numel() for parameter in model.parameters()) == sum(
        stored.read(name).numel() for name in stored.names() if not name.endswith("position_ids")
    )


@pytest.mark.usefixtures("standins")
def test_names_that_are_not_known(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no model is called 'smollm3': there are all-minilm-l6-v2, qwen2\.5"):
        allyouneed.load("smollm3")
    with pytest.raises(ValueError, match="no model is called 'mnist'"):
        allyouneed.load("mnist")
    for name in ("models/missing.gguf", tmp_path / "missing", "../missing", "a/b/c"):
        with pytest.raises(FileNotFoundError, match="there is no model in"):
            allyouneed.load(name)
    with pytest.raises(FileNotFoundError, match=r"there is no folder nobody/nothing, and the hub's client said"):
        allyouneed.load("nobody/nothing")


def test_a_repository_is_brought_by_the_hubs_client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")
    write_model(tmp_path, {"model_type": "mine"}, [("a", torch.zeros(1))])
    asked = []

    def download(repository: str, *, allow_patterns: list[str], local_files_only: bool) -> str:
        asked.append((repository, local_files_only))
        assert "*.safetensors" in allow_patterns
        assert not any("bin" in pattern for pattern in allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setenv("ALLYOUNEED_OFFLINE", "0")
    assert open_model("owner/name").config == {"model_type": "mine"}
    monkeypatch.setenv("ALLYOUNEED_OFFLINE", "1")
    open_model("owner/name")
    assert asked == [("owner/name", False), ("owner/name", True)]


def test_an_architecture_that_is_not_read(tmp_path: Path) -> None:
    write_model(tmp_path, {"model_type": "mamba", "architectures": ["MambaForCausalLM"]}, [("a", torch.zeros(1))])
    with pytest.raises(UnsupportedError, match=r"model_type 'mamba' \(MambaForCausalLM\); these are read: bert, gpt2"):
        allyouneed.load(tmp_path)
    write_model(tmp_path, {}, [("a", torch.zeros(1))])
    with pytest.raises(UnsupportedError, match="model_type None; these are read"):
        allyouneed.load(tmp_path)


def test_a_vocabulary_that_does_not_fit(tmp_path: Path) -> None:
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 255}
    write_model(tmp_path, config, [("a", torch.zeros(1))], tokenizer=ByteTokenizer())
    with pytest.raises(WeightsError, match="the tokenizer has 256 tokens, and the model knows only 255; it lacks 255"):
        allyouneed.load(tmp_path)


def small_gpt2(vocabulary: int) -> Any:
    from allyouneed.papers.gpt2 import GPT2, GPT2Config

    torch.manual_seed(0)
    return GPT2(GPT2Config(vocabulary=vocabulary, positions=32, width=16, layers=1, heads=2))


@pytest.mark.parametrize(
    ("special", "template", "lacks"),
    [
        (["<pad>"], None, None),
        (["<pad>", "<mask>"], "{{ messages }}", None),
        (["<pad>", "<turn>"], "<turn>{{ messages }}", "<turn>"),
    ],
)
def test_a_special_token_beyond_the_model_that_never_comes_up(
    special: list[str], template: str | None, lacks: str | None, tmp_path: Path
) -> None:
    tokenizer = BytePairTokenizer.train(["in the beginning"], 256 + len(special), special)
    small_gpt2(256).save_pretrained(tmp_path, tokenizer, chat_template=template)
    if lacks is None:
        model, read = allyouneed.load(tmp_path)
        assert model.decodable is None and read.vocabulary == 256 + len(special)
    else:
        with pytest.raises(WeightsError, match=f"the model knows only 256; it lacks {lacks}$"):
            allyouneed.load(tmp_path)


def test_tokens_that_the_tokenizer_does_not_know_are_never_sampled(tmp_path: Path) -> None:
    """Neither greedily nor at random, even where the padded rows of the table have the largest logits of all."""
    model = small_gpt2(320)
    with torch.no_grad():
        model.embedding.weight[256:] *= 50
    model.save_pretrained(tmp_path, ByteTokenizer())
    loaded, tokenizer = allyouneed.load(tmp_path)
    assert loaded.decodable == 256
    prompt = tokenizer.encode("In the")
    assert max(generate(model, [prompt], new_tokens=9)[0]) >= 256
    for sampling in (Sampling(), Sampling(temperature=0.0)):
        found = generate(loaded, [prompt], new_tokens=20, sampling=sampling)[0]
        assert max(found) < 256
        assert len(generate_text(loaded, tokenizer, ["In the"], new_tokens=20, sampling=sampling)) == 1
    # What the model computes is as it was.
    with torch.no_grad():
        assert torch.equal(loaded(torch.tensor([prompt])), model.eval()(torch.tensor([prompt])))


def test_nor_by_beams_or_in_an_engine() -> None:
    from allyouneed.papers.serving import Engine
    from allyouneed.papers.t5 import T5, T5Config
    from allyouneed.text import beam_search

    torch.manual_seed(0)
    translator = T5(T5Config(vocabulary=40, width=12, head_width=4, hidden=16, layers=1, heads=3)).eval()
    model = small_gpt2(320)
    with torch.no_grad():
        translator.decoder.embedding.weight[30:] *= 50
        model.embedding.weight[256:] *= 50
    for known, wanted in ((None, False), (30, True)):
        translator.decodable = known
        found = beam_search(translator, [[5, 6, 7, 1]], begin=0, end=1, beam=3, limit=8)
        assert (max(found[0].tokens) < 30) is wanted
    for known, wanted in ((None, False), (256, True)):
        model.decodable = known
        found = Engine(model).generate([[1, 2, 3]], new_tokens=9)
        assert (max(found[0]) < 256) is wanted


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    write_model(tmp_path, {"model_type": "llama"}, [("a", torch.zeros(1))])
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json is missing"):
        allyouneed.load(tmp_path)


def test_the_package_is_light_until_it_loads() -> None:
    code = (
        "import sys, allyouneed; assert 'torch' not in sys.modules; assert 'load' in allyouneed.__all__; "
        "import allyouneed.loading; assert callable(allyouneed.load)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="has no attribute 'lode'"):
        allyouneed.lode  # noqa: B018


def test_what_names_the_rooms_imports_none() -> None:
    code = (
        "import sys, allyouneed.papers.readers; "
        "print([name for name in sys.modules if name.startswith('allyouneed.papers.') and name[18:] != 'readers'])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_class_does_not_say_that_it_reads_what_it_refuses(tmp_path: Path) -> None:
    write_model(tmp_path, {"model_type": "t5", "architectures": ["T5EncoderModel"]}, [("a", torch.zeros(1))])
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "Bytes"}}')
    with pytest.raises(UnsupportedError, match=r"is a T5EncoderModel; T5 reads [\w, ]*$"):
        allyouneed.load(tmp_path)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_one_file_of_a_folder_is_no_model(file: str, tmp_path: Path) -> None:
    write_model(tmp_path, {"model_type": "llama"}, [("a", torch.zeros(1))])
    with pytest.raises(UnsupportedError, match=f"{file} is one file of a checkpoint: give the folder that it is in"):
        allyouneed.load(tmp_path / file)


@pytest.mark.parametrize("kind", [*READERS, *IMAGE_READERS])
def test_a_class_says_whose_a_folder_is_that_it_does_not_read(kind: str, tmp_path: Path) -> None:
    from allyouneed.papers.bert import Bert
    from allyouneed.papers.t5 import T5

    write_model(tmp_path, {"model_type": kind, "architectures": ["Foo"]}, [("a", torch.zeros(1))])
    whose = {**READERS, **IMAGE_READERS}[kind].replace(":", r"\.")
    other = Bert if kind == "t5" else T5
    wanted = f"is a Foo, of model_type '{kind}'; {other.__name__} reads the model_type .*; {whose} reads it"
    with pytest.raises(UnsupportedError, match=wanted):
        other.from_pretrained(tmp_path)


def test_a_class_says_who_reads_another_head(tmp_path: Path) -> None:
    from allyouneed.papers.bert import SentenceClassifier

    config = {"model_type": "bert", "architectures": ["BertForMaskedLM"]}
    write_model(tmp_path, config, [("a", torch.zeros(1))])
    wanted = (
        r"is a BertForMaskedLM; SentenceClassifier reads BertForSequenceClassification; "
        r"allyouneed\.papers\.bert\.Bert and allyouneed\.papers\.bert\.MaskedLanguageModel read it"
    )
    with pytest.raises(UnsupportedError, match=wanted):
        SentenceClassifier.from_pretrained(tmp_path)


def test_a_head_that_is_left_out_is_named_with_the_class_that_has_it(tmp_path: Path) -> None:
    from allyouneed.papers.bert import Bert, BertConfig, SentenceClassifier

    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abc"]
    config = BertConfig(vocabulary=len(vocabulary), width=8, layers=1, heads=2, hidden=8, positions=8)
    whole = SentenceClassifier(Bert(config), ["no", "yes"])
    whole.save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary))
    with pytest.warns(
        UserWarning, match=r"is a BertForSequenceClassification; Bert reads it .*bert\.SentenceClassifier"
    ):
        model, _ = allyouneed.load(tmp_path)
    assert isinstance(model, Bert)
    whole.bert.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        allyouneed.load(tmp_path)


@pytest.mark.parametrize("key_value_heads", [0, 3])
@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3", "mixtral"])
def test_key_value_heads_that_cannot_be_shared_are_named(kind: str, key_value_heads: int, tmp_path: Path) -> None:
    config = {"model_type": kind, "hidden_size": 16, "num_attention_heads": 4, "vocab_size": 5, "num_hidden_layers": 1}
    config |= {"intermediate_size": 8, "max_position_embeddings": 8, "num_key_value_heads": key_value_heads}
    write_model(tmp_path, config, [("a", torch.zeros(1))])
    module, _, name = READERS[kind].partition(":")
    wanted = rf"config\.json: num_key_value_heads is {key_value_heads}; it must divide num_attention_heads, which is 4"
    with pytest.raises(UnsupportedError, match=wanted):
        getattr(importlib.import_module(module), name).from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("template", "message"),
    [(5, "chat_template is 5; it must be a text"), ({"a": "b"}, "it must be a text, or a list of named ones")],
)
def test_a_chat_template_that_is_no_text_is_refused(template: Any, message: str, tmp_path: Path) -> None:
    write_model(tmp_path, {"model_type": "llama"}, [("a", torch.zeros(1))])
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    with pytest.raises(UnsupportedError, match=message):
        open_model(tmp_path)


def test_named_chat_templates_without_a_default_are_told_of(tmp_path: Path) -> None:
    write_model(tmp_path, {"model_type": "llama"}, [("a", torch.zeros(1))])
    named = [{"name": "tool_use", "template": "x"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    with pytest.warns(UserWarning, match="chat_template has 'tool_use', and none called 'default'"):
        assert open_model(tmp_path).chat_template is None


def test_what_says_neither_type_nor_head_is_not_guessed_at(tmp_path: Path) -> None:
    from allyouneed.papers.t5 import T5

    write_model(tmp_path, {"vocab_size": 3}, [("a", torch.zeros(1))])
    with pytest.raises(UnsupportedError, match="is of model_type None; T5 reads the model_type 't5'"):
        T5.from_pretrained(tmp_path)


@pytest.mark.parametrize("key", ["quantization_config", "per_layer_config", "pruned_heads"])
def test_what_no_class_reads_is_named(key: str, tmp_path: Path) -> None:
    config = {"model_type": "gpt2", "vocab_size": 3, key: {"0": [1]}}
    write_model(tmp_path, config, [("a", torch.zeros(1))], tokenizer=ByteTokenizer())
    with pytest.raises(UnsupportedError, match=rf"config\.json: {key} is .*; only None"):
        importlib.import_module("allyouneed.papers.gpt2").GPT2.from_pretrained(tmp_path)
