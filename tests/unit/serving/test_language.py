import pytest

from trainyard.serving.language import differs, guess

EN = "Please tell me what the weather is like and whether you have an umbrella for this trip."
DE = "Bitte sagen Sie mir, wie das Wetter wird und ob ich für die Reise einen Schirm haben muss."
FR = "Merci, vous avez une bonne question et nous allons répondre pour votre voyage dans le sud."
RU = "Скажите, пожалуйста, какая погода будет завтра."
ZH = "请告诉我明天的天气怎么样,谢谢您的帮助和耐心。"


@pytest.mark.parametrize(
    ("text", "language"),
    [(EN, "en"), (DE, "de"), (FR, "fr"), (RU, "CYRILLIC"), (ZH, "CJK"), ("42", None), ("ok", None)],
)
def test_a_language_is_told_or_left_open(text: str, language: str | None) -> None:
    assert guess(text) == language


@pytest.mark.parametrize(
    ("question", "answer", "other"),
    [
        (EN, EN, False),
        (EN, DE, True),
        (DE, FR, True),
        (EN, RU, True),
        (ZH, EN, True),
        (EN, '{"city": "Berlin", "count": 3}', False),  # no words to tell it by
        ("def f(x): return x", DE, False),  # the question is in no language
    ],
)
def test_another_language_is_noticed_only_when_sure(
    question: str, answer: str, other: bool
) -> None:
    assert differs(question, answer) is other
