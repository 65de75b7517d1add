from huggingface_hub import ModelCard

from tests.unit.test_lineage import sample
from trainyard.card import write_card
from trainyard.lineage import BaseModelFacts, Interval

FACTS = sample().model_copy(
    update={
        "base_model": BaseModelFacts(
            ref="owner/base@r1", revision="r1", digest="b" * 64, license="apache-2.0"
        ),
        "intervals": {
            "tickets/exact_match": Interval(mean=0.94, low=0.91, high=0.96, n=400, method="wilson")
        },
        "gates": ({"id": "tickets", "verdict": "PASS", "reason": "0.94, bounds past 0.9"},),
    }
)


def test_the_metadata_is_what_the_hub_reads() -> None:
    data = ModelCard(write_card(FACTS, url="file:///archive")).data
    assert (data.base_model, data.license, data.library_name) == (
        "owner/base",
        "apache-2.0",
        "peft",
    )
    (result,) = data.eval_results
    assert (result.metric_type, result.metric_value) == ("exact_match", 0.94)


def test_a_card_says_scores_with_intervals_the_gates_words_licences_and_how_to_go_on() -> None:
    card = write_card(FACTS, url="file:///archive")
    for part in (
        "| tickets | exact_match | 0.94 | 0.91 to 0.96 | 400 |",
        "| tickets | PASS | 0.94, bounds past 0.9 |",
        "Base model: apache-2.0. Data: not known to the release.",
        "vllm serve owner/base --enable-lora --lora-modules support@aaaaaaaaaaaa=adapter",
        "trainyard verify support@aaaaaaaaaaaa",
        "trainyard reproduce support@aaaaaaaaaaaa",
    ):
        assert part in card


def test_a_folder_is_no_base_model_of_the_hub() -> None:
    assert ModelCard(write_card(sample(), url="file:///archive")).data.base_model is None
