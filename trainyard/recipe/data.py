"""Section `data` of a recipe: which rows to train on and what they must satisfy.

The fields of `Checks` are the codes found in quarantine files and reports.
"""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from trainyard.recipe.base import Fraction, Frozen, PositiveFraction

Format = Literal[
    "alpaca",
    "sharegpt",
    "openai",
    "prompt_completion",
    "preference",
    "kto",
    "prompt_only",
    "text",
    "tokenized",
]
Action = Literal["off", "warn", "quarantine", "refuse"]
"""off: not looked for. warn: counted, the row stays. quarantine: the row is set aside.
refuse: set aside, and one such row refuses the whole data set."""
TAGS = frozenset(("role", "content", "train", "user", "assistant", "system", "tool", "function"))
SensitiveAction = Literal["off", "warn", "redact", "quarantine", "refuse"]
"""As Action; redact: each finding is replaced by `[KIND]` and the row stays."""


class AxolotlColumns(Frozen):
    """Columns of a type that Axolotl's user defines."""

    field_system: str | None = None
    """Column of the system text."""

    field_instruction: str | None = None
    """Column of the question."""

    field_input: str | None = None
    """Column of what the question is about."""

    field_output: str | None = None
    """Column of the answer."""

    field_prompt: str | None = None
    """Column of the prompt of a pair or of a labelled answer."""

    field_chosen: str | None = None
    """Column of the better answer."""

    field_rejected: str | None = None
    """Column of the worse answer."""

    field_completion: str | None = None
    """Column of a labelled answer."""

    field_label: str | None = None
    """Column that says whether the answer is good."""


class AxolotlSpec(Frozen):
    """What an entry of Axolotl's `datasets:` says about its rows, under the same names."""

    type: str | AxolotlColumns | None = None
    """A type's name (alpaca, chat_template, completion, context_qa.load_v2, …) or its columns."""

    field: str | None = None
    """Column of the text of `type: completion`."""

    field_messages: str | None = None
    """Column of the conversation."""

    field_tools: str | None = None
    """Column of the tools."""

    message_property_mappings: dict[str, str] = Field(default_factory=dict)
    """`role` and `content` -> their keys inside a message."""

    message_field_training: str | None = None
    """Key inside a message that says whether it is learnt."""

    roles: dict[Literal["user", "assistant", "system", "tool"], tuple[str, ...]] = Field(
        default_factory=dict
    )
    """Role -> the names it has in the rows."""

    roles_to_train: tuple[str, ...] = ()
    """Roles that are learnt: assistant, and no other."""


class SourceSpec(Frozen):
    """One source of rows."""

    path: str
    """File, glob, folder, `s3://bucket/prefix`, `hf://owner/name@revision` (and a file, folder or
    glob in it), a `.dvc` file, or a LLaMA-Factory `dataset_info.json`."""

    dataset: str | None = None
    """Entry of `dataset_info.json` when `path` names one."""

    format: Literal["auto"] | Format = "auto"
    """Shape of the rows; auto recognises it per row by its keys, and two that fit are an error."""

    columns: dict[str, str] = Field(default_factory=dict)
    """Our field -> the column that holds it, as {prompt: question, completion: answer}, or
    {messages: dialog}. Columns that are not named keep their own names."""

    only_columns: bool = False
    """Columns that `columns` does not name are metadata, whatever they are called, as
    LLaMA-Factory has it."""

    tags: dict[str, str | tuple[str, ...]] = Field(default_factory=dict)
    """Names inside a message: `role`, `content` and `train` are its keys; `user`, `assistant`,
    `system`, `tool` and `function` (a call) are the values of its role."""

    axolotl: AxolotlSpec | None = None
    """The same things as Axolotl says them, pasted from its `datasets:`."""

    subset: str | None = None
    """Of a folder: only files that have this in their path, as the configuration of a hub data
    set. Path and name are read as words between `/ - _ .`"""

    split: str | None = None
    """Of a folder: only files of this split (`train-00000-of-00002.parquet`, `train/…`). Without
    it, a folder that holds several is an error."""

    rows: PositiveInt | None = None
    """Read only so many rows, the first ones."""

    @model_validator(mode="after")
    def _known_tags(self) -> "SourceSpec":
        if unknown := sorted(set(self.tags) - TAGS):
            raise ValueError(f"tags {unknown} are not among {sorted(TAGS)}")
        return self


class Checks(Frozen):
    """What to do with a row that shows a finding: one key per code."""

    exact_duplicate: Action = "quarantine"
    """Same content as an earlier row, which stays."""

    near_duplicate: Action = "quarantine"
    """Jaccard similarity of shingles with an earlier row is at least `near_duplicate_at`."""

    conflicting_answers: Action = "warn"
    """Same prompt as another row, with another answer."""

    leak: Action = "refuse"
    """Repeats an evaluation sample: its whole prompt, or half of its 13-grams or (on prompts)
    8-grams (Brown et al. 2020, appendix C; Lambert et al. 2024, section 3.2)."""

    eval_overlap: Action = "warn"
    """Shares a 13-gram with an evaluation sample, and less than `leak`. `contamination.jsonl` has
    every pair of sample and row."""

    repeated_answer: Action = "warn"
    """An answer of 40 characters or more that also answers another prompt."""

    secret: SensitiveAction = "quarantine"
    """A key, token, password or private key."""

    pii: SensitiveAction = "warn"
    """E-mail, phone, card, IBAN or identity number."""

    role_order: Action = "quarantine"
    """System not first, two user turns in a row, or an answer before any question."""

    empty_output: Action = "quarantine"
    """Nothing, or only white space, to learn."""

    truncated_output: Action = "warn"
    """The answer stops in an open code block or JSON value, or in the middle of a long sentence."""

    prompt_echo: Action = "warn"
    """The answer repeats the prompt."""

    special_tokens: Action = "quarantine"
    """Control text of a chat template, as `<|im_end|>`, inside content."""

    refusal: Action = "warn"
    """The answer begins like a refusal of an assistant."""

    toxic: Action = "off"
    """A slur, a curse or a threat of a short English list: a hint, not a classifier."""

    language_mismatch: Action = "off"
    """Prompt and answer are mostly in different scripts, as in translation."""

    placeholder: Action = "warn"
    """A placeholder left unfilled: `{{name}}`, `[INSERT NAME]`, lorem ipsum."""

    repetition: Action = "warn"
    """More than half of the answer's 4-grams are repeats."""

    mojibake: Action = "warn"
    """Text decoded wrongly: U+FFFD, or UTF-8 read as Latin-1."""

    control_characters: Action = "warn"
    """NUL, other control, zero-width or bidirectional override characters."""

    tool_calls: Action = "quarantine"
    """A call to a tool that is not defined or without its result, or a result without its call."""

    images: Action = "quarantine"
    """An image file is missing, or images and placeholders differ in number."""

    template: Action = "quarantine"
    """The chat template refuses the row, loses content, doubles BOS, or does not train the end."""

    no_trained_tokens: Action = "quarantine"
    """Nothing is left to learn within the longest sequence."""


class Limits(Frozen):
    """When findings refuse the whole data set."""

    min_rows: NonNegativeInt = 10
    """Fewest lines in train."""

    min_valid: Fraction = 0.98
    """Least share of the lines read that hold a row of a known format."""

    max_share: dict[str, Fraction] = Field(default_factory=dict)
    """Code -> largest share of the lines read. These hold beside the ones given:
    exact_duplicate 0.2, near_duplicate 0.2, over_length 0.05, empty_output 0.02."""

    min_script_share: dict[str, Fraction] = Field(default_factory=dict)
    """Script (latin, han, cyrillic, arabic, thai, kana, hangul, devanagari, other) -> least share
    of rows whose answer is mostly in it."""

    max_script_share: dict[str, Fraction] = Field(default_factory=dict)
    """Script -> largest share of rows whose answer is mostly in it."""

    min_label_share: Fraction = 0.0
    """Least share of rows for each value of `label`."""

    drift_warn: Annotated[float, Field(gt=0)] = 0.1
    """Population stability index against the former version that warns, if over 3 x its noise."""

    drift_refuse: Annotated[float, Field(gt=0)] = 0.25
    """The same, that refuses."""

    max_rate_change: Fraction = 0.02
    """Largest change, absolute, of a code's share against the former version, before a warning."""

    max_removed: Fraction = 0.2
    """Largest share of the former version's rows that may be gone."""


DEFAULT_MAX_SHARE = {
    "exact_duplicate": 0.2,
    "near_duplicate": 0.2,
    "over_length": 0.05,
    "empty_output": 0.02,
}


class DataSpec(Frozen):
    """The training data and its checks."""

    train: Annotated[tuple[SourceSpec | str, ...], Field(min_length=1)]
    """Sources, as paths or with options; duplicates across them keep the first."""

    val_fraction: Annotated[float, Field(ge=0, le=0.5)] = 0.05
    """Share of duplicate clusters held out for validation loss. A row keeps its side as rows are
    added."""

    group_by: str | None = None
    """Column whose equal values stay on one side of the split, as a customer or a document."""

    label: str | None = None
    """Column with the class of a row, for class balance and drift."""

    over_length: Literal["error", "drop", "truncate", "split"] = "error"
    """Rows longer than the longest sequence of training. error: one refuses the data set. drop:
    quarantined. truncate: training cuts them. split: into several, at turns, or text at tokens."""

    near_duplicate_at: PositiveFraction = 0.9
    """Jaccard similarity of word 3-grams (5-grams of characters for Chinese, Japanese, Thai)."""

    max_row_bytes: PositiveInt = 10_000_000
    """Longest line, in bytes; longer ones are quarantined unread."""

    checks: Checks = Checks()
    """What to do per finding."""

    limits: Limits = Limits()
    """When to refuse the data set."""

    @property
    def sources(self) -> tuple[SourceSpec, ...]:
        return tuple(SourceSpec(path=s) if isinstance(s, str) else s for s in self.train)

    @property
    def max_share(self) -> dict[str, float]:
        return {**DEFAULT_MAX_SHARE, **self.limits.max_share}

    @model_validator(mode="after")
    def _limits_name_codes(self) -> "DataSpec":
        known = {*Checks.model_fields, "over_length"}
        if unknown := sorted(set(self.limits.max_share) - known):
            raise ValueError(f"limits.max_share names {unknown}; the codes are {sorted(known)}")
        return self
