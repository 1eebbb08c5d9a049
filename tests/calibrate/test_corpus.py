"""`--data` in all its forms: what it means, what it is refused for, and which windows come out of it."""

import gzip
import hashlib
import json
import re
import struct
import sys
from dataclasses import replace
from itertools import islice
from types import SimpleNamespace

import pytest

from octavo.base.errors import BadValue, OctavoError, RequestError, UsageError
from octavo.calibrate import corpus as corpora
from octavo.calibrate import hub, known_texts, readers
from octavo.calibrate.corpus import EVALUATION_DIGESTS, Windows, evaluation_set, open_corpus, same_corpus, windows
from octavo.checkpoint.tokenizer import Tokenizer

BOS, EOS = 1, 2
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'][0] }}:{{ m['content'] }}>{% endfor %}{{ '=' if add_generation_prompt }}"
)
CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]


class Letters:
    """A backend of one id per character; U+0001 in the text is BOS."""

    def __init__(self, adds_bos: bool):
        self.adds_bos = adds_bos

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return [BOS] * (add_special_tokens and self.adds_bos) + [ord(c) for c in text]

    def decode(self, ids, skip_special_tokens: bool) -> str:
        return "".join(map(chr, ids))

    def vocab_size(self) -> int:
        return 0x110000

    def token_id(self, token: str) -> int | None:
        return None


def letters(adds_bos=False, template: str | None = TEMPLATE) -> Tokenizer:
    return Tokenizer(Letters(adds_bos), BOS, (EOS, 3), chat_template=template)


def spell(window) -> str:
    return "".join(map(chr, window)).replace(chr(EOS), "|").replace(chr(BOS), "^")


def write(path, content):
    raw = content if isinstance(content, bytes) else content.encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(raw) if path.name.endswith(".gz") else raw)
    return path


def rows(*values) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


def documents(path) -> list:
    return list(open_corpus(str(path)).documents())


def refusal(act, *words, kind=BadValue) -> OctavoError:
    """The error of `act`, which names all of `words` and says what to do."""
    with pytest.raises(kind) as caught:
        act()
    for word in words:
        assert str(word) in str(caught.value)
    assert caught.value.hint
    return caught.value


# what a file means


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.raw", "A.TXT", "a.csv", "no_suffix", "a.txt.gz"])
def test_plain_text_is_one_document(tmp_path, name):
    assert documents(write(tmp_path / name, "one\n\ntwo é 中\n")) == ["one\n\ntwo é 中\n"]


def test_a_byte_order_mark_is_no_text(tmp_path):
    assert documents(write(tmp_path / "a.txt", "\ufeffone")) == ["one"]
    assert documents(write(tmp_path / "a.jsonl", "\ufeff" + rows("one", "two"))) == ["one", "two"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.json.gz"])
def test_json_lines_in_all_their_forms(tmp_path, name):
    content = rows({"text": "t", "url": 1}, {"messages": CHAT}, {"prompt": "p"}, "bare") + "\n" + rows({"text": "  "})
    assert documents(write(tmp_path / name, content)) == ["t", CHAT, "p", "bare"]


def test_the_first_field_that_is_not_null_counts(tmp_path):
    content = rows({"prompt": "p", "text": "t"}, {"text": None, "prompt": "p", "messages": CHAT}, {"messages": []}, "x")
    assert documents(write(tmp_path / "a.jsonl", content)) == ["t", CHAT, "x"]


def test_a_long_text_comes_in_pieces_cut_after_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "PIECE_CHARS", 10)
    text = "one two\nthree four\nfiveééééééé" + "x" * 25 + "   \n"
    for path in (write(tmp_path / "a.txt", text), write(tmp_path / "a.jsonl", rows({"text": text}))):
        pieces = list(open_corpus(str(path)).pieces())
        assert "".join(piece.content for piece in pieces) == text
        assert [piece.content for piece in pieces[:3]] == ["one two\n", "three ", "four\n"]
        assert max(len(piece.content) for piece in pieces) == 10
        assert [piece.continues for piece in pieces] == [False] + [True] * (len(pieces) - 1)


def test_a_file_is_read_as_far_as_it_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "PIECE_CHARS", 64)
    lines = write(tmp_path / "a.jsonl", rows("one", "two") + "not JSON\n")
    assert list(islice(open_corpus(str(lines)).documents(), 2)) == ["one", "two"]
    text = write(tmp_path / "a.txt", b"word " * 100 + b"\xff")
    assert len(list(islice(open_corpus(str(text)).pieces(), 3))) == 3


def test_a_folder_is_its_text_files_in_order(tmp_path):
    for name in ("b.txt", "a/z.md", "a/b.jsonl.gz", "c.json.gz", "a.raw"):
        write(tmp_path / name, rows(name) if ".json" in name else name)
    for name in (".git/x.txt", "a/.hidden.txt", "model.bin", "config.json", "run.py"):
        write(tmp_path / name, b"\xff")
    found = open_corpus(str(tmp_path))
    assert list(found.documents()) == ["a/b.jsonl.gz", "a/z.md", "a.raw", "b.txt", "c.json.gz"]
    assert found.files[0] == str(tmp_path / "a/b.jsonl.gz")


def test_bundled_text_ships_and_is_worth_calibrating_on(tmp_path, monkeypatch):
    write(tmp_path / "bundled", "a decoy")
    monkeypatch.chdir(tmp_path)
    found = open_corpus("bundled")
    (text,) = found.documents()
    assert 24_000 <= len(text.encode()) <= 30_000
    for sign in ("def ", "SELECT", "|---", "¿", "ä", "图书馆", "Ingredients", "Dear "):
        assert sign in text
    assert evaluation_set(found) is None
    assert list(open_corpus("./bundled").documents()) == ["a decoy"]


# what is refused


@pytest.mark.parametrize("data", ["", "nowhere/at/all.txt", "c5", "x" * 5000, "nul\0"])
def test_no_such_data(data):
    refusal(lambda: open_corpus(data), "no such file or folder", "wikitext2", "bundled")


def test_neither_file_nor_folder():
    refusal(lambda: open_corpus("/dev/null"), "/dev/null", "neither a file nor a folder")


@pytest.mark.parametrize("content", ["", " \n\t\n"])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.txt.gz"])
def test_no_text(tmp_path, name, content):
    refusal(lambda: open_corpus(str(write(tmp_path / name, content))), name, "holds no text")


def test_a_folder_without_text(tmp_path):
    write(tmp_path / "weights.bin", "x")
    refusal(lambda: open_corpus(str(tmp_path)), tmp_path, "none of its 1 files", ".jsonl")


BAD_LINES = {
    "not JSON": (b"{'text': 'x'}", "is not JSON"),
    "cut off": (b'{"text": "x', "is not JSON"),
    "too deep": (b"[" * 100_000, "is not JSON"),
    "a number": (b"7", "is a int"),
    "a list": (b'["x"]', "is a list"),
    "another field": (
        b'{"question": "x", "text": null}',
        "has no `text` or `messages` or `prompt` (it has question, text",
    ),
    "an empty object": (b"{}", "it has nothing"),
    "text that is none": (b'{"text": 5}', "`text` is a int"),
    "a surrogate": (b'{"text": "\\ud800"}', "`text` holds a lone surrogate"),
    "messages that are none": (b'{"messages": "hi"}', "is not a list of messages"),
    "a message without role": (b'{"messages": [{"content": "hi"}]}', "message 1 has no `role`"),
    "a message without content": (b'{"messages": [{"role": "user", "content": null}]}', "message 1 has no `content`"),
    "a message with a surrogate": (b'{"messages": [{"role": "user", "content": "\\udc00"}]}', "lone surrogate"),
}


@pytest.mark.parametrize(("line", "words"), BAD_LINES.values(), ids=BAD_LINES)
def test_a_bad_line_is_named(tmp_path, line, words):
    path = write(tmp_path / "a.jsonl", rows({"text": "fine"}).encode() + b"\n" + line + b"\n")
    refusal(lambda: documents(path), f"{path}:3", words)


def test_a_line_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "LINE_BYTES", 100)
    assert documents(write(tmp_path / "a.jsonl", rows("x" * 97))) == ["x" * 97]
    refusal(lambda: documents(write(tmp_path / "b.jsonl", rows("x", "x" * 98))), "b.jsonl:2", "longer than 100 bytes")


BAD_BYTES = {
    "latin-1": ("a.txt", b"caf\xe9 au lait", "byte 3 is 0xe9"),
    "far in": ("a.txt", b"\xef\xbb\xbf" + "é".encode() * 100 + b"\xff", "byte 203 is 0xff"),
    "cut in a character": ("a.md", "é中".encode()[:-1], "byte 2 is 0xe4"),
    "utf-16": ("a.txt", "text".encode("utf-16-le"), "byte 1 is zero"),
    "in a line": ("a.jsonl", rows("one").encode() + b'"\xff"\n', "byte 7 is 0xff"),
    "packed": ("a.txt.gz", b"abc\xff", "byte 3 is 0xff"),
}


@pytest.mark.parametrize(("name", "raw", "words"), BAD_BYTES.values(), ids=BAD_BYTES)
@pytest.mark.parametrize("block", [7, 2**18])
def test_what_is_not_utf8_is_named_with_its_place(tmp_path, monkeypatch, name, raw, words, block):
    monkeypatch.setattr(readers, "PIECE_CHARS", block)
    refusal(lambda: documents(write(tmp_path / name, raw)), tmp_path / name, words, "iconv")


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.txt.gz"])
@pytest.mark.parametrize(
    "spoil", [lambda raw: raw[:-9], lambda raw: b"text, not gzip", lambda raw: raw[:12] + b"\xff" * 9]
)
def test_a_broken_gzip_file(tmp_path, name, spoil):
    path = write(tmp_path / name, rows(*(f"{n} {n * n}" for n in range(50))))
    path.write_bytes(spoil(path.read_bytes()))
    refusal(lambda: documents(path), path, "is not a whole gzip file")


def test_a_file_that_cannot_be_read(tmp_path, monkeypatch):
    path = write(tmp_path / "a.txt", "x")

    def refuse(file):
        raise PermissionError(13, "Permission denied", file)

    monkeypatch.setattr(readers, "_open", refuse)
    refusal(lambda: open_corpus(str(path)), f"cannot read `{path}`: Permission denied", kind=UsageError)


# Parquet and the hub: packages that need not be there


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    path = write(tmp_path / "a.parquet", "PAR1")
    refusal(lambda: open_corpus(str(path)), path, "pip install pyarrow", kind=UsageError)


class ArrowInvalid(ValueError):
    pass


def fake_arrow(monkeypatch, columns: dict[str, list], error: Exception | None = None) -> None:
    """As much of pyarrow as is used, over one table in two batches."""

    class ParquetFile:
        schema_arrow = SimpleNamespace(names=list(columns))

        def __init__(self, file: str):
            if error is not None:
                raise error

        def iter_batches(self, batch_size: int, columns: list[str]):
            (name,) = columns
            values = table[name]
            for part in (values[:2], values[2:]):
                yield SimpleNamespace(to_pylist=lambda part=part: [{name: value} for value in part])

    table = columns
    parquet = SimpleNamespace(ParquetFile=ParquetFile)
    monkeypatch.setitem(sys.modules, "pyarrow", SimpleNamespace(ArrowInvalid=ArrowInvalid, parquet=parquet))
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", parquet)


def test_parquet_rows_are_documents(tmp_path, monkeypatch):
    path = write(tmp_path / "a.parquet", "PAR1")
    fake_arrow(monkeypatch, {"id": [1, 2, 3], "text": ["one", "", "three"]})
    assert documents(path) == ["one", "three"]
    fake_arrow(monkeypatch, {"messages": [CHAT]})
    assert documents(tmp_path) == [CHAT]
    fake_arrow(monkeypatch, {"text": ["one", "two", None]})
    refusal(lambda: documents(path), "a.parquet: row 3", "it has text: null")
    fake_arrow(monkeypatch, {"question": ["q"], "answer": ["a"]})
    refusal(lambda: documents(path), "has no column `text`", "it has question, answer")
    fake_arrow(monkeypatch, {"text": []}, ArrowInvalid("no magic\n bytes"))
    refusal(lambda: documents(path), "is not a whole Parquet file: no magic bytes")
    fake_arrow(monkeypatch, {"text": []}, OSError("bad page"))
    refusal(lambda: documents(path), "cannot read", "bad page", kind=UsageError)


def test_parquet_with_pyarrow_itself(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    parquet.write_table(arrow.table({"n": [1, 2], "text": ["one", "two"]}), path)
    assert documents(path) == ["one", "two"]
    path.write_bytes(path.read_bytes()[:-9])
    refusal(lambda: documents(path), path, "is not a whole Parquet file")


def fake_hub(monkeypatch, found: list[dict] | Exception) -> list:
    calls = []

    def load_dataset(*args, **options):
        calls.append((args, options))
        if isinstance(found, Exception):
            raise found
        return iter(found)

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    return calls


@pytest.mark.parametrize("name", hub.HUB_SETS)
def test_a_hub_set_is_streamed_by_a_packaged_reader(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    wanted = hub.HUB_SETS[name]
    calls = fake_hub(monkeypatch, [{wanted.column: text} for text in ("one", "", "two")])
    found = open_corpus(name)
    want = ["one", "two"] if wanted.line_end is None else [wanted.line_end.join(("one", "", "two", ""))]
    assert list(found.documents()) == want
    assert found.files == ()
    for (reader,), options in calls:
        # never by the name of a repository, whose script would then be run by older versions
        assert reader in ("json", "parquet", "text")
        assert options == {"data_files": [wanted.url], "split": "train", "streaming": True}


def test_a_hub_set_that_cannot_be_had(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", None)
    refusal(lambda: open_corpus("c4"), "`c4`", "pip install datasets", "local", kind=UsageError)
    fake_hub(monkeypatch, ConnectionError("no route"))
    refusal(lambda: open_corpus("ptb"), "`ptb`", "ConnectionError: no route", "--data FILE", kind=UsageError)
    fake_hub(monkeypatch, [{"content": "x"}])
    refusal(lambda: open_corpus("pileval"), "no text in `text`", "--data FILE")


def test_a_local_path_wins_over_a_hub_set(monkeypatch, tmp_path):
    write(tmp_path / "c4/part.jsonl", rows("mine"))
    write(tmp_path / "ptb", "mine too")
    monkeypatch.chdir(tmp_path)
    calls = fake_hub(monkeypatch, [])
    assert list(open_corpus("c4").documents()) == ["mine"]
    assert list(open_corpus("ptb").documents()) == ["mine too"]
    assert calls == []


# digests


def test_a_digest_is_of_the_words(tmp_path):
    want = hashlib.sha256("one two three é".encode()).hexdigest()
    same = {
        "a.txt": "one two three é",
        "b.txt.gz": " one  two\r\n\r\nthree\té\n",
        "c.jsonl": rows("one", {"text": "two three"}, "é"),
        "d.json.gz": rows({"prompt": "one two"}, "three é"),
    }
    found = [open_corpus(str(write(tmp_path / name, content))) for name, content in same.items()]
    assert [corpus.digest() for corpus in found] == [want] * 4
    assert same_corpus(found[0], found[1])
    assert same_corpus(found[0], want)
    other = open_corpus(str(write(tmp_path / "e.txt", "one two threeé")))
    assert not same_corpus(found[0], other)
    chats = [rows({"messages": CHAT}), rows({"messages": [{**CHAT[0], "role": "assistant"}, CHAT[1]]})]
    assert len({open_corpus(str(write(tmp_path / "f.jsonl", chat))).digest() for chat in chats}) == 2


def test_a_digest_of_pieces_is_that_of_the_whole(tmp_path, monkeypatch):
    text = " ".join(map(str, range(100)))
    found = open_corpus(str(write(tmp_path / "a.txt", text)))
    whole = found.digest()
    monkeypatch.setattr(readers, "PIECE_CHARS", 16)
    assert len(list(found.documents())) > 10
    assert found.digest() == whole == hashlib.sha256(text.encode()).hexdigest()


def test_a_digest_reads_a_stated_part_of_a_large_corpus(tmp_path, monkeypatch):
    monkeypatch.setattr(known_texts, "DIGEST_BYTES", 9)
    want = hashlib.sha256(b"one two t").hexdigest()
    for name, content in (("a.txt", "one two three"), ("b.jsonl", rows("one", "two", "ten") + "not JSON")):
        assert open_corpus(str(write(tmp_path / name, content))).digest() == want
    write(tmp_path / "folder/a.txt", "one two ten")
    write(tmp_path / "folder/b.txt", b"\xff")
    assert open_corpus(str(tmp_path / "folder")).digest() == want


def test_an_evaluation_text_is_known_alone_and_in_a_folder(tmp_path, monkeypatch):
    held_out = "What is asked\n is not taught.\n"
    digest = hashlib.sha256(b"What is asked is not taught.").hexdigest()
    monkeypatch.setattr(corpora, "EVALUATION_DIGESTS", {digest: "the test"})
    alone = write(tmp_path / "all/b.txt", held_out)
    write(tmp_path / "all/a.jsonl", rows("another text"))
    assert evaluation_set(open_corpus(str(alone))) == "the test"
    assert evaluation_set(open_corpus(str(tmp_path / "all"))) == "the test"
    assert evaluation_set(open_corpus(str(write(tmp_path / "c.txt", held_out + "more")))) is None


def test_the_table_of_evaluation_texts():
    assert "the WikiText-2 raw test text" in EVALUATION_DIGESTS.values()
    assert len(set(EVALUATION_DIGESTS.values())) == len(EVALUATION_DIGESTS)
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in EVALUATION_DIGESTS)


# windows


def corpus_of(tmp_path, *values, name="a.jsonl"):
    return open_corpus(str(write(tmp_path / name, rows(*values))))


def test_documents_are_joined_by_eos_and_cut(tmp_path):
    found = corpus_of(tmp_path, "a" * 20, "b" * 10, "c" * 16)
    made = windows(found, letters(), samples=3, seqlen=16, seed=0)
    assert [spell(window) for window in made.ids] == ["a" * 16, "aaaa|bbbbbbbbbb|", "c" * 16]
    packed = struct.pack("<48I", *(token for window in made.ids for token in window))
    assert made == Windows(made.ids, 3, 16, 0, hashlib.sha256(packed).hexdigest(), 3, found.digest())


def test_no_eos_within_a_text_nor_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "PIECE_CHARS", 10)
    text = "one two\nthree four\nfive six\nseven"
    found = open_corpus(str(write(tmp_path / "a.txt", text)))
    made = windows(found, letters(), 2, 16, seed=0)
    assert "".join(map(spell, made.ids)) == text[:32]
    assert made.documents == 1
    ended = corpus_of(tmp_path, "a" * 7 + chr(3), "b" * 8)
    assert spell(windows(ended, letters(), 1, 16, 0).ids[0]) == "a" * 7 + chr(3) + "b" * 8


def test_every_window_begins_with_bos_where_texts_do(tmp_path):
    found = corpus_of(tmp_path, "a" * 20, {"messages": [{"role": "user", "content": "b" * 10}]})
    template = chr(BOS) + TEMPLATE
    made = windows(found, letters(adds_bos=True, template=template), 2, 16, seed=0)
    assert [spell(window) for window in made.ids] == ["^" + "a" * 15, "^aaaaa|<u:bbbbbb"]
    # a template may begin with BOS although plain texts do not: then it is part of the chat
    plain = windows(found, letters(template=template), 2, 16, seed=0)
    assert spell(plain.ids[1]) == "aaaa|^<u:bbbbbbb"


def test_chats_go_through_the_template(tmp_path):
    found = corpus_of(tmp_path, {"messages": CHAT}, {"messages": CHAT[:1]}, "plain text")
    assert spell(windows(found, letters(), 1, 29, 0).ids[0]) == "<u:hi><a:yo>|<u:hi>=|plain te"
    assert spell(windows(found, letters(), 1, 29, 0, chat=True).ids[0]) == "<u:hi><a:yo>|<u:hi>=|<u:plain"


def test_with_chat_each_piece_of_a_long_text_is_a_message(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "PIECE_CHARS", 8)
    found = corpus_of(tmp_path, "one two three")
    made = windows(found, letters(), 1, 24, 0, chat=True)
    assert spell(made.ids[0]) == "<u:one two >=|<u:three>="
    assert made.documents == 2


def test_a_chat_that_the_template_refuses_is_named(tmp_path):
    found = corpus_of(tmp_path, "text", {"messages": CHAT})
    refusal(lambda: windows(found, letters(template=None), 1, 16, 0), "document 2", "no chat template")
    assert not issubclass(BadValue, RequestError)


def test_the_seed_chooses_and_nothing_else(tmp_path):
    found = corpus_of(tmp_path, *(f"{n:015d}" for n in range(40)))

    def made(seed, samples=8):
        return windows(found, letters(), samples, 16, seed)

    assert made(3) == made(3)
    assert len({made(seed).digest for seed in range(6)}) == 6
    places = [[int(spell(window).strip("|")) for window in made(seed).ids] for seed in range(200)]
    assert all(place == sorted(set(place)) for place in places)
    # 32 windows are looked at, and each is as likely as any other: 50 of 200 times, give or take 5 sigma
    counts = [sum(n in place for place in places) for n in range(40)]
    assert counts[33:] == [0] * 7
    assert all(20 <= count <= 80 for count in counts[:32])
    first = [int(spell(made(seed, samples=1).ids[0]).strip("|")) for seed in range(200)]
    assert all(20 <= first.count(n) <= 80 for n in range(4))


def test_what_is_read_is_bounded(tmp_path):
    content = rows(*("x" * 16 for _ in range(9))) + "not JSON\n"
    found = open_corpus(str(write(tmp_path / "a.jsonl", content)))
    read = windows_without_digest(found, samples=2)
    assert read.documents == 8
    refusal(lambda: windows_without_digest(found, samples=3), ":10", "not JSON")


def windows_without_digest(found, samples) -> Windows:
    """The digest reads on: here only what the windows read is looked at."""
    quiet = SimpleNamespace(name=found.name, pieces=found.pieces, digest=lambda: "")
    return windows(quiet, replace(letters(), eos_token_ids=()), samples, 16, 0)


def test_a_corpus_that_is_too_small_says_what_fits(tmp_path):
    found = corpus_of(tmp_path, "a" * 50)
    error = refusal(lambda: windows(found, letters(), 8, 16, 0), "50 tokens", "3 windows of 16", "8 were asked for")
    assert "--samples 3" in error.hint
    assert windows(found, letters(), 3, 16, 0).samples == 3
    error = refusal(lambda: windows(found, letters(adds_bos=True), 8, 512, 0), "0 windows of 512")
    assert "--samples 1 --seqlen 51" in error.hint
    assert len(windows(found, letters(adds_bos=True), 1, 51, 0).ids[0]) == 51
    error = refusal(lambda: windows(corpus_of(tmp_path, "a"), letters(), 1, 16, 0), "1 tokens")
    assert "--samples" not in error.hint and "--data" in error.hint


@pytest.mark.parametrize(
    ("samples", "seqlen", "seed", "flag"),
    [
        (0, 16, 0, "--samples 0"),
        (100_001, 16, 0, "--samples 100001"),
        (True, 16, 0, "--samples True"),
        (1, 15, 0, "--seqlen 15"),
        (1, 1_000_001, 0, "--seqlen 1000001"),
        (1, 16.0, 0, "--seqlen 16.0"),
        (1, 16, -1, "--seed -1"),
    ],
)
def test_sizes_out_of_range(tmp_path, samples, seqlen, seed, flag):
    found = corpus_of(tmp_path, "a" * 50)
    refusal(lambda: windows(found, letters(), samples, seqlen, seed), flag, "whole number from")
