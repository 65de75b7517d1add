"""The model card of a version: `README.md` with the metadata of Hugging Face cards."""

from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from trainyard.base_model import HUB
from trainyard.lineage import Lineage


def write_card(facts: Lineage, *, url: str) -> str:
    """Return the card as Markdown; `url` is where the archive keeps the version."""
    return f"---\n{_metadata(facts).to_yaml()}\n---\n\n" + "\n".join(_body(facts, url))


def _metadata(facts: Lineage) -> ModelCardData:
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=suite,
            dataset_name=suite,
            metric_type=metric,
            metric_value=round(value, 6),
        )
        for suite, metric, value in _scores(facts)
    ]
    base = facts.base_model.ref.removeprefix("hf://").partition("@")[0]
    # a folder is no name of the hub, which refuses a card that says so
    named = base if HUB.fullmatch(facts.base_model.ref) else None
    return ModelCardData(
        model_name=facts.name,
        base_model=named,
        license=facts.base_model.license,
        library_name="transformers" if _is_whole(facts) else "peft",
        pipeline_tag="text-generation",
        tags=["trainyard"] if _is_whole(facts) else ["lora", "trainyard"],
        eval_results=results or None,
    )


def _body(facts: Lineage, url: str) -> list[str]:
    data, git = facts.data, facts.git
    served = f"{facts.name}@{facts.digest[:12]}"
    unknown = "not known to the release"
    base = facts.base_model.ref.removeprefix("hf://").partition("@")[0]
    return [
        f"# {served}",
        "",
        f"{'A whole model, trained from' if _is_whole(facts) else 'A LoRA adapter for'} "
        f"`{facts.base_model.ref}` ({facts.base_model.revision}), made by the "
        f"recipe `{facts.recipe.path}` on {facts.created}.",
        "",
        "## What it proved",
        "",
        f"Its gates said **{facts.verdict}**.",
        "",
        *_gate_table(facts.gates),
        *_score_table(facts),
        "## What it learned from",
        "",
        f"{data.lines} lines were read: {data.train} to train, {data.val} to validate, "
        f"{data.quarantine} set aside by the data check. Digest `{data.digest}`.",
        *[f"- `{place}` (sha256 `{digest[:12]}`)" for place, digest in data.sources.items()],
        "",
        "## Limits",
        "",
        "It was measured on the eval sets above and on nothing else. Answers to questions unlike "
        "them, and in other languages, were not measured. Intervals say how much the mean would "
        "vary over other samples of the same kind, not over other kinds.",
        "",
        "## Licences",
        "",
        f"Base model: {facts.base_model.license or unknown}. Data: {data.license or unknown}.",
        "",
        "## Serve it",
        "",
        *_how_to_serve(facts, served, base),
        "",
        "## Verify and reproduce it",
        "",
        f"    trainyard verify {served}",
        f"    trainyard status --lineage {served}",
        f"    trainyard reproduce {served}",
        "",
        f"Archive: {url}. Commit: {git.commit if git else unknown}"
        f"{', with changes in no commit (lineage.json has them)' if git and git.dirty else ''}. "
        "`lineage.json` has everything else.",
        "",
    ]


def _is_whole(facts: Lineage) -> bool:
    return bool(facts.recipe.resolved.get("train", {}).get("method") == "full")


def _how_to_serve(facts: Lineage, served: str, base: str) -> list[str]:
    if _is_whole(facts):
        return [
            f"It is served under the name `{served}`. `adapter/` is a whole model in safetensors:",
            "",
            f"    vllm serve adapter --served-model-name {served}",
        ]
    return [
        f"It is served under the name `{served}` and needs exactly the base model with sha256 "
        f"`{facts.base_model.digest}`. Any engine that loads PEFT adapters can serve `adapter/`:",
        "",
        f"    vllm serve {base} --enable-lora --lora-modules {served}=adapter",
    ]


def _gate_table(gates: tuple[dict[str, Any], ...]) -> list[str]:
    if not gates:
        return []
    rows = [f"| {g.get('id')} | {g.get('verdict')} | {_cell(g.get('reason'))} |" for g in gates]
    return ["| gate | verdict | in words |", "|---|---|---|", *rows, ""]


def _score_table(facts: Lineage) -> list[str]:
    rows = []
    for suite, metric, value in _scores(facts):
        found = facts.intervals.get(f"{suite}/{metric}")
        bounds = f"{found.low:.4g} to {found.high:.4g} | {found.n}" if found else " | "
        rows.append(f"| {suite} | {metric} | {value:.4g} | {bounds} |")
    head = ["| eval set | metric | mean | 95 % interval | samples |", "|---|---|---|---|---|"]
    return [*head, *rows, ""] if rows else []


def _scores(facts: Lineage) -> list[tuple[str, str, float]]:
    split = [(name.partition("/"), value) for name, value in sorted(facts.scores.items())]
    return [(suite, metric or "score", value) for (suite, _, metric), value in split]


def _cell(text: Any) -> str:
    return str(text or "").replace("|", "\\|").replace("\n", " ")
