"""Ask llama.cpp what `dorakit eval` asked, and hold the answers side by side: the table of docs/export.md.

python scripts/llama_cpp_answers.py PREDICTIONS MODEL.gguf [--adapter ADAPTER.gguf] [--limit 40]

PREDICTIONS is RUN/eval/....predictions.jsonl of generated answers judged by their last number, asked without a chat template.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import xllamacpp

from dorakit.evaluation.metrics import last_number, same_number


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("predictions", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--limit", type=int, default=40)
    parser.add_argument("--max-tokens", type=int, default=96)
    asked = parser.parse_args()
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(asked.model)
    parameters.n_ctx = 1024
    parameters.cpuparams.n_threads = 1
    if asked.adapter:
        lora = xllamacpp.CommonAdapterLoraInfo()
        lora.path, lora.scale = str(asked.adapter), 1.0
        parameters.lora_adapters = [lora]
    server = xllamacpp.Server(parameters)
    rows = [json.loads(line) for line in asked.predictions.read_text(encoding="utf-8").splitlines()[: asked.limit]]
    same = right = right_before = 0
    for row in rows:
        request = {"prompt": row["prompt"], "max_tokens": asked.max_tokens, "temperature": 0}
        text = server.handle_completions(request)["choices"][0]["text"]
        same += text.strip() == row["generated"].strip()
        number = last_number(text)
        right += number is not None and same_number(number, row["expected"])
        right_before += row["correct"]
    print(f"{len(rows)} rows: the same answer {same}, right {right}; right by dorakit {right_before}")


if __name__ == "__main__":
    main()
