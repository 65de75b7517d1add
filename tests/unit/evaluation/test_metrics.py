import math

import numpy as np
import pytest
import sacrebleu
from sklearn.metrics import f1_score

from trainyard.errors import InputError
from trainyard.evaluation import corpus, metrics
from trainyard.evaluation.constraints import satisfied
from trainyard.evaluation.words import words

SCRIPTS = {
    "English": "the cat sat on the mat",
    "Chinese": "机器学习改变了世界",
    "Russian": "кошка сидела на коврике",
    "Thai": "แมวนั่งอยู่บนเสื่อ",
    "Arabic": "جلست القطة على السجادة",
    "Hindi": "बिल्ली चटाई पर बैठी",
    "Japanese": "猫はマットの上に座った",
    "Korean": "고양이가 매트 위에 앉았다",
}


@pytest.mark.parametrize("variant", ["rouge1", "rouge2", "rougeL", "rougeLsum"])
@pytest.mark.parametrize("text", SCRIPTS.values(), ids=SCRIPTS)
def test_identical_text_of_any_script_scores_one(variant, text):
    assert metrics.rouge(text, text, variant) == 1.0


@pytest.mark.parametrize("text", SCRIPTS.values(), ids=SCRIPTS)
def test_token_f1_of_half_the_text_lies_between(text):
    half = (
        "".join(words(text)[: len(words(text)) // 2]) if " " not in text else text.rsplit(" ", 2)[0]
    )
    assert metrics.token_f1(text, text) == 1.0
    assert 0 < metrics.token_f1(half, text) < 1


def test_rouge_on_english_is_that_of_rouge_score():
    # ROUGE-1 of Lin 2004, section 2: "police killed the gunman" / "police kill the gunman", 3 of 4
    assert metrics.rouge("police kill the gunman", "police killed the gunman", "rouge1") == 0.75
    assert metrics.rouge("the gunman kill police", "police killed the gunman", "rougeL") == 0.5


def test_rouge_l_and_lsum_differ_on_lines_in_another_order():
    one, other = "a b c\nd e f", "d e f\na b c"
    assert metrics.rouge(one, other, "rougeL") == 0.5
    assert metrics.rouge(one, other, "rougeLsum") == 1.0


def test_unknown_rouge_variant_is_an_error():
    with pytest.raises(InputError, match="rouge3"):
        metrics.rouge("a", "a", "rouge3")  # type: ignore[arg-type]


PAIRS = [
    ("the cat is on the mat", "the cat sat on the mat"),
    ("there is a dog in the park today", "a dog is in the park"),
    ("hello", "goodbye my friend of old days"),
    ("completely different words here", "nothing shared with that other text"),
    ("", "an empty answer"),
]


def test_corpus_bleu_and_chrf_from_sums_are_sacrebleu():
    answers, references = zip(*PAIRS, strict=True)
    bleu = np.sum([metrics.bleu_stats(*pair)[1] for pair in PAIRS], axis=0)
    chrf = np.sum([metrics.chrf_stats(*pair)[1] for pair in PAIRS], axis=0)
    assert corpus.bleu(bleu) == pytest.approx(metrics.bleu(answers, references))
    assert corpus.chrf(chrf) == pytest.approx(metrics.chrf(answers, references))


@pytest.mark.parametrize("last", range(1, len(PAIRS) + 1))
def test_small_corpora_are_smoothed_as_sacrebleu_does(last):
    some = PAIRS[:last][::-1]
    stats = np.sum([metrics.bleu_stats(*pair)[1] for pair in some], axis=0)
    expected = sacrebleu.corpus_bleu([a for a, _ in some], [[r for _, r in some]]).score
    assert corpus.bleu(stats) == pytest.approx(expected)


def test_macro_f1_is_that_of_scikit_learn():
    rng = np.random.default_rng(1)
    expected = rng.choice(["a", "b", "c"], 200, p=[0.6, 0.3, 0.1])
    predicted = np.where(rng.random(200) < 0.8, expected, rng.choice(["a", "b", "c"], 200))
    counts = corpus.label_counts(list(zip(expected, predicted, strict=True)))
    ours = float(corpus.f1(counts.sum(axis=0)))
    assert ours == pytest.approx(f1_score(expected, predicted, average="macro"))


def test_perplexity_is_over_tokens_not_over_documents():
    assert metrics.perplexity([10.0, 2.0], [10, 1]) == pytest.approx(math.exp(12 / 11))


def test_perplexity_without_tokens_is_an_error():
    with pytest.raises(InputError, match="0 tokens"):
        metrics.perplexity([0.0], [0])


@pytest.mark.parametrize(
    ("answer", "fields", "share"),
    [
        ('{"a": 1, "b": "x"}', (), 1.0),
        ('{"b": "x", "a": 1}', (), 1.0),
        ('```json\n{"a": 1, "b": "x"}\n```', (), 1.0),
        ('{"a": 1}', (), 0.5),
        ('{"a": 1, "b": "x", "c": 0}', (), 2 / 3),  # a field too many is a wrong one
        ('{"a": 1, "b": "y", "c": 0}', ("a",), 1.0),
        ("[1]", (), 0.0),
        ("not json", (), 0.0),
        ('{"a": NaN}', (), 0.0),
        ("", (), 0.0),
    ],
)
def test_json_fields_counts_equal_fields(answer, fields, share):
    assert metrics.json_fields(answer, '{"a": 1, "b": "x"}', fields) == pytest.approx(share)
    assert metrics.json_match(answer, '{"a": 1, "b": "x"}', fields) == float(share == 1.0)


@pytest.mark.parametrize(
    ("answer", "exact", "loose", "inside"),
    [
        ("Paris", 1, 1, 1),
        (" Paris\n", 1, 1, 1),
        ("paris.", 0, 1, 1),
        ("It is Paris, of course", 0, 0, 1),
        ("Ｐａｒｉｓ", 0, 1, 1),  # noqa: RUF001  full width
        ("London", 0, 0, 0),
        ("", 0, 0, 0),
    ],
)
def test_text_matches_as_strictly_as_named(answer, exact, loose, inside):
    found = [f(answer, "Paris") for f in (metrics.exact_match, metrics.accuracy, metrics.contains)]
    assert found == [exact, loose, inside]


@pytest.mark.parametrize(
    ("kind", "value", "good", "bad"),
    [
        ("max_words", 3, "one two three", "one two three four"),
        ("min_words", 2, "one two", "one"),
        ("min_sentences", 2, "One. Two.", "One."),
        ("max_sentences", 1, "One.", "One. Two."),
        ("paragraphs", 2, "a\n\nb", "a b"),
        ("bullets", 2, "- a\n- b", "- a"),
        ("contains", "Cat", "a cat", "a dog"),
        ("excludes", "dog", "a cat", "a Dog"),
        ("mentions_at_least", {"text": "a", "times": 2}, "a a", "a"),
        ("starts_with", "Yes", "Yes, sir", "No"),
        ("ends_with", "bye", "good bye", "bye good"),
        ("lower_case", None, "abc", "aBc"),
        ("upper_case", None, "ABC", "aBC"),
        ("no_commas", None, "a b", "a, b"),
        ("quoted", None, '"a"', "a"),
        ("title", None, "<<On cats>> text", "On cats"),
        ("placeholders", 1, "Dear [name]", "Dear you"),
        ("json", None, "[1]", "[1"),
        ("one_of", ["yes", "no"], "yes", "maybe"),
    ],
)
def test_constraints_hold_or_not(kind, value, good, bad):
    constraint = [{"kind": kind, "value": value}]
    assert (satisfied(good, constraint), satisfied(bad, constraint)) == (1.0, 0.0)


def test_an_empty_answer_satisfies_nothing():
    assert satisfied(" ", [{"kind": "no_commas"}]) == 0.0


@pytest.mark.parametrize(
    "constraints", [[], [{"kind": "rhymes"}], [{"kind": "max_words", "value": "many"}]]
)
def test_constraints_that_cannot_be_checked_are_errors(constraints):
    with pytest.raises(InputError):
        satisfied("text", constraints)
