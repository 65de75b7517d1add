"""The fast proof of a row against the slow one: text, spans, tokens, trained tokens, findings."""

from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.unit.data.conftest import CHATML
from trainyard.data.batch import conversation
from trainyard.data.frame import Frame, is_separable
from trainyard.data.proof import prove, prove_rows
from trainyard.data.template import Template
from trainyard.data.tokens import END_OF_ROW, FastTokens

PLAIN = CHATML.replace("{% generation %}", "").replace("{% endgeneration %}", "")
ADDED = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] | trim + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
OUTSIDE = PLAIN.replace(
    "{% if m['role'] == 'assistant' %}{{ m['content'] }}",
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}",
)
ENDLESS = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }} {% endfor %}"
TEMPLATES = (CHATML, PLAIN, ADDED, OUTSIDE, ENDLESS)
pieces = st.text() | st.lists(
    st.sampled_from(
        ["the user", " ", "\n", "<|im_end|>", "<|im_start|>", "<|im", "_end|>", "é", "你好", "a"]
    )
).map("".join)


@pytest.mark.parametrize("source", TEMPLATES)
@settings(deadline=None, max_examples=60)
@given(asked=pieces, told=pieces, longest=st.none() | st.integers(1, 40))
@example(asked=" a ", told=" ", longest=None)
def test_a_fast_proof_is_the_slow_one(
    model_folder: Path, source: str, asked: str, told: str, longest: int | None
) -> None:
    template = Template.load(model_folder, source)
    frame, fast = Frame.of(template), FastTokens.of(template)
    body = conversation(asked, told)
    if frame is None:
        assert source is ENDLESS
    else:
        assert frame.render(asked, told) == template.render_row(body)
    assert prove(template, body, longest, fast, frame) == prove(template, body, longest)


@pytest.mark.parametrize("source", [CHATML, PLAIN, ADDED, OUTSIDE])
@settings(deadline=None, max_examples=60)
@given(
    pairs=st.lists(st.tuples(pieces, pieces), min_size=1, max_size=6),
    longest=st.none() | st.integers(1, 40),
)
@example(pairs=[("a", "b"), (END_OF_ROW, "c")], longest=None)
def test_rows_proven_together_are_those_proven_one_by_one(
    model_folder: Path, source: str, pairs: list[tuple[str, str]], longest: int | None
) -> None:
    template = Template.load(model_folder, source)
    frame, fast = Frame.of(template), FastTokens.of(template)
    assert frame is not None
    assert fast is not None
    together = zip(*prove_rows(template, pairs, longest, fast, frame), strict=True)
    for pair, (tokens, trained, fine) in zip(pairs, together, strict=True):
        alone = prove(template, conversation(*pair), longest, fast, frame)
        known = all(END_OF_ROW not in text for row in pairs for text in row)
        assert fine == (known and not alone.findings)
        if fine:
            assert (tokens, trained) == (alone.tokens, alone.trained)


@pytest.mark.parametrize("source", [CHATML, PLAIN, ADDED, OUTSIDE])
def test_templates_that_only_write_contents_have_a_frame(model_folder: Path, source: str) -> None:
    assert Frame.of(Template.load(model_folder, source)) is not None


@pytest.mark.parametrize(
    "source",
    [
        PLAIN.replace("{{ m['content'] }}", "{{ m['content'] | replace('a', 'b') }}"),
        PLAIN.replace("{{ m['content'] }}", "{{ m['content'].split('x')[0] }}"),
        PLAIN.replace("{{ m['content'] }}", "{% set c = m['content'] %}{{ c }}"),
        PLAIN.replace("{{ m['content'] }}", "{{ m | tojson }}"),
        PLAIN.replace("{{ m['content'] }}", "{{ m[('content',)[0]] }}"),
        PLAIN.replace(
            "{{ m['content'] }}", "{% set c %}{{ m.content }}{% endset %}{{ c | upper }}"
        ),
        PLAIN.replace("{{ m['content'] }}", "{{ ('x' + m['content']) | upper }}"),
        PLAIN.replace("{{ m['content'] }}", "{{ loop.previtem }}{{ m['content'] }}"),
        "{% if 'x' in messages[0]['content'] %}!{% endif %}" + PLAIN,
        "{% if messages[0].content %}!{% endif %}" + PLAIN,
        "{% set all = messages %}" + PLAIN,
        "{{ messages[-1] }}" + PLAIN,
    ],
)
def test_templates_that_look_at_contents_have_none(source: str) -> None:
    assert not is_separable(source)
