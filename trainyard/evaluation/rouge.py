"""The scorers of rouge-score, which brings NLTK and what that imports: loaded by what scores."""

from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import Tokenizer

from trainyard.evaluation.words import words


class _Words(Tokenizer):  # type: ignore[misc]
    def tokenize(self, text: str) -> list[str]:
        return words(text)


def f_measure(candidate: str, reference: str, variant: str) -> float:
    return float(_SCORERS[variant].score(reference, candidate)[variant].fmeasure)


_SCORERS = {
    name: RougeScorer([name], tokenizer=_Words())
    for name in ("rouge1", "rouge2", "rougeL", "rougeLsum")
}
