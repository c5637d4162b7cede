"""SliceGPT: a narrower residual stream, by a change of its coordinates (arXiv 2401.15024).

The stream x [d] becomes z = √(k/d)·Pᵀ·x [k]; every matrix that reads or writes it loses rows or columns, embeddings and
head included.

* `rotation: per_layer`, as published: P is the PCA of the stream at each norm, and two shortcut matrices per block
  carry the stream from one P to the next. They count as parameters and cost time.
* `rotation: shared`: one P for the whole model, so no shortcuts: a stock model of a smaller hidden size results. Its
  span is chosen for what the loss would see of the dropped part (see `SharedBasis`), not for variance alone.

With `refit`, every matrix is then fitted by least squares while calibration runs through the changed blocks: readers to
make of z what they made of x, writers to correct the error that has reached them. What it cannot do: models whose norms
stand behind the residual sums (BERT), where no rotation commutes with the norm.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from compressor._lazy import lazy
from compressor.errors import ModelError
from compressor.passes.base import Findings, Needs, PassFamily, Target
from compressor.passes.base import Options as BaseOptions
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
from compressor.passes.structure._slice.shapes import sliced_shapes
from compressor.passes.surgery import slots
from compressor.passes.surgery.stream import rotatable, set_readers, set_stem

if TYPE_CHECKING:
    import torch

    from compressor.architectures import Family
    from compressor.model.blueprint import Blueprint
    from compressor.model.folder import ModelFolder
    from compressor.passes.numerics.moments import Moments
    from compressor.passes.structure._slice.sensitivity import Sites
    from compressor.storage.tensors import Entry
    from compressor.walk import BlockView, Change, Walk
else:
    torch = lazy("torch")


class SliceGPTOptions(BaseOptions):
    """Options of `slicegpt`."""

    reduction: float = Field(gt=0, lt=1, description="Share of all parameters to remove, embeddings and head included.")
    rotation: Literal["shared", "per_layer"] = Field(
        "shared",
        description="One basis for the whole model, which stays a stock model; or one per norm with shortcut matrices.",
    )
    split: Literal["auto", "hidden"] = Field(
        "auto",
        description="hidden: only the hidden size is cut. auto: FFN channels share it (rotation: shared with refit).",
    )
    round_to: int = Field(8, ge=1, le=1024, description="Hidden size and FFN width become multiples of this.")
    refit: bool = Field(True, description="Fit every matrix by least squares to the dense model's activations.")
    damping: float = Field(1e-3, gt=0, le=1, description="Pull of the fit towards the merely projected weights.")
    survey_samples: int = Field(
        32, ge=1, description="Calibration samples on which the shared basis is chosen; their gradients are needed."
    )
    basis_steps: int = Field(25, ge=0, le=1000, description="Steps of the search for the shared basis; 0: PCA.")
    tokens_per_channel: int = Field(
        48,
        ge=1,
        description="Fits use an evenly spread part of the calibration data: about this many tokens per FFN channel.",
    )


class SliceGPT:
    """See the module."""

    name: str = "slicegpt"
    family: ClassVar[PassFamily] = "structure"
    summary: ClassVar[str] = "narrower residual stream by rotation and slicing (SliceGPT), refitted by least squares"
    Options: ClassVar[type[BaseOptions]] = SliceGPTOptions

    def __init__(self, options: SliceGPTOptions) -> None:
        """Take the options."""
        self.options = options
        walks = 3 if options.rotation == "shared" else 2
        self.needs = Needs(
            calibration="must",
            dense=options.refit,
            walks=walks,
            tokens_per_channel=options.tokens_per_channel,
            turns_stream=True,
        )
        self.notes: list[str] = []

    @property
    def _prunes_ffn(self) -> bool:
        return self.options.split == "auto" and self.options.rotation == "shared" and self.options.refit

    def plan(self, source: ModelFolder, target: Target) -> Blueprint:
        """Return the widths that remove the share asked for.

        Raises:
            ModelError: the family cannot be rotated, or the share cannot be reached.
        """
        family, shapes = source.family, source.shapes
        if not rotatable(source):
            raise ModelError(
                "slicegpt rotates the residual stream, which needs separate projections behind pre-norms and a head; "
                f"family {family.name} for {source.task} has not got them",
                hint="Prune its FFN with the `width` method instead.",
            )
        if shapes.shortcuts:
            raise ModelError("slicegpt: the model already has shortcut matrices", hint="Slice the dense model instead.")
        if source.blueprint.reductions:
            raise ModelError("slicegpt: tokens become fewer inside blocks", hint="Put slicegpt before that pass.")
        options = self.options
        sliced = sliced_shapes(
            source,
            options.reduction,
            multiple=options.round_to,
            ffn=self._prunes_ffn,
            shortcuts=options.rotation == "per_layer",
        )
        return source.blueprint.with_shapes(sliced)

    def survey(self, walk: Walk, planned: Blueprint) -> Findings:
        """Return the basis of all sites, or one for each, and which share of the calibration batches is needed."""
        from compressor.passes.structure._slice.sensitivity import survey_principal, survey_sensitivity
        from compressor.walk.sampling import limited, stride

        every = stride(walk, self.options.tokens_per_channel)
        centre = walk.source.family.norm == "layer"
        width = planned.shapes.layers[0].residual[0] - (1 if centre else 0)
        if self.options.rotation == "per_layer":
            return Findings(self._survey_per_layer(walk, survey_principal(walk, every), width, planned.tied), every)
        with limited(walk, self.options.survey_samples):
            sites = survey_sensitivity(walk)
        basis = _shared(sites, width, self.options.basis_steps, centre)
        if planned.tied:
            basis = diagonalising(basis, _final_norm(walk).weight)
        return Findings({"basis": basis}, every)

    @staticmethod
    def _survey_per_layer(walk: Walk, moments: Iterable[torch.Tensor], width: int, tied: bool) -> dict[str, Entry]:
        """Return one basis per norm; a tied head reads in the coordinates in which the embedding writes."""
        centre = walk.source.family.norm == "layer"
        found, ends = {}, []
        for i, moment in enumerate(moments):
            if i in (0, 2 * walk.count):
                ends.append(moment)
            found[_site_name(i)] = walk.park(_site_name(i), _principal([moment], width, centre))
        if tied:
            outer = diagonalising(_principal(ends, width, centre), _final_norm(walk).weight)
            found |= {_site_name(i): walk.park(_site_name(i), outer) for i in (0, 2 * walk.count)}
        return found

    def begin(self, planned: Blueprint, findings: Findings) -> None:
        """Receive the bases."""
        self._planned, self._bases = planned, findings.tensors
        if findings.every > 1:
            self.notes = [f"fits use one calibration batch in {findings.every}: tokens_per_channel asks for no more"]

    def _frame_at(self, index: int, family: Family) -> Projection:
        """Return the coordinates of the stream at a norm: 2i and 2i + 1 are block i's, the last is the final norm."""
        name = "basis" if "basis" in self._bases else _site_name(index)
        return Projection.of(self._bases[name], centre=family.norm == "layer")

    def change_stem(self, walk: Walk) -> None:
        """Write embeddings, positions and class tokens in the narrow coordinates."""
        set_stem(walk, self._frame_at(0, walk.source.family))

    def change_block(self, block: BlockView) -> Change:
        """Narrow one block; with `refit`, fit its four groups of matrices in the order in which they compute."""
        from compressor.passes.structure._slice.block import BlockSlicer
        from compressor.walk import Change

        layer = self._planned.shapes.layers[block.index]
        slicer = BlockSlicer(
            block,
            [self._frame_at(2 * block.index + i, block.family) for i in range(3)],
            layer,
            shortcuts=self._planned.shapes.shortcuts,
            damping=self.options.damping,
        )
        return Change(layer, slicer.refit() if self.options.refit else slicer.project())

    def change_tail(self, walk: Walk) -> None:
        """Narrow the final norm and the heads; a tied head stays the embedding, the norm's weight is fitted to it."""
        from compressor.model.modules import optional_submodules
        from compressor.passes.structure._slice.block import reader_fit

        norm, frame = _final_norm(walk), self._frame_at(2 * walk.count, walk.source.family)
        heads = optional_submodules(walk.model, walk.source.family.heads)
        matrix, moments = frame.matrix, None
        if self.options.refit:
            found, moments = reader_fit(self._tail_pairs(walk, len(heads)), frame, self.options.damping)
            matrix = found.weight
        if self._planned.tied:
            self._tie(walk, norm, heads[0], moments)
        else:
            set_readers(norm, heads, matrix, frame)

    def _tail_pairs(self, walk: Walk, heads: int) -> Iterable[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]]:
        """Yield dense and narrow normed tokens of the last block's output."""
        from compressor.passes.surgery.observe import norm_eps, unpadded

        eps, centre = norm_eps(_final_norm(walk)), walk.source.family.norm == "layer"
        for k, mask in enumerate(walk.token_masks):
            streams = (walk.dense[k].to(walk.device), walk.current[k].to(walk.device))
            dense, current = (normed(unpadded(x, mask), eps, centre=centre) for x in streams)
            weights = None
            if walk.source.task == "image-classification":
                # The heads read the first tokens only: these weigh as much as all others, which alone are many enough.
                batch, tokens = streams[0].shape[:2]
                weights = torch.ones(batch, tokens, device=walk.device)
                weights[:, :heads] = tokens
                weights = weights.flatten()
            yield dense, current, weights

    def _tie(self, walk: Walk, norm: Any, head: Any, moments: Moments | None) -> None:
        """Let the head be the embedding again; the norm's weight takes over its own scale, in narrow coordinates."""
        from compressor.model.modules import base_of, optional_submodules, set_weight

        frame, scale = self._frame_at(2 * walk.count, walk.source.family), norm.weight.double()
        embedding: Any = optional_submodules(base_of(walk.model), walk.source.family.embeddings)[0]
        # √(k/d)·E·P is tied, so the norm makes up for the factor twice: for the stream and for the head.
        squares = frame.matrix.square()
        diagonal = (scale @ squares) / squares.sum(0) / frame.scale**2
        shift = getattr(norm, "bias", None)
        narrow_shift = None if shift is None else (shift.double() / frame.scale @ frame.matrix).float()
        if moments is not None:
            wanted = fold_scale(slots.read(head, ""), scale)
            found = fit_scale(
                embedding.weight, wanted, moments.gram, moments.cross.T, diagonal * frame.scale, self.options.damping
            )
            diagonal = found / frame.scale
        head.weight = embedding.weight
        set_weight(norm, diagonal.float(), narrow_shift)
        head.in_features = embedding.embedding_dim


def _site_name(index: int) -> str:
    return f"basis.{index:04d}"


def _final_norm(walk: Walk) -> Any:
    from compressor.model.modules import base_of

    return base_of(walk.model).get_submodule(str(walk.source.family.final_norm))


def _frame(size: int, centre: bool, device: torch.device) -> torch.Tensor | None:
    """Return the matrix [d, d - 1] whose columns span what is orthogonal to the ones direction; None: all of it."""
    return ones_free(size).to(device) if centre else None


def _inside(moment: torch.Tensor, frame: torch.Tensor | None) -> torch.Tensor:
    """Return a second moment in the coordinates of `frame`."""
    return moment if frame is None else frame.T @ moment @ frame


def _principal(moments: list[torch.Tensor], width: int, centre: bool) -> torch.Tensor:
    """Return the PCA basis [d, width] of one site, or of several together."""
    frame = _frame(len(moments[0]), centre, moments[0].device)
    basis = principal_basis(_inside(shared_covariance(moments), frame), width)
    return basis if frame is None else frame @ basis


def _shared(sites: Sites, width: int, steps: int, centre: bool) -> torch.Tensor:
    """Return the shared basis [d, width]: PCA of all sites together, then improved for what the loss sees.

    Takes the moments out of `sites`.
    """
    frame = _frame(len(sites.streams[0]), centre, sites.streams[0].device)
    for moments in (sites.streams, sites.gradients):
        for i, moment in enumerate(moments):
            moments[i] = _inside(moment, frame)
    start = principal_basis(shared_covariance(sites.streams), width)
    basis = SharedBasis(sites.streams, sites.gradients).improve(start, steps)
    return basis if frame is None else frame @ basis


METHOD = SliceGPT
