import math
from pathlib import Path

import pytest

from trainyard.evaluation.metrics import perplexity
from trainyard.evaluation.run import Arm, evaluate
from trainyard.evaluation.samples import read_items
from trainyard.evaluation.scores import read_scores
from trainyard.recipe.evaluate import EvaluateSpec
from trainyard.serving.engines import start_local

torch = pytest.importorskip("torch")

BASE = Path("recipes/quickstart/base").resolve()
CORPUS = "recipes/quickstart/corpus.jsonl"


def test_perplexity_of_the_served_model_is_that_of_its_own_forward_pass(tmp_path):
    spec = EvaluateSpec.model_validate(
        {"suites": [{"name": "corpus", "kind": "perplexity", "data": CORPUS, "limit": 5}]}
    )
    with start_local("cpu", base=BASE, base_name="base", adapters={}, log=tmp_path / "log") as up:
        evaluate(spec, {"candidate": Arm(up.url, "base", "b")}, tmp_path / "out")
    rows = [s for s in read_scores(tmp_path / "out" / "scores.jsonl") if s.metric == "perplexity"]
    served = perplexity([math.log(s.value) * s.weight for s in rows], [s.weight for s in rows])
    assert served == pytest.approx(_own_perplexity(), rel=0.01)


def _own_perplexity():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(BASE)
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32).eval()
    nll, tokens = [], []
    for item in read_items(CORPUS, limit=5):
        ids = tokenizer(item.text, return_tensors="pt").input_ids
        with torch.no_grad():
            logs = model(ids).logits.float().log_softmax(-1)
        nll.append(-logs[0, :-1].gather(1, ids[0, 1:, None]).sum().item())
        tokens.append(ids.shape[1] - 1)
    return perplexity(nll, tokens)
