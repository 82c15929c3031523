"""Option likelihoods equal those of lm-evaluation-harness on the same rows, live adapters included."""

import lm_eval
import pytest
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from made_harness_task import ROWS, write_harness_task

from dorakit import attach_
from dorakit.evaluation.likelihood import log_likelihoods
from dorakit.model.load import load_base

# float32 sums of a few dozen terms, taken in other batches and of other paddings.
TOLERANCE = 1e-5


@pytest.mark.parametrize("method", [None, "lora", "dora"])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_option_likelihoods_are_lm_evals(tmp_path, method, batch_size):
    """Planted bugs caught: logits of the token itself instead of the one before; a mean over tokens instead of a sum; the
    last token left out."""
    base = load_base("tiny:llama", dtype="float32")
    if method is not None:
        attach_(base.model, method=method, rank=2, alpha=8)
        with torch.no_grad():
            for parameter in base.model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
    found = lm_eval.simple_evaluate(
        model=HFLM(pretrained=base.model, tokenizer=base.tokenizer, batch_size=batch_size),
        tasks=["made_choice"],
        task_manager=TaskManager(include_path=write_harness_task(tmp_path), include_defaults=False),
        log_samples=True,
        bootstrap_iters=0,
    )
    samples = sorted(found["samples"]["made_choice"], key=lambda sample: sample["doc_id"])
    theirs = [[float(likelihood) for (likelihood, _) in sample["filtered_resps"]] for sample in samples]

    def ids(text):
        return base.tokenizer(text, add_special_tokens=False).input_ids

    prompts = [ids(f"Question: {row['question']}\nAnswer:") for row in ROWS]
    candidates = [[ids(f" {option}") for option in row["options"]] for row in ROWS]
    ours = log_likelihoods(base.model, prompts, candidates, batch_size=batch_size, quiet=True)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine == pytest.approx(other, rel=TOLERANCE)
    best = [max(range(len(scores)), key=scores.__getitem__) for scores in ours]
    assert found["results"]["made_choice"]["acc,none"] == sum(
        chosen == row["label"] for chosen, row in zip(best, ROWS, strict=True)
    ) / len(ROWS)
