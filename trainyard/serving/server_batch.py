"""Rows that are decoded together: join, step, leave. One batch holds rows of one adapter.

Shapes: B rows, T new tokens, L cached columns, V vocabulary. Rows are padded on the left, so that
all rows grow at the same column; the mask hides the padding.
"""

from collections.abc import Sequence as Rows

import torch
from transformers import DynamicCache

from trainyard.serving.server_model import Model
from trainyard.serving.server_sampling import pick
from trainyard.serving.server_sequence import Scored, Sequence

_CHUNK_TOKENS = 1024
"""Columns per forward pass of a prompt: bounds memory for long prompts."""

_SCORE_ELEMENTS = 1 << 26
"""Logits kept at once while a prompt is scored: 256 MiB."""


class Batch:
    def __init__(self, model: Model) -> None:
        self._model = model
        self.rows: list[Sequence] = []
        self._generators: list[torch.Generator | None] = []
        self._cache = DynamicCache()
        self._mask_BL = torch.zeros((0, 0), dtype=torch.long)
        self._last_B = torch.zeros(0, dtype=torch.long)

    def join(self, rows: Rows[Sequence]) -> list[tuple[int, Scored | None]]:
        """Run the prompts of `rows` and add them. Returns each row's first token."""
        ids_BL, mask_BL = _left_padded([row.prompt_ids for row in rows])
        positions_BL = (mask_BL.cumsum(1) - 1).clamp(min=0)
        cache = DynamicCache()
        for start in range(0, ids_BL.shape[1], _CHUNK_TOKENS):
            stop = start + _CHUNK_TOKENS
            logits = self._model.forward(
                ids_BL[:, start:stop],
                cache,
                mask=mask_BL[:, :stop],
                positions=positions_BL[:, start:stop],
                keep=1,
            )
        generators = [_generator(row) for row in rows]
        picked = pick(logits[:, -1], rows, generators)
        self._merge(cache, mask_BL)
        self.rows += rows
        self._generators += generators
        tokens = torch.tensor([token for token, _ in picked])
        self._last_B = torch.cat([self._last_B, tokens])
        return picked

    def step(self) -> list[tuple[int, Scored | None]]:
        """Decode one token for every row, in order."""
        self._mask_BL = torch.nn.functional.pad(self._mask_BL, (0, 1), value=1)
        logits = self._model.forward(
            self._last_B[:, None],
            self._cache,
            mask=self._mask_BL,
            positions=self._mask_BL.sum(1, keepdim=True) - 1,
            keep=1,
        )
        picked = pick(logits[:, -1], self.rows, self._generators)
        self._last_B = torch.tensor([token for token, _ in picked])
        return picked

    def keep(self, kept: list[int]) -> None:
        """Drop every row but those at the indices `kept`, and columns that nobody needs."""
        if len(kept) == len(self.rows):
            return
        self.rows = [self.rows[i] for i in kept]
        self._generators = [self._generators[i] for i in kept]
        if not kept:
            self._cache = DynamicCache()
            self._mask_BL = torch.zeros((0, 0), dtype=torch.long)
            self._last_B = torch.zeros(0, dtype=torch.long)
            return
        index = torch.tensor(kept)
        self._last_B, mask_BL = self._last_B[index], self._mask_BL[index]
        unused = int((mask_BL.sum(0) > 0).to(torch.long).argmax())
        self._mask_BL = mask_BL[:, unused:]
        for layer in self._cache.layers:
            layer.keys = layer.keys[index, :, unused:].contiguous()
            layer.values = layer.values[index, :, unused:].contiguous()

    def _merge(self, cache: DynamicCache, mask_BL: torch.Tensor) -> None:
        if not self.rows:
            self._cache, self._mask_BL = cache, mask_BL
            return
        length = max(self._mask_BL.shape[1], mask_BL.shape[1])
        parts = (self._mask_BL, mask_BL)
        self._mask_BL = torch.cat([_pad_left(part, length, 1) for part in parts])
        for old, new in zip(self._cache.layers, cache.layers, strict=True):
            old.keys = torch.cat([_pad_left(part, length, 2) for part in (old.keys, new.keys)])
            old.values = torch.cat([_pad_left(p, length, 2) for p in (old.values, new.values)])


def score_prompts(model: Model, rows: Rows[Sequence]) -> list[list[Scored]]:
    """Log-probability of every prompt token but the first, given those before it."""
    ids_BL, mask_BL = _right_padded([row.prompt_ids for row in rows])
    count, length = ids_BL.shape
    chunk = max(1, _SCORE_ELEMENTS // (count * model.vocabulary))
    tops = [row.sampling.prompt_logprobs or 0 for row in rows]
    scores: list[list[Scored]] = [[] for _ in rows]
    cache = DynamicCache()
    for start in range(0, length - 1, chunk):
        stop = min(start + chunk, length - 1)
        positions = torch.arange(start, stop).expand(count, -1)
        logits_BTV = model.forward(
            ids_BL[:, start:stop],
            cache,
            mask=mask_BL[:, :stop],
            positions=positions,
            keep=0,
        )
        for row, known in enumerate(scores):
            end = min(stop, len(rows[row].prompt_ids) - 1)
            if end > start:
                targets = ids_BL[row, start + 1 : end + 1]
                known += _scored(logits_BTV[row, : end - start], targets, tops[row])
    return scores


def _scored(logits_TV: torch.Tensor, targets_T: torch.Tensor, top: int) -> list[Scored]:
    logprobs_TV = torch.log_softmax(logits_TV, dim=-1)
    chosen = logprobs_TV.gather(1, targets_T[:, None])[:, 0].tolist()
    ids = targets_T.tolist()
    if not top:
        return [Scored(token, value) for token, value in zip(ids, chosen, strict=True)]
    values, indices = logprobs_TV.topk(min(top, logprobs_TV.shape[1]), dim=-1)
    tops = [
        tuple(zip(i, v, strict=True))
        for i, v in zip(indices.tolist(), values.tolist(), strict=True)
    ]
    return [Scored(*found) for found in zip(ids, chosen, tops, strict=True)]


def _generator(row: Sequence) -> torch.Generator | None:
    """Random numbers of this row alone, so that neighbours in the batch change nothing."""
    if row.sampling.temperature == 0:
        return None
    return torch.Generator().manual_seed(row.sampling.seed)


def _left_padded(prompts: Rows[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    length = max(len(prompt) for prompt in prompts)
    ids = [[0] * (length - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids), torch.tensor(mask)


def _right_padded(prompts: Rows[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    length = max(len(prompt) for prompt in prompts)
    ids = [prompt + [0] * (length - len(prompt)) for prompt in prompts]
    mask = [[1] * len(prompt) + [0] * (length - len(prompt)) for prompt in prompts]
    return torch.tensor(ids), torch.tensor(mask)


def _pad_left(part: torch.Tensor, length: int, dim: int) -> torch.Tensor:
    missing = length - part.shape[dim]
    if not missing:
        return part
    sides = [0, 0] * (part.dim() - dim - 1) + [missing, 0]
    return torch.nn.functional.pad(part, sides)
