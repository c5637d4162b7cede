"""The mathematics of rotation and slicing against formulas of their own, in float64."""

from __future__ import annotations

import pytest
import torch

from compressor.errors import ModelError
from compressor.passes.numerics.rotation import (
    Projection,
    SharedBasis,
    diagonalising,
    fit_scale,
    fold_scale,
    normed,
    ones_free,
    principal_basis,
    shared_covariance,
)

D, TOKENS = 12, 400


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _stream(seed: int = 0, mean: float = 0.0) -> torch.Tensor:
    """Correlated tokens [TOKENS, D] with a falling spectrum."""
    scales = torch.logspace(0, -2, D, dtype=torch.float64)
    return _random(TOKENS, D, seed=seed) * scales @ torch.linalg.qr(_random(D, D, seed=seed + 1)).Q + mean


def second_moment(tokens: torch.Tensor) -> torch.Tensor:
    return tokens.T @ tokens


def _orthonormal(columns: int, seed: int = 7) -> torch.Tensor:
    return torch.linalg.qr(_random(D, D, seed=seed)).Q[:, :columns]


@pytest.mark.parametrize("centre", [False, True])
def test_normed_is_the_stock_norm_without_scale_and_shift(centre: bool) -> None:
    x = _stream(mean=0.3)
    stock = torch.nn.LayerNorm(D, eps=1e-3) if centre else torch.nn.RMSNorm(D, eps=1e-3)
    torch.testing.assert_close(normed(x, 1e-3, centre=centre), stock.double()(x))


def test_principal_basis_explains_most_and_has_fixed_signs() -> None:
    covariance = second_moment(_stream())
    basis = principal_basis(covariance, 5)
    torch.testing.assert_close(basis.T @ basis, torch.eye(5, dtype=torch.float64))
    explained = float((basis.T @ covariance @ basis).trace())
    assert explained == pytest.approx(float(torch.linalg.eigvalsh(covariance)[-5:].sum()))
    for seed in range(20):
        other = _orthonormal(5, seed)
        assert float((other.T @ covariance @ other).trace()) < explained
    peaks = basis.gather(0, basis.abs().argmax(0, keepdim=True))
    assert bool((peaks > 0).all())


def test_principal_basis_refuses_what_is_not_finite() -> None:
    with pytest.raises(ModelError, match="not finite"):
        principal_basis(torch.full((3, 3), float("nan")), 2)


def test_shared_covariance_counts_sites_alike() -> None:
    a, b = second_moment(_stream(1)), 1e6 * second_moment(_stream(2))
    torch.testing.assert_close(shared_covariance([a, b]), a / a.trace() + b / b.trace())


def _predicted_loss(basis: torch.Tensor, x: torch.Tensor, gradient: torch.Tensor) -> float:
    """E[eᵀGe] / E[xᵀGx], e the residual of predicting x from Bᵀx by least squares over the tokens themselves."""
    seen = x @ basis
    residual = x - seen @ torch.linalg.lstsq(seen, x).solution
    return float(((residual @ gradient) * residual).sum() / ((x @ gradient) * x).sum())


def test_shared_basis_predicts_the_loss_of_the_best_linear_reading() -> None:
    x, root = _stream(3), _random(D, D, seed=4)
    basis, gradient = _orthonormal(6), root @ root.T
    sites = SharedBasis([second_moment(x)], [gradient], damping=0)
    assert sites.lost(basis) == pytest.approx(_predicted_loss(basis, x, gradient), rel=1e-8)
    assert sites.lost(basis @ _random(6, 6, seed=5)) == pytest.approx(sites.lost(basis), rel=1e-8)
    assert sites.lost(torch.eye(D, dtype=torch.float64)) == pytest.approx(0, abs=1e-10)


def test_shared_basis_finds_the_optimum_of_one_site() -> None:
    """For one site the best rank-k reading of G^½·x is its PCA: the smallest eigenvalues of G^½CG^½ are lost."""
    x, root = _stream(3), _random(D, D, seed=4)
    covariance, gradient = second_moment(x), root @ root.T
    values, vectors = torch.linalg.eigh(gradient)
    half = vectors * values.sqrt() @ vectors.T
    spectrum = torch.linalg.eigvalsh(half @ covariance @ half)
    sites = SharedBasis([covariance.clone()], [gradient], damping=0)
    found = sites.improve(principal_basis(covariance, 6), 300)
    assert sites.lost(found) == pytest.approx(float(spectrum[:-6].sum() / spectrum.sum()), rel=1e-3)
    torch.testing.assert_close(found.T @ found, torch.eye(6, dtype=torch.float64))


def test_shared_basis_improves_on_pca_over_several_sites_and_never_worsens() -> None:
    streams = [second_moment(_stream(seed)) for seed in (1, 2, 3)]
    roots = [_random(D, D, seed=seed) for seed in (4, 5, 6)]
    start = principal_basis(shared_covariance(streams), 7)
    blind = SharedBasis([second_moment(_stream(seed)) for seed in (1, 2, 3)], [torch.zeros(D, D).double()] * 3)
    sites = SharedBasis(streams, [root @ root.T for root in roots])
    assert sites.lost(sites.improve(start, 25)) < 0.9 * sites.lost(start)
    assert torch.equal(sites.improve(start, 25), sites.improve(start, 25))
    assert torch.equal(blind.improve(start, 25), start)


@pytest.mark.parametrize("width", [2, 3, 9, 100])
def test_ones_free_is_orthonormal_and_orthogonal_to_ones(width: int) -> None:
    frame = ones_free(width)
    torch.testing.assert_close(frame.T @ frame, torch.eye(width - 1, dtype=torch.float64))
    torch.testing.assert_close(frame.sum(0), torch.zeros(width - 1, dtype=torch.float64), atol=1e-12, rtol=0)


def test_diagonalising_keeps_the_span() -> None:
    basis, scale = _orthonormal(5), torch.rand(D, dtype=torch.float64) + 0.5
    turned = diagonalising(basis, scale)
    torch.testing.assert_close(turned @ turned.T, basis @ basis.T)
    inner = turned.T @ torch.diag(scale) @ turned
    torch.testing.assert_close(inner, torch.diag(inner.diagonal()), atol=1e-12, rtol=0)


def _norm(x: torch.Tensor, weight: torch.Tensor, centre: bool, eps: float) -> torch.Tensor:
    shape = (x.shape[-1],)
    if centre:
        return torch.nn.functional.layer_norm(x, shape, weight, None, eps)
    return torch.nn.functional.rms_norm(x, shape, weight, eps)


@pytest.mark.parametrize("centre", [False, True])
def test_full_width_projection_leaves_a_residual_network_unchanged(centre: bool) -> None:
    """Embedding, two residual MLPs behind norms with scale, head: logits agree to 1e-10 though every matrix differs."""
    rows, eps = _random(30, D, seed=1) + 0.2, 1e-5
    scales = [torch.rand(D, dtype=torch.float64) + 0.5 for _ in range(3)]
    up, down = [_random(20, D, seed=s) for s in (2, 3)], [_random(D, 20, seed=s) for s in (4, 5)]
    head = _random(9, D, seed=6)

    def logits(x: torch.Tensor, norms: list[torch.Tensor], up: list, down: list, head: torch.Tensor) -> torch.Tensor:
        for i in (0, 1):
            x = x + torch.tanh(_norm(x, norms[i], centre, eps) @ up[i].T) @ down[i].T
        return _norm(x, norms[2], centre, eps) @ head.T

    frame = ones_free(D) @ torch.linalg.qr(_random(D - 1, D - 1, seed=8)).Q if centre else _orthonormal(D)
    site = Projection.of(frame, centre=centre)
    assert site.matrix.shape == (D, D)
    turned = logits(
        site.stream(rows),
        [site.norm_weight()] * 3,
        [fold_scale(w, s) @ site.matrix for w, s in zip(up, scales, strict=False)],
        [site.writer(w) for w in down],
        fold_scale(head, scales[2]) @ site.matrix,
    )
    dense = logits(rows, scales, up, down, head)
    assert float((turned - dense).abs().max()) < 1e-10
    assert float((up[0] @ site.matrix - up[0]).abs().max()) > 0.1


@pytest.mark.parametrize("centre", [False, True])
def test_narrow_norm_gives_readers_the_projected_normed_stream(centre: bool) -> None:
    """For a stream inside the span a stock norm of the narrow width, with the same eps, is exact."""
    frame = ones_free(D)[:, :5] if centre else _orthonormal(5)
    site = Projection.of(frame, centre=centre)
    assert site.width == (6 if centre else 5)
    x = _random(TOKENS, 5, seed=2) @ frame.T + (0.7 if centre else 0.0)
    narrow = _norm(site.stream(x), site.norm_weight(), centre, 1e-3)
    expected = normed(x, 1e-3, centre=centre) @ site.matrix
    torch.testing.assert_close(narrow, expected, atol=1e-12, rtol=0)


def test_shortcut_carries_the_stream_between_coordinates() -> None:
    first, second = Projection(_orthonormal(7, 1)), Projection(_orthonormal(5, 2))
    x = _random(TOKENS, 7, seed=3) @ first.matrix.T
    torch.testing.assert_close(first.stream(x) @ first.shortcut(second).T, second.stream(x))


def test_fit_scale_minimises_the_error_of_the_logits() -> None:
    """Against least squares over all (token, word) pairs written out as one system."""
    vocabulary, k = 25, 5
    head, wanted = _random(vocabulary, k, seed=1), _random(vocabulary, D, seed=2)
    x = _stream(3)
    u = x @ _orthonormal(k) + 0.01 * _random(TOKENS, k, seed=4)
    found = fit_scale(head, wanted, u.T @ u, u.T @ x, torch.zeros(k, dtype=torch.float64), 0.0)
    plain, target = head - head.mean(0), x @ (wanted - wanted.mean(0)).T
    design = (u[:, None, :] * plain[None]).reshape(-1, k)
    expected = torch.linalg.lstsq(design, target.reshape(-1, 1)).solution.squeeze(1)
    torch.testing.assert_close(found, expected)
    prior = torch.arange(k, dtype=torch.float64)
    torch.testing.assert_close(fit_scale(head, wanted, u.T @ u, u.T @ x, prior, 1e12), prior, rtol=1e-6, atol=1e-6)
