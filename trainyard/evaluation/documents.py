"""Perplexity suites: the served model's own log-likelihood of whole documents."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from trainyard.errors import InputError
from trainyard.evaluation.asking import Question
from trainyard.evaluation.endpoint import NotAnswered, Reply
from trainyard.evaluation.samples import Item, read_items
from trainyard.evaluation.scores import Score
from trainyard.recipe.evaluate import PerplexitySuite

METRICS = ("perplexity", "bits_per_byte")


def items(suite: PerplexitySuite) -> list[Item]:
    found = read_items(suite.data, limit=suite.limit)
    for item in found:
        if item.text is None:
            raise InputError(
                f"{suite.data}: sample {item.id} is a conversation; a perplexity suite reads plain "
                "text rows"
            )
    return found


def question(suite: PerplexitySuite, item: Item, arm: str, seed: int) -> Question:
    """The document itself as prompt, echoed with log-probabilities; nothing is generated.

    The first token has no log-probability and is not counted.
    """
    body = {
        "prompt": item.text,
        "max_tokens": 0,
        "echo": True,
        "logprobs": 0,
        "temperature": 0,
        "seed": seed,
    }
    row = {"suite": suite.name, "id": item.id, "bytes": len((item.text or "").encode())}
    return Question(suite.name, item.id, arm, "/v1/completions", body, row, read_likelihood)


def read_likelihood(reply: Reply) -> dict[str, Any]:
    """Sum of -log p over the tokens that have one, in nats, and how many those are."""
    try:
        given = reply.body["choices"][0]["logprobs"]["token_logprobs"]
        logprobs = [float(x) for x in given if x is not None]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise NotAnswered("the reply has no choices[0].logprobs.token_logprobs") from error
    nll = -math.fsum(logprobs)
    if not logprobs or not math.isfinite(nll):
        raise NotAnswered(f"{len(logprobs)} log-probabilities with sum {-nll}")
    return {"nll": nll, "tokens": len(logprobs)}


def control_failures(suite: PerplexitySuite, samples: Sequence[Item]) -> dict[str, str]:
    """Metric -> why it cannot be trusted on these documents.

    A model that knows every token scores perplexity 1 and 0 bits; one that gives each of as many
    tokens as the document has bytes half a chance scores 2 and 1.
    """
    failures: dict[str, str] = {}
    for item in samples:
        size = min(len((item.text or "").encode()), 100)
        for chance, expected in ((1.0, (1.0, 0.0)), (0.5, (2.0, 1.0))):
            logprobs = {"token_logprobs": [None, *[math.log(chance)] * size]}
            body = {"choices": [{"logprobs": logprobs}]}
            try:
                answer = {"arm": "candidate", "bytes": size, **read_likelihood(Reply(body, 0.0))}
            except NotAnswered as error:
                problem = f"control failed: a document of {size} bytes gives {error}"
                return dict.fromkeys(METRICS, f"{problem} (sample {item.id})")
            for score, wanted in zip(scores(suite, item, answer, {}), expected, strict=True):
                if score.value is None or abs(score.value - wanted) > 1e-9:
                    failures.setdefault(
                        score.metric,
                        f"control failed: {score.metric} is {score.value} instead of {wanted:g} "
                        f"(sample {item.id})",
                    )
    return failures


def scores(
    suite: PerplexitySuite, item: Item, answer: Mapping[str, Any], failures: Mapping[str, str]
) -> list[Score]:
    def score(metric: str, value: float | None, weight: float, error: str | None) -> Score:
        error = failures.get(metric) or error
        value = None if error else value
        return Score(item.id, suite.name, metric, answer["arm"], value, weight=weight, error=error)

    if "error" in answer:
        return [score(metric, None, 1.0, answer["error"]) for metric in METRICS]
    nll, tokens, size = answer["nll"], answer["tokens"], answer["bytes"]
    if nll / tokens > 700:
        return [
            score(metric, None, 1.0, f"loss {nll / tokens:.3g} per token") for metric in METRICS
        ]
    return [
        score("perplexity", math.exp(nll / tokens), tokens, None),
        score("bits_per_byte", nll / math.log(2) / size, size, None),
    ]
