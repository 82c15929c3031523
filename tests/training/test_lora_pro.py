"""LoRA-Pro: the formulas of the paper over random A, B and G in float64, and a run."""

import pytest
import torch
from tiny_runs import tiny_run
from torch import nn

from dorakit.training.rules.lora_pro import adjusted

OUT, IN, RANK, S = 20, 30, 4, 1.7


def pair(seed=0, ridge_only=False):
    torch.manual_seed(seed)
    a, b = (nn.Parameter(torch.randn(*shape, dtype=torch.float64)) for shape in ((RANK, IN), (OUT, RANK)))
    whole = torch.randn(OUT, IN, dtype=torch.float64)
    if ridge_only:
        b.data.zero_()
    a.grad, b.grad = S * b.detach().T @ whole, S * whole @ a.detach().T
    return a, b, whole


def projection(columns):
    return columns @ torch.linalg.pinv(columns)


def step(a, b, grads):
    grad_a, grad_b = grads
    return S * (b.detach() @ grad_a + grad_b @ a.detach())


def test_the_step_is_the_projected_gradient():
    """g~ = P_B G + (I - P_B) G P_A. Planted bugs caught: s not squared; the projection left out."""
    a, b, whole = pair()
    p_b, p_a = projection(b.detach()), projection(a.detach().T)
    expected = p_b @ whole + (torch.eye(OUT, dtype=torch.float64) - p_b) @ whole @ p_a
    torch.testing.assert_close(step(a, b, adjusted([(a, b, S)])[0]), expected, rtol=1e-6, atol=1e-6)


def test_it_is_nearer_to_the_gradient_than_any_multiple_of_loras_step():
    a, b, whole = pair()
    mine, loras = step(a, b, adjusted([(a, b, S)])[0]), step(a, b, (a.grad, b.grad))
    best = float((whole * loras).sum() / loras.square().sum())
    assert (whole - mine).norm() < (whole - best * loras).norm()


def test_x_solves_the_sylvester_equation_and_changes_no_step():
    """X is what is left of gA' beside its first term. Planted bugs caught: the sides swapped; the sign of the right side."""
    a, b, _ = pair()
    grad_a, grad_b = adjusted([(a, b, S)])[0]
    gram_b, gram_a = b.T @ b, a @ a.T
    first = torch.linalg.solve(gram_b, a.grad) / S**2
    x = (grad_a - first) @ torch.linalg.pinv(a.detach())
    residual = gram_b @ x + x @ gram_a + torch.linalg.solve(gram_b, a.grad) @ a.T / S**2
    assert residual.abs().max() < 1e-6 * x.abs().max()
    # The nearest of all: no other X brings the two gradients nearer to LoRA's.
    near = (grad_a - a.grad).square().sum() + (grad_b - b.grad).square().sum()
    for seed in range(5):
        torch.manual_seed(seed)
        other = 1e-2 * torch.randn(RANK, RANK, dtype=torch.float64)
        moved = (grad_a + other @ a, grad_b - b @ other)
        assert (moved[0] - a.grad).square().sum() + (moved[1] - b.grad).square().sum() > near


def test_at_the_start_only_b_has_a_gradient():
    a, b, whole = pair(ridge_only=True)
    grad_a, grad_b = adjusted([(a, b, S)])[0]
    assert not grad_a.any()
    torch.testing.assert_close(S * grad_b @ a, whole @ projection(a.detach().T), rtol=1e-5, atol=1e-5)


def test_pairs_are_independent():
    """Of several layers at once, each as alone."""
    pairs = [pair(seed)[:2] for seed in range(3)]
    together = adjusted([(a, b, S) for a, b in pairs])
    for (a, b), found in zip(pairs, together, strict=True):
        for mine, alone in zip(found, adjusted([(a, b, S)])[0], strict=True):
            torch.testing.assert_close(mine, alone)


@pytest.mark.parametrize("mode", ["lora", "qdora"])
def test_a_run(tmp_path, mode):
    """The loss falls, also with clipping, an 8-bit optimizer and a magnitude."""
    run = tiny_run(
        tmp_path, mode, ["optimizer.rule=lora-pro", "optimizer.learning_rate=1e-3", "optimizer.name=adamw_8bit"]
    )
    assert run.state == "finished"
