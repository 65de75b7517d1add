"""Answers without a server: transformers in batches, in a process of its own.

Reads JSON lines from stdin: first the model (`base`, `adapter` or null, `threads`,
`trust_remote_code`), then questions (`index`, `path`, `body`) as an OpenAI server gets them. Writes
JSON lines: first `self_test` (null, or what is wrong with padding), then per question `index`,
`seconds` and `body`, or `error`. Greedy only.
"""

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from trainyard.lean import leave_out

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
leave_out("bitsandbytes", "sklearn", "torchao")

import torch  # noqa: E402
from peft import PeftModel  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402
from transformers.utils import logging as transformers_logging  # noqa: E402

from trainyard.data.template import RowNotRendered, Template  # noqa: E402

ROWS, TOKENS = 32, 8192
"""Of one batch: rows, and tokens with padding and answer."""
SELF_TEST_TOKENS = 8
MAX_GAP = 0.05
"""Nats per token between a row of a batch and the same alone: 0.02 is rounding in bfloat16, and
padding that is attended to moves log-probabilities by whole nats."""

Body = dict[str, Any]


class Model:
    def __init__(self, base: Path, adapter: Path | None, *, trust_remote_code: bool) -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        if adapter is not None and (adapter / "config.json").is_file():  # method: full
            base, adapter = adapter, None
        self._model = AutoModelForCausalLM.from_pretrained(
            base,
            dtype="auto" if device == "cuda" else torch.float32,
            device_map=device,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            local_files_only=True,
        )
        if adapter is not None:
            self._model = PeftModel.from_pretrained(self._model, adapter)
        self._model.eval()
        self._device = device
        self.template = _template(base, adapter)
        self._eos = sorted({*self.template.eos_token_ids, *Template.load(base).eos_token_ids})
        self._positions = self._model.config.get_text_config(decoder=True).max_position_embeddings

    def prompt(self, body: Body) -> list[int]:
        """Raises RowNotRendered, or ValueError for what cannot be answered here."""
        if body.get("temperature", 0) != 0:
            raise ValueError("offline generation is greedy: temperature must be 0")
        chat = "messages" in body
        text = self.template.render_prompt(body["messages"]) if chat else body["prompt"]
        ids = list(self.template.tokenizer.encode(text, add_special_tokens=not chat).ids)
        if not ids or len(ids) + body.get("max_tokens", 0) > self._positions:
            raise ValueError(
                f"{len(ids)} prompt tokens and max_tokens {body.get('max_tokens', 0)} do not fit "
                f"the model's context of {self._positions}"
            )
        return ids

    def padded(self, prompts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and mask (B, T), padded at the left: an answer follows its prompt directly."""
        width = max(map(len, prompts))
        pad = self._eos[0] if self._eos else 0
        ids = torch.full((len(prompts), width), pad)
        mask = torch.zeros((len(prompts), width), dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        return ids.to(self._device), mask.to(self._device)

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[Sequence[int]], max_tokens: int
    ) -> tuple[list[list[int]], list[list[float]]]:
        """Greedy answers as token ids, the one that ended them too, and their log-probabilities."""
        ids, mask = self.padded(prompts)
        out = self._model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max_tokens,
            do_sample=False,
            eos_token_id=self._eos,
            pad_token_id=self._eos[0] if self._eos else 0,
            return_dict_in_generate=True,
            output_logits=True,
            temperature=None,
            top_p=None,
            top_k=None,
        )
        new = out.sequences[:, ids.shape[1] :]
        logprobs = torch.stack(
            [
                step.float().log_softmax(-1).gather(1, new[:, i : i + 1])[:, 0]
                for i, step in enumerate(out.logits)
            ],
            dim=1,
        )
        answers = [self._until_end(row) for row in new.tolist()]
        return answers, [
            row[: len(answer)] for row, answer in zip(logprobs.tolist(), answers, strict=True)
        ]

    def _until_end(self, ids: list[int]) -> list[int]:
        ends = [at for at, token in enumerate(ids) if token in self._eos]
        return ids[: ends[0] + 1] if ends else ids

    @torch.no_grad()
    def logprobs(self, ids: Sequence[int]) -> list[float]:
        """Of every token but the first, in nats; alone and without padding."""
        given = torch.tensor([ids], device=self._device)
        logits = self._model(input_ids=given, use_cache=False).logits[0, :-1].float()
        found: list[float] = logits.log_softmax(-1).gather(1, given[0, 1:, None])[:, 0].tolist()
        return found

    def self_test(self, prompts: Sequence[list[int]]) -> str | None:
        """What is wrong with padding: a row of a batch must be answered as it is alone."""
        some = _of_different_lengths(prompts)
        if len(some) < 2:
            return None
        answers, batched = self.generate(some, SELF_TEST_TOKENS)
        for prompt, answer, mine in zip(some, answers, batched, strict=True):
            alone = self.logprobs(prompt + answer)[len(prompt) - 1 :]
            gap = sum(abs(a - b) for a, b in zip(mine, alone, strict=True)) / len(answer)
            if not gap <= MAX_GAP:
                return (
                    f"left-padding self-test failed: in a batch, the answer to a prompt of "
                    f"{len(prompt)} tokens has log-probabilities {gap:.3g} nats from those alone"
                )
        return None

    def completion(self, answer: list[int], prompt: list[int], body: Body) -> Body:
        """The answer in the shape of a chat completion."""
        ended = bool(answer) and answer[-1] in self._eos
        text = self.template.tokenizer.decode(answer, skip_special_tokens=True)
        for stop in body.get("stop", ()):
            before, found, _ = text.partition(stop)
            text, ended = before, ended or bool(found)
        reason = "stop" if ended else "length"
        message = {"role": "assistant", "content": text}
        return {
            "choices": [{"index": 0, "message": message, "finish_reason": reason}],
            "usage": {"prompt_tokens": len(prompt), "completion_tokens": len(answer)},
        }

    def echo(self, prompt: list[int]) -> Body:
        """The prompt's own log-probabilities, in the shape of a completion."""
        logprobs = {"token_logprobs": [None, *self.logprobs(prompt)]}
        return {"choices": [{"index": 0, "logprobs": logprobs, "finish_reason": "length"}]}


def _template(base: Path, adapter: Path | None) -> Template:
    """As the CPU server has it: the adapter's own where it carries one, else the base's."""
    if adapter is None or not (adapter / "tokenizer.json").is_file():
        return Template.load(base)
    own = Template.load(adapter)
    return own if own.source is not None else Template.load(adapter, Template.load(base).source)


def _of_different_lengths(prompts: Sequence[list[int]]) -> list[list[int]]:
    """The shortest, the middle and the longest prompt."""
    by_length = sorted({len(prompt): prompt for prompt in prompts}.items())
    picked = {0, len(by_length) // 2, len(by_length) - 1} if by_length else set()
    return [by_length[i][1] for i in sorted(picked)]


def answers(model: Model, questions: Sequence[Body]) -> Iterator[Body]:
    """Lines for stdout: the self-test, then each answer as soon as its batch is done."""
    asked: list[tuple[Body, list[int]]] = []
    for question in questions:
        try:
            asked.append((question, model.prompt(question["body"])))
        except (RowNotRendered, ValueError) as error:
            yield {"index": question["index"], "error": str(error)}
    chats = [one for one in asked if "messages" in one[0]["body"]]
    wrong = model.self_test([prompt for _, prompt in chats])
    yield {"self_test": wrong}
    if wrong is not None:
        return
    for batch in batches(chats):
        begin = time.perf_counter()
        longest = max(question["body"]["max_tokens"] for question, _ in batch)
        found, _ = model.generate([prompt for _, prompt in batch], longest)
        seconds = (time.perf_counter() - begin) / len(batch)
        for (question, prompt), answer in zip(batch, found, strict=True):
            body = question["body"]
            cut = answer[: body["max_tokens"]]
            yield _line(question, model.completion(cut, prompt, body), seconds)
    for question, prompt in asked:
        if "messages" not in question["body"]:
            begin = time.perf_counter()
            yield _line(question, model.echo(prompt), time.perf_counter() - begin)


def batches(
    asked: Sequence[tuple[Body, list[int]]],
) -> Iterator[list[tuple[Body, list[int]]]]:
    """Prompts of like length together, the longest first: what does not fit shows at once."""
    batch: list[tuple[Body, list[int]]] = []
    for one in sorted(asked, key=lambda one: -len(one[1])):
        width = len((batch[0] if batch else one)[1])
        room = width + max(q["body"]["max_tokens"] for q, _ in [*batch, one])
        if batch and (len(batch) == ROWS or (len(batch) + 1) * room > TOKENS):
            yield batch
            batch = []
        batch.append(one)
    if batch:
        yield batch


def _line(question: Body, body: Body, seconds: float) -> Body:
    return {"index": question["index"], "seconds": seconds, "body": body}


def main() -> None:
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    given, *questions = [json.loads(line) for line in sys.stdin]
    out = sys.stdout
    sys.stdout = sys.stderr  # libraries print
    torch.set_num_threads(given["threads"])
    adapter = None if given["adapter"] is None else Path(given["adapter"])
    trusted = given["trust_remote_code"]
    model = Model(Path(given["base"]), adapter, trust_remote_code=trusted)
    for line in answers(model, questions):
        out.write(json.dumps(line) + "\n")
        out.flush()
    out.flush()
    os._exit(0)  # nothing is left to save, and taking torch down in order costs a second


if __name__ == "__main__":
    main()
