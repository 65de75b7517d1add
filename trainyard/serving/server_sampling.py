"""The next token of every row, from logits. Each row's choice depends on that row alone."""

from collections.abc import Sequence as Rows

import torch

from trainyard.serving.server_sequence import Sampling, Scored, Sequence


def pick(
    logits_BV: torch.Tensor, rows: Rows[Sequence], generators: Rows[torch.Generator | None]
) -> list[tuple[int, Scored | None]]:
    """Next token per row, with its log-probability where the row asks for it.

    Greedy where temperature is 0; the log-probabilities are those before temperature and top_p.
    """
    tokens = logits_BV.argmax(dim=-1).tolist()
    for i, (row, generator) in enumerate(zip(rows, generators, strict=True)):
        if generator is not None:
            tokens[i] = _draw(logits_BV[i], row.sampling, generator)
    return [
        (token, None if row.sampling.logprobs is None else _score(logits_BV[i], token, row))
        for i, (row, token) in enumerate(zip(rows, tokens, strict=True))
    ]


def _draw(logits_V: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    logits_V = logits_V / sampling.temperature
    if 0 < sampling.top_k < logits_V.shape[0]:
        threshold = logits_V.topk(sampling.top_k).values[-1]
        logits_V = logits_V.masked_fill(logits_V < threshold, float("-inf"))
    probabilities_V = torch.softmax(logits_V, dim=-1)
    if sampling.top_p < 1:
        ordered, index = probabilities_V.sort(descending=True)
        # the first token whose predecessors already reach top_p, and all after it, are out
        beyond = ordered.cumsum(0) - ordered >= sampling.top_p
        beyond[0] = False
        probabilities_V = probabilities_V.index_fill(0, index[beyond], 0.0)
    return int(torch.multinomial(probabilities_V, 1, generator=generator))


def _score(logits_V: torch.Tensor, token: int, row: Sequence) -> Scored:
    logprobs_V = torch.log_softmax(logits_V, dim=-1)
    count = min(row.sampling.logprobs or 0, logprobs_V.shape[0])
    top: tuple[tuple[int, float], ...] = ()
    if count:
        values, indices = logprobs_V.topk(count)
        top = tuple(zip(indices.tolist(), values.tolist(), strict=True))
    return Scored(token, float(logprobs_V[token]), top)
