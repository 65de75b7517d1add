import pytest

from trainyard.errors import InputError
from trainyard.serving.server_request import CompletionBody, TooLong, read_body, read_completion
from trainyard.serving.server_sequence import Served


@pytest.fixture
def served(tmp_path) -> Served:
    """Prompts given as token ids need no tokenizer."""
    return Served("m", "", tmp_path, template=None, eos_ids=frozenset({2}), vocabulary=100)


def asked(served: Served, **body):
    found = read_body(CompletionBody, {"model": "m", "prompt": [1, 2, 3], **body})
    return read_completion(found, served, max_len=10)


def test_what_changes_nothing_is_accepted(served: Served) -> None:
    more = {"frequency_penalty": 0.0, "logit_bias": {}, "user": "u", "best_of": 1, "stop": None}
    assert asked(served, seed=1, **more) == asked(served, seed=1)


@pytest.mark.parametrize("name", ["frequency_penalty", "best_of", "min_p", "guided_json"])
def test_what_would_change_the_answer_is_refused_by_name(served: Served, name: str) -> None:
    with pytest.raises(InputError, match=f"{name} is not supported"):
        asked(served, **{name: 0.5})


def test_a_prompt_and_its_answer_must_fit_together(served: Served) -> None:
    assert asked(served, max_tokens=7).sampling.max_tokens == 7
    with pytest.raises(TooLong, match=r"3 prompt tokens and max_tokens 8 make 11.* at most 7"):
        asked(served, max_tokens=8)


def test_a_temperature_that_rounds_to_nothing_is_greedy(served: Served) -> None:
    assert asked(served, max_tokens=1, temperature=1e-9).sampling.temperature == 0


def test_the_end_of_text_ends_an_answer_unless_ignored(served: Served) -> None:
    assert asked(served, max_tokens=1, stop_token_ids=[7]).sampling.stop_ids == {2, 7}
    assert asked(served, max_tokens=1, ignore_eos=True).sampling.stop_ids == frozenset()


def test_no_seed_is_a_new_seed_each_time(served: Served) -> None:
    assert asked(served, max_tokens=1).sampling.seed != asked(served, max_tokens=1).sampling.seed
