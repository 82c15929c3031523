"""dorakit's side of the benchmark. Each call is one process that prints one JSON object.

python ours.py WHAT DATA [--set KEY=VALUE ...]; WHAT is one of the functions below.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

from dorakit import Recipe, train
from dorakit.build import build_model
from dorakit.data.batches import Batch, documents_of_step, micro_batches
from dorakit.data.tokens import encode
from dorakit.evaluation.likelihood import log_likelihoods
from dorakit.evaluation.task import rows_to_measure
from dorakit.model.generate import generate_ids
from dorakit.model.load import load_base, pick_dtype
from dorakit.model.source import resolve
from dorakit.training.metrics import Metrics
from dorakit.training.objectives.supervised import SupervisedLoss

HERE = Path(__file__).parent
NUM_ROWS = 64  # evaluation
NEW_TOKENS = 64


def read_recipe(data: str, settings: list[str]) -> Recipe:
    return Recipe.from_yaml(str(HERE / "arc-easy.yaml"), [f"data.root={data}", *settings])


def rows(data: str, settings: list[str]) -> dict[str, object]:
    """What the peers need to do the same: the model as a directory and its dtype, documents of each step, evaluation rows."""
    recipe = read_recipe(data, settings)
    dtype = pick_dtype(recipe.model.dtype)
    source = resolve(recipe.model.base, revision="main", dtype=dtype)
    base = load_base(recipe.model.base)
    documents = encode(recipe.data, base.tokenizer, seed=recipe.training.seed).train
    steps = []
    for step in range(recipe.training.max_steps or 1):
        chosen = documents_of_step(len(documents), recipe.training.batch_size, recipe.training.seed, step)
        steps.append(
            [
                {"input_ids": documents[i].input_ids.tolist(), "mask": documents[i].mask.astype(int).tolist()}
                for i in chosen
            ]
        )
    prompts, candidates = questions(recipe, base.tokenizer)
    return {
        "model": str(source.directory),
        "dtype": str(dtype).removeprefix("torch."),
        "steps": steps,
        "prompts": prompts,
        "candidates": candidates,
    }


def questions(recipe, tokenizer):
    """Prompt ids of the first test rows, and the ids of each option's answer."""
    held = rows_to_measure(recipe, tokenizer, limit=NUM_ROWS).questions
    texts = [f"the correct answer is answer{n}" for n in range(1, 5)]
    ids = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    return [question.prompt_ids for question in held], [ids] * len(held)


def training(data: str, settings: list[str]) -> dict[str, object]:
    """Useful tokens per second of each optimizer step but the first, as a user would run it."""
    seen: list[tuple[float, int]] = []
    own = Metrics.step

    def timed(self: Metrics, step: int, num_tokens: int) -> None:
        seen.append((time.perf_counter(), num_tokens))
        own(self, step, num_tokens)

    Metrics.step = timed
    with tempfile.TemporaryDirectory() as directory:
        train(read_recipe(data, [*settings, f"output_dir={directory}/run"]), quiet=True)
    return {
        "seconds": [now - before for (before, _), (now, _) in itertools.pairwise(seen)],
        "tokens": [tokens for _, tokens in seen[1:]],
    }


def scaling(data: str, settings: list[str]) -> dict[str, object]:
    """Seconds of a second forward and backward of DOCUMENTS documents of LENGTH random tokens each, all supervised."""
    given = dict(setting.split("=", 1) for setting in settings)
    documents, length = int(given.pop("DOCUMENTS")), int(given.pop("LENGTH"))
    recipe = read_recipe(data, [f"{key}={value}" for key, value in given.items()])
    base = build_model(recipe)
    if recipe.training.gradient_checkpointing:
        base.model.activation_checkpointing_enable({"use_reentrant": False})
    loss = SupervisedLoss(base.model).train()
    vocabulary = base.model.config.vocab_size
    ids = torch.randint(0, vocabulary, (documents, length), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(length).expand_as(ids)
    size = recipe.training.micro_batch_size
    seconds = []
    for _ in range(2):
        began = time.perf_counter()
        for some, where in zip(torch.split(ids, size), torch.split(positions, size), strict=True):
            batch = Batch({"input_ids": some, "position_ids": where}, some, some.numel(), ())
            (loss(batch) / ids.numel()).backward()
        seconds.append(time.perf_counter() - began)
    return {"seconds": seconds[1:], "tokens": [ids.numel()]}


def profile(data: str, settings: list[str]) -> dict[str, object]:
    """Milliseconds of each kind of work in forward and backward of a step, by torch's profiler."""
    recipe = read_recipe(data, settings)
    base = build_model(recipe)
    documents = encode(recipe.data, base.tokenizer, seed=recipe.training.seed).train
    loss = SupervisedLoss(base.model).train()
    chosen = documents_of_step(len(documents), recipe.training.batch_size, recipe.training.seed, 0)
    batches = micro_batches(
        [documents[i] for i in chosen],
        micro_batch_size=recipe.training.micro_batch_size,
        packing=False,
        max_seq_len=recipe.data.max_seq_len,
        pad_id=int(base.tokenizer.pad_token_id),
    )

    def step() -> None:
        for batch in batches:
            loss(batch).backward()

    step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profiler:
        step()
    kinds: Counter[str] = Counter()
    for event in profiler.key_averages(group_by_input_shape=True):
        kinds[_kind(event.key, event.input_shapes, recipe.adapter.rank)] += event.self_cpu_time_total / 1000
    return {"profile": dict(kinds)}


def _kind(name: str, shapes: list[list[int]], rank: int) -> str:
    if "scaled_dot_product" in name or "softmax" in name or "bmm" in name:
        return "attention"
    if name in ("aten::mm", "aten::addmm", "aten::addmm_"):
        return "low-rank products" if any(rank in shape for shape in shapes) else "products with the base and the head"
    if name in ("aten::copy_", "aten::cat", "aten::fill_", "aten::index", "aten::index_put_"):
        return "copies"
    if name.startswith("aten::") and any(shapes):
        return "element by element"
    return "the rest: autograd, calls"


def likelihood(data: str, settings: list[str]) -> dict[str, object]:
    recipe = read_recipe(data, settings)
    base = load_base(recipe.model.base)
    prompts, candidates = questions(recipe, base.tokenizer)
    size = recipe.evaluation.batch_size
    log_likelihoods(base.model, prompts[:4], candidates[:4], batch_size=size, quiet=True)
    began = time.perf_counter()
    scores = log_likelihoods(base.model, prompts, candidates, batch_size=size, quiet=True)
    return {"seconds": [time.perf_counter() - began], "examples": [len(prompts)], "scores": scores}


def generation(data: str, settings: list[str]) -> dict[str, object]:
    recipe = read_recipe(data, settings)
    base = load_base(recipe.model.base)
    prompts, _ = questions(recipe, base.tokenizer)
    size = recipe.evaluation.batch_size
    generate_ids(base.model, base.tokenizer, prompts[:4], max_new_tokens=2, batch_size=size)
    began = time.perf_counter()
    answers = generate_ids(base.model, base.tokenizer, prompts, max_new_tokens=NEW_TOKENS, batch_size=size)
    return {"seconds": [time.perf_counter() - began], "examples": [len(prompts)], "new_tokens": sum(map(len, answers))}


def first_step(data: str, settings: list[str]) -> dict[str, object]:
    """Seconds from the command line to the first optimizer step of the quickstart recipe: with an empty cache, and after."""
    recipe = HERE.parents[1] / "recipes" / "quickstart.yaml"
    seconds = []
    with tempfile.TemporaryDirectory() as directory:
        for number in range(2):
            given = [*settings, f"output_dir={directory}/{number}", "training.max_steps=1"]
            sets = [part for setting in given for part in ("--set", setting)]
            began = time.perf_counter()
            process = subprocess.Popen(
                [sys.executable, "-m", "dorakit", "train", str(recipe), *sets],
                env=os.environ | {"DORAKIT_CACHE": f"{directory}/cache"},
                stderr=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                text=True,
            )
            assert process.stderr is not None
            for line in process.stderr:
                if line.startswith("step 1/"):
                    seconds.append(time.perf_counter() - began)
            if process.wait():
                raise SystemExit("the training failed")
    return {"first_step": seconds}


def roofline(data: str, settings: list[str]) -> dict[str, object]:
    """Rate of the products of the model's own linear layers, forward, for 1024 tokens; and the work of a token."""
    recipe = read_recipe(data, settings)
    base = load_base(recipe.model.base)
    head = base.model.get_output_embeddings()
    weights = [m.weight for m in base.model.modules() if isinstance(m, torch.nn.Linear) and m is not head]
    shapes = {tuple(w.shape): sum(tuple(v.shape) == tuple(w.shape) for v in weights) for w in weights}
    seconds = 0.0
    for (rows_, columns), count in shapes.items():
        x, w = (torch.randn(height, columns, dtype=weights[0].dtype) for height in (1024, rows_))
        took = []
        for _ in range(20):
            began = time.perf_counter()
            torch.nn.functional.linear(x, w)
            took.append(time.perf_counter() - began)
        seconds += count * statistics.median(took[5:])
    config = base.model.config
    documents = encode(recipe.data, base.tokenizer, seed=recipe.training.seed).train
    length = statistics.fmean(map(len, documents))
    return {
        "flops_per_s": sum(2 * 1024 * w.numel() for w in weights) / seconds,
        "linear_parameters": sum(w.numel() for w in weights),
        "adapter_parameters": sum(recipe.adapter.rank * sum(w.shape) for w in weights),
        # Scores and their product with the values, of the past half of a document: 2 forward, 4 backward.
        "attention_flops": 6 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * length,
    }


def main() -> None:
    what, data, *rest = sys.argv[1:]
    settings = [value for value in rest if value != "--set"]
    torch.manual_seed(0)
    json.dump(globals()[what](data, settings), sys.stdout)


if __name__ == "__main__":
    main()
