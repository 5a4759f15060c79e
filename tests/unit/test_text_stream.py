"""What comes out of tokens is whole characters, and nothing of a stop text, however the tokens are cut."""

from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st

from cloudfarm.inference.text_stream import TextStream


def decoder(pieces):
    """Return what decodes numbers of ``pieces`` of bytes as a byte-level tokenizer does."""
    return lambda tokens: b"".join(pieces[token] for token in tokens).decode(errors="replace")


def stream(pieces, stop=(), prompt=()):
    """Return the texts as they came, up to where the stream stopped."""
    text = TextStream(decoder(pieces), stop, prompt)
    came = []
    for token in range(len(prompt), len(pieces)):
        came.append(text.push(token))
        if text.stopped:
            return came, True
    came.append(text.finish())
    return came, text.stopped


def cut(content, places):
    """Cut bytes at some places."""
    bounds = sorted({0, len(content), *(place % (len(content) + 1) for place in places)})
    return [content[start:end] for start, end in pairwise(bounds)]


def expected(text, stop):
    """Return the text before the stop text that is complete first."""
    for end in range(len(text) + 1):
        starts = [end - len(each) for each in stop if text[:end].endswith(each)]
        if starts:
            return text[: min(starts)], True
    return text, False


words = st.text(alphabet="ab한국🎉é ", max_size=30)
stops = st.lists(st.text(alphabet="ab한국 ", min_size=1, max_size=4), max_size=3)


@given(words, st.lists(st.integers(0, 200), max_size=40), stops)
@example("서울 🎉", list(range(20)), [])
@example("abab", [1, 2, 3], ["bab", "abb"])
@example("aab", [1, 2], ["ab", "aab"])
def test_the_whole_text_comes_up_to_the_stop_and_never_a_broken_character(text, places, stop):
    came, stopped = stream(cut(text.encode(), places), stop)
    assert ("".join(came), stopped) == expected(text, stop)
    assert not any("\ufffd" in each for each in came)


def test_text_comes_at_once_when_it_is_certain():
    came, _ = stream([b"Hel", b"lo", "서".encode()[:1], "서".encode()[1:], b"!"])
    assert came == ["Hel", "lo", "", "서", "!", ""]
    came, _ = stream([b"one ", b"ST", b"ART ", b"STOP", b" two"], ["STOP"])
    assert came == ["one ", "", "START ", ""]


def test_half_a_character_at_the_end_is_left_out():
    came, _ = stream([b"a", "서".encode()[:2]])
    assert came == ["a", "", ""]


def test_what_stays_broken_does_not_hold_the_rest_back():
    came, _ = stream([b"a", b"\xff", *[b"\xff"] * 20, b"b"])
    assert len([each for each in came if each]) > 3
    assert "".join(came).endswith("b")


def test_the_prompt_is_context_and_no_text():
    def decode(tokens):  # as sentencepiece does: the first space is not shown
        return "".join([" the", " end"][token % 2] for token in tokens).removeprefix(" ")

    text = TextStream(decode, (), [0, 1, 0])
    assert text.push(1) == " end"
    assert TextStream(decode).push(1) == "end"
