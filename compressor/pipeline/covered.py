"""What a model's files tell before any pass: what is not covered, and what does not fit together."""

from __future__ import annotations

from compressor.data.images import SETTINGS, open_images
from compressor.data.vocabulary import greatest_token
from compressor.errors import ModelError
from compressor.exporters.onnx.rotary import check_rotation
from compressor.model.folder import ModelFolder
from compressor.storage.sentence import read_sentence_encoder


def check_covered(source: ModelFolder, format_: str, *, data: bool, trust_remote_code: bool = False) -> None:
    """See that the files beside the weights are whole, fit the model, and ask for nothing that is not covered.

    Args:
        source: the model; its weights are not read.
        format_: what the artifact is exported as.
        data: whether data will be read, for calibration or evaluation.
        trust_remote_code: whether code of the image processor's own may run.

    Raises:
        ModelError: with the file and what is wrong with it.
        DataError: the image processor cannot be used.
    """
    if source.family.inputs == "pixels":
        if data or (source.path / SETTINGS).is_file():
            open_images(source.path, source.config, trust_remote_code=trust_remote_code)
        return
    _check_tokens(source)
    if source.task == "feature-extraction":
        read_sentence_encoder(source.path, width=int(source.config.hidden_size))
    if format_ != "safetensors":
        check_rotation(source.config)


def _check_tokens(source: ModelFolder) -> None:
    """See that the embedding has a row for every token of the tokenizer.

    Raises:
        ModelError: it has not.
    """
    rows, found = int(source.config.vocab_size), greatest_token(source.path)
    if found is None or found[0] < rows:
        return
    number, token = found
    raise ModelError(
        f"the tokenizer has token {number} ({token!r:.40}); vocab_size in config.json is {rows}, so the embedding has"
        f" rows for tokens 0 to {rows - 1}",
        hint="If the token was added to the tokenizer alone, grow the table: load the model with transformers,"
        f" model.resize_token_embeddings({number + 1}), model.save_pretrained(FOLDER). Otherwise put the tokenizer"
        " files that belong to the model into the folder.",
    )
