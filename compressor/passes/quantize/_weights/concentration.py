"""How much attention every token of a batch draws in a block: the attention concentration of RSQ (arXiv 2503.01820)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from compressor._lazy import lazy

if TYPE_CHECKING:
    import torch

    from compressor.walk import BlockView
else:
    torch = lazy("torch")

_NAME = "compressor_concentration"


def concentration(block: BlockView, hidden: torch.Tensor, k: int) -> torch.Tensor:
    """Return the attention that each token draws in a block, [batch, tokens]; batch `k` enters it as `hidden`.

    It is the column sum of the attention probabilities over all queries that are not padding, averaged over heads.
    """
    sums: list[torch.Tensor] = []
    mask = block.token_mask(k)

    def attend(
        module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **kwargs: Any
    ) -> Any:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        scale = kwargs.get("scaling")
        causal = attention_mask is None and bool(getattr(module, "is_causal", False))
        sums.append(_column_sums(query, key, attention_mask, causal=causal, scale=scale, token_mask=mask))
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)

    with _attending(block, attend):
        block.to_middle(block.module, hidden, k)
    return sums[0]


def _column_sums(
    query: torch.Tensor,
    key: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    causal: bool,
    scale: float | None,
    token_mask: torch.Tensor | None,
) -> torch.Tensor:
    """Return the column sums [batch, keys] of softmax(scale·QKᵀ + mask), averaged over heads, sample by sample.

    Args:
        query: [batch, heads, queries, width].
        key: [batch, key-value heads, keys, width].
        mask: [batch or 1, 1, queries, keys], bool (true: attend) or to be added; None where nothing is masked.
        causal: whether no query sees a later key.
        scale: None for 1/√width.
        token_mask: bool [batch, queries], false at padding.
    """
    found = []
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    for b in range(len(query)):
        keys = key[b].repeat_interleave(query.shape[1] // key.shape[1], dim=0)
        scores = query[b] @ keys.transpose(1, 2) * scale
        if mask is not None:
            own = mask[b if len(mask) > 1 else 0]
            scores = scores.masked_fill(~own, -torch.inf) if own.dtype == torch.bool else scores + own
        if causal:
            scores = scores.masked_fill(torch.ones_like(scores[0], dtype=torch.bool).triu(1), -torch.inf)
        shares = scores.softmax(-1).mean(0)
        found.append((shares if token_mask is None else shares[token_mask[b]]).sum(0))
    return torch.stack(found)


@contextmanager
def _attending(block: BlockView, attend: Any) -> Iterator[None]:
    """While entered, the attention of a block is computed by `attend`, through transformers' own interface for that."""
    from transformers import AttentionInterface

    config: Any = next(m.config for m in block.module.modules() if hasattr(m, "config"))
    AttentionInterface.register(_NAME, attend)
    before = config._attn_implementation
    config._attn_implementation = _NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def scaled(sums: torch.Tensor, least: float, mask: torch.Tensor | None) -> torch.Tensor:
    """Return concentrations [batch, tokens] brought to [least, 1] within every sample; padding gets `least`."""
    if mask is not None:
        low = sums.masked_fill(~mask, torch.inf).amin(1, keepdim=True)
        high = sums.masked_fill(~mask, -torch.inf).amax(1, keepdim=True)
    else:
        low, high = sums.amin(1, keepdim=True), sums.amax(1, keepdim=True)
    span = torch.where(high > low, high - low, 1.0)
    return least + (1 - least) * ((sums - low) / span).clamp(0, 1)
