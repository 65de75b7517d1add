"""Greedy answers by transformers and peft alone: prompts as JSON on stdin, answers on stdout."""

import json
import sys

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

torch.set_num_threads(1)  # two that wait for each other on a busy machine take minutes
base, adapter = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(base)
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
model = PeftModel.from_pretrained(model, adapter).eval()
answers = []
for prompt in json.load(sys.stdin):
    given = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
    out = model.generate(**given, max_new_tokens=24, do_sample=False)
    answers.append(tokenizer.decode(out[0, given.input_ids.shape[1] :], skip_special_tokens=True))
print(json.dumps(answers))
