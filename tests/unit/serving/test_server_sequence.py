import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from trainyard.serving.server_sequence import Reason, Sampling, Sequence, Text


def byte_tokenizer() -> Tokenizer:
    """One token per byte, so that most characters beyond ASCII take several tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: i for i, character in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


TOKENIZER = byte_tokenizer()


def spoken(text: str, stop: tuple[str, ...]) -> list[str]:
    """The pieces in which `text` is said, token by token."""
    growing = Text(TOKENIZER, [], stop)
    pieces = []
    for token in TOKENIZER.encode(text).ids:
        pieces.append(growing.push(token))
        if growing.stopped:
            break
    return [*pieces, growing.finish()]


@given(st.text())
def test_the_pieces_add_up_to_the_text(text: str) -> None:
    assert "".join(spoken(text, ())) == text


@given(st.text("abc"), st.lists(st.text("abc", min_size=1), max_size=3))
def test_nothing_from_a_stop_string_on_is_said(text: str, stops: list[str]) -> None:
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    # the answer ends with the token that completes a stop string first
    seen = text[: min(ends)] if ends else text
    starts = [seen.find(stop) for stop in stops if stop in seen]
    expected = seen[: min(starts)] if starts else text
    assert "".join(spoken(text, tuple(stops))) == expected


def test_text_that_may_begin_a_stop_string_is_held_back() -> None:
    assert spoken("a <end", ("<end>",)) == ["a", " ", "", "", "", "", "<end"]


def test_an_unfinished_character_is_said_as_a_replacement() -> None:
    growing = Text(TOKENIZER, [], ())
    first, *_ = TOKENIZER.encode("é").ids
    assert growing.push(first) == ""
    assert growing.finish() == "\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize(
    ("sampling", "text", "reason"),
    [
        (Sampling(max_tokens=3), "abcdef", Reason.LENGTH),
        (Sampling(max_tokens=9, stop=("cd",)), "abcdef", Reason.STOP),
        (Sampling(max_tokens=9, stop_ids=frozenset(TOKENIZER.encode("c").ids)), "abc", Reason.STOP),
    ],
)
def test_a_sequence_says_why_it_ended(sampling: Sampling, text: str, reason: Reason) -> None:
    sequence = Sequence("m", "", [0], sampling, TOKENIZER, deliver=lambda _event: None)
    reasons = [sequence.push(token, None, 0.0) for token in TOKENIZER.encode(text).ids]
    ended = next(found for found in reasons if found is not None)
    assert ended is reason
    event = sequence.event(ended)
    assert event is not None
    assert event.last
