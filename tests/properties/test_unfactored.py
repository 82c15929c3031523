"""Updates without factors: their formulas element by element, what dropout falls on, and what is kept for backward."""

import pytest
import torch
from torch import nn

from dorakit.errors import ModelError
from dorakit.methods import UPDATES
from dorakit.model.linear import dense_weight
from dorakit.model.nf4 import NF4Format, NF4Linear

UNFACTORED = [name for name, entry in UPDATES.items() if not entry.load().has_factors]
every = pytest.mark.parametrize("update", UNFACTORED)


def make(update, outputs=24, inputs=32, rank=4, *, nf4=False, dtype=torch.float32, seed=0, **options):
    torch.manual_seed(seed)
    base = nn.Linear(inputs, outputs, dtype=dtype).requires_grad_(False)
    if nf4:
        base = NF4Linear.from_dense(base.weight, base.bias, NF4Format())
    layer_class = UPDATES[update].load()
    settings = layer_class.shared([base], rank=rank, **options.pop("settings", {}))
    layer = layer_class(
        base, rank=rank, alpha=1.0, generator=torch.Generator().manual_seed(seed), **options, **settings
    )
    with torch.no_grad():
        for parameter in layer.trained().values():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return layer


def test_hira_scales_each_weight():
    layer = make("hira")
    weight, a, b = layer.base.weight, layer.hira_A, layer.hira_B
    for o, i in ((0, 0), (3, 31), (23, 7)):
        expected = weight[o, i] * sum(b[o, j] * a[j, i] for j in range(4))
        torch.testing.assert_close(layer.update()[o, i], expected)
    assert torch.linalg.matrix_rank(layer.update()) > 4


def test_bat_multiplies_and_adds_by_blocks():
    layer = make("bat", 12, 20, rank=4)
    weight, found = layer.base.weight, layer.update()
    for a in range(3):
        for b in range(5):
            rows, columns = slice(4 * a, 4 * a + 4), slice(4 * b, 4 * b + 4)
            d_RR = layer.miss_block[a]
            torch.testing.assert_close(found[rows, columns], weight[rows, columns] @ d_RR + d_RR)
    assert torch.linalg.matrix_rank(found) == 12


SHAPES = [(16, 16), (40, 12), (12, 40), (7, 33), (10, 12), (12, 10)]


@pytest.mark.parametrize("kind", [1, 6])
@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
@pytest.mark.parametrize("rank", [2, 7])
def test_mora_is_its_formula(kind, outputs, inputs, rank):
    """Planted bugs caught: zeros in place of x's own entries; the rotation backwards; blocks counted from 1."""
    layer = make("mora", outputs, inputs, rank=rank, settings={"kind": kind})
    side = int(((inputs + outputs) * rank) ** 0.5 + 0.5)
    side -= side % 2 if kind == 6 else 0
    m_rr = layer.mora_M.double()
    assert m_rr.shape == (side, side)
    x = torch.randn(inputs, dtype=torch.float64)
    blocks = -(-inputs // side)
    x_br = torch.stack([x[k % inputs] for k in range(blocks * side)]).view(blocks, side)
    if kind == 1:
        h_br = x_br.sum(dim=0, keepdim=True)
    else:
        number = torch.arange(blocks, dtype=torch.float64)[:, None]
        turn = torch.exp(1j * number * 10000.0 ** (-2 * torch.arange(side // 2, dtype=torch.float64) / side))
        turned = torch.complex(x_br[:, : side // 2], x_br[:, side // 2 :]) * turn
        h_br = torch.cat([turned.real, turned.imag], dim=1)
    parts = (h_br @ m_rr.T).flatten()
    expected = torch.stack([parts[o % len(parts)] for o in range(outputs)])
    torch.testing.assert_close(layer.branch(x.float()).double(), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close((layer.update() @ x.float()).double(), expected, rtol=1e-4, atol=1e-4)


def test_ranks_of_mora():
    """Kind 6 has full rank, kind 1 that of M, and both more than a LoRA of as many numbers."""
    assert torch.linalg.matrix_rank(make("mora", 64, 64, rank=4).update()) == 64
    side = make("mora", 64, 64, rank=4, settings={"kind": 1}).side
    assert torch.linalg.matrix_rank(make("mora", 64, 64, rank=4, settings={"kind": 1}).update()) == side == 23


@pytest.mark.parametrize(
    ("settings", "rank", "words"),
    [
        ({"kind": 3}, 4, "update mora has no kind 3; known are 1 .* and 6"),
        ({}, 25, "update mora of rank 25 is above the layer of 24 x 32\\n  give it a rank of at most 24"),
    ],
    ids=["kind", "rank"],
)
def test_what_mora_refuses(settings, rank, words):
    """The second also keeps a stranger's adapter from asking for terabytes."""
    with pytest.raises(ModelError, match=words):
        make("mora", settings=settings, rank=rank)


@every
def test_dropout_falls_on_the_update_alone(update):
    """Dropping everything leaves the base; over many draws the mean is the undropped output."""
    layer, x = make(update, dropout=0.5), torch.randn(2, 32)
    torch.manual_seed(1)
    mean = sum(layer(x).detach() for _ in range(2000)) / 2000
    torch.testing.assert_close(mean, layer.eval()(x).detach(), rtol=0.2, atol=0.3)
    layer.train().dropout.p = 1.0
    torch.testing.assert_close(layer(x), layer.base(x))


@every
@pytest.mark.parametrize("nf4", [False, True])
@pytest.mark.parametrize("magnitude_init", [None, "dequantized"])
def test_no_matrix_is_kept_for_backward(update, nf4, magnitude_init):
    """Planted bug caught: the update computed outside of the function that computes it again."""
    layer, x = make(update, 192, 256, nf4=nf4, magnitude_init=magnitude_init), torch.randn(2, 256, requires_grad=True)
    kept = []

    def see(tensor):
        own = {id(p) for p in layer.parameters()} | {id(buffer) for buffer in layer.buffers()}
        if id(tensor) not in own:
            kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(see, lambda tensor: tensor):
        y = layer(x)
    assert max(kept) < 192 * 256 // 4
    y.sum().backward()
    assert all(parameter.grad is not None for parameter in layer.trained().values())


@every
def test_a_small_update_is_not_lost_beside_a_bfloat16_weight(update):
    """Planted bug caught: W + U rounded to bfloat16 before the product."""
    layer = make(update, 192, 256, dtype=torch.bfloat16)
    with torch.no_grad():
        layer.get_parameter(layer.grows).mul_(1e-3)
    x = torch.randn(64, 256, dtype=torch.bfloat16)
    expected = x.float() @ layer.update().T
    torch.testing.assert_close(layer.branch(x).float(), expected, rtol=0.05, atol=1e-2 * expected.abs().max().item())
    assert layer(x).dtype == torch.bfloat16


@every
def test_parameters_changed_between_forward_and_backward_are_refused(update):
    """As autograd refuses them everywhere else."""
    layer = make(update)
    y = layer(torch.randn(2, 32, requires_grad=True))
    with torch.no_grad():
        layer.get_parameter(layer.grows).add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@every
@pytest.mark.parametrize("magnitude_init", [None, "dequantized"])
def test_recomputed_activations_give_the_same_gradients(update, magnitude_init):
    """Under gradient checkpointing."""
    grads = []
    for recomputes in (False, True):
        layer, x = make(update, magnitude_init=magnitude_init), torch.linspace(-1, 1, 64).reshape(2, 32)
        y = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False) if recomputes else layer(x)
        y.square().sum().backward()
        grads.append([parameter.grad for parameter in layer.trained().values()])
    assert all(torch.equal(left, right) for left, right in zip(*grads, strict=True))


@every
def test_a_row_that_cancels_is_taken_as_it_is(update):
    """n is the row norm of W + U, with nothing expanded."""
    layer = make(update, magnitude_init="dequantized")
    expected = (dense_weight(layer.base) + layer.update()).detach().norm(dim=1)
    torch.testing.assert_close(layer.weight_norm(), expected)
