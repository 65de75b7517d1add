"""The parity check against a real server: each step breaks by its own name."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.services.serving.adapters import BASE, with_own_tokenizer, write_adapter
from trainyard.gate import Verdict, decide
from trainyard.parity import reference
from trainyard.parity.check import Reference
from trainyard.parity.probes import Answered, ask_server
from trainyard.parity.record import Parity
from trainyard.recipe.evaluate import ParitySpec
from trainyard.recipe.gates import PARITY, GateSpec
from trainyard.recipe.train import TrainSpec
from trainyard.serving.engines import Running, start_local
from trainyard.training.job import JobFile, TrainJob

GATE = GateSpec(id=PARITY, metric=PARITY)
QUESTIONS = [[{"role": "user", "content": f"My order {i} is late, please help"}] for i in range(3)]
TEMPLATE = "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }}\n{% endfor %}"


def trained_folder(folder: Path, *, method: str = "lora", seed: int = 1) -> Path:
    """What a training leaves that a parity check reads: job.json and adapter/."""
    write_adapter(folder / "adapter", seed=seed)
    shutil.copy(BASE / "chat_template.jinja", folder / "adapter")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BASE / name, folder / "adapter")
    spec = {"method": method, "rank": 8, "alpha": 8, "precision": "fp32", "threads": 1}
    job = TrainJob(
        name="t", base_model=BASE.absolute(), base_ref="base", base_digest="b" * 64,
        train=folder / "train.jsonl", data_digest="d" * 64, spec=TrainSpec.model_validate(spec),
    )  # fmt: skip
    file = JobFile(job=job, backend="trl", device_batch_size=1, attempt=1, identity={})
    (folder / "job.json").write_text(file.model_dump_json())
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_folder(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def server(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Serves the trained adapter, one of other weights, and one with another chat template."""
    other = tmp_path_factory.mktemp("other")
    adapters = {
        "good": trained / "adapter",
        "other": write_adapter(other / "b", seed=2),
        "template": with_own_tokenizer(write_adapter(other / "c", seed=1), TEMPLATE),
    }
    log = other / "log"
    with start_local("cpu", base=BASE, base_name="base", adapters=adapters, log=log) as running:
        yield running


class InProcess(Reference):
    """The same check without the start of a process; one test below starts the real one."""

    def __init__(self, trained: Path, spec: ParitySpec) -> None:
        self._trained, self._spec, self._threads = trained, spec, 1

    def __exit__(self, *_: object) -> None:
        pass

    def _talk(self, asked: dict[str, Any]) -> Any:
        return reference.answer(asked)


def check(server: Running, trained: Path, model: str = "good", **spec: Any) -> Parity:
    with InProcess(trained, ParitySpec(**spec)) as one:
        return one.check(answers(server, model), "c" * 64)


def answers(server: Running, model: str) -> list[Answered]:
    return ask_server(server.url, model, QUESTIONS, max_tokens=16, timeout_s=60)


def broken(parity: Parity) -> str | None:
    return parity.broken.name if parity.broken else None


def changed(trained: Path, folder: Path, change: Callable[[Path], object]) -> Path:
    shutil.copytree(trained, folder)
    change(folder / "adapter")
    return folder


def twice_the_scale(adapter: Path) -> None:
    path = adapter / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"lora_alpha": 2 * config["lora_alpha"]}))


def merged(trained: Path, folder: Path) -> Path:
    """A whole model, merged by PEFT from what `trained` holds."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(BASE, dtype="float32")
    model = PeftModel.from_pretrained(base, trained / "adapter").merge_and_unload()
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(BASE / name, folder)
    return folder


def test_the_server_answers_what_was_trained_also_in_a_process_of_its_own(server, trained):
    with Reference(trained, ParitySpec(), trained / "parity.log") as process:
        parity = process.check(answers(server, "good"), "c" * 64)
    assert parity.broken is None, parity
    assert [step.name for step in parity.steps] == ["template", "adapter", "precision", "server"]
    assert parity.steps[-1].gap is not None
    assert parity.steps[-1].gap < 1e-3  # float32 on both sides
    assert parity.steps[-1].agreement == 1.0
    decision = decide([GATE], [], parity=parity)
    assert decision.verdict is Verdict.PASS
    assert parity.surest.answer == answers(server, "good")[parity.probes.index(parity.surest)].text


def test_a_four_bit_base_is_measured_apart_from_the_server(server, tmp_path):
    parity = check(server, trained_folder(tmp_path / "t", method="qlora"), max_quantised_gap=10)
    by_name = {step.name: step for step in parity.steps}
    assert by_name["precision"].gap > 10 * by_name["server"].gap
    assert by_name["server"].verdict == "ok"


def test_a_tampered_template_breaks_the_template_step(server, trained, tmp_path):
    assert broken(check(server, trained, "template")) == "template"
    tampered = changed(
        trained, tmp_path / "t", lambda a: (a / "chat_template.jinja").write_text(TEMPLATE)
    )
    parity = check(server, tampered)
    assert broken(parity) == "template"
    assert "the adapter's folder makes" in parity.steps[0].reason
    assert all(step.verdict == "ok" for step in parity.steps[1:])


def test_another_scale_of_the_adapter_breaks_the_adapter_step(server, trained, tmp_path):
    parity = check(server, changed(trained, tmp_path / "t", twice_the_scale))
    assert broken(parity) == "adapter"
    assert "has the scale 2 in" in parity.steps[1].reason
    assert parity.steps[1].gap > 0.01


def test_a_merge_is_compared_where_there_is_one(server, trained, tmp_path):
    good = check(server, trained, merged=str(merged(trained, tmp_path / "merged")))
    assert broken(good) is None
    assert [step.name for step in good.steps][-2:] == ["merge", "server"]
    scaled = changed(trained, tmp_path / "t", twice_the_scale)
    bad = check(server, trained, merged=str(merged(scaled, tmp_path / "wrong")))
    assert broken(bad) == "merge"


def test_a_server_with_another_adapter_breaks_the_server_step(server, trained):
    parity = check(server, trained, "other")
    assert broken(parity) == "server"
    assert all(step.verdict == "ok" for step in parity.steps[:-1])
    decision = decide([GATE], [], parity=parity)
    assert decision.verdict is Verdict.FAIL
    assert decision.reason.startswith("parity FAIL: step server broken")


def test_an_adapter_that_cannot_be_loaded_is_not_measured_and_never_passes(
    server, trained, tmp_path
):
    gone = changed(trained, tmp_path / "t", lambda a: (a / "adapter_model.safetensors").unlink())
    with Reference(gone, ParitySpec(), gone / "parity.log") as process:
        parity = process.check(answers(server, "good"), "c" * 64)
    decision = decide([GATE], [], parity=parity)
    assert decision.verdict is Verdict.INVALID
    assert "could not be loaded as the trainer does" in decision.reason


def test_an_engine_that_tells_no_ids_is_compared_by_count(server, trained):
    told = answers(server, "good")
    silent = [
        Answered(a.messages, a.max_tokens, a.text, a.prompt_tokens, None, a.token_ids, a.logprobs)
        for a in told
    ]
    with InProcess(trained, ParitySpec()) as one:
        parity = one.check(silent, "c" * 64)
        assert broken(parity) is None
        assert "counts are equal" in parity.steps[0].reason
        wrong = [
            Answered(a.messages, a.max_tokens, a.text, 999, None, a.token_ids, a.logprobs)
            for a in told
        ]
        assert broken(one.check(wrong, "c" * 64)) == "template"


def test_a_release_without_a_measured_parity_does_not_pass() -> None:
    decision = decide([GATE], [])
    assert decision.verdict is Verdict.INVALID
    assert "was not measured" in decision.reason
