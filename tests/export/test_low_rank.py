"""The randomized SVD against the exact one."""

import torch

from dorakit.export.low_rank import low_rank_factors


def flat_matrix():
    """(150, 200): a few strong directions over a tail that hardly falls, as a DoRA's difference has."""
    generator = torch.Generator().manual_seed(3)
    u = torch.linalg.qr(torch.randn(150, 150, generator=generator)).Q
    v = torch.linalg.qr(torch.randn(200, 150, generator=generator)).Q
    values = torch.cat([torch.linspace(30, 10, 6), torch.linspace(1.5, 0.5, 144)])
    return (u * values) @ v.T, values


def test_as_good_as_the_exact_svd_and_errors_are_of_what_is_returned():
    """Planted bugs caught: no power iteration; errors of another rank; U and V without their singular values."""
    matrix, values = flat_matrix()
    factors = low_rank_factors(matrix.clone(), [4, 8, 32])
    for rank in (4, 8, 32):
        rest = matrix - factors.B[:, :rank] @ factors.A[:rank]
        assert abs(factors.errors[rank] - float(rest.norm() / matrix.norm())) < 1e-5
        best = float(values[rank:].norm() / values.norm())
        assert best - 1e-5 < factors.errors[rank] < 1.01 * best


def test_a_matrix_of_that_rank_is_returned_whole():
    """Planted bug caught: a subspace narrower than the rank asked for."""
    a, b = torch.randn(12, 200), torch.randn(150, 12)
    matrix = b @ a
    factors = low_rank_factors(matrix.clone(), [12])
    torch.testing.assert_close(factors.B @ factors.A, matrix, rtol=1e-4, atol=1e-4)
    nothing = low_rank_factors(torch.zeros(150, 200), [8])
    assert nothing.errors == {8: 0.0} and not (nothing.B @ nothing.A).any()


def test_draws_belong_to_the_matrix_alone():
    """Planted bug caught: draws from torch's generator, which moves a training beside it and the factors with it."""
    matrix, _ = flat_matrix()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = low_rank_factors(matrix.clone(), [16])
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    other = low_rank_factors(matrix.clone(), [16])
    assert torch.equal(one.A, other.A) and torch.equal(one.B, other.B)
