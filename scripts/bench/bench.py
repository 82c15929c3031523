"""The benchmark: runs every contender in a process of its own, several times in turn, and reports medians and ratios.

python bench.py --ours PYTHON --peers PYTHON --data DIR [--rounds N] [--steps N] [--toy] --output DIR

Only the standard library is needed (and matplotlib for the plot, where it is installed). Memory is the peak of the
process's anonymous resident memory, sampled; on CUDA it is not the device's.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

from peak import run_and_watch

HERE = Path(__file__).parent
TOY = ["model.base=tiny:llama", "data.max_seq_len=2048"]
LENGTHS = [256, 512, 1024, 2048, 4096, 8192]
DOCUMENTS = [4, 8, 16, 32, 64]


def measure(command: list[str]) -> dict:
    """Run a contender; its JSON, with the peak of its anonymous memory."""
    process, out, err, _, peak = run_and_watch(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{err[-3000:]}")
    line = next(line for line in reversed(out.splitlines()) if line.startswith("{"))
    return json.loads(line) | {"peak_bytes": peak}


def make_rows(directory: Path) -> None:
    """Rows of ARC-Easy's form and length, with random words for questions and answers."""
    directory.mkdir(exist_ok=True)
    draw = random.Random(0)
    words = "water plant light rock animal heat force cell energy planet sound metal river seed wind".split()

    def some(count: int) -> str:
        return " ".join(draw.choice(words) for _ in range(count))

    for name, count in (("train", 400), ("test", 100)):
        rows = []
        for _ in range(count):
            answer = f"answer{draw.randint(1, 4)}"
            options = " ".join(f"Answer{number}: {some(draw.randint(1, 8))}" for number in range(1, 5))
            question = f"Please choose the correct answer to the question: {some(draw.randint(8, 40))}?"
            text = f"{question}\n\n{options}\n\nAnswer format: answer1/answer2/answer3/answer4"
            rows.append(
                {"instruction": text, "input": "", "output": f"the correct answer is {answer}", "answer": answer}
            )
        (directory / f"ARC-Easy.{name}.json").write_text(json.dumps(rows))


def contenders(arguments: argparse.Namespace, rows: Path, steps: int) -> dict[str, list[str]]:
    """Name -> command. A name's first word is who, the rest what."""

    def ours(what: str, *settings: str) -> list[str]:
        extra = TOY if arguments.toy else []
        return [arguments.ours, str(HERE / "ours.py"), what, arguments.data, *extra, *settings]

    def peer(what: str, *settings: str) -> list[str]:
        return [arguments.peers, str(HERE / "peers.py"), what, str(rows), *settings]

    some = f"training.max_steps={steps}"
    budget = "training.micro_batch_tokens=1024"
    every = "data.train_on=all"
    found = {
        "dorakit dora": ours("training", some),
        "dorakit lora": ours("training", some, "adapter.mode=lora"),
        "dorakit qdora": ours("training", some, "adapter.mode=qdora"),
        "dorakit dora 1024 tokens": ours("training", some, budget),
        "dorakit qdora 1024 tokens": ours("training", some, budget, "adapter.mode=qdora"),
        "dorakit dora packed": ours("training", some, budget, "data.packing=true", "data.max_seq_len=1024"),
        "dorakit dora all tokens": ours("training", some, every),
        "TRL dora": peer("trl"),
        "TRL lora": peer("trl", "mode=lora"),
        "TRL dora all tokens": peer("trl", "train_on=all"),
        "PEFT loop dora": peer("loop"),
        "PEFT loop lora": peer("loop", "mode=lora"),
        "dorakit likelihood": ours("likelihood"),
        **{f"lm-eval likelihood {n}": peer("lm_eval", f"batch_size={n}") for n in (4, 32)},
        "dorakit generation": ours("generation", "evaluation.batch_size=32"),
        **{f"transformers generation {n}": peer("generate", f"batch_size={n}") for n in (16, 32, 64)},
        "first step": ours("first_step"),
        "profile dora": ours("profile"),
        "profile lora": ours("profile", "adapter.mode=lora"),
        "roofline": ours("roofline"),
    }
    if arguments.compile:
        found["dorakit dora compiled"] = ours("training", some, "training.compile=true")
        found["dorakit lora compiled"] = ours("training", some, "training.compile=true", "adapter.mode=lora")
        found["dorakit dora packed compiled"] = [*found["dorakit dora packed"], "training.compile=true"]
    if arguments.only:
        found = {name: command for name, command in found.items() if any(part in name for part in arguments.only)}
    return found


def rate(results: list[dict], unit: str) -> float:
    """Median over all timed steps of all repetitions, in units a second."""
    return statistics.median(n / s for r in results for n, s in zip(r[unit], r["seconds"], strict=True))


def memory(results: list[dict]) -> float:
    return statistics.median(r["peak_bytes"] for r in results)


def report(found: dict[str, list[dict]]) -> str:
    """Markdown."""
    lines = ["| contender | tokens/s | peak memory, GB |", "| --- | --- | --- |"]
    speed = {name: rate(results, "tokens") for name, results in found.items() if "tokens" in results[0]}
    for name, value in speed.items():
        lines.append(f"| {name} | {value:.0f} | {memory(found[name]) / 1e9:.2f} |")
    lines += ["", "| evaluation | examples/s |", "| --- | --- |"]
    judged = {name: rate(results, "examples") for name, results in found.items() if "examples" in results[0]}
    lines += [f"| {name} | {value:.2f} |" for name, value in judged.items()]
    lines += ["", "| ratio | seen | goal |", "| --- | --- | --- |"]

    def ratio(label: str, values: dict[str, float], top: str, bottom: str, goal: str) -> None:
        if top in values and bottom in values:
            lines.append(f"| {label} | {values[top] / values[bottom]:.2f} | {goal} |")

    used = {name: memory(found[name]) for name in speed}
    ratio("DoRA tokens/s, dorakit / TRL + PEFT", speed, "dorakit dora", "TRL dora", ">= 5")
    ratio("the same, packed", speed, "dorakit dora packed", "TRL dora", "")
    ratio("the same, compiled", speed, "dorakit dora compiled", "TRL dora", ">= 5")
    ratio("the same, packed and compiled", speed, "dorakit dora packed compiled", "TRL dora", "")
    ratio("the same, loss on all tokens", speed, "dorakit dora all tokens", "TRL dora all tokens", "")
    ratio("DoRA tokens/s, dorakit / PEFT loop", speed, "dorakit dora", "PEFT loop dora", ">= 2")
    ratio("LoRA tokens/s, dorakit / PEFT loop", speed, "dorakit lora", "PEFT loop lora", "")
    ratio("step, DoRA / LoRA", speed, "dorakit lora", "dorakit dora", "<= 1.05")
    ratio("the same, both compiled", speed, "dorakit lora compiled", "dorakit dora compiled", "<= 1.05")
    ratio(
        "step, QDoRA / DoRA, micro-batches of 1024 tokens",
        speed,
        "dorakit dora 1024 tokens",
        "dorakit qdora 1024 tokens",
        "<= 1.10",
    )
    ratio("memory, dorakit / TRL + PEFT", used, "dorakit dora", "TRL dora", "<= 0.5")
    ratio("memory, DoRA / LoRA", used, "dorakit dora", "dorakit lora", "<= 1.10")
    for peer, what, goal in (("lm-eval", "likelihood", ">= 2"), ("transformers", "generation", ">= 1")):
        if best := max((n for n in judged if n.startswith(peer)), key=judged.__getitem__, default=None):
            ratio(f"{what}, dorakit / {best}", judged, f"dorakit {what}", best, goal)
    if "first step" in found:
        for place, (label, goal) in enumerate((("empty cache", 15), ("after", 8))):
            seconds = statistics.median(r["first_step"][place] for r in found["first step"])
            lines.append(f"| first step of the quickstart, {label} | {seconds:.1f} s | <= {goal} s |")
    if "roofline" in found and "dorakit dora" in speed:
        lines.append(roofline(found["roofline"], speed["dorakit dora"], found["dorakit dora"]))
    return "\n".join([*lines, *profiles(found)]) + "\n"


def roofline(results: list[dict], tokens_per_s: float, trained: list[dict]) -> str:
    """Share of the rate of the model's own products that training reaches."""
    flops = statistics.median(r["flops_per_s"] for r in results)
    sizes = results[0]
    # 4: forward and backward through a frozen weight. 6: adapters also have a gradient of their own.
    per_token = 4 * sizes["linear_parameters"] + 6 * sizes["adapter_parameters"] + sizes["attention_flops"]
    bound = flops / per_token
    return f"| share of the roofline ({flops / 1e9:.0f} GFLOP/s, {bound:.0f} tokens/s) | {tokens_per_s / bound:.0%} | >= 65 % |"


def profiles(found: dict[str, list[dict]]) -> list[str]:
    """Where the time of a step goes, kind by kind, in milliseconds."""
    if not {"profile lora", "profile dora"} <= found.keys():
        return []
    lora, dora = (
        {
            kind: statistics.median(result["profile"].get(kind, 0) for result in found[name])
            for kind in found[name][0]["profile"]
        }
        for name in ("profile lora", "profile dora")
    )
    lines = ["", "| one step, profiled | LoRA, ms | DoRA, ms |", "| --- | --- | --- |"]
    lines += [
        f"| {k} | {lora.get(k, 0):.0f} | {dora[k]:.0f} |" for k in sorted(dora, key=dora.__getitem__, reverse=True)
    ]
    return [*lines, f"| all | {sum(lora.values()):.0f} | {sum(dora.values()):.0f} |"]


def scaling(arguments: argparse.Namespace) -> dict[str, list[dict]]:
    """Time and memory against the length of one document, with checkpointing; and against the number of documents."""
    lengths, documents = (LENGTHS[:2], DOCUMENTS[:2]) if arguments.toy else (LENGTHS, DOCUMENTS)
    checkpointed = ["training.gradient_checkpointing=true", "data.max_seq_len=8192", "DOCUMENTS=1"]
    series = {
        "length": [[*checkpointed, f"LENGTH={length}"] for length in lengths],
        "documents": [[f"DOCUMENTS={count}", "LENGTH=256"] for count in documents],
    }
    found: dict[str, list[dict]] = {}
    for name, points in series.items():
        for settings in points:
            extra = TOY[:1] if arguments.toy else []
            result = measure([arguments.ours, str(HERE / "ours.py"), "scaling", arguments.data, *extra, *settings])
            point = {"tokens": result["tokens"][0], "seconds": result["seconds"][0], "bytes": result["peak_bytes"]}
            found.setdefault(name, []).append(point)
            print(name, point, file=sys.stderr, flush=True)
    return found


def plot(path: Path, found: dict[str, list[dict]]) -> None:
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        print("matplotlib is not installed: no plot", file=sys.stderr)
        return
    figure, (steps, left, right) = plt.subplots(1, 3, figsize=(12, 3.4))
    for axes, name, what, label in (
        (steps, "documents", "seconds", "tokens in a step, documents of 256"),
        (left, "length", "seconds", "tokens in one document"),
        (right, "length", "bytes", "tokens in one document"),
    ):
        y = [point[what] / (1e9 if what == "bytes" else 1) for point in found[name]]
        axes.plot([point["tokens"] for point in found[name]], y, "o-", color="tab:orange" if what == "bytes" else None)
        ylabel = "peak memory, GB" if what == "bytes" else "seconds, forward and backward"
        axes.set(xlabel=label, ylabel=ylabel, xlim=0, ylim=0)
        axes.locator_params(axis="x", nbins=5)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("ours", "peers", "output"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--data", default="", help="directory of ARC-Easy.train.json and .test.json; else made rows")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--toy", action="store_true", help="a tiny random model: checks that the benchmark runs")
    parser.add_argument("--compile", action="store_true", help="measure training.compile too")
    parser.add_argument("--scaling", action="store_true", help="measure time and memory against tokens too")
    parser.add_argument("--only", nargs="*", default=[], help="contenders whose name contains one of these")
    arguments = parser.parse_args()
    output = Path(arguments.output)
    output.mkdir(parents=True, exist_ok=True)
    if not arguments.data:
        make_rows(output / "made-rows")
    arguments.data = str(Path(arguments.data or output / "made-rows").absolute())
    rows = output / "rows.json"
    command = [arguments.ours, str(HERE / "ours.py"), "rows", arguments.data, *(TOY if arguments.toy else [])]
    made = subprocess.run([*command, f"training.max_steps={arguments.steps}"], stdout=subprocess.PIPE, check=True)
    rows.write_bytes(made.stdout)
    dtype = json.loads(made.stdout)["dtype"]
    found: dict[str, list[dict]] = defaultdict(list)
    for number in range(arguments.rounds):
        for name, command in contenders(arguments, rows, arguments.steps).items():
            began = time.monotonic()
            found[name].append(measure(command))
            print(f"round {number + 1}: {name}, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    processor = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    table = f"{processor}; the frozen model of every contender in {dtype}\n\n{report(found)}"
    results = {"machine": processor, "dtype": dtype, "contenders": found}
    if arguments.scaling:
        results["scaling"] = scaling(arguments)
        plot(output / "scaling.png", results["scaling"])
        for name, points in results["scaling"].items():
            table += f"\n| tokens, by {name} | seconds | peak memory, GB |\n| --- | --- | --- |\n"
            table += "".join(f"| {p['tokens']} | {p['seconds']:.2f} | {p['bytes'] / 1e9:.2f} |\n" for p in points)
    (output / "results.json").write_text(json.dumps(results, indent=1))
    (output / "results.md").write_text(table)
    print(table)


if __name__ == "__main__":
    main()
