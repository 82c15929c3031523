"""The table of methods: how a weight is updated, where that starts, what surrounds a step. Torch-free: recipes read it.

A new method is a file of its own, a row here, a section of the schema for its settings, a test and a recipe.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Entry:
    """One method.

    Attributes:
        home: `module:name` of what implements it, imported when first used.
        summary: A line for lists.
        formula: In the notation of docs/methods.md.
        paper: Where it comes from.
        parameters: Trained numbers per matrix, in terms of in, out and r.
        reads: Recipe keys that only this entry reads.
        ignores: Recipe keys that other entries read and this one does not.
        gives: `pair`: A and B are trained themselves. `exact lora`: the result is a LoRA of the same rank. `any rank`: ranks
            above a matrix's sides mean something.
        needs: What it asks of the others, in the words of `gives`.
        loads: What else loads its files.
    """

    home: str
    summary: str
    formula: str
    paper: str
    parameters: str = ""
    reads: tuple[str, ...] = ()
    ignores: tuple[str, ...] = ()
    gives: frozenset[str] = frozenset()
    needs: frozenset[str] = frozenset()
    loads: str = ""

    def load(self) -> Any:
        """Import what implements it."""
        module, _, name = self.home.partition(":")
        return getattr(import_module(module), name)


_SCALE = ("adapter.alpha", "adapter.rslora", "adapter.alpha_pattern")
_SCALE_AND_RANKS = (*_SCALE, "adapter.rank_pattern")

UPDATES: dict[str, Entry] = {
    "lora": Entry(
        "dorakit.adapters.lora:LoRALinear",
        summary="two low-rank matrices",
        formula="W + s B A, s = alpha / r (rslora: alpha / sqrt(r))",
        paper="arXiv:2106.09685",
        parameters="r (in + out)",
        gives=frozenset({"pair", "exact lora"}),
        loads="PEFT, vLLM, llama.cpp",
    ),
    "vera": Entry(
        "dorakit.adapters.vera:VeRALinear",
        summary="two vectors around random matrices that all layers share; dvora under a magnitude",
        formula="W + diag(b) B diag(d) A, A and B frozen",
        paper="arXiv:2310.11454",
        parameters="r + out",
        reads=("adapter.vera",),
        ignores=_SCALE_AND_RANKS,
        gives=frozenset({"exact lora", "any rank"}),
        loads="PEFT (without a magnitude)",
    ),
    "miss": Entry(
        "dorakit.adapters.miss:MiSSLinear",
        summary="one matrix that every block of r inputs shares (MiSS, first called Bone)",
        formula="W + D^T P, P the sum over blocks of r inputs",
        paper="arXiv:2409.15371",
        parameters="r out",
        reads=("adapter.miss",),
        ignores=_SCALE_AND_RANKS,
        gives=frozenset({"exact lora"}),
        loads="PEFT (without a magnitude)",
    ),
    "hira": Entry(
        "dorakit.adapters.hira:HiRALinear",
        summary="each weight scaled by a low-rank factor of its own (HiRA): a change of high rank",
        formula="W + W * (B A), elementwise",
        paper="openreview.net/forum?id=TwJrTz9cRS",
        parameters="r (in + out)",
        ignores=_SCALE,
        loads="PEFT (without a magnitude)",
    ),
    "bat": Entry(
        "dorakit.adapters.bat:BatLinear",
        summary="a small matrix for every r rows, which multiplies W's blocks (MiSS's Bat, the first Bone)",
        formula="W_ab + W_ab D_a + D_a, by blocks of r x r",
        paper="arXiv:2409.15371",
        parameters="r out",
        ignores=_SCALE_AND_RANKS,
        loads="PEFT (without a magnitude)",
    ),
    "mora": Entry(
        "dorakit.adapters.mora:MoRALinear",
        summary="one square matrix between a compression and a decompression without parameters (MoRA)",
        formula="W + decompress M compress, M square with side sqrt(r (in + out))",
        paper="arXiv:2405.12130",
        parameters="about r (in + out)",
        reads=("adapter.mora",),
        ignores=_SCALE,
        loads="dorakit alone",
    ),
}

STARTS: dict[str, Entry] = {
    "kaiming": Entry(
        "torch.nn.init:kaiming_uniform_",
        summary="the update's own: A random, B zero",
        formula="B0 A0 = 0",
        paper="arXiv:2106.09685",
    ),
    "pissa": Entry(
        "dorakit.adapters.starts.pissa:pissa",
        summary="A and B begin as the principal part of W, and the base keeps the rest",
        formula="W = U S V^T, A0 = diag(sqrt(S_r / s)) V_r^T, B0 = U_r diag(sqrt(S_r / s)), base W - s B0 A0",
        paper="arXiv:2404.02948",
        reads=("adapter.pissa",),
        needs=frozenset({"pair"}),
    ),
    "olora": Entry(
        "dorakit.adapters.starts.olora:olora",
        summary="A and B begin as the first part of W's QR decomposition, and the base keeps the rest",
        formula="W = Q R, B0 = Q[:, :r], A0 = R[:r], base W - s B0 A0",
        paper="arXiv:2406.01775",
        needs=frozenset({"pair"}),
    ),
}

RULES: dict[str, Entry] = {
    "lora-plus": Entry(
        "dorakit.training.rules.lora_plus:LoRAPlus",
        summary="a higher learning rate for B than for A",
        formula="rate of B = ratio x rate of A",
        paper="arXiv:2402.12354",
        reads=("optimizer.lora_plus",),
        needs=frozenset({"pair"}),
    ),
    "lora-pro": Entry(
        "dorakit.training.rules.lora_pro:LoRAPro",
        summary="gradients of A and B whose step is nearest to full fine-tuning's",
        formula="gA' = (B^T B)^-1 gA / s^2 + X A, gB' = (I - P_B) gB (A A^T)^-1 / s^2 - B X",
        paper="arXiv:2407.18242",
        needs=frozenset({"pair"}),
    ),
}


def misfits(update: str, rule: str | None = None, start: str | None = None) -> str | None:
    """Say why an update and a rule or a start do not go together and what would; None where they do."""
    for key, name, table in (("optimizer.rule", rule, RULES), ("adapter.start", start, STARTS)):
        if name is None or table[name].needs <= UPDATES[update].gives:
            continue
        fitting = [other for other, entry in UPDATES.items() if table[name].needs <= entry.gives]
        return (
            f"{key} {name} needs an update that trains A and B themselves, and adapter.update is {update}; "
            f"{name} goes with {', '.join(fitting)}"
        )
    return None
