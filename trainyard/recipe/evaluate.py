"""Recipe section `evaluate`: what candidate, base and champion are asked, and how answers score."""

import re
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from trainyard.recipe.base import Fraction, Frozen
from trainyard.recipe.register import SecretRef

METRICS = (
    "exact_match", "accuracy", "contains", "regex", "token_f1", "macro_f1", "micro_f1",
    "bleu", "chrf", "rouge1", "rouge2", "rougeL", "rougeLsum", "json_match", "json_fields",
    "constraints", "capability", "latency_ms", "completion_tokens", "stopped_by_eos",
)  # fmt: skip
"""Metrics that a task suite computes from one answer and its reference."""

PYTHON_METRIC = re.compile(r"python:(?P<file>[^:]+\.py):(?P<function>[A-Za-z_]\w*)")


def _known_metric(name: str) -> str:
    if name not in METRICS and not PYTHON_METRIC.fullmatch(name):
        raise ValueError(
            f"metric {name!r} is not known; use one of {', '.join(METRICS)} "
            "or python:FILE.py:FUNCTION"
        )
    return name


Metric = Annotated[str, AfterValidator(_known_metric)]
SuiteName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
Alpha = Annotated[float, Field(gt=0, lt=0.5)]


class _Suite(Frozen):
    name: SuiteName
    """Name of the suite in scores, gates and the report."""

    limit: PositiveInt | None = None
    """Use the first `limit` samples of the file; absent means all."""

    more: tuple[PositiveInt, ...] = ()
    """Numbers of samples to go on with, one after the other, while only more of them can decide a
    gate that is INCONCLUSIVE: `limit: 200, more: [400, 800]`. alpha is split over these looks."""

    @model_validator(mode="after")
    def _more_is_more(self) -> "_Suite":
        sizes = [self.limit, *self.more] if self.limit else list(self.more)
        if self.more and (self.limit is None or sizes != sorted(set(sizes))):
            raise ValueError(
                f"suite {self.name}: more ({', '.join(map(str, self.more))}) must go up from a "
                f"limit, which is {self.limit or 'absent'}"
            )
        return self


class TaskSuite(_Suite):
    """Samples with a reference answer, asked by chat; every metric gives one score per sample."""

    kind: Literal["task"]

    data: str
    """Eval set: a file or folder that the data check can read; the last assistant turn is the
    reference."""

    metrics: Annotated[tuple[Metric, ...], Field(min_length=1)]
    """What is computed for each answer, by name, or `python:FILE.py:FUNCTION` (trusted runs only):
    a function `(answer, reference, sample) -> float in [0, 1]`."""

    max_tokens: PositiveInt = 256
    """Longest answer, in tokens; an answer that was cut counts against `max_truncated`."""

    stop: tuple[str, ...] = ()
    """Texts that end an answer, beside the model's own end of turn."""

    fields: tuple[str, ...] = ()
    """Keys that `json_match` and `json_fields` compare; empty means every key of the reference."""

    json_schema: str | None = None
    """File with a JSON Schema; an answer that breaks it scores 0 in `json_match` and
    `json_fields`."""

    slices: tuple[str, ...] = ()
    """Fields of a sample's `meta`; scores are also shown per value of each."""

    cluster: str | None = None
    """Field of a sample's `meta` whose equal values are not independent (one passage, one user):
    standard errors are then computed over clusters."""

    @model_validator(mode="after")
    def _keys_have_readers(self) -> "TaskSuite":
        compares_json = {"json_match", "json_fields"} & set(self.metrics)
        for key in ("fields", "json_schema"):
            if getattr(self, key) and not compares_json:
                raise ValueError(
                    f"suite {self.name}: {key} is read by json_match and json_fields only, "
                    f"and metrics is {', '.join(self.metrics)}"
                )
        return self


class PerplexitySuite(_Suite):
    """Documents whose log-likelihood is read from the served model; shows forgetting."""

    kind: Literal["perplexity"]

    data: str
    """Eval set: plain text rows, one document each."""


class JudgeSpec(Frozen):
    """One juror: a model behind an OpenAI-compatible server, pinned."""

    base_url: Annotated[str, Field(pattern=r"^https?://")]
    """Address of the server, without `/v1`."""

    model: str
    """Name by which the server knows the judge; a dated or digested one, never `latest`."""

    revision: str = ""
    """Revision or digest of the judge's weights, where it is known; part of its fingerprint."""

    api_key: SecretRef | None = None
    """Reference to the key that the server asks for."""

    max_tokens: Annotated[int, Field(ge=64)] = 1024
    """Longest judgement, analysis included; a judgement that was cut is invalid."""

    usd_per_million_input: NonNegativeFloat = 0.0
    """Price of a million prompt tokens."""

    usd_per_million_output: NonNegativeFloat = 0.0
    """Price of a million generated tokens."""

    @field_validator("model")
    @classmethod
    def _is_pinned(cls, model: str) -> str:
        if model.split(":")[-1].split("-")[-1] == "latest":
            raise ValueError(f"judge {model!r} is an alias that moves; name a dated model")
        return model


class _JudgedSuite(_Suite):
    data: str
    """Eval set of conversations; the last assistant turn, where there is one, is the reference."""

    jurors: Annotated[tuple[JudgeSpec, ...], Field(min_length=1)]
    """The judges; their scores are averaged per sample."""

    show_reference: bool = True
    """Give the judge the reference answer, where there is one and it is not the opponent."""

    max_tokens: PositiveInt = 512
    """Longest answer, in tokens."""

    max_cost_usd: PositiveFloat = 50.0
    """Most that all judgements of one run may cost; beyond it no call is made."""

    @model_validator(mode="after")
    def _jurors_differ(self) -> "_JudgedSuite":
        names = [juror.model for juror in self.jurors]
        if len(set(names)) < len(names):
            raise ValueError(f"suite {self.name}: two jurors are the same model")
        return self


class PairwiseSuite(_JudgedSuite):
    """Prompts whose two answers a judge compares, in both orders; gated by win_rate."""

    kind: Literal["pairwise"]

    opponent: Literal["base", "champion", "reference"]
    """Whose answer the candidate's is compared with."""

    rubric: str = "Which answer follows the instructions better, and is more correct and useful?"
    """What the judges are asked. Never what the verdict is used for."""

    criteria: Annotated[tuple[str, ...], Field(min_length=1)] = ("correctness", "helpfulness")
    """What a judge compares one by one before the verdict."""

    calibration: str | None = None
    """File with pairs that people compared, one JSON object a line: prompt, a, b, label (A, B or
    tie), labelled_at (YYYY-MM-DD), label2 of a second person where there is one. Without at least
    100 the judge is not calibrated and its gate stays INCONCLUSIVE."""

    labels: str | None = None
    """File with people's judgements of this run's answers (order, verdict, human: true, and the
    digest of the answers), as `human/labels.jsonl` in a run's folder; with 100 of them the judge's
    rate is corrected by PPI++. The answers to a gate on human_win_rate are used without this."""


class RubricSuite(_JudgedSuite):
    """Prompts whose answers a judge grades alone, from 1 to 5; gated by rubric_score in [0, 1]."""

    kind: Literal["rubric"]

    rubric: str = "How well does the answer follow the instructions, and how correct is it?"
    """What the judges are asked. Never what the grade is used for."""

    criteria: Annotated[tuple[str, ...], Field(min_length=1)] = ("correctness", "helpfulness")
    """What a judge grades one by one; the score is their mean."""

    calibration: str | None = None
    """File with answers that people graded, one JSON object a line: prompt, answer, grade (1 to 5),
    labelled_at (YYYY-MM-DD), grade2 of a second person where there is one. Without at least 100 the
    judge is not calibrated and its gate stays INCONCLUSIVE."""


class GuardSpec(Frozen):
    """A model that says whether an answer is harmful and whether it refuses."""

    base_url: Annotated[str, Field(pattern=r"^https?://")] | None = None
    """Address of an OpenAI-compatible server, without `/v1`."""

    model: str | None = None
    """Name by which the server knows the guard."""

    folder: str | None = None
    """Folder of a guard model that answers offline, in a process with transformers, instead of a
    server."""

    labels: str | None = None
    """File with answers that people labelled, one JSON object a line: prompt, answer, and harmful
    or refused as true or false. The rate is then divided by the guard's recall on the true ones,
    whose own bound takes half of alpha (Rogan and Gladen 1978, Am J Epidemiol 107:71)."""

    revision: str = ""
    """Revision or digest of its weights, where it is known: verdicts of another one are not
    reused."""

    api_key: SecretRef | None = None
    """Reference to the key that the server asks for."""

    prompt: Literal["qwen3guard", "question"] = "qwen3guard"
    """qwen3guard: the conversation is sent as it is, and `Safety:` and `Refusal:` lines come back
    (Qwen3Guard-Gen; Controversial counts as harmful). question: any chat model, asked by our
    question for a JSON object."""

    @model_validator(mode="after")
    def _is_somewhere(self) -> "GuardSpec":
        if (self.base_url is None) == (self.folder is None):
            raise ValueError("a guard has either base_url and model, or a folder")
        if (self.base_url is None) != (self.model is None):
            raise ValueError("a guard at a base_url needs model, and one in a folder has none")
        return self


class SafetySuite(_Suite):
    """Prompts whose answers a guard model scores; gated by harmful_rate or over_refusal."""

    kind: Literal["safety"]

    data: str
    """Prompts: rows with `prompt`, or a published file in its own columns (see `columns`)."""

    columns: Literal["rows", "harmbench", "strongreject", "xstest"] = "rows"
    """Columns of the file. Of XSTest the unsafe prompts are used to measure harm, and the safe ones
    to measure refusals."""

    measure: Literal["harmful", "refused"]
    """What an answer scores 1 for: doing harm (prompts that ask for it) or refusing (safe ones)."""

    guard: GuardSpec
    """Who decides it."""

    cluster: str | None = None
    """Field of a sample's `meta` whose equal values are not independent."""

    max_tokens: PositiveInt = 256
    """Longest answer, in tokens."""


class TwinsSuite(_Suite):
    """Pairs of prompts that differ in one attribute of a person; gated by bias_rate."""

    kind: Literal["twins"]

    data: str
    """Rows with prompt, choices (the decisions an answer may take) and twin, a name that two rows
    share. `limit` counts pairs."""

    max_tokens: PositiveInt = 32
    """Longest answer, in tokens; the first choice in it is the decision."""


class HarnessSuite(_Suite):
    """Tasks of lm-eval or inspect, run by the harness itself; gated as `capability`."""

    kind: Literal["harness"]

    harness: Literal["lm_eval", "inspect"]
    """Who runs the tasks. Neither is installed with this project: see `python`."""

    tasks: Annotated[tuple[str, ...], Field(min_length=1)]
    """lm_eval: names of tasks that generate text, with data on this machine. inspect: files with
    tasks."""

    metric: str
    """lm_eval: a metric of the samples, as `exact_match` or `exact_match,FILTER`. inspect: name of
    a scorer, as `exact`. Its values must lie in [0, 1], or be inspect's C, P, I and N."""

    folder: str | None = None
    """lm_eval only: folder with the YAML files of your own tasks."""

    python: str | None = None
    """Python that has the harness, as `/opt/lm-eval/bin/python`; absent means this one."""

    max_tokens: PositiveInt = 256
    """Longest answer, in tokens."""

    timeout_s: PositiveFloat = 3600
    """Seconds until a run of the harness is ended."""

    @model_validator(mode="after")
    def _can_be_planned(self) -> "HarnessSuite":
        if self.limit is None or self.more:
            raise ValueError(
                f"suite {self.name}: a harness needs limit, the samples of each task, and no more"
            )
        if self.folder is not None and self.harness != "lm_eval":
            raise ValueError(f"suite {self.name}: folder is read by lm_eval only")
        return self


Suite = Annotated[
    TaskSuite
    | PerplexitySuite
    | PairwiseSuite
    | RubricSuite
    | SafetySuite
    | TwinsSuite
    | HarnessSuite,
    Field(discriminator="kind"),
]


class ParitySpec(Frozen):
    """What is compared between the trainer's process, the export and the server; see gate parity.

    Gaps are mean absolute differences of the log-probability per token, in nats, over the server's
    own greedy answers.
    """

    probes: PositiveInt = 8
    """Questions, drawn evenly from the chat suites; a suite's first one among them."""

    max_tokens: PositiveInt = 96
    """Longest answer to a probe, in tokens."""

    max_gap: PositiveFloat = 0.05
    """Largest gap between two ways to serve the same weights. Aligned bfloat16 engines are 0.011
    apart (vllm-project/vime#64, Qwen3-4B) to 0.03 (ServiceNow/Fast-LLM#525, root mean square)."""

    max_quantised_gap: PositiveFloat = 0.25
    """Largest gap between the 4-bit base of a QLoRA training and the base that is served: five
    times `max_gap`, and more than the quickstart's, which is measured in each of its releases."""

    min_agreement: Fraction = 0.95
    """Smallest share of the answer's tokens that are also the first choice of the model that was
    exported; near ties may fall either way."""

    merged: str | None = None
    """Folder of a merged export (a whole model); it is then compared, and the server with it."""


class EvaluateSpec(Frozen):
    """Which suites run, and the rules under which their scores may open a gate."""

    suites: Annotated[tuple[Suite, ...], Field(min_length=1)]
    """Every arm (candidate, base, champion) is scored on all of them, with the same prompts."""

    seed: NonNegativeInt = 20261120
    """Seed of sampling and of every bootstrap; recorded beside each decision."""

    alpha: Alpha = 0.05
    """One-sided error rate of each gate: a model exactly at the threshold passes at most this
    often."""

    concurrency: PositiveInt = 8
    """Requests in flight at once, over all suites of one arm."""

    timeout_s: PositiveFloat = 120.0
    """Seconds until one request counts as not answered; it is then tried twice more."""

    max_invalid: Fraction = 0.0
    """Share of samples that may lack a score; those count as the worst score. Above it a gate is
    INVALID."""

    max_truncated: Fraction = 0.05
    """Share of the candidate's answers that may be cut at `max_tokens`; above it a gate on that
    suite is INVALID."""

    generation: Literal["endpoint", "offline"] = "endpoint"
    """`endpoint` asks the engine that will serve: what is judged is what is deployed. `offline`
    generates in a process with transformers, in batches, for machines where no engine can run long;
    the engine is then started for the parity check alone."""

    parity: ParitySpec = ParitySpec()
    """Proof that the server answers what was trained; decided by the gate `parity`."""

    @property
    def eval_sets(self) -> tuple[str, ...]:
        """Files that must not leak into training; a harness keeps its own."""
        return tuple(suite.data for suite in self.suites if not isinstance(suite, HarnessSuite))

    @model_validator(mode="after")
    def _offline_serves_nothing(self) -> "EvaluateSpec":
        if self.generation == "offline":
            for suite in self.suites:
                if isinstance(suite, HarnessSuite):
                    raise ValueError(
                        f"suite {suite.name}: a harness asks the endpoint, and generation is "
                        "offline"
                    )
                if isinstance(suite, TaskSuite) and "latency_ms" in suite.metrics:
                    raise ValueError(
                        f"suite {suite.name}: latency_ms is that of a served answer, and "
                        "generation is offline; leave it out, or ask the endpoint"
                    )
        return self

    @model_validator(mode="after")
    def _names_differ(self) -> "EvaluateSpec":
        names = [suite.name for suite in self.suites]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two suites are named {', '.join(twice)}; give each its own name")
        return self
