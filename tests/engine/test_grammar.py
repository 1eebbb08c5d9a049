"""Grammars: what they let through, token by token, and what they refuse to compile."""

import json
import time

import pytest
import torch

from octavo.base.errors import RequestError
from octavo.checkpoint import open_tokenizer
from octavo.checkpoint.sentencepiece import PieceKind, SentencePieceBackend, SentencePieceOptions, build_model
from octavo.checkpoint.tokenizer import Tokenizer
from octavo.engine.grammar import Grammar, GrammarFactory, rehearse
from octavo.engine.grammar_spec import MAX_CHOICES, MAX_SCHEMA_BYTES, GrammarSpec

POINT = {
    "type": "object",
    "properties": {"x": {"type": "integer"}, "name": {"type": "string"}},
    "required": ["x", "name"],
    "additionalProperties": False,
}
EOS = 2


@pytest.fixture(scope="module")
def factory(readable) -> GrammarFactory:
    tokenizer = open_tokenizer(readable)
    return GrammarFactory(tokenizer, 320, tokenizer.eos_token_ids)


def takes(factory: GrammarFactory, grammar: Grammar, text: str) -> bool:
    """Whether every token is allowed and the text may end after the last."""
    for token in [*factory.tokenizer.encode(text), EOS]:
        row = torch.zeros(320)
        grammar.mask(row)
        if row[token] != 0 or not grammar.accept(token):
            return False
    return True


@pytest.mark.parametrize(
    ("spec", "good", "bad"),
    [
        (GrammarSpec.of_schema(POINT), '{"x": -3, "name": "é\\n{"}', '{"x": 1.5, "name": ""}'),
        (GrammarSpec.of_schema(POINT), '{\n  "x": 1,\n  "name": "a"\n}', '{"x":1}'),
        (GrammarSpec("json_object"), '{"any": [1, {"thing": null}]}', "[1]"),
        (GrammarSpec("regex", r"\d{3}-[a-z]+"), "123-abc", "123-"),
        (GrammarSpec("regex", r"^(yes|no)$"), "yes", "yes."),
        (GrammarSpec.of_choices(["red", "reddish", 'a "b"', "naïve\n"]), 'a "b"', "redd"),
        (GrammarSpec("lark", 'start: "<" /[0-9]+/ ">"'), "<42>", "<>"),
    ],
)
def test_only_what_matches(factory, spec, good, bad):
    assert takes(factory, factory.compile(spec), good)
    assert not takes(factory, factory.compile(spec), bad)


def test_blank_lines_end(factory):
    """A model that likes white space would otherwise fill its whole answer with it."""
    grammar = factory.compile(GrammarSpec.of_schema(POINT))
    assert not takes(factory, grammar, '{"x":\n\n\n1,"name":"a"}')


def test_finished_and_error(factory):
    grammar = factory.compile(GrammarSpec.of_choices(["ab", "abc"]))
    a, b, c = factory.tokenizer.encode("abc")
    assert grammar.accept(a) and grammar.accept(b)
    assert not grammar.finished  # it may go on
    other = grammar.copy()
    assert grammar.accept(c) and grammar.finished and grammar.accept(EOS) and grammar.finished
    assert not other.finished and other.error is None
    assert not other.accept(a)
    assert other.error is not None and not other.finished
    row = torch.zeros(320)
    other.mask(row)
    assert not row.isinf().any()


def test_rows_wider_and_narrower_than_the_vocabulary(factory):
    grammar = factory.compile(GrammarSpec.of_choices(["a"]))
    [letter] = factory.tokenizer.encode("a")
    for width in (400, 320, 261):
        row = torch.zeros(width)
        grammar.mask(row)
        assert (row == 0).nonzero().flatten().tolist() == [letter]


@pytest.mark.parametrize(
    ("kind", "text", "words"),
    [
        ("json_schema", "{", "not JSON"),
        ("json_schema", "[]", "a schema is an object"),
        ("json_schema", '{"maximum": NaN}', "NaN"),
        ("json_schema", '{"type": "' + "x" * MAX_SCHEMA_BYTES, "bytes are given"),
        ("json_schema", "[" * 20_000, "levels deep"),
        ("json_object", "{}", "takes no text"),
        ("choice", "[]", "1 to"),
        ("choice", json.dumps(["x"] * (MAX_CHOICES + 1)), "1 to"),
        ("choice", '["a", ""]', "none of them empty"),
        ("regex", "", "empty"),
        ("regex", "\ud800", "surrogate"),
        ("lark", " ", "empty"),
        ("lark", "start: %json start", "not JSON"),
        ("xml", "", "unknown grammar kind"),
    ],
)
def test_refused_at_birth(kind, text, words):
    with pytest.raises(RequestError, match=words):
        GrammarSpec(kind, text)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (GrammarSpec("json_schema", '{"type": "bogus"}'), "bogus"),
        (GrammarSpec("json_schema", '{"not": {}}'), "not"),
        (GrammarSpec("json_schema", '{"$ref": "file:///etc/passwd"}'), "etc/passwd"),
        (GrammarSpec("regex", "(a"), "unclosed"),
        (GrammarSpec("regex", "(a)\\1"), "backreference"),
        (GrammarSpec("lark", "start: nothing"), "nothing"),
    ],
)
def test_not_compiled(factory, spec, words):
    for compiles in (factory.compile, rehearse):
        with pytest.raises(RequestError, match=words) as caught:
            compiles(spec)
        assert len(caught.value.message) < 400


def test_what_no_text_matches(factory):
    for spec in (GrammarSpec("regex", r"[^\s\S]"), GrammarSpec("json_schema", '{"$ref": "#"}')):
        with pytest.raises(RequestError, match="no text matches"):
            factory.compile(spec)


def test_a_model_without_an_end(factory):
    with pytest.raises(RequestError, match="ends the text"):
        GrammarFactory(factory.tokenizer, 320, ()).compile(GrammarSpec("json_object"))


HOSTILE = {
    # each of these took seconds, gigabytes or the process before it was bounded
    "pattern properties, compared pair by pair": {"patternProperties": {f"^a{i:x}$": {} for i in range(400)}},
    "patterns joined: a message of 2^n parts": {"allOf": [{"type": "string", "pattern": f"a{i}"} for i in range(32)]},
    "the same by references": {
        "$defs": {f"d{i}": {"pattern": f"a{i}", "$ref": f"#/$defs/d{i + 1}"} for i in range(30)} | {"d30": {}},
        "$ref": "#/$defs/d0",
    },
    "common multiple": {"allOf": [{"type": "integer", "multipleOf": p} for p in (2, 3, 5, 7, 11, 13, 17, 19)]},
    "many multiples": {"anyOf": [{"type": "integer", "multipleOf": 9000 + i} for i in range(400)]},
    "a long pattern": {"type": "string", "pattern": ".?" * 16_000},
    "many properties": {"properties": {f"{i:x}": True for i in range(4000)}},
    "a chain of references overflows the stack": {
        "$defs": {f"d{i}": {"items": {"$ref": f"#/$defs/d{i + 1}"}} for i in range(1000)},
        "$ref": "#/$defs/d0",
    },
}


@pytest.mark.parametrize("schema", HOSTILE.values(), ids=HOSTILE)
def test_refused_before_it_is_compiled(schema):
    with pytest.raises(RequestError):
        GrammarSpec.of_schema(schema)
    with pytest.raises(RequestError):
        GrammarSpec("lark", "start: %json " + json.dumps(schema))


CHEAP = {
    "nested counts": GrammarSpec("regex", "(a{1,1000}){1,1000}"),
    "exponential automaton": GrammarSpec("regex", ".*a.{200}"),
    "optional letters": GrammarSpec("regex", "(a?){1000000}"),
    "a long chain of references": GrammarSpec.of_schema(
        {"$defs": {f"d{i}": {"items": {"$ref": f"#/$defs/d{i + 1}"}} for i in range(500)} | {"d500": {}},
         "$ref": "#/$defs/d0"}
    ),
    "many items": GrammarSpec.of_schema({"type": "array", "minItems": 10**6, "items": {"type": "integer"}}),
    "a large enum": GrammarSpec.of_schema({"enum": [f"value {i}" for i in range(1000)]}),
    "ambiguous": GrammarSpec("lark", 'start: x x x x x x\nx: x x | "a" | '),
}  # fmt: skip


@pytest.mark.parametrize("spec", CHEAP.values(), ids=CHEAP)
def test_hostile_and_cheap(factory, spec):
    """Seconds of leave for a loaded machine: they take milliseconds."""
    begin = time.perf_counter()
    grammar = factory.compile(spec)
    for _ in range(20):
        row = torch.zeros(320)
        grammar.mask(row)
        if not grammar.accept(int(row.argmax())):
            break
    assert time.perf_counter() - begin < 5


def test_a_sentencepiece_vocabulary():
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a", "ab"]
    kinds = [PieceKind.UNKNOWN, PieceKind.CONTROL, PieceKind.CONTROL, *[PieceKind.BYTE] * 256, *[PieceKind.NORMAL] * 5]
    options = SentencePieceOptions({"<s>": 1, "</s>": 2}, frozenset({0, 1, 2}), bos=1)
    backend = SentencePieceBackend(build_model(pieces, [0.0] * len(pieces), kinds, add_dummy_prefix=True), options)
    spm = GrammarFactory(Tokenizer(backend, eos_token_ids=(2,)), len(pieces), (2,))
    grammar = spm.compile(GrammarSpec.of_choices(["ab a", "é"]))
    row = torch.zeros(len(pieces))
    grammar.mask(row)
    allowed = {pieces[i] for i in (row == 0).nonzero().flatten()}
    assert allowed == {"a", "ab", "<0x61>", "<0xC3>"}
    assert grammar.accept(pieces.index("ab")) and grammar.accept(pieces.index("▁a")) and grammar.finished
