import pytest

from trainyard.errors import InputError
from trainyard.serving.engines import ENGINES, Launch, pinned_image, start_local

LAUNCH = Launch(
    base="/models/base",
    base_name="base",
    adapters={"tickets@0123456789ab": "/models/a", "v2": "/models/b"},
    host="0.0.0.0",
    port=8000,
    max_rank=24,
)


def test_vllm_gets_every_adapter_and_the_next_rank_it_knows() -> None:
    command = ENGINES["vllm"].command(LAUNCH)
    assert command[:3] == ["vllm", "serve", "/models/base"]
    assert command[command.index("--max-lora-rank") + 1] == "32"
    assert command[command.index("--max-loras") + 1] == "2"
    at = command.index("--lora-modules")
    assert command[at + 1 : at + 3] == ["tickets@0123456789ab=/models/a", "v2=/models/b"]


def test_vllm_refuses_a_rank_it_has_no_kernel_for() -> None:
    with pytest.raises(InputError, match="1024"):
        ENGINES["vllm"].command(Launch("/b", "b", {"a": "/a"}, max_rank=1024))


def test_no_engine_lets_callers_load_adapters_unasked() -> None:
    for engine in ENGINES.values():
        assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" not in engine.env(LAUNCH)


def test_tgi_takes_adapters_at_start_only() -> None:
    tgi = ENGINES["tgi"]
    found = tgi.env(LAUNCH)["LORA_ADAPTERS"]
    assert found == "tickets@0123456789ab=/models/a,v2=/models/b"
    assert tgi.load_path is None
    assert tgi.unload_path is None
    assert not tgi.lists_adapters


def test_sglang_is_asked_for_an_adapter_by_base_and_name() -> None:
    assert ENGINES["sglang"].request_model("base", "v2") == "base:v2"
    assert ENGINES["vllm"].request_model("base", "v2") == "v2"


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
def test_every_engine_listens_where_it_is_told_and_names_its_queue(engine) -> None:
    command = engine.command(LAUNCH)
    assert "0.0.0.0" in command
    assert "8000" in command
    assert {"running", "waiting", "e2e"} <= engine.metrics.keys()


def test_an_image_is_pinned_by_digest_or_not_used() -> None:
    digest = "sha256:" + "0" * 64
    assert pinned_image(ENGINES["vllm"], digest) == f"vllm/vllm-openai:v0.33.0@{digest}"
    with pytest.raises(InputError, match="latest"):
        pinned_image(ENGINES["vllm"], "latest")
    with pytest.raises(InputError, match="not from an image"):
        pinned_image(ENGINES["cpu"], digest)


def test_only_the_cpu_engine_starts_as_a_process_here(tmp_path) -> None:
    with pytest.raises(InputError, match="container"):
        start_local("vllm", base=tmp_path, base_name="b", adapters={}, log=tmp_path / "log")
