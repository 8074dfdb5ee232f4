import json
import time
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any

import jsonschema
import pytest
import regex
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from tokenizers import decoders, models

from allyouneed.papers.llama1 import Llama, LlamaConfig
from allyouneed.text import (
    BytePairTokenizer,
    ByteTokenizer,
    Constraint,
    ConstraintError,
    Grammar,
    PublishedTokenizer,
    Sampling,
    Tokenizer,
    generate,
    generate_text,
    probabilities,
    token_bytes,
)
from allyouneed.text.constraints import constrained

WHITE = r"(?: |\n[ \t]{0,40})?"


@cache
def byte_pairs() -> BytePairTokenizer:
    texts = ['{"name": "Ann", "age": 3, "tags": ["a", "b"]}\n', "yes no maybe, true false null", "日本 é"] * 9
    return BytePairTokenizer.train(texts, 300, ["<|end|>", "<|pad|>"])


@cache
def sentence_pieces() -> PublishedTokenizer:
    """As LLaMA's: spaces are ▁, unknown characters are bytes, and decoding drops a space at the beginning."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words = ["▁yes", "yes", "▁", "▁▁", "▁no", "{", '{"', "▁{", '":', ",▁", "日", "▁日本", "tr", "true", "e", "s", "y"]
    made = tokenizers.Tokenizer(
        models.BPE({name: place for place, name in enumerate([*pieces, *words])}, [], byte_fallback=True)
    )
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    return PublishedTokenizer(made)


@cache
def metaspaces() -> PublishedTokenizer:
    words = ["<unk>", "▁yes", "yes", "▁", "▁no", "no", "y", "n", "o", "e", "s", "日本", "▁日"]
    made = tokenizers.Tokenizer(models.Unigram([(word, 0.0) for word in words], unk_id=0, byte_fallback=False))
    made.decoder = decoders.Metaspace()
    made.add_special_tokens(["<unk>"])
    return PublishedTokenizer(made)


TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {
    "bytes": ByteTokenizer,
    "byte_pairs": byte_pairs,
    "sentence_pieces": sentence_pieces,
    "metaspaces": metaspaces,
}


@cache
def model(vocabulary: int, context: int = 1200) -> Llama:
    torch.manual_seed(0)
    return Llama(LlamaConfig(vocabulary, 16, 1, 2, 32, context=context, initial_deviation=0.2)).eval()


def allowed(constraint: Constraint) -> list[int]:
    return constraint.allowed_tokens().nonzero().flatten().tolist()


def accepts(grammar: Grammar, text: str, tokenizer: Tokenizer | None = None) -> bool:
    """Say whether a text is allowed and complete."""
    tokenizer = tokenizer or ByteTokenizer()
    constraint = grammar.constraint(tokenizer)
    for token in tokenizer.encode(text):
        if token not in allowed(constraint):
            return False
        constraint.advance(token)
    return constraint.is_complete


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(data=st.data())
@settings(max_examples=60)
def test_bytes_of_tokens_are_what_the_tokenizer_decodes_them_to(kind: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[kind]()
    spelled = token_bytes(tokenizer)
    ordinary = [token for token, own in enumerate(spelled) if own]
    assert set(range(tokenizer.vocabulary)) - set(ordinary) == set(tokenizer.special_tokens.values())
    tokens = data.draw(st.lists(st.sampled_from(ordinary), min_size=1, max_size=12))
    joined = b"".join(spelled[token] for token in tokens)
    try:
        text = joined.decode()
    except UnicodeDecodeError:
        return
    # At its beginning a text loses a space with some.
    assert tokenizer.decode(tokens) in (text, text.removeprefix(" "))
    assert tokenizer.decode([ordinary[0], *tokens]).endswith(text)


def test_tokens_without_bytes_of_their_own_are_refused() -> None:
    made = tokenizers.Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    made.decoder = decoders.WordPiece()
    with pytest.raises(ValueError, match="decoded by WordPiece"):
        Grammar.regex("a").constraint(PublishedTokenizer(made))


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("options", [["yes", "no"], ["yes", " yes", "  no"], ["y", "yes", "yesyes"], ["日本", "日"]])
def test_masks_are_those_of_brute_force_for_choices(kind: str, options: list[str]) -> None:
    tokenizer = TOKENIZERS[kind]()
    ordinary = [token for token, own in enumerate(token_bytes(tokenizer)) if own]
    spelled = token_bytes(tokenizer)
    left: list[list[int]] = [[]]
    while left:
        tokens = left.pop()
        constraint = Grammar.choice(options).constraint(tokenizer, beginning=True)
        for token in tokens:
            constraint.advance(token)
        text = _decoded_bytes(tokenizer, spelled, tokens)
        wanted = []
        for token in ordinary:
            longer = _decoded_bytes(tokenizer, spelled, [*tokens, token])
            if longer != text and any(option.encode().startswith(longer) for option in options):
                wanted.append(token)
        assert allowed(constraint) == wanted, tokens
        assert constraint.is_complete == (text.decode(errors="replace") in options)
        assert constraint.is_finished == (
            constraint.is_complete
            and not any(option.encode().startswith(text) and option.encode() != text for option in options)
        )
        left += [[*tokens, token] for token in wanted]


def _decoded_bytes(tokenizer: Tokenizer, spelled: list[bytes], tokens: list[int]) -> bytes:
    joined = b"".join(spelled[token] for token in tokens)
    drops = isinstance(tokenizer, PublishedTokenizer)
    return joined.removeprefix(b" ") if drops else joined


@pytest.mark.parametrize(
    ("schema", "pattern"),
    [
        ({"enum": [True, "a", None]}, r'true|"a"|null'),
        ({"type": "integer", "minimum": 8, "maximum": 12}, r"8|9|1[012]"),
        (
            {
                "type": "object",
                "properties": {"a": {"type": "boolean"}},
                "required": ["a"],
                "additionalProperties": False,
            },
            rf'\{{{WHITE}"a"{WHITE}:{WHITE}(true|false){WHITE}\}}',
        ),
        ({"type": "array", "items": {"const": 1}, "maxItems": 2}, rf"\[({WHITE}1({WHITE},{WHITE}1)?)?{WHITE}\]"),
    ],
)
@pytest.mark.parametrize("kind", ["bytes", "byte_pairs", "sentence_pieces"])
def test_masks_are_those_of_brute_force_for_json(kind: str, schema: dict[str, Any], pattern: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    spelled = token_bytes(tokenizer)
    generator = torch.Generator().manual_seed(0)
    for _ in range(6):
        constraint, text = Grammar.json_schema(schema).constraint(tokenizer, beginning=True), ""
        for _ in range(30):
            wanted = [
                token
                for token, own in enumerate(spelled)
                if own.isascii()
                and (more := _at(own, text, tokenizer))
                and regex.fullmatch(pattern, text + more, partial=True)
            ]
            assert allowed(constraint) == wanted, text
            assert constraint.is_complete == bool(regex.fullmatch(pattern, text))
            if not wanted:
                break
            token = wanted[int(torch.randint(len(wanted), (), generator=generator))]
            constraint.advance(token)
            text += _at(spelled[token], text, tokenizer)


def _at(own: bytes, text: str, tokenizer: Tokenizer) -> str:
    drops = isinstance(tokenizer, PublishedTokenizer) and not text
    return own.decode().removeprefix(" ") if drops else own.decode()


SCHEMAS: dict[str, dict[str, Any]] = {
    "person": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 8},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "email": {"type": "string", "pattern": "^[a-z]{1,5}@[a-z]{1,5}$"},
        },
        "required": ["name", "age"],
        "additionalProperties": False,
    },
    "nested": {
        "$defs": {"leaf": {"enum": ["a", 1, None, True]}},
        "type": "array",
        "minItems": 1,
        "maxItems": 3,
        "items": {"type": "array", "items": {"$ref": "#/$defs/leaf"}, "maxItems": 2},
    },
    "union": {
        "oneOf": [
            {"type": "object", "properties": {"kind": {"const": "a"}, "x": {"type": "integer", "maximum": 9}},
             "required": ["kind", "x"], "additionalProperties": False},
            {"type": "object", "properties": {"kind": {"const": "b"}, "y": {"enum": ["é", "日本"]}},
             "required": ["kind", "y"], "additionalProperties": False},
        ]
    },
    "keys": {
        "type": "object",
        "properties": {"a": {"type": "string", "maxLength": 2}},
        "patternProperties": {"^[xyz]{2}$": {"type": "boolean"}},
        "additionalProperties": False,
    },
    "formats": {"type": "array", "prefixItems": [{"type": "string", "format": "date"},
                {"type": "string", "format": "uuid"}], "items": False, "minItems": 2},
    "numbers": {"type": "array", "items": {"type": "number", "minimum": -1, "exclusiveMaximum": 2.5,
                "multipleOf": 0.25}, "maxItems": 3},
}  # fmt: skip


@pytest.mark.parametrize("name", SCHEMAS)
@pytest.mark.parametrize("kind", ["bytes", "byte_pairs", "sentence_pieces"])
def test_what_a_random_model_generates_under_a_schema_is_valid(name: str, kind: str) -> None:
    tokenizer, schema = TOKENIZERS[kind](), SCHEMAS[name]
    grammar = Grammar.json_schema(schema).constraint(tokenizer, beginning=True)
    # The model knows more tokens than the tokenizer.
    rows = generate(
        model(tokenizer.vocabulary + 20),
        [tokenizer.encode(text) for text in ("a", "bb", "a", "a", "a", "a")],
        new_tokens=400,
        sampling=Sampling(1.5),
        stop=tokenizer.special_tokens.values(),
        constraints=[grammar] * 6,
        seed=3,
    )
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    ended = [tokenizer.decode(row) for row in rows if len(row) < 400]
    assert len(ended) >= 4
    for text in ended:
        jsonschema.validate(json.loads(text), schema, format_checker=checker)
    assert len(set(ended)) > 1


@given(st.integers(0, 2**31), st.sampled_from(["bytes", "byte_pairs", "sentence_pieces"]))
@settings(max_examples=30)
def test_any_object_is_an_object(seed: int, kind: str) -> None:
    """Random tokens seldom end: they are followed for a while, and then ended by the shortest way."""
    tokenizer = TOKENIZERS[kind]()
    constraint, generator = Grammar.json_object().constraint(tokenizer), torch.Generator().manual_seed(seed)
    spelled, tokens = token_bytes(tokenizer), []
    closing = [b'"', b"}", b"]", b":", b"0", b"a", b"n", b"u", b"l", b"t", b"r", b"e", b"f", b"s", b"\x80", b"\xa0"]
    while not constraint.is_finished:
        options = allowed(constraint)
        assert not set(options) & set(tokenizer.special_tokens.values())
        token = options[int(torch.randint(len(options), (), generator=generator))]
        if len(tokens) > 25:
            shortest = [one for end in closing for one in options if spelled[one] == end]
            token = shortest[0] if shortest else token
        constraint.advance(token)
        tokens.append(token)
        assert len(tokens) < 400
    assert isinstance(json.loads(tokenizer.decode(tokens)), dict)


def test_the_distribution_is_the_models_renormalised() -> None:
    tokenizer = ByteTokenizer()
    logits = 3 * torch.randn(300, generator=torch.Generator().manual_seed(0))
    constraint = Grammar.regex("[ab]c|d").constraint(tokenizer)
    found = probabilities(constrained(logits, constraint)[None], Sampling())[0]
    wanted = torch.zeros(300)
    wanted[[97, 98, 100]] = logits[[97, 98, 100]].softmax(0)
    torch.testing.assert_close(found, wanted)

    own = model(300)
    texts = generate(own, [[1, 2]] * 400, new_tokens=2, constraints=[constraint] * 400, seed=1, sampling=Sampling(1.2))
    counted = Counter(bytes(text).decode() for text in texts)
    assert set(counted) <= {"ac", "bc", "d"}
    expected = (own(torch.tensor([[1, 2]]))[0, -1, [97, 98, 100]].double() / 1.2).softmax(0) * 400
    assert chisquare([counted["ac"], counted["bc"], counted["d"]], expected.tolist()).pvalue > 0.001


def test_stop_tokens_come_exactly_where_the_text_may_end() -> None:
    tokenizer = byte_pairs()
    end = tokenizer.special_tokens["<|end|>"]
    constraint = Grammar.regex("a+b?").constraint(tokenizer)
    logits = torch.zeros(tokenizer.vocabulary)
    for text, may_end in (("", False), ("a", True), ("a", True), ("b", True)):
        for token in tokenizer.encode(text):
            constraint.advance(token)
        masked = constrained(logits, constraint, [end, 10**9])
        assert bool(torch.isfinite(masked[end])) == may_end == constraint.is_complete
    assert constraint.is_finished
    with pytest.raises(ConstraintError, match="no token of the vocabulary may come next"):
        constrained(logits, constraint)
    # An ordinary token that ends texts may not cut one short.
    letter = tokenizer.encode("a")[0]
    masked = constrained(logits, Grammar.regex("[ab]+").constraint(tokenizer), [letter, end])
    assert not torch.isfinite(masked[letter]) and torch.isfinite(masked[tokenizer.encode("b")[0]])


@pytest.mark.parametrize("kind", ["bytes", "byte_pairs", "sentence_pieces"])
def test_what_follows_a_text_is_in_a_grammar(kind: str) -> None:
    tokenizer, options = TOKENIZERS[kind](), ["yes", " no", "  日本"]
    grammar, prompts = Grammar.choice(options), ["a", "b", "é", " ", "a", "b", "c", "d"]
    texts = generate_text(model(320), tokenizer, prompts, new_tokens=20, grammar=grammar, seed=5)
    assert set(texts) <= set(options) and len(set(texts)) > 1


def test_rows_end_by_their_own_constraints() -> None:
    tokenizer = ByteTokenizer()
    choice = Grammar.choice(["yes", "no", "perhaps"]).constraint(tokenizer)
    rows = generate(model(300), [[1], [2, 3], [4]], new_tokens=9, constraints=[choice, None, choice], seed=5)
    assert {bytes(rows[0]).decode(), bytes(rows[2]).decode()} <= {"yes", "no", "perhaps"}
    assert len(rows[1]) == 9
    assert rows[1] == generate(model(300), [[1], [2, 3], [4]], new_tokens=9, seed=5)[1]
    # What was given stands where it stood.
    assert accepts(Grammar.choice(["yes"]), "yes") and not choice.is_complete
    with pytest.raises(ValueError, match="2 constraints for 1 prompts"):
        generate(model(300), [[1]], new_tokens=1, constraints=[choice, choice])


def test_copies_go_on_by_themselves() -> None:
    first = Grammar.choice(["ab", "ac"]).constraint(ByteTokenizer())
    second = first.copy()
    first.advance(ord("a"))
    assert allowed(second) == [ord("a")] and allowed(first) == [ord("b"), ord("c")]
    third = first.copy()
    third.advance(ord("c"))
    assert third.is_finished and not first.is_complete
    with pytest.raises(ConstraintError, match="token 120 may not come here"):
        first.advance(ord("x"))
    for token in (-1, 256, 10**6):
        with pytest.raises(ConstraintError, match="may not come here"):
            first.advance(token)
    assert allowed(first) == [ord("b"), ord("c")]


def test_texts_that_are_allowed_and_not() -> None:
    assert accepts(Grammar.choice(["a|b", "(", "\\d", "\n/é"]), "\n/é")
    assert accepts(Grammar.choice(["a|b", "(", "\\d"]), "a|b") and not accepts(Grammar.choice(["a|b"]), "a")
    assert accepts(Grammar.regex("a/b\\d"), "a/b7") and not accepts(Grammar.regex("a"), "aa")
    assert accepts(Grammar.lark('start: "(" start ")" | "x"'), "((x))")
    assert accepts(Grammar.json_schema(True), "[1, null]")
    # A property may not be given under an escaped spelling of its name, as something else.
    hidden = {"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": {"type": "integer"}}
    assert not accepts(Grammar.json_schema(hidden), '{"\\u0061": 1}')
    assert accepts(Grammar.json_schema(hidden), '{"a": "\\n\\"", "b": 1}')


MANY_PROPERTIES: Any = {"properties": {f"p{place}": {} for place in range(401)}}
# Two pointers, each to the other; `~1` stands for a slash.
TWO: Any = {"allOf": [{"$ref": "#/properties/a"}]}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Grammar.json_schema({"type": "strange"}),
            "the JSON schema cannot be followed: Invalid type: strange$",
        ),
        (lambda: Grammar.json_schema({"type": "array", "uniqueItems": True}), "uniqueItems"),
        (lambda: Grammar.json_schema({"not": {"type": "string"}}), "not"),
        (lambda: Grammar.json_schema({"type": "string", "format": "telegram"}), "telegram"),
        (lambda: Grammar.json_schema({"oneOf": [{"type": "string"}, {"enum": ["a"]}]}), "oneOf"),
        (lambda: Grammar.json_schema({"minProperties": 2}), "minProperties 2"),
        (lambda: Grammar.json_schema({"x-guidance": {"lenient": True}}), "x-guidance"),
        (lambda: Grammar.json_schema({"enum": []}), "Unsatisfiable"),
        (lambda: Grammar.json_schema({"const": "a\x01"}), "control character"),
        (lambda: Grammar.json_schema({"const": float("nan")}), "not JSON"),
        (lambda: Grammar.json_schema({1: 2}), "keys must be strings"),
        (lambda: Grammar.json_schema({"$ref": "other.json"}), r"other\.json' leads out of the schema, and nothing"),
        (lambda: Grammar.json_schema({"$ref": "#"}), "'#' leads back to itself"),
        (lambda: Grammar.json_schema({"allOf": [{"$ref": "#"}]}), "'#' leads back to itself"),
        (
            lambda: Grammar.json_schema({"properties": {"a": {"$ref": "#/$defs/x~1y"}}, "$defs": {"x/y": TWO}}),
            "leads back to itself",
        ),
        (lambda: Grammar.json_schema({"properties": {"a": {"$ref": "#/$defs/b"}}}), r"'#/\$defs/b' leads nowhere"),
        (lambda: Grammar.json_schema({"items": MANY_PROPERTIES}), "#/items/properties has 401 properties: at most 400"),
        (lambda: Grammar.json_schema({"items": {"minItems": 1e30}}), r"#/items/minItems is 1e\+30: at most 1000000"),
        (lambda: Grammar.json_schema({"maxLength": 2.5}), "#/maxLength is 2.5: it must be a whole number, 0 or more"),
        (lambda: Grammar.json_schema({"maxItems": True}), "#/maxItems is True: it must be a whole number"),
        (lambda: Grammar.json_schema([]), "an object, or true"),
        (lambda: Grammar.json_schema(False), "an object, or true"),
        (lambda: Grammar.json_schema("{}"), "an object, or true"),
        (lambda: Grammar.choice([]), "at least one"),
        (lambda: Grammar.choice(["a", ""]), "at least one"),
        (lambda: Grammar.choice("abc"), "one string"),
        (lambda: Grammar.regex("(?=a)b"), "look-around"),
        (lambda: Grammar.regex("(a"), r'followed: the regular expression "\(a" has a mistake: unclosed group$'),
        (lambda: Grammar.lark("start: other"), r"followed: line 1, column 8: unknown name: \"other\"$"),
        (lambda: Grammar.lark('%llguidance {}\nstart: "a"'), "%llguidance"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_name(make: Callable[[], Grammar], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_limits_that_nothing_reaches_are_none() -> None:
    for most in (1e30, 10**30, 3_000_000):
        assert accepts(Grammar.json_schema({"type": "array", "maxItems": most, "items": {"maxLength": most}}), '["a"]')
    assert not accepts(Grammar.json_schema({"type": "array", "maxItems": 1.0}), "[1,2]")
    # What is a value, or a property's name, is no limit and no reference.
    fixed = {"const": {"maxItems": 2_000_000, "$ref": "#/nowhere"}}
    assert accepts(Grammar.json_schema(fixed), '{"maxItems":2000000,"$ref":"#/nowhere"}')
    assert accepts(Grammar.json_schema({"type": "object", "properties": {"$ref": {}, "maxItems": {}}}), '{"$ref":1}')
    linked = {"type": "object", "properties": {"value": {"type": "integer"}, "next": {"$ref": "#"}}}
    assert accepts(Grammar.json_schema(linked), '{"value":1,"next":{"next":{}}}')


def _deep(depth: int) -> Any:
    schema: Any = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


HOSTILE: dict[str, Any] = {
    "deep": _deep(100_000),
    "wide": {"properties": {f"k{place}": {"type": "string", "maxLength": 300 + place} for place in range(1500)}},
    "wider": {"properties": {f"k{place}": {} for place in range(30_000)}},
    "enum": {"enum": [f"x{place}" * 10 for place in range(2000)]},
    "divisor": {"type": "integer", "multipleOf": 123_456_789},
    "divisors": {"allOf": [{"multipleOf": 9973}, {"type": "integer", "multipleOf": 9967}]},
    "repeated": {"type": "string", "pattern": "^((a|b){1,1000}c){1,1000}$"},
    "states": {"allOf": [{"type": "string", "pattern": "^.*a.{18}$"}, {"type": "string", "pattern": "^.*b.{17}$"}]},
    "long": {"type": "string", "minLength": 10**6},
    "many": {"type": "array", "minItems": 10**9},
    "itself": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}},
    "doubling": {
        "$ref": "#/$defs/a0",
        "$defs": {
            **{f"a{n}": {"allOf": [{"$ref": f"#/$defs/a{n + 1}"}, {"$ref": f"#/$defs/a{n + 1}"}]} for n in range(30)},
            "a30": {"type": "string"},
        },
    },
    "product": {"allOf": [{"anyOf": [{"required": [f"k{n}{m}"]} for m in range(4)]} for n in range(10)]},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_schemas_cost_little(name: str) -> None:
    """Each is refused, or followed for a while; some took minutes and gigabytes before there were bounds."""
    began = time.process_time()
    generator = torch.Generator().manual_seed(0)
    try:
        constraint = Grammar.json_schema(HOSTILE[name]).constraint(ByteTokenizer())
        for _ in range(50):
            if not (options := allowed(constraint)):
                break
            constraint.advance(options[int(torch.randint(len(options), (), generator=generator))])
    except ValueError as error:
        assert len(str(error)) < 500
    assert time.process_time() - began < 5
