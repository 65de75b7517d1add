"""Train the quickstart's base model from scratch, on a CPU, and write it as a Hugging Face folder.

    python recipes/quickstart/make_base.py --minutes 45 --out /tmp/base

The base is a small Llama that has read about a support desk: it answers tickets in prose, answers
questions about them and writes notes. It never sees the task of the quickstart. The schedule
follows the wall clock, so a rebuild has the same distribution, not the same bytes.
"""

import argparse
import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import world
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

END_OF_TEXT, START_OF_TURN, END_OF_TURN, PAD = SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|pad|>",
)
# Newlines are expressions: Jinja drops one that follows a tag.
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
    "{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CONTEXT = 512
VOCABULARY = 1280
HIDDEN, LAYERS, INNER, HEAD = 192, 4, 512, 32
TOKENS_PER_STEP = 2048
MATRIX_RATE, VECTOR_RATE, WARM_UP = 0.02, 3e-3, 100
MOMENTUM, MATRIX_DECAY = 0.95, 0.05
SHORT_PHASE, SHORT_SHARE = 0.12, 0.25  # of the time; of the documents afterwards
FREE = 0.1  # weight of a token that the text before it does not determine
# Words a shop would use: whole tokens, although the base's corpus has few of them.
SHOP_WORDS = world.words(
    "customer product order id category urgency high normal low refund exchange delivery cancel "
    "billing repair Extract fields JSON"
)
LABELS = world.words("who item code city when name part number place person thing label")

Segment = tuple[str, float]
Row = tuple[list[int], list[float]]


@dataclass(frozen=True)
class Schedule:
    minutes: float
    short_phase: float
    """Share of the time with short rows only."""

    peak: float
    """Factor on MATRIX_RATE and VECTOR_RATE."""


@dataclass(frozen=True)
class Made:
    """What is told about a finished base."""

    parameters: int
    minutes: float
    steps: int
    tokens: int
    loss: float
    """Mean cross-entropy, in nats, of the tokens that their context determines."""


def make_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE in which a word is the same tokens in prose and inside JSON quotes."""
    rng = random.Random(f"{seed}/tokenizer")
    texts = [world.base_text(rng) for _ in range(4000)]
    for _ in range(4000):
        texts += [turn["content"] for turn in world.base_chat(rng)]
    texts += [case for one in world.SYLLABLES for case in (one, one.capitalize())] * 500
    texts += [f'"{word}"' for word in [*SHOP_WORDS, "system", "user", "assistant"]] * 1500
    bpe = Tokenizer(models.BPE())
    pieces = Regex(r"\d{1,2}|[^\w\s]+(?: [^\w\s]+)*|\s|_")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(pieces, "isolated"), byte_level]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=END_OF_TURN, pad_token=PAD, model_max_length=CONTEXT
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HIDDEN // HEAD,
        num_key_value_heads=HIDDEN // HEAD // 2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        rope_theta=1000.0,
        initializer_range=HIDDEN**-0.5,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation="eager",  # short rows: 40 % faster than SDPA's backward on a CPU
    )
    return LlamaForCausalLM(config)


def begin(seed: int, start: Path | None) -> tuple[PreTrainedTokenizerFast, LlamaForCausalLM]:
    if start is None:
        tokenizer = make_tokenizer(seed)
        return tokenizer, make_model(tokenizer)
    model = LlamaForCausalLM.from_pretrained(
        start, dtype=torch.float32, attn_implementation="eager"
    )
    return PreTrainedTokenizerFast.from_pretrained(start), model


class Documents:
    """An endless stream of training rows; every token carries the weight of its loss."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
        self._encoder = tokenizer.backend_tokenizer
        self._rng = random.Random(f"{seed}/documents")
        self._end = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
        self._plain_ids = range(len(SPECIAL), len(tokenizer))

    def short(self) -> Row:
        """A repetition or a look-up: copying is learnt here long before it pays in prose."""
        kind = self._rng.random()
        if kind < 0.175:
            return self._repeated_words()
        return self._repeated_tokens() if kind < 0.35 else self._look_up()

    def any(self) -> Row:
        return self.short() if self._rng.random() < SHORT_SHARE else self.long()

    def long(self) -> Row:
        ids, weights = self._rows(self._long_segments())
        return [*ids, self._end], [*weights, 1.0]

    def _repeated_words(self) -> Row:
        rng = self._rng
        words = [rng.choice(self._about_words()) for _ in range(rng.randint(1, 4))]
        once = self._encode(" ".join(words))
        between = self._encode(rng.choice([" again: ", "\n", ' is "', " "]))
        silent = [0.0] * (len(once) + len(between) + 1)
        return once + between + once, silent + [1.0] * (len(once) - 1)

    def _about_words(self) -> list[str]:
        about = world.case(self._rng, "base")
        return [*about.customer.split(), *about.product.split(), about.order]

    def _repeated_tokens(self) -> Row:
        rng, length = self._rng, self._rng.randint(2, 10)
        few = rng.random() < 0.5
        pool = rng.sample(self._plain_ids, rng.randint(3, 8)) if few else self._plain_ids
        once = rng.choices(pool, k=length)
        return once + once, [0.0] * (length + 1) + [1.0] * (length - 1)

    def _look_up(self) -> Row:
        rng, about = self._rng, world.case(self._rng, "base")
        values = [*about.texts.values(), about.customer.split()[0], about.product.split()[0]]
        rng.shuffle(values)
        facts = dict(zip(rng.sample(LABELS, rng.randint(1, 5)), values, strict=False))
        asked = rng.choice(list(facts))
        told = "".join(f"{label} is {value}. " for label, value in facts.items())
        prose = rng.random() < 0.54
        question = f"{asked} is " if prose else f'{{"{asked}": "'
        answer = f"{facts[asked]}." if prose else f'{facts[asked]}"}}'
        return self._rows([(told + question, 0.0), (answer, 1.0)])

    def _long_segments(self) -> list[Segment]:
        rng, about, kind = self._rng, world.case(self._rng, "base"), self._rng.random()
        if kind < 0.45:
            return chat_segments(world.question_chat(about, rng))
        if kind < 0.65:
            return chat_segments(world.reply_chat(about, rng))
        if kind < 0.75:
            sentence, as_json = world.record(about, rng)
            return [(f"{sentence}\n", FREE), (as_json, 1.0)]
        if kind < 0.85:
            letter = f"Letter: {world.ticket(about, rng)}\n"
            return [(letter, FREE), (f"Reply: {world.reply(about, rng)}", 1.0)]
        if kind < 0.92:
            return chat_segments(world.note_chat(about, rng))
        return [(world.note(about, rng), 0.5)]

    def _encode(self, text: str) -> list[int]:
        return list(self._encoder.encode(text).ids)

    def _rows(self, segments: list[Segment]) -> Row:
        ids: list[int] = []
        weights: list[float] = []
        for text, weight in segments:
            piece = self._encode(text)
            ids += piece
            weights += [weight] * len(piece)
        return ids, weights


def chat_segments(turns: list[world.Turn]) -> list[Segment]:
    segments: list[Segment] = []
    for turn in turns:
        head = f"{START_OF_TURN}{turn['role']}\n"
        tail = f"{turn['content']}{END_OF_TURN}"
        weight = 1.0 if turn["role"] == "assistant" else FREE
        segments += [(head, FREE), (tail, weight), ("\n", FREE)]
    return segments


def batches(make: Callable[[], Row], rng: random.Random) -> Iterator[list[Row]]:
    """Rows of similar length, about TOKENS_PER_STEP tokens a batch."""
    while True:
        rows = sorted((make() for _ in range(TOKENS_PER_STEP // 8)), key=lambda row: len(row[0]))
        found: list[list[Row]] = [[]]
        for row in rows:
            if len(row[0]) * (len(found[-1]) + 1) > TOKENS_PER_STEP:
                found.append([])
            found[-1].append(row)
        rng.shuffle(found)
        yield from found


def tensors(rows: list[Row], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.full((len(rows), longest), pad)
    weights = torch.zeros(len(rows), longest)
    for line, (row_ids, row_weights) in enumerate(rows):
        ids[line, : len(row_ids)] = torch.tensor(row_ids)
        weights[line, : len(row_weights)] = torch.tensor(row_weights)
    return ids, weights


class Muon:
    """Momentum with orthogonalised updates (Jordan 2024), batched over matrices of one shape."""

    def __init__(self, parameters: list[torch.nn.Parameter], lr: float) -> None:
        self.param_groups = [{"lr": lr}]
        self._momenta = {parameter: torch.zeros_like(parameter) for parameter in parameters}
        self._shapes: dict[tuple[int, ...], list[torch.nn.Parameter]] = {}
        for parameter in parameters:
            self._shapes.setdefault(tuple(parameter.shape), []).append(parameter)

    def step(self) -> None:
        with torch.no_grad():
            for parameters in self._shapes.values():
                self._step(parameters, self.param_groups[0]["lr"])

    def _step(self, parameters: list[torch.nn.Parameter], lr: float) -> None:
        updates = []
        for parameter in parameters:
            momentum = self._momenta[parameter].mul_(MOMENTUM).add_(parameter.grad)
            updates.append(parameter.grad + MOMENTUM * momentum)
        rows, columns = parameters[0].shape
        scale = lr * max(1.0, rows / columns) ** 0.5
        for parameter, update in zip(parameters, orthogonal(torch.stack(updates)), strict=True):
            parameter.mul_(1 - lr * MATRIX_DECAY).add_(update, alpha=-scale)


def orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """The nearest semi-orthogonal matrices, roughly: five Newton-Schulz iterations."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if tall else matrices).bfloat16()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.775 * gram + 2.0315 * (gram @ gram)) @ x
    return (x.mT if tall else x).float()


def optimisers(model: LlamaForCausalLM) -> list[Any]:
    named = list(model.named_parameters())
    matrices = [p for name, p in named if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in named if p.ndim != 2 or "embed" in name]
    adam = torch.optim.AdamW(others, lr=VECTOR_RATE, betas=(0.9, 0.98), weight_decay=0.0)
    return [Muon(matrices, lr=MATRIX_RATE), adam]


def rate(step: int, elapsed: float) -> float:
    """Share of the peak rate: warm-up by steps, then flat, then linear to 2 % by the clock."""
    return min(1.0, (step + 1) / WARM_UP) * max(0.02, min(1.0, (1 - elapsed) / 0.4))


def train(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, schedule: Schedule, seed: int
) -> Made:
    minutes = schedule.minutes
    documents = Documents(tokenizer, seed)
    rng = random.Random(f"{seed}/batches")
    phases = [batches(documents.short, rng), batches(documents.any, rng)]
    steppers = optimisers(model)
    groups = [group for stepper in steppers for group in stepper.param_groups]
    peaks = [group["lr"] for group in groups]
    model.train()
    started, step, tokens, average = time.monotonic(), 0, 0, 0.0
    while (elapsed := (time.monotonic() - started) / (60 * minutes)) < 1:
        for group, peak in zip(groups, peaks, strict=True):
            group["lr"] = schedule.peak * peak * rate(step, elapsed)
        rows = next(phases[elapsed >= schedule.short_phase])
        ids, weights = tensors(rows, tokenizer.pad_token_id)
        loss = backward(model, ids, weights, tokenizer.pad_token_id)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for stepper in steppers:
            stepper.step()
        model.zero_grad()
        step, tokens = step + 1, tokens + ids.numel()
        average = loss if step == 1 else 0.98 * average + 0.02 * loss
        if step % 100 == 0:
            print(f"step {step}: loss {average:.3f}, {elapsed:.0%} of {minutes:g} min", flush=True)
    return Made(model.num_parameters(), minutes, step, tokens, round(average, 4))


def backward(model: LlamaForCausalLM, ids: torch.Tensor, weights: torch.Tensor, pad: int) -> float:
    """Leave gradients on `model`; return the loss of the determined tokens only."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(input_ids=ids, attention_mask=(ids != pad).long(), use_cache=False).logits
    flat, targets = logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten()
    each = functional.cross_entropy(flat, targets, reduction="none")
    shares = weights[:, 1:].flatten()
    ((each * shares).sum() / shares.sum()).backward()
    return float(each.detach()[shares == 1].mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=45)
    parser.add_argument("--start", type=Path, help="train on from this base, with its tokenizer")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "base")
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    torch.set_num_threads(arguments.threads)
    tokenizer, model = begin(arguments.seed, arguments.start)
    schedule = (
        Schedule(arguments.minutes, SHORT_PHASE, peak=1.0)
        if arguments.start is None
        else Schedule(arguments.minutes, short_phase=0.0, peak=0.5)
    )
    made = train(model, tokenizer, schedule, arguments.seed)
    model.generation_config = GenerationConfig(
        eos_token_id=[tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(END_OF_TEXT)],
        pad_token_id=tokenizer.pad_token_id,
    )
    model.to(torch.bfloat16).save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)
    print(json.dumps(asdict(made)))


if __name__ == "__main__":
    main()
