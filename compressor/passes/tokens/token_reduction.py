"""The mechanism of the token methods: which tokens of an image or a text go in which block, what becomes of them.

Between attention and FFN of a block, a *score* says how much each token matters (or *features* say which are alike), a
*selection* says which go, and they are dropped, merged, fused, handed on or kept for later. All of it runs inside the
exported graph; counts of patch tokens are static, those of texts come from each text's own length. No weight changes
and no data is needed; what it costs in quality is measured on the artifact. It covers image models with norms before
attention and FFN and a class token, and text encoders with norms behind them (BERT, MiniLM). Published methods are
presets; by itself it combines what no paper has combined.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from compressor._lazy import lazy
from compressor.errors import ModelError, UsageError
from compressor.passes.base import Findings, Needs, Options, PassFamily, Target, Trial
from compressor.passes.tokens._options import TokenOptions
from compressor.passes.tokens._schedule import chosen_layers, schedule
from compressor.passes.tokens._search import Counts, Divergence, Room, Tried, even, searched, work
from compressor.passes.tokens._texts import text_reductions

if TYPE_CHECKING:
    import torch

    from compressor.model.blueprint import Blueprint, Reduction
    from compressor.model.folder import ModelFolder
    from compressor.walk import BlockView, Change, Walk
else:
    torch = lazy("torch")

_RETURNING = ("exit", "recover")
_COME_BACK = ("merge", "fuse", "drop", *_RETURNING)
"""What becomes of tokens that may come back: what else there is leaves none that stands for one of them."""


class TokenReduction:
    """See the module."""

    family: ClassVar[PassFamily] = "tokens"
    summary: ClassVar[str] = "Let tokens of images or texts go by any score, selection and schedule; no data needed."
    Options: ClassVar[type[Options]] = TokenOptions
    needs: Needs = Needs()
    name: str = "token-reduction"

    def __init__(self, options: TokenOptions, *, name: str = "token-reduction") -> None:
        """Take validated options; `name` is that of the preset."""
        self.options, self.name = options, name
        self.notes: list[str] = []
        self.trials: list[Trial] = []
        self._planned: Blueprint | None = None
        if options.flops is not None:
            self.needs = Needs(calibration="must", walks=2, foreseen=False)

    def plan(self, source: ModelFolder, target: Target) -> Blueprint:
        """Return the blueprint of `source` with a reduction in every block of the schedule.

        Raises:
            ModelError: the family's tokens cannot be reduced, the model's are already, or there is nothing to do.
            UsageError: the schedule does not fit the model.
        """
        from compressor.model.cost import image_grid
        from compressor.model.reduced import check_reducible

        check_reducible(self.name, source.family)
        if source.blueprint.reductions:
            raise ModelError(f"{self.name}: the model's tokens are reduced already", hint="Give the model before that.")
        if source.family.inputs == "tokens":
            reductions = text_reductions(self.name, self.options, source)
            self._planned = replace(source.blueprint, reductions=reductions)
            return self._planned
        if self.options.head_only and (source.task != "image-classification" or source.family.head_reads != 1):
            raise UsageError(
                f"{self.name}.head_only: the outputs of this model depend on its patches",
                hint="It is for classifiers whose head reads the class token alone (ViT, DeiT). Leave it out.",
            )
        self._check_full_length()
        rows, columns = image_grid(source)
        room = self._room(source, rows * columns)
        if self.options.flops is not None:
            counts = even(source.shapes, room, self.options.flops)
            least = work(source.shapes, room, counts) / work(source.shapes, room, {})
            if least > self.options.flops:
                raise UsageError(
                    f"{self.name}.flops: {self.options.flops:g} cannot be reached: the fewest tokens leave {least:.2f}",
                    hint="Give more, or let tokens go in more or earlier `layers`.",
                )
        else:
            counts = schedule(self.name, self.options, len(source.shapes.layers), room.patches, half=room.half)
        counts = {block: left for block, left in counts.items() if block in room.blocks}
        if not counts:
            raise ModelError(f"{self.name}: an image has {room.patches} patch tokens, and none of them is to go")
        self._planned = replace(source.blueprint, reductions=self._reductions(source, counts))
        return self._planned

    def _check_full_length(self) -> None:
        options = self.options
        if options.dropped in _RETURNING and options.head_only:
            raise UsageError(
                f"{self.name}.head_only: its tokens come back behind the last block, for a head that reads them all",
                hint="Leave it out, or take a method whose tokens do not come back.",
            )
        if options.full_length and (options.head_only or options.dropped not in _COME_BACK):
            reason = "head_only lets" if options.head_only else f"dropped {options.dropped} leaves"
            raise UsageError(
                f"{self.name}.full_length: {reason} nothing that could stand in the place of a token",
                hint=f"It goes with dropped {', '.join(_COME_BACK)}, such as tome, evit or received.",
            )

    def _room(self, source: ModelFolder, patches: int) -> Room:
        count = len(source.shapes.layers)
        layers = chosen_layers(self.name, self.options, count)
        # what is cached comes back before the last block
        last = count - 2 if self.options.dropped == "cache" else count
        blocks = [layer - 1 for layer in layers if layer - 1 < last]
        return Room(blocks, patches, source.family.leading_tokens, self.options.select == "bipartite")

    def survey(self, walk: Walk, planned: Blueprint) -> Findings:
        """Return the counts that lose least under the budget, where there is one, beside what equal ones lose."""
        if self.options.flops is None:
            return Findings()
        from compressor.model.cost import image_grid

        source = walk.source
        rows, columns = image_grid(source)
        room = self._room(source, rows * columns)
        images = [torch.as_tensor(inputs["pixel_values"]) for inputs in walk.batches]
        with torch.no_grad():
            divergence = Divergence(source, images, lambda counts: self._reductions(source, counts))
            loss = Tried(source.shapes, room, divergence)
            equal = even(source.shapes, room, self.options.flops)
            beside = loss(equal)
            counts, lost = searched(source.shapes, room, self.options.flops, loss)[-1]
        if lost > beside:
            counts, lost = equal, beside
        left = torch.tensor([[block, left] for block, left in counts.items()])
        chosen = [found for _, found in loss.points].index(lost)  # equal steps come first
        return Findings({"left": left, "tried": torch.tensor(loss.points), "chosen": torch.tensor([chosen])})

    def begin(self, planned: Blueprint, findings: Findings) -> None:
        """Receive the counts."""
        self._found = findings

    def settled(self, source: ModelFolder) -> Blueprint:
        """Return the blueprint with the counts that were found, where there was a budget."""
        assert self._planned is not None, "planned before"
        if self.options.flops is not None:
            counts = {int(block): int(left) for block, left in self._found.tensors["left"]}
            chosen = int(self._found.tensors["chosen"])
            points = self._found.tensors["tried"].tolist()
            self.trials = [
                Trial(share, loss, "" if n else "equal steps", n == chosen) for n, (share, loss) in enumerate(points)
            ]
            lost, beside = points[chosen][1], points[0][1]
            text = ", ".join(f"{left} behind block {block + 1}" for block, left in counts.items())
            self.notes = [
                f"patch tokens found on the calibration images: {text}; divergence from dense {lost:.4f} nats,"
                f" {beside:.4f} with equal steps"
            ]
            self._planned = replace(self._planned, reductions=self._reductions(source, counts))
        return self._planned

    def _reductions(self, source: ModelFolder, counts: Counts) -> tuple[Reduction, ...]:
        """Return the reductions that leave so many patch tokens."""
        from compressor.model.blueprint import Reduction
        from compressor.model.cost import image_grid

        rows, columns = image_grid(source)
        leading, blocks, patches = source.family.leading_tokens, len(source.shapes.layers), rows * columns
        registers = int(getattr(source.config, "num_register_tokens", 0))

        options, found, tokens = self.options, [], patches
        dropped, select = options.dropped, options.select
        for block, left in counts.items():
            gone = tokens - left
            found.append(
                Reduction(
                    block,
                    left + leading + (dropped == "fuse"),
                    options.score,
                    select,
                    dropped,
                    "log_size" if options.proportional else "none",
                    leading,
                    heads=options.heads,
                    similar=_share(options.alike, gone, left) if select == "topk_alike" else 0,
                    merged=_share(options.merged, gone, gone) if dropped == "merge" and options.merged < 1 else 0,
                    alpha=options.alpha if dropped == "propagate" else 0.0,
                    temperature=options.temperature if dropped in ("transform", "recover") else 0.0,
                    columns=columns if dropped == "propagate" else 0,
                    classes=leading - registers if registers and options.score in ("cls_attn", "cls_sum") else 0,
                    returns=options.full_length or dropped in _RETURNING,
                    keep_norm=options.keep_norm,
                )
            )
            tokens = left
        if dropped == "cache":
            back = tokens + leading + len(found)
            found.append(Reduction(blocks - 2, back, "none", "all", "restore", "none", leading))
        if options.head_only:
            last = Reduction(blocks - 1, leading, "random", "topk", "drop", "none", leading)
            found = [*(reduction for reduction in found if reduction.block != last.block), last]
        return tuple(found)

    def change_block(self, block: BlockView) -> Change:
        """Say which reduction the block gets: the walk builds it, as the loader and the exporters do."""
        from compressor.walk import Change

        assert self._planned is not None, "planned before blocks are walked"
        return Change(block.layer, reduction=self._planned.reduction_at(block.index))


def _share(share: float, of: int, limit: int) -> int:
    return min(max(round(share * of), 1), limit)


METHOD = TokenReduction
