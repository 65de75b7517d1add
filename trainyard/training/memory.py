"""How much GPU memory a training will need, from the recipe and config.json alone.

The formula is compared with published measurements in `bench/vram.py`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Literal

from trainyard.errors import InputError
from trainyard.recipe.train import TrainSpec

GIB = 2**30

NF4_BYTES = 0.5 + 0.127 / 8
"""Per weight: 4 bits, and 0.127 of doubly quantised scales (Dettmers et al. 2023, section 3)."""
CUDA_GIB = 0.75
"""Context, kernels and the allocator's slack."""
MARGIN = 1.15
"""The estimate is trusted to this factor; `bench/vram.py` holds it."""
Loss = Literal["fused", "full"]


@dataclass(frozen=True)
class Shape:
    """What config.json says of a decoder's size."""

    hidden: int
    layers: int
    mlp: int
    """Width of all MLPs of a layer together: of every expert in a mixture."""
    active_mlp: int
    """Width of the MLPs that one token passes."""
    query: int
    key_value: int
    """Widths of the projections; `key_value` is that of the keys alone."""
    vocabulary: int
    tied: bool
    experts: int = 1

    @property
    def linear(self) -> int:
        """Weights in the layers' matrices."""
        attention = 2 * self.hidden * (self.query + self.key_value)
        return self.layers * (attention + 3 * self.hidden * self.mlp)

    @property
    def active_linear(self) -> int:
        attention = 2 * self.hidden * (self.query + self.key_value)
        return self.layers * (attention + 3 * self.hidden * self.active_mlp)

    @property
    def embeddings(self) -> int:
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        return self.linear + self.embeddings

    def adapter(self, rank: int, modules: str | tuple[str, ...]) -> int:
        """Weights of a LoRA adapter on the named modules."""
        sides = {
            "q_proj": self.hidden + self.query,
            "k_proj": self.hidden + self.key_value,
            "v_proj": self.hidden + self.key_value,
            "o_proj": self.query + self.hidden,
            "gate_proj": self.experts * self.hidden + self.mlp,
            "up_proj": self.experts * self.hidden + self.mlp,
            "down_proj": self.experts * self.hidden + self.mlp,
        }
        named = sides if isinstance(modules, str) else set(modules) & set(sides)
        return self.layers * rank * sum(sides[name] for name in named)


def trained_weights(shape: Shape, train: TrainSpec) -> int:
    """Weights that the training changes."""
    if train.method == "full":
        return shape.parameters
    return shape.adapter(train.rank, train.target_modules)


def shape_of(config: Mapping[str, Any]) -> Shape:
    """Read a `config.json`; raises InputError when it lacks a size."""
    config = config.get("text_config") or config
    try:
        hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        head = int(config.get("head_dim") or hidden // heads)
        experts = int(config.get("num_experts") or config.get("num_local_experts") or 1)
        width = int(config.get("moe_intermediate_size") or config["intermediate_size"])
        chosen = int(config.get("num_experts_per_tok") or 1) if experts > 1 else 1
        return Shape(
            hidden=hidden,
            layers=int(config["num_hidden_layers"]),
            mlp=width * experts,
            active_mlp=width * chosen,
            query=heads * head,
            key_value=int(config.get("num_key_value_heads") or heads) * head,
            vocabulary=int(config["vocab_size"]),
            tied=bool(config.get("tie_word_embeddings", False)),
            experts=experts,
        )
    except KeyError as error:
        raise InputError(
            f"config.json of the base model has no {error.args[0]}: its memory cannot be planned"
        ) from None


@dataclass(frozen=True)
class MemoryEstimate:
    """Peak memory on one device, by part, in GiB."""

    weights: float
    adapters: float
    """Trained weights and their gradients, in 32 bits; of `full`, all weights."""
    optimizer: float
    activations: float
    logits: float
    overhead: float
    device_batch_size: int
    shape: Shape
    train: TrainSpec
    processes: int = 1
    correction: float = 1.0
    """What measurements of the same kind say of the formula: `training.estimates`."""

    @property
    def total(self) -> float:
        parts = (self.weights, self.adapters, self.optimizer, self.activations, self.logits)
        return (sum(parts) + self.overhead) * self.correction


def estimate(
    config: Mapping[str, Any] | Shape,
    train: TrainSpec,
    *,
    rows: int | None = None,
    tokens: int | None = None,
    loss: Loss = "fused",
    embeddings_in_32_bits: bool = False,
    processes: int = 1,
) -> MemoryEstimate:
    """Estimate the peak of a training step.

    `rows` per forward pass and `tokens` per row are the recipe's device_batch_size and max_seq_len
    unless given. Both backends compute a fused loss; `full` logits are what a plain trainer holds.
    """
    shape = config if isinstance(config, Shape) else shape_of(config)
    rows = rows or train.device_batch_size
    answers = 2 if train.objective in ("dpo", "orpo") else 1  # chosen and rejected, in one pass
    length = (tokens or train.max_seq_len) + (train.grpo.max_tokens if train.grpo else 0)
    positions = rows * answers * length
    # `full` keeps its 32-bit weights with the trained ones, and 16-bit copies while it computes
    per_weight = NF4_BYTES if train.method == "qlora" else _width(train)
    embedding = 4 if embeddings_in_32_bits else _width(train)
    norms = 2 * shape.layers * shape.hidden * 4
    trained = trained_weights(shape, train)
    parts = processes if train.sharding != "ddp" else 1
    if parts > 1 and train.method != "full":
        per_weight = embedding = 4  # FSDP shards weights of one type only
    return MemoryEstimate(
        weights=(shape.linear * per_weight + shape.embeddings * embedding + norms) / parts / GIB,
        adapters=trained * 8 / parts / GIB,
        optimizer=trained * (8 if train.optimizer == "adamw" else 2) / parts / GIB,
        activations=max(_activations(shape, train, positions), _cache(shape, train, length)) / GIB,
        logits=_logits(shape, positions, loss) / GIB,
        overhead=CUDA_GIB,
        device_batch_size=rows,
        shape=shape,
        train=train,
        processes=processes,
    )


def _width(train: TrainSpec) -> int:
    return 2 if train.precision == "bf16" else 4


def _activations(shape: Shape, train: TrainSpec, positions: int) -> float:
    """Kept between forward and backward, and the one block that is being computed again."""
    width = _width(train)
    block = positions * (18 * shape.hidden + 6 * shape.active_mlp) * width
    boundary = positions * shape.hidden * width
    match train.activation_checkpointing:
        case "none":
            return shape.layers * block
        case "block":
            return shape.layers * boundary + block
        case "offload":
            return 2 * boundary + block


def _cache(shape: Shape, train: TrainSpec, length: int) -> float:
    """Keys and values of a step's answers while `grpo` samples them, all at once."""
    sampled = train.batch_size * length if train.grpo else 0
    return sampled * shape.layers * 2 * shape.key_value * _width(train)


def _logits(shape: Shape, positions: int, loss: Loss) -> float:
    """`full`: the logits in 16 bits, in 32 bits, and their gradient. `fused`: one tile of them."""
    if loss == "full":
        return positions * shape.vocabulary * 10
    return min(positions, 4096) * min(shape.vocabulary, 32768) * 8


@dataclass(frozen=True)
class Fit:
    """Whether an estimate fits a card, and what to do when it does not."""

    verdict: Literal["fits", "tight", "too large"]
    device_batch_size: int | None
    """Largest rows per forward pass that fit with the margin; None when not even one does."""
    sentences: tuple[str, ...]


def fit(need: MemoryEstimate, gpu_gib: float, *, p99_tokens: int | None = None) -> Fit:
    """Compare an estimate with a card's memory, and name the cheapest changes that make it fit.

    `p99_tokens` is the 99th percentile of row lengths: only with it is a shorter length proposed.
    """
    largest = _largest_rows(need, gpu_gib)
    if need.total * MARGIN <= gpu_gib:
        return Fit("fits", largest, ())
    verdict: Literal["tight", "too large"]
    verdict = "tight" if need.total / MARGIN <= gpu_gib else "too large"
    found = (
        f"about {need.total:.1f} GiB are needed with {need.device_batch_size} rows of "
        f"{need.train.max_seq_len} tokens per forward pass, and the card has {gpu_gib:.1f} GiB"
    )
    changes = _cheapest(need, gpu_gib, p99_tokens)
    if changes is None:
        advice = (
            "no change of these settings makes it fit: take a larger card or a smaller base model"
        )
    else:
        advice = f"set {', '.join(changes)}"
    return Fit(verdict, largest, (found, advice))


def _largest_rows(need: MemoryEstimate, gpu_gib: float) -> int | None:
    batch = need.train.batch_size
    divisors = (n for n in range(batch, 0, -1) if batch % n == 0)
    return next(
        (n for n in divisors if _again(need, need.train, n).total * MARGIN <= gpu_gib), None
    )


def _again(need: MemoryEstimate, train: TrainSpec, rows: int) -> MemoryEstimate:
    again = estimate(need.shape, train, rows=rows, processes=need.processes)
    return replace(again, correction=need.correction)


def _cheapest(need: MemoryEstimate, gpu_gib: float, p99_tokens: int | None) -> list[str] | None:
    """The fewest settings that fit, cheap ones first; a smaller micro-batch comes for free."""
    settings = list(_savings(need.train, p99_tokens))
    for count in range(len(settings) + 1):
        for chosen in combinations(settings, count):
            train = need.train.model_copy(update=dict(chosen))
            rows = _largest_rows(replace(need, train=train), gpu_gib)
            if rows is None:
                continue
            changes = [f"{key}: {value}" for key, value in chosen]
            if rows < train.device_batch_size:
                changes.append(f"device_batch_size: {rows}")
            return changes
    return None


def _savings(train: TrainSpec, p99_tokens: int | None) -> Iterator[tuple[str, Any]]:
    if train.optimizer == "adamw":
        yield "optimizer", "adamw_8bit"
    if train.activation_checkpointing == "none":
        yield "activation_checkpointing", "block"
    if train.activation_checkpointing != "offload" and train.backend in ("auto", "unsloth"):
        yield "activation_checkpointing", "offload"
    if train.method == "lora":
        yield "method", "qlora"
    if train.method == "full":
        yield "method", "lora"
    if p99_tokens is not None and p99_tokens < train.max_seq_len:
        yield "max_seq_len", p99_tokens
