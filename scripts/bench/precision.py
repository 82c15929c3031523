"""What bfloat16 costs DoRA: the two measurements that docs/methods.md and docs/architecture.md quote.

python scripts/bench/precision.py        (needs the dev dependencies; seconds on a CPU)
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from dorakit.adapters.fused import adapted_product

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "oracle"))
from test_layers_against_peft import IN, OUT, both_layers, make_dense, peft_layer


def dead_zone() -> None:
    """Outputs that change when g leaves 1, and their mean change relative to the exact one."""
    print("branch / W x   g - 1    changed   mean change relative to the exact one")
    torch.manual_seed(0)
    size, rank = 512, 16
    base = torch.nn.Linear(size, size, bias=False)
    torch.nn.init.normal_(base.weight, std=size**-0.5)
    base, x = base.bfloat16().requires_grad_(False), torch.randn(size, size).bfloat16()
    lora_A = torch.randn(rank, size) * size**-0.5
    for share in (0.0, 0.001, 0.01, 0.1):
        lora_B = torch.randn(size, rank) * rank**-0.5 * share
        exact_sum = x.double() @ (base.weight.double() + lora_B.double() @ lora_A.double()).T

        def output(gain: float, lora_B: torch.Tensor = lora_B) -> torch.Tensor:
            return adapted_product(base, x, lora_A, lora_B, scaling=1.0, gain=torch.full((size,), gain)).double()

        for step in (0.0005, 0.0015, 0.0025, 0.005, 0.02):
            moved = output(1 + step) - output(1.0)
            exact = step * exact_sum
            mean = float((moved * exact.sign()).sum() / exact.abs().sum())
            print(f"{share:11.1%}  {step:8.4f}  {float((moved != 0).double().mean()):7.0%}  {mean:9.2f}")


def magnitude_gradient() -> None:
    """Relative error of the gradient of m in bfloat16, ours and PEFT's, against PEFT in float32."""
    print("bias    ours    PEFT")
    for bias in (1.0, 100.0):
        ours, reference = both_layers("dora", False, bias, torch.bfloat16)
        theirs = peft_layer(make_dense(bias, torch.bfloat16), use_dora=True, nf4=False)
        with torch.no_grad():
            for own, known in zip(theirs.parameters(), reference.parameters(), strict=True):
                own.copy_(known)
        torch.manual_seed(3)
        x, grad = torch.randn(3, 5, IN).bfloat16(), torch.randn(3, 5, OUT).bfloat16()
        for layer, dtype in ((ours, torch.bfloat16), (theirs, torch.bfloat16), (reference, torch.float32)):
            y = layer(x.to(dtype))
            y.backward(grad.to(y.dtype))
        exact = reference.lora_magnitude_vector["default"].weight.grad
        found = (ours.lora_magnitude_vector.grad, theirs.lora_magnitude_vector["default"].weight.grad)
        errors = [float((one.float() - exact).norm() / exact.norm()) for one in found]
        print(f"{bias:4g}  {errors[0]:6.2%}  {errors[1]:6.2%}")


if __name__ == "__main__":
    dead_zone()
    magnitude_gradient()
