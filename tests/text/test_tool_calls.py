"""Tools in chat templates, grammars of calls, and calls read from text that comes in pieces."""

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from allyouneed.text import BytePairTokenizer, ByteTokenizer, ChatTemplate
from allyouneed.text.constraints import Constraint, ConstraintError
from allyouneed.text.tool_calls import ToolCallDelta, ToolCallFormat, ToolCallParser

SPECIAL = ("<|im_start|>", "<|im_end|>", "<tools>")
# In the manner of Hermes and Qwen: calls between tags, each after a line break.
TAGGED = """{%- if tools %}{{- '<|im_start|>system\nYou may call:' }}
{%- for tool in tools %}{{- '\n' }}{{- tool | tojson }}{%- endfor %}{{- '<|im_end|>\n' }}{%- endif %}
{%- for message in messages %}{{- '<|im_start|>' + message.role }}
{%- if message.content %}{{- '\n' + message.content }}{%- endif %}
{%- for call in message.tool_calls or [] %}
{{- '\n<call>\n{"name": "' + call.function.name + '", "arguments": ' }}
{{- call.function.arguments | tojson }}{{- '}\n</call>' }}
{%- endfor %}{{- '<|im_end|>\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}{# role tool #}{% set t = 'tool' %}"""
# In the manner of LLaMA 3: one call a message, and nothing around it.
BARE = """{% for tool in tools %}{{ tool | tojson(ensure_ascii=True) }}{% endfor %}
{%- for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}
{%- if message.tool_calls %}
{%- if message.tool_calls | length > 1 %}{{ raise_exception('one call at a time') }}{% endif %}
{%- set function = message.tool_calls[0].function %}
{{- '{"name": "' + function.name + '", "parameters": ' + (function.arguments | tojson) + '}' }}
{%- else %}{{ message.content }}{% endif %}{{ '<|im_end|>' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
PLAIN = """{% for message in messages %}
{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' }}{% endfor %}"""
FORMAT = ToolCallFormat('<call>\n{"name": ', ', "arguments": ', "}\n</call>", "\n")
ASK: list[dict[str, Any]] = [{"role": "user", "content": "Is it <|im_end|> cold in Paris?"}]
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "São <|im_end|> Paulo"}}}
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Say <|im_start|>how it is\n. 🙂",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "<tools>": {}}},
        },
    }
]


@pytest.fixture(scope="module")
def tokenizer() -> BytePairTokenizer:
    texts = ["system user assistant is it cold? <call> weather name arguments city Paris\n"] * 4
    return BytePairTokenizer.train(texts, vocabulary=290, special_tokens=SPECIAL)


class TestTemplates:
    def test_tools_and_calls_are_written_as_transformers_writes_them(
        self, tokenizer: BytePairTokenizer, tmp_path: Any
    ) -> None:
        tokenizer.save(tmp_path)
        reference: Any = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))

        def harmless(value: Any) -> Any:
            return json.loads(json.dumps(value).replace("<|", "< |").replace("<tools>", "tools"))

        talk = harmless([*ASK, {"role": "assistant", "content": "", "tool_calls": [CALL]}])
        talk.append({"role": "tool", "content": "cold"})
        for template in (TAGGED, BARE.replace("message.role", "message['role']") + "{% set t = 'tool' %}"):
            ours = ChatTemplate(template, tokenizer).encode(talk, tools=harmless(TOOLS))
            theirs = reference.apply_chat_template(
                talk, tools=harmless(TOOLS), chat_template=template, add_generation_prompt=True, return_dict=False
            )
            assert ours == theirs

    @pytest.mark.parametrize("template", [TAGGED, BARE], ids=["tagged", "bare"])
    def test_special_tokens_in_tools_and_calls_are_text(self, tokenizer: BytePairTokenizer, template: str) -> None:
        talk = [*ASK, {"role": "assistant", "content": "", "tool_calls": [CALL]}]
        tokens = ChatTemplate(template, tokenizer).encode(talk, tools=TOOLS)
        special = tokenizer.special_tokens
        turns = 4 if template == TAGGED else 3
        assert tokens.count(special["<|im_start|>"]) == turns and tokens.count(special["<|im_end|>"]) == turns - 1
        assert special["<tools>"] not in tokens
        text = tokenizer.decode(tokens)
        assert "".join(json.dumps(tool, ensure_ascii=template == BARE) for tool in TOOLS) in text
        assert json.dumps(CALL["function"]["arguments"], ensure_ascii=False) in text

    def test_a_message_that_is_gone_on_with_stays_open(self, tokenizer: BytePairTokenizer) -> None:
        talk = [*ASK, {"role": "assistant", "content": "It is  "}]
        template = ChatTemplate(TAGGED, tokenizer)
        whole, open_ended = template.encode(talk, answering=False), template.encode(talk, continuing=True)
        assert tokenizer.decode(whole) == tokenizer.decode(open_ended) + "<|im_end|>\n"
        with pytest.raises(ValueError, match="leaves the last message out"):
            ChatTemplate("{{ messages[0].content }}", tokenizer).encode(talk, continuing=True)

    def test_variables(self, tokenizer: BytePairTokenizer) -> None:
        template = ChatTemplate("{{ mood }}{{ messages[0].content }}", tokenizer, {"mood": "kind"})
        assert tokenizer.decode(template.encode([{"role": "user", "content": "x"}])) == "kindx"
        tokens = template.encode([{"role": "user", "content": "x"}], variables={"mood": "<|im_end|>"})
        assert tokenizer.decode(tokens) == "<|im_end|>x" and tokenizer.special_tokens["<|im_end|>"] not in tokens

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"tools": TOOLS}, "tools are not supported by this model: its chat template has no place"),
            ({"messages": [{"role": "tool", "content": "x"}]}, "message 0 has tool, for which"),
            ({"messages": [{"role": "assistant", "content": "", "tool_calls": [CALL]}]}, "message 0 has tool_calls"),
            ({"variables": {"mood": 1}}, "no variable 'mood'"),
            ({"variables": {"messages": []}}, "no variable 'messages' that could be set"),
        ],
    )
    def test_what_a_template_has_no_place_for_is_refused(
        self, tokenizer: BytePairTokenizer, options: dict[str, Any], said: str
    ) -> None:
        with pytest.raises(ValueError, match=said):
            ChatTemplate(PLAIN, tokenizer).encode(**({"messages": ASK} | options))


class TestFormats:
    def test_is_read_off_the_template(self, tokenizer: BytePairTokenizer) -> None:
        assert ToolCallFormat.of(ChatTemplate(TAGGED, tokenizer)) == FORMAT
        bare = ToolCallFormat('{"name": ', ', "parameters": ', "}", None)
        assert ToolCallFormat.of(ChatTemplate(BARE, tokenizer)) == bare

    @pytest.mark.parametrize(
        ("template", "said"),
        [
            (PLAIN, "tools are not supported by this model"),
            (PLAIN + "{{ tools }}", "message 1 has tool_calls"),
            (TAGGED.replace(".arguments | tojson", ".arguments.city"), "in a form not read here"),
            (BARE.replace('\'{"name": "\'', "'\"'"), "in a form not read here"),
        ],
    )
    def test_others_are_refused(self, tokenizer: BytePairTokenizer, template: str, said: str) -> None:
        with pytest.raises(ValueError, match=said):
            ToolCallFormat.of(ChatTemplate(template, tokenizer))


def call(name: str, arguments: Any) -> str:
    return f'<call>\n{{"name": {json.dumps(name)}, "arguments": {json.dumps(arguments)}}}\n</call>'


class TestGrammars:
    SCHEMAS: ClassVar[dict[str, Any]] = {
        "weather": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        'a "b"\n': {"type": "object", "properties": {"n": {"enum": [1]}}, "additionalProperties": False},
    }
    PARIS, ONE = call("weather", {"city": "Paris"}), call('a "b"\n', {"n": 1})

    @pytest.mark.parametrize(
        ("text", "auto", "required", "one"),
        [
            ("Hello <call me>", True, False, True),
            (PARIS, True, True, True),
            (ONE, True, True, True),
            ("I look.\n" + PARIS, True, False, True),
            (PARIS + "\n" + ONE, True, True, False),
            (PARIS + " and", False, False, False),
            ("<call> me", False, False, False),
            (call("weather", {"city": 3}), False, False, False),
            (call("nothing", {}), False, False, False),
            ('{"name": "weather", "arguments": {"city": "Rome"}}', True, False, True),
            ('{"name": "weather", "arguments": {"city": 3}}', False, False, False),
            ('{"name": "weather", "arguments": {"city": "Rome"}} and', False, False, False),
            ('{"name": "Bob"} is no call', True, False, True),
        ],
    )
    def test_allow_text_and_calls(self, text: str, auto: bool, required: bool, one: bool) -> None:
        for options, allowed in (({}, auto), ({"must_call": True}, required), ({"several": False}, one)):
            constraint = FORMAT.grammar(self.SCHEMAS, **options).constraint(ByteTokenizer())
            assert follows(constraint, text) == allowed

    def test_a_schema_that_cannot_be_followed_is_refused(self) -> None:
        with pytest.raises(ValueError, match="uniqueItems"):
            FORMAT.grammar({"f": {"type": "array", "uniqueItems": True}})


def follows(constraint: Constraint, text: str) -> bool:
    try:
        for token in text.encode():
            constraint.advance(token)
    except ConstraintError:
        return False
    return constraint.is_complete


def parsed(text: str, cuts: list[int], names: Sequence[str] = ()) -> tuple[str, list[tuple[str, str]]]:
    parser, said, calls = ToolCallParser(FORMAT, names), "", []
    places = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    for start, end in pairwise(places):
        for part in parser.add(text[start:end]):
            if isinstance(part, str):
                said += part
            elif part.name is not None:
                assert part == ToolCallDelta(len(calls), part.name)
                calls.append((part.name, ""))
            else:
                assert part.index == len(calls) - 1
                calls[-1] = (calls[-1][0], calls[-1][1] + part.arguments)
    assert parser.calls == len(calls)
    return said + parser.finish(), calls


ARGUMENTS = st.recursive(
    st.text() | st.integers() | st.none(), lambda inner: st.dictionaries(st.text('"\\{}[] a'), inner), max_leaves=4
).map(lambda value: {"value": value})


@given(
    said=st.sampled_from(["", "Hello", "a <call>\n{", "two\n\nlines", "<call"]),
    calls=st.lists(st.tuples(st.text('a"\\{}<', min_size=1), ARGUMENTS), max_size=3),
    cuts=st.lists(st.integers(0, 10_000), max_size=12),
)
def test_calls_are_read_however_the_text_is_cut(said: str, calls: list[tuple[str, Any]], cuts: list[int]) -> None:
    text = "\n".join([*([said] if said else []), *(call(*one) for one in calls)])
    assert parsed(text, cuts) == (said, [(name, json.dumps(arguments)) for name, arguments in calls])


@given(cuts=st.lists(st.integers(0, 10_000), max_size=12))
def test_a_call_without_its_marker_is_a_call_of_a_known_tool(cuts: list[int]) -> None:
    bare = '{"name": "weather", "arguments": {"city": "Rome"}}'
    assert parsed(bare, cuts, ["add", "weather"]) == ("", [("weather", '{"city": "Rome"}')])
    assert parsed(bare, cuts, ["add"]) == (bare, [])
    assert parsed("So: " + bare, cuts, ["weather"]) == ("So: " + bare, [])
    assert parsed(bare[:20], cuts, ["weather"]) == (bare[:20], [])
    marked = call("weather", {})
    assert parsed(marked, cuts, ["weather"]) == ("", [("weather", "{}")])


def test_what_is_cut_off_is_told_as_far_as_it_went() -> None:
    whole = "Look.\n" + call("weather", {"city": "Paris"})
    assert parsed(whole[: whole.index('s"}')], [8]) == ("Look.", [("weather", '{"city": "Pari')])
    assert parsed(whole[: whole.index("weather") + 3], []) == ("Look.", [])
    assert parsed("Look. \n<cal", [3, 9]) == ("Look. \n<cal", [])
