"""The words in which a model family is described: where its parts are, and how they are joined.

A family is data. Paths are dotted module paths; those of a block are relative to the block, the others to the base
model (`model`, `bert`, …), whose name a task model prepends. Nothing here imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

NormKind = Literal["rms", "layer"]
Residual = Literal["pre", "post", "parallel"]


@dataclass(frozen=True)
class Slot:
    """One logical matrix; several can share one stored matrix.

    Attributes:
        path: module that holds the weight.
        part: which of `parts` equal row groups of the stored matrix this is (Phi-3's gate_up: part 0 and 1 of 2).
        parts: how many logical matrices share the stored one.
        per_head: whether the groups alternate head by head (NeoX) instead of standing one after another.
    """

    path: str
    part: int = 0
    parts: int = 1
    per_head: bool = False


@dataclass(frozen=True)
class Attention:
    """The attention half of a block.

    Attributes:
        norm: norm before attention (`pre`, `parallel`) or after its residual sum (`post`).
        module: the attention module itself.
        query: reader of queries; key and value alike.
        key: reader of keys.
        value: reader of values.
        output: the writer back to the residual stream.
        scale: the vector parameter by which what was written is multiplied before it is added; None without one.
    """

    norm: str
    module: str
    query: Slot
    key: Slot
    value: Slot
    output: str
    scale: str | None = None

    @property
    def layout(self) -> Literal["separate", "stacked", "per_head"]:
        """How the readers are stored."""
        if self.query.parts == 1:
            return "separate"
        return "per_head" if self.query.per_head else "stacked"

    @property
    def readers(self) -> tuple[str, ...]:
        """Paths of the modules that read the normed stream, each once, in order."""
        return tuple(dict.fromkeys(slot.path for slot in (self.query, self.key, self.value)))


@dataclass(frozen=True)
class FeedForward:
    """The feed-forward half of a block.

    Attributes:
        norm: norm before it (`pre`, `parallel`) or after its residual sum (`post`).
        readers: matrices whose output rows are the channels; in a gated FFN the gate comes first.
        writer: matrix whose input columns are the channels.
        module: the module that maps the normed stream to the writer's output; without one, `activation` is set.
        activation: activation module, where the block itself chains reader, activation and writer (OPT).
        scale: the vector parameter by which what was written is multiplied before it is added; None without one.
    """

    norm: str
    readers: tuple[Slot, ...]
    writer: str
    module: str | None
    activation: str | None = None
    scale: str | None = None

    @property
    def gated(self) -> bool:
        """Whether channels are products of a gate and an up projection."""
        return len(self.readers) == 2

    @property
    def reader_paths(self) -> tuple[str, ...]:
        """Paths of the modules that read the normed stream, each once, in order."""
        return tuple(dict.fromkeys(slot.path for slot in self.readers))


@dataclass(frozen=True)
class Setting:
    """A key of config.json that changes what a model computes, and the value that is covered.

    Attributes:
        key: of config.json.
        covered: its only value that is.
        means: what any other value makes of the model, for a message.
    """

    key: str
    covered: bool
    means: str


@dataclass(frozen=True)
class Family:
    """One model family.

    Attributes:
        name: family name, as users see it.
        model_types: values of `model_type` in config.json that it covers.
        tasks: tasks that it is covered for; the first is what `auto` means without a head in config.json.
        blocks: module list of the blocks.
        embeddings: writers to the residual stream before the first block (token, position, class token).
        embedding_biases: vector parameters and biases that write to the stream there (patch projection, class token).
        final_norm: norm after the last block, None where there is none.
        heads: modules, relative to the task model, that read the final stream.
        head_reads: how many vectors of it they read side by side (DINOv2: the class token, the mean of the patches).
        attention: the attention half.
        ffn: the feed-forward half.
        norm: kind of norm.
        norm_offset: what is added to a stored norm weight before use (Gemma: 1).
        residual: where norms stand relative to the residual sums.
        explicit_head_dim: whether config.json can state a head_dim different from hidden_size / heads.
        width_key: config key of the FFN width.
        ffn_width: the FFN width of a model whose config.json states it by no key of its own (DINOv2: by a ratio).
        activation_key: config key of the FFN's activation.
        optional: modules of the base model on whose output no hidden state depends; a checkpoint for feature
            extraction may lack them.
        head_count_attributes: attributes of the attention module that hold (heads, key-value heads), if it reads any.
        projected: whether matrices stand between the residual stream and an embedding of another width, which the head
            shares or reads too (OPT-350m).
        settings: keys of config.json of which one value alone is covered.
        leading_tokens: how many tokens stand before the patches of an image (class token, distillation token,
            registers).
        inputs: what its models read.
        pooled: outputs beside the hidden states that hold one embedding for a whole sample, the first that a model has
            being the one that it is used for; none for families whose hidden states are pooled by their user.
        full_length: whether texts are padded to all the positions of the model, and padding is read like any token.
        bodies: classes of transformers for feature extraction beside the one that AutoModel takes.
        output: what a graph calls the hidden states.
        own: whether the class of its models is one of `compressor.model`, and none of transformers.
        selector: module of the model in whose place tokens are selected that leave the last block; None without one.
        feature_selector: the same behind the projector, where a text may have a say.
        positions: the parameter with the positions of patches, if its module can resample them to images of other
            sizes (`interpolate_pos_encoding`); None where images have one size.
    """

    name: str
    model_types: tuple[str, ...]
    tasks: tuple[str, ...]
    blocks: str
    embeddings: tuple[str, ...]
    final_norm: str | None
    heads: tuple[str, ...]
    attention: Attention
    ffn: FeedForward
    head_reads: int = 1
    norm: NormKind = "rms"
    norm_offset: float = 0.0
    residual: Residual = "pre"
    explicit_head_dim: bool = True
    width_key: str = "intermediate_size"
    ffn_width: int | None = None
    activation_key: str = "hidden_act"
    optional: tuple[str, ...] = ()
    embedding_biases: tuple[str, ...] = ()
    head_count_attributes: tuple[str | None, str | None] = (None, None)
    projected: bool = False
    settings: tuple[Setting, ...] = ()
    leading_tokens: int = 0
    inputs: Literal["tokens", "pixels"] = "tokens"
    pooled: tuple[str, ...] = ()
    full_length: bool = False
    bodies: tuple[str, ...] = ()
    output: str = "last_hidden_state"
    own: bool = False
    selector: str | None = None
    feature_selector: str | None = None
    positions: str | None = None
