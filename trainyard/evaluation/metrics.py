"""What an answer is worth beside its reference: one function per metric.

All are in [0, 1] but BLEU and chrF, which keep sacrebleu's [0, 100].
"""

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal, get_args

from trainyard.errors import InputError
from trainyard.evaluation.words import normal, words

RougeVariant = Literal["rouge1", "rouge2", "rougeL", "rougeLsum"]


def exact_match(answer: str, reference: str) -> float:
    """1 when the texts are equal but for white space at the ends."""
    return float(answer.strip() == reference.strip())


def accuracy(answer: str, reference: str) -> float:
    """1 when the texts are equal but for case, spacing and punctuation at the ends."""
    return float(normal(answer) == normal(reference))


def contains(answer: str, reference: str) -> float:
    """1 when the answer contains the reference (case, width and spacing apart)."""
    wanted = normal(reference)
    return float(bool(wanted) and wanted in normal(answer))


def capability(answer: str, reference: str) -> float:
    """1 when the answer's choice, last number or whole text is the reference's.

    A reference of one letter is a choice: the first letter that stands alone in the answer counts.
    """
    wanted = normal(reference)
    if re.fullmatch("[a-z]", wanted):
        found = re.search(r"(?<![\w'])[A-Za-z](?![\w'])", answer)
        return float(found is not None and found[0].casefold() == wanted)
    if re.fullmatch(r"-?\d+(?:\.\d+)?", wanted):
        numbers = re.findall(r"-?\d+(?:\.\d+)?", answer.replace(",", ""))
        return float(bool(numbers) and float(numbers[-1]) == float(wanted))
    return accuracy(answer, reference)


def token_f1(answer: str, reference: str) -> float:
    """Harmonic mean of precision and recall over words (Rajpurkar et al. 2016, SQuAD)."""
    mine, theirs = Counter(words(answer)), Counter(words(reference))
    common = (mine & theirs).total()
    return 2 * common / (mine.total() + theirs.total()) if common else 0.0


def rouge(candidate: str, reference: str, variant: RougeVariant) -> float:
    """F-measure of rouge-score without stemming, over words of any script.

    rougeLsum takes the union over lines, rougeL the whole text as one; they differ on texts of
    several lines. Raises InputError for another variant.
    """
    if variant not in get_args(RougeVariant):
        known = ", ".join(get_args(RougeVariant))
        raise InputError(f"{variant!r} is no ROUGE variant; use one of {known}")
    from trainyard.evaluation.rouge import f_measure

    return f_measure(candidate, reference, variant)


def bleu(candidates: Sequence[str], references: Sequence[str]) -> float:
    """Corpus BLEU of sacrebleu in [0, 100], one reference per candidate."""
    from trainyard.evaluation.bleu import BLEU

    _check_aligned(candidates, references)
    return float(BLEU.corpus_score(list(candidates), [list(references)]).score)


def chrf(candidates: Sequence[str], references: Sequence[str]) -> float:
    """Corpus chrF2 of sacrebleu in [0, 100], one reference per candidate."""
    from trainyard.evaluation.bleu import CHRF

    _check_aligned(candidates, references)
    return float(CHRF.corpus_score(list(candidates), [list(references)]).score)


def signatures() -> dict[str, str]:
    """Sacrebleu's signatures: how BLEU and chrF were computed. Known after a first score."""
    from trainyard.evaluation.bleu import BLEU, CHRF

    bleu(["a"], ["a"])
    chrf(["a"], ["a"])
    return {"bleu": str(BLEU.get_signature()), "chrf": str(CHRF.get_signature())}


def bleu_stats(answer: str, reference: str) -> tuple[float, tuple[float, ...]]:
    """Sentence BLEU for display, and the statistics whose sums give corpus BLEU."""
    from trainyard.evaluation.bleu import SENTENCE_BLEU

    found = SENTENCE_BLEU.sentence_score(answer, [reference])
    stats = (*found.counts, *found.totals, found.sys_len, found.ref_len)
    return float(found.score), tuple(float(x) for x in stats)


def chrf_stats(answer: str, reference: str) -> tuple[float, tuple[float, ...]]:
    """Sentence chrF2, and per order the n-grams of the answer, the reference and both."""
    from trainyard.evaluation.bleu import CHRF

    mine, theirs = "".join(answer.split()), "".join(reference.split())
    stats: list[float] = []
    for order in range(1, 7):
        ours, other = _grams(mine, order), _grams(theirs, order)
        # as sacrebleu: an order that the reference is too short for is left out
        stats += [ours.total() if other else 0, other.total(), (ours & other).total()]
    return float(CHRF.sentence_score(answer, [reference]).score), tuple(stats)


def perplexity(nll_sums: Sequence[float], token_counts: Sequence[float]) -> float:
    """Corpus perplexity exp(sum of nll / sum of tokens), nll in nats; never a mean of documents'.

    Raises InputError without tokens.
    """
    _check_aligned(nll_sums, token_counts)
    total, tokens = math.fsum(nll_sums), math.fsum(token_counts)
    if not tokens > 0:
        raise InputError(f"no perplexity from {tokens:g} tokens: are all documents empty?")
    return math.exp(total / tokens)


def parsed(answer: str) -> Any:
    """The answer as JSON, or None; a code fence around it is taken off."""
    text = answer.strip()
    if text.startswith("```") and text.endswith("```") and "\n" in text:
        text = text[text.index("\n") : -3]
    try:
        return json.loads(text, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return None


def json_fields(answer: str, reference: str, fields: Sequence[str] = ()) -> float:
    """Share of the reference's fields that the answer has with the same value.

    A field that only the answer has counts as one more, wrong field; with `fields` only those are
    compared.
    """
    mine, theirs = parsed(answer), parsed(reference)
    if not isinstance(theirs, dict):
        raise InputError(f"the reference is no JSON object: {reference[:80]!r}")
    if not isinstance(mine, dict):
        return 0.0
    keys = set(fields) if fields else set(mine) | set(theirs)
    if not keys:
        return 1.0
    equal = [key in mine and key in theirs and mine[key] == theirs[key] for key in keys]
    return sum(map(bool, equal)) / len(keys)


def json_match(answer: str, reference: str, fields: Sequence[str] = ()) -> float:
    """1 when every compared field is equal."""
    return float(json_fields(answer, reference, fields) == 1.0)


def _grams(text: str, order: int) -> Counter[str]:
    return Counter(text[i : i + order] for i in range(len(text) - order + 1))


def _check_aligned(one: Sequence[object], other: Sequence[object]) -> None:
    if len(one) != len(other) or not len(one):
        raise InputError(
            f"{len(one)} and {len(other)} entries: there must be as many, and at least one"
        )
