"""Trained parameters moved away from where they began."""

import torch


def perturb_(module, scale=0.05):
    """Add noise of this size to every trained parameter, the same each time."""
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * scale)
