"""The peers' side of the benchmark, in an environment of their own. Each call is one process that prints one JSON object.

python peers.py WHAT ROWS [KEY=VALUE ...]; ROWS is the file that `ours.py rows` wrote, WHAT one of the functions below.
The model is loaded in the dtype that dorakit computes in (bfloat16 where the hardware has it, else float32), and PEFT's
adapters are float32, as in dorakit.
"""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
import time

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, TrainerCallback


def load(work):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_pretrained(work["model"], dtype=getattr(torch, work["dtype"]))


def lora_config(mode):
    return LoraConfig(
        r=16,
        lora_alpha=32,
        target_modules="all-linear",
        use_dora=mode == "dora",
        task_type="CAUSAL_LM",
        lora_dropout=0.0,
    )


def trl(work, mode="dora", micro_batch_size="4", train_on="completion"):
    """SFTTrainer over the same documents in the same order."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    size = len(work["steps"][0])
    flat = [document for step in work["steps"] for document in step]
    columns = {"input_ids": [d["input_ids"] for d in flat]}
    columns["completion_mask"] = [d["mask"] if train_on == "completion" else [1] * len(d["mask"]) for d in flat]
    stamps = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_, **__):
            stamps.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as directory:
        settings = SFTConfig(
            output_dir=directory,
            max_steps=len(work["steps"]),
            per_device_train_batch_size=int(micro_batch_size),
            gradient_accumulation_steps=size // int(micro_batch_size),
            train_sampling_strategy="sequential",
            completion_only_loss=True,
            max_length=512,
            learning_rate=1e-3,
            bf16=False,
            gradient_checkpointing=False,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            use_cpu=not torch.cuda.is_available(),
            disable_tqdm=True,
        )
        SFTTrainer(
            model=load(work),
            args=settings,
            train_dataset=Dataset.from_dict(columns),
            processing_class=AutoTokenizer.from_pretrained(work["model"]),
            peft_config=lora_config(mode),
            callbacks=[Clock()],
        ).train()
    return timed(work, stamps)


def loop(work, mode="dora", micro_batch_size="4", train_on="completion"):
    """A bare loop over PEFT with batches sorted by length."""
    model = get_peft_model(load(work), lora_config(mode)).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    size = int(micro_batch_size)
    stamps = []
    for documents in work["steps"]:
        documents = sorted(documents, key=lambda d: -len(d["input_ids"]))
        wanted = [d["mask"] if train_on == "completion" else [1] * len(d["mask"]) for d in documents]
        total = sum(map(sum, wanted))
        for start in range(0, len(documents), size):
            part = documents[start : start + size]
            width = len(part[0]["input_ids"])
            ids, labels, mask = torch.zeros(len(part), width).long(), torch.full((len(part), width), -100), None
            mask = torch.zeros_like(ids)
            for row, document in enumerate(part):
                length = len(document["input_ids"])
                ids[row, :length] = torch.tensor(document["input_ids"])
                keep = torch.tensor(wanted[start + row]).bool()
                labels[row, :length][keep] = ids[row, :length][keep]
                mask[row, :length] = 1
            model(input_ids=ids, attention_mask=mask, labels=labels, num_items_in_batch=total).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        stamps.append(time.perf_counter())
    return timed(work, stamps)


def timed(work, stamps):
    tokens = [sum(len(d["input_ids"]) for d in step) for step in work["steps"]]
    return {"seconds": [b - a for a, b in itertools.pairwise(stamps)], "tokens": tokens[1:]}


def lm_eval(work, batch_size="32"):
    """Log-likelihoods of every option by lm-eval's HFLM."""
    from lm_eval.models.huggingface import HFLM

    tokenizer = AutoTokenizer.from_pretrained(work["model"])
    lm = HFLM(pretrained=load(work), tokenizer=tokenizer, batch_size=int(batch_size), device="cpu")
    requests = []
    for prompt, candidates in zip(work["prompts"], work["candidates"], strict=True):
        requests += [(("", ""), prompt, ids) for ids in candidates]
    few = requests[:16]
    lm._loglikelihood_tokens(few, disable_tqdm=True)
    began = time.perf_counter()
    answers = lm._loglikelihood_tokens(requests, disable_tqdm=True)
    seconds = time.perf_counter() - began
    count = len(work["candidates"][0])
    scores = [[answer[0] for answer in answers[i : i + count]] for i in range(0, len(answers), count)]
    return {"seconds": [seconds], "examples": [len(work["prompts"])], "scores": scores}


@torch.no_grad()
def generate(work, batch_size="32", new_tokens="64"):
    """Transformers' generate, prompts sorted by length."""
    model, tokenizer = load(work), AutoTokenizer.from_pretrained(work["model"])
    stops = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")]
    form = GenerationConfig(
        do_sample=False, max_new_tokens=int(new_tokens), eos_token_id=stops, pad_token_id=tokenizer.eos_token_id
    )
    prompts = sorted(work["prompts"], key=len, reverse=True)
    size = int(batch_size)

    def answer(some, config):
        width = max(map(len, some))
        ids = torch.full((len(some), width), tokenizer.eos_token_id)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(some):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        return model.generate(ids, attention_mask=mask, generation_config=config)

    answer(prompts[:4], GenerationConfig(do_sample=False, max_new_tokens=2, pad_token_id=0))
    began = time.perf_counter()
    for start in range(0, len(prompts), size):
        answer(prompts[start : start + size], form)
    return {"seconds": [time.perf_counter() - began], "examples": [len(prompts)]}


def main():
    what, rows, *settings = sys.argv[1:]
    with open(rows, encoding="utf-8") as file:
        work = json.load(file)
    result = globals()[what](work, **dict(setting.split("=", 1) for setting in settings))
    sys.stdout.write("\n" + json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
