"""What of bench/train_gpu.py needs no GPU; what does says so in a sentence."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.train_gpu import SIZES, Point, card_of, mfu, spec_of, speed_of, summary, write_rows
from trainyard.data.template import Template
from trainyard.training.memory import shape_of


@pytest.mark.parametrize(("size", "billions"), [("1b", 1.24), ("8b", 8.03)])
def test_the_shapes_are_those_of_the_published_models(size, billions):
    shape = shape_of(SIZES[size] | {"vocab_size": 128256})
    assert shape.parameters == pytest.approx(billions * 1e9, rel=0.01)


@pytest.mark.parametrize(
    ("name", "card"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA A100-SXM4-40GB", "A100-40"),
        ("NVIDIA A100 80GB PCIe", "A100-80"),
        ("Tesla T4", "T4"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA GeForce RTX 4090", "RTX-4090"),
        ("Some Other Card", None),
    ],
)
def test_a_card_is_known_by_the_name_torch_gives_it(name, card):
    assert card_of(name) == card


def test_utilisation_is_of_the_card_s_published_peak():
    shape = shape_of(SIZES["8b"] | {"vocab_size": 128256})
    # 7.5 G weights are multiplied with, 4 operations each: 30 TFLOP per 1000 tokens
    assert mfu(shape, 10_000, "H100") == pytest.approx(10 * 30.0 / 989, rel=0.01)


def test_steps_that_compile_are_not_timed():
    seconds = (60, 61, 62, 63, 65, 66)
    lines = [{"tokens": 100 * (i + 1), "seconds": s} for i, s in enumerate(seconds)]
    assert speed_of(lines) == 100


@pytest.mark.parametrize("tokens", [256, 512])
def test_rows_fill_the_length_and_stay_below_it(tokens, tmp_path):
    write_rows(tmp_path / "rows.jsonl", 3, tokens)
    template = Template.load(Path("recipes/quickstart/base"))
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    lengths = [len(template.encode(row).input_ids) for row in rows]
    assert all(0.8 * tokens < n <= tokens for n in lengths), lengths


def test_both_backends_train_the_same_batch():
    one, other = spec_of("unsloth", 512, 4), spec_of("trl", 512, 4)
    same = {"backend", "activation_checkpointing"}
    assert one.model_dump(exclude=same) == other.model_dump(exclude=same)


def test_the_summary_compares_pairs_and_says_the_worst_estimate():
    points = [
        Point("1b", "unsloth", 512, 3000.0, 4.0, 4.4, 0.3, 9.0),
        Point("1b", "trl", 512, 1000.0, 10.0, 9.0, 0.1, 9.0),
        Point("8b", "unsloth", 512, 500.0, 9.0, 9.0, 0.5, 9.0),  # its partner ran out of memory
    ]
    found = summary(points)
    assert (found["speedup"], found["memory_ratio"]) == (3.0, 0.4)
    assert found["worst_under"] == pytest.approx(0.1)
    assert found["mfu"] == {"unsloth": 0.5, "trl": 0.1}


def test_without_a_gpu_it_says_so_in_one_sentence():
    code = "import sys; sys.modules['torch'] = __import__('types').SimpleNamespace("
    code += "__version__='2', cuda=__import__('types').SimpleNamespace(is_available=bool));"
    code += "sys.argv = ['x']; from bench.train_gpu import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("bench.train_gpu needs a CUDA GPU")
    assert len(done.stderr.splitlines()) == 1
