"""Text comes in whole characters, and never shows a stop string or its beginning."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.engine.detokenizer import TextStream


class Bytes:
    """A tokenizer whose tokens are single bytes: the hardest case for characters."""

    def decode(self, ids, skip_special_tokens=True):
        return bytes(ids).decode("utf-8", errors="replace")


class Words:
    """A tokenizer that drops the space of the first word, as sentencepiece does."""

    def decode(self, ids, skip_special_tokens=True):
        return "".join(f" w{token}" for token in ids).removeprefix(" ")


def feed(text: bytes, stop=(), keep=False, prompt=b"") -> tuple[list[str], TextStream]:
    stream = TextStream(Bytes(), list(prompt), tuple(stop), keep)
    parts = []
    for byte in text:
        parts.append(stream.feed(byte))
        if stream.stopped_by is not None:
            break
    parts.append(stream.close())
    return parts, stream


@given(st.text(max_size=40))
def test_parts_are_whole_characters_and_add_up(text):
    parts, stream = feed(text.encode())
    assert "".join(parts) == text == stream.text
    if "\ufffd" not in text:
        assert not any("\ufffd" in part for part in parts)


def test_half_a_character_at_the_end_is_shown_as_such():
    parts, _ = feed("né".encode()[:-1])
    assert "".join(parts) == "n\ufffd"
    assert parts[-1] == "\ufffd"


def test_the_space_of_the_first_word_is_kept_after_a_prompt():
    stream = TextStream(Words(), [1, 2])
    assert stream.feed(3) + stream.feed(4) == " w3 w4"
    assert TextStream(Words(), []).feed(3) == "w3"


@given(st.text("abc", max_size=30), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3), st.booleans())
def test_stop_strings(text, stops, keep):
    parts, stream = feed(text.encode(), stops, keep)
    found = [(text.find(stop) + len(stop), text.find(stop), stop) for stop in stops if stop in text]
    if not found:
        assert stream.stopped_by is None
        assert "".join(parts) == text
        return
    end, _, _ = min(found)  # the stop string that is complete first
    candidates = [text[: (b + len(s) if keep else b)] for e, b, s in found if e == end]
    assert stream.stopped_by is not None
    assert "".join(parts) == stream.text
    assert stream.text in candidates


@pytest.mark.parametrize("keep", [False, True])
def test_nothing_of_a_stop_string_is_shown_early(keep):
    stream = TextStream(Bytes(), [], ("STOP",), keep)
    shown = "".join(stream.feed(byte) for byte in b"go STO")
    assert shown == "go "
    shown += "".join(stream.feed(byte) for byte in b"P")
    assert stream.stopped_by == "STOP"
    assert shown + stream.close() == ("go STOP" if keep else "go ")


def test_held_back_text_is_given_out_when_it_was_no_stop():
    stream = TextStream(Bytes(), [], ("STOP",))
    assert "".join(stream.feed(byte) for byte in b"STOC") == "STOC"
