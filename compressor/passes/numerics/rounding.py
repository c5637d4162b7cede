"""Choosing codes and scales of a grid so that a product loses least on the inputs that it gets.

The loss of a weight W [outputs, inputs] whose inputs have second moments H = E[x xᵀ] is, for values Ŵ on the grid,

    E‖(W − Ŵ)x‖² = tr((W − Ŵ)·H·(W − Ŵ)ᵀ)

which is a sum over rows. Codes are found by error feedback (GPTQ, arXiv 2210.17323) and by coordinate descent
(arXiv 2309.01885), scales by least squares. Loops go over columns, and all rows go together.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from compressor._lazy import lazy
from compressor.errors import ModelError
from compressor.passes.numerics.elimination import damped
from compressor.storage.grids import Grid, fit_grid

if TYPE_CHECKING:
    import torch

    from compressor.storage.grids import GridSpec
else:
    torch = lazy("torch")

COLUMNS = 128
"""Columns whose updates are gathered before they are passed on to all others."""

_SHRINKS = tuple(1 - 0.025 * step for step in range(1, 21))
_ENTRIES = 1 << 22
_RIDGE = 1e-3


def clipped_grid(weight: torch.Tensor, spec: GridSpec, importance: torch.Tensor) -> Grid:
    """Return the grid that, among those over a part of each group's range, rounds with the least weighted error.

    The parts tried are 100 % down to 50 % in steps of 2.5 %; every group takes its own.

    Args:
        weight: [outputs, inputs].
        spec: the kind of grid.
        importance: weight of the squared error of each input's column, [inputs], such as the diagonal of H.
    """
    best = fit_grid(weight, spec)
    full, least = best, _group_error(weight, best, importance)
    for part in _SHRINKS:
        trial = _shrunk(full, weight, part)
        error = _group_error(weight, trial, importance)
        better = error < least
        least = torch.where(better, error, least)
        best = chosen(better, trial, best)
    return best


def chosen(where: torch.Tensor, one: Grid, other: Grid) -> Grid:
    """Return the grid that is `one` in the groups where `where` [outputs, groups] is true, and `other` elsewhere."""
    zero = None
    if one.zero_point is not None and other.zero_point is not None:
        zero = torch.where(where, one.zero_point, other.zero_point)
    return Grid(one.spec, torch.where(where, one.scale, other.scale), zero)


def _shrunk(full: Grid, weight: torch.Tensor, part: float) -> Grid:
    """Return the grid over a part of the range of `full`; the zero point follows its own rounding."""
    if full.zero_point is None:
        return replace(full, scale=full.scale * part)
    return fit_grid(weight * part, full.spec)


def _group_error(weight: torch.Tensor, grid: Grid, importance: torch.Tensor) -> torch.Tensor:
    """Return Σ importance·(w − ŵ)² of each group, [outputs, groups]."""
    error = (weight - grid.rounded(weight)).square() * importance.to(weight)
    return group_sums(error, grid.spec)


def group_sums(values: torch.Tensor, spec: GridSpec) -> torch.Tensor:
    """Return the sums over groups, [outputs, groups], of values [outputs, inputs]."""
    outputs, inputs = values.shape
    groups, size = spec.groups(inputs), spec.group_size or inputs
    if inputs < groups * size:
        values = torch.nn.functional.pad(values, (0, groups * size - inputs))
    return values.reshape(outputs, groups, size).sum(2)


def spread(values: torch.Tensor, spec: GridSpec, inputs: int) -> torch.Tensor:
    """Return values [outputs, groups] repeated for every input of their group, [outputs, inputs]."""
    return values.repeat_interleave(spec.group_size or inputs, dim=1)[:, :inputs]


def corrected(weight: torch.Tensor, gram: torch.Tensor, cross: torch.Tensor, damping: float) -> torch.Tensor:
    """Return the weight that makes y of x with the least E‖y − W'x‖² + λ‖W' − W‖², float32.

    Args:
        weight: W, [outputs, inputs].
        gram: H = E[x xᵀ], [inputs, inputs].
        cross: E[y xᵀ], [outputs, inputs].
        damping: λ over the mean diagonal of H.
    """
    gram, wide = gram.double(), weight.double()
    # Solved for the difference, which is small, and is 0 where H is.
    wanted = cross - wide @ gram
    found = wide + torch.cholesky_solve(wanted.T, torch.linalg.cholesky(damped(gram, damping))).T
    return found.to(weight.dtype).contiguous()


def inverse_factor(gram: torch.Tensor) -> torch.Tensor:
    """Return the upper triangular U with UᵀU = H⁻¹, of H [inputs, inputs], float64.

    Raises:
        ModelError: H is not positive definite.
    """
    factor, failed = torch.linalg.cholesky_ex(gram)
    if not int(failed):
        upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(factor), upper=True)
    if int(failed):
        raise ModelError(
            "the second moments of a layer's inputs cannot be inverted", hint="Raise damping, or calibrate on more."
        )
    return torch.as_tensor(upper)


class _Columns:
    """The grid of single columns in the order in which they are visited: rounds one column of all rows at a time."""

    def __init__(self, grid: Grid, order: torch.Tensor) -> None:
        """Spread the grid over columns; `order` [inputs] lists the columns as they are visited."""
        inputs = len(order)
        self._group = (torch.arange(inputs, device=order.device) // (grid.spec.group_size or inputs))[order].tolist()
        self._scale = grid.scale.T.contiguous()
        self._zero = None if grid.zero_point is None else grid.zero_point.T.float().contiguous()
        self._middle = float(1 << (grid.spec.bits - 1))
        self._top = (1 << grid.spec.bits) - 1

    def rounded(self, column: torch.Tensor, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return codes and values, [outputs] float32 each, nearest to a column [outputs] visited as number `index`."""
        group = self._group[index]
        scale = self._scale[group]
        zero = self._middle if self._zero is None else self._zero[group]
        codes = (torch.round(column / scale) + zero).clamp_(0, self._top)
        return codes, (codes - zero) * scale


def feed_back(weight: torch.Tensor, grid: Grid, gram: torch.Tensor, *, act_order: bool) -> torch.Tensor:
    """Return codes [outputs, inputs] uint8: columns are rounded one by one, later ones make up for the error (GPTQ).

    Args:
        weight: W, [outputs, inputs] float32.
        grid: fixed beforehand, so its groups stay contiguous whatever the order.
        gram: H, damped, [inputs, inputs] float64.
        act_order: visit the columns by falling diagonal of H instead of from left to right.
    """
    inputs = weight.shape[1]
    order = torch.arange(inputs, device=weight.device)
    if act_order:
        order = torch.argsort(gram.diagonal(), descending=True, stable=True)
    upper = inverse_factor(gram[order][:, order]).to(weight.dtype)
    columns, left = _Columns(grid, order), weight.T[order].contiguous()  # (inputs, outputs): columns are contiguous
    codes = torch.empty_like(left, dtype=torch.uint8)
    for start in range(0, inputs, COLUMNS):
        end = min(start + COLUMNS, inputs)
        block, errors = left[start:end], torch.empty_like(left[start:end])
        for i in range(end - start):
            row = upper[start + i, start:end]
            codes[order[start + i]], values = columns.rounded(block[i], start + i)
            errors[i] = (block[i] - values) / row[i]
            block[i + 1 :].addr_(row[i + 1 :], errors[i], alpha=-1)
        left[end:].addmm_(upper[start:end, end:].T, errors, alpha=-1)
    return codes.T.contiguous()


def descend(weight: torch.Tensor, grid: Grid, codes: torch.Tensor, gram: torch.Tensor) -> torch.Tensor:
    """Return codes after one sweep of coordinate descent: each column takes its best values given all the others.

    The loss never rises. Shapes as in `feed_back`.
    """
    inputs = weight.shape[1]
    moments = gram.to(weight.dtype)
    diagonal = moments.diagonal()
    columns = _Columns(grid, torch.arange(inputs, device=weight.device))
    found = torch.empty_like(codes.T, memory_format=torch.contiguous_format)  # (inputs, outputs), like the next
    values, wanted = grid.values(codes).T.contiguous(), weight.T
    for start in range(0, inputs, COLUMNS):
        end = min(start + COLUMNS, inputs)
        slope = moments[start:end] @ (wanted - values)
        for i, j in enumerate(range(start, end)):
            found[j], new = columns.rounded(values[j] + slope[i] / diagonal[j], j)
            slope[i + 1 :].addr_(moments[j, j + 1 : end], new - values[j], alpha=-1)
            values[j] = new
    return found.T.contiguous()


def refit_scales(weight: torch.Tensor, grid: Grid, codes: torch.Tensor, gram: torch.Tensor) -> Grid:
    """Return the grid with the scales that lose least for given codes and zero points; the loss never rises.

    A row's values are Σ_g s_g·c_g, c_g its codes without zero point in group g, so s solves a system of as many
    unknowns as there are groups. A scale that would vanish or change sign stays.
    """
    outputs, inputs = weight.shape
    spec = grid.spec
    groups = spec.groups(inputs)
    scale, moments, same = grid.scale.clone(), gram.double(), gram.to(weight.dtype)
    eye = torch.eye(groups, dtype=torch.float64, device=weight.device)
    for rows in torch.arange(outputs, device=weight.device).split(max(1, _ENTRIES // max(inputs, groups**2))):
        zero = grid.zero_point
        steps = codes[rows].double() - (grid.zero(inputs) if zero is None else spread(zero[rows], spec, inputs))
        system = _group_products(steps.to(weight.dtype), same, spec).double()
        wanted = group_sums(weight[rows].double() @ moments * steps, spec)
        old = grid.scale[rows].double()
        # In units of the old scales all unknowns are near 1, and so the ridge treats them alike.
        system, wanted = system * old[:, :, None] * old[:, None, :], wanted * old
        ridge = _RIDGE * system.diagonal(dim1=1, dim2=2).mean(1).clamp_min(torch.finfo(torch.float64).tiny)
        system = system + ridge[:, None, None] * eye
        factor = torch.linalg.solve(system, wanted + ridge[:, None])
        scale[rows] = torch.where((factor > 0.25) & (factor < 4), factor * old, old).to(scale.dtype)
    return replace(grid, scale=scale)


def _group_products(steps: torch.Tensor, moments: torch.Tensor, spec: GridSpec) -> torch.Tensor:
    """Return c_g·H_gh·c_hᵀ for all pairs of groups of every row c of `steps` [rows, inputs]: [rows, groups, groups]."""
    rows, inputs = steps.shape
    size, groups = spec.group_size or inputs, spec.groups(inputs)
    system = steps.new_empty(rows, groups, groups)
    for g in range(groups):
        start = g * size
        products = steps[:, start : start + size] @ moments[start : start + size, start:]
        system[:, g, g:] = system[:, g:, g] = group_sums(products.mul_(steps[:, start:]), spec)
    return system
