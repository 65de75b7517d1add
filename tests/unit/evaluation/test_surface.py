"""The names that others build on, their arguments, and values published elsewhere."""

import inspect
import math

import pytest
import sacrebleu

from trainyard.evaluation import documents, intervals, metrics
from trainyard.evaluation.judge import win_rate
from trainyard.evaluation.samples import Item
from trainyard.recipe.evaluate import PerplexitySuite

SURFACE = {
    intervals.wilson: "(successes, n, confidence=0.95)",
    intervals.clopper_pearson: "(successes, n, confidence=0.95)",
    intervals.tango: "(b, c, n, confidence=0.95)",
    intervals.newcombe_paired: "(a, b, c, d, confidence=0.95)",
    intervals.clustered_se: "(values, clusters)",
    intervals.ppi_mean: "(labels, judged, judged_all, confidence=0.95)",
    metrics.rouge: "(candidate, reference, variant)",
    metrics.bleu: "(candidates, references)",
    metrics.perplexity: "(nll_sums, token_counts)",
    win_rate: "(judgements)",
}


@pytest.mark.parametrize("function", SURFACE, ids=lambda f: f.__name__)
def test_the_surface_keeps_its_arguments(function):
    parameters = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in inspect.signature(function).parameters.values()
    ]
    assert str(inspect.Signature(parameters)) == SURFACE[function]


def test_bleu_is_that_of_the_sacrebleu_readme():
    # sacrebleu's README, section "Using SacreBLEU from Python": 48.53 with both references
    refs = ["The dog bit the man.", "It was not unexpected.", "The man bit him first."]
    sys = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]
    more = ["The dog had bit the man.", "No one was surprised.", "The man had bitten the dog."]
    both = [refs, more]
    assert sacrebleu.corpus_bleu(sys, both).score == pytest.approx(48.530827, abs=1e-4)
    assert metrics.bleu(sys, refs) == pytest.approx(sacrebleu.corpus_bleu(sys, [refs]).score)


def test_signatures_say_how_bleu_and_chrf_were_computed():
    found = metrics.signatures()
    assert found["bleu"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert found["chrf"].startswith("nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:")


def test_perplexity_of_a_fair_die_is_six():
    assert metrics.perplexity([100 * math.log(6)], [100]) == pytest.approx(6)


@pytest.mark.parametrize(
    ("cells", "published"),
    [
        # Newcombe 1998, Stat Med 17:2635, table III, method 10
        ((0, 0, 54), (-0.0664, 0.0664)),
        ((12, 2, 50), (0.0569, 0.3404)),
    ],
)
def test_tango_is_close_to_newcombes_method_on_the_same_tables(cells, published):
    low, high = intervals.tango(*cells)
    assert low == pytest.approx(published[0], abs=0.02)
    assert high == pytest.approx(published[1], abs=0.02)


def test_win_rate_has_what_others_read():
    rows = [
        {"id": str(i), "juror": "j", "order": order, "verdict": verdict}
        for i, verdicts in enumerate([("A", "B"), ("B", "A"), ("tie", "tie"), ("A", "broken")])
        for order, verdict in zip(("AB", "BA"), verdicts, strict=True)
    ]
    found = win_rate(rows)
    assert (found.wins, found.losses, found.ties, found.invalid) == (1, 1, 2, 1)
    assert found.mean == pytest.approx((1 + 0 + 0.5 + 0.5) / 4)
    assert found.standard_error > 0


def test_bits_per_byte_do_not_depend_on_the_tokenizer():
    suite = PerplexitySuite(name="c", kind="perplexity", data="x")
    item = Item("i", text="a" * 100)
    coarse = {"arm": "candidate", "nll": 100 * math.log(2), "tokens": 20, "bytes": 100}
    fine = {**coarse, "tokens": 50}
    values = [
        {score.metric: score.value for score in documents.scores(suite, item, answer, {})}
        for answer in (coarse, fine)
    ]
    assert [v["bits_per_byte"] for v in values] == pytest.approx([1.0, 1.0])
    assert [v["perplexity"] for v in values] == pytest.approx([32.0, 4.0])


def test_likelihoods_that_make_no_sense_fail_the_control():
    suite = PerplexitySuite(name="c", kind="perplexity", data="x")
    assert documents.control_failures(suite, [Item("i", text="some text")]) == {}
    empty = documents.control_failures(suite, [Item("i", text="")])
    assert "control failed: a document of 0 bytes" in empty["perplexity"]
