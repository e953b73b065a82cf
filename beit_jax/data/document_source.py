"""Plain text, packed into rows: `config.data.name="documents"`."""

import functools
import logging
from collections.abc import Sequence

import numpy as np

from beit_jax.data import image_text, text_files, texts
from beit_jax.data.source import Source
from beit_jax.data.text_ops import Tokenizer

log = logging.getLogger(__name__)


@functools.lru_cache(maxsize=4)
def load(options, split: str) -> Source:
    """The file that `options.annotations` means: a sentence or paragraph a line, packed.

    Raises: as `image_text.read_documents`; MissingSplit: no such file.
    """
    text_files.require(options, "annotations")
    documents = []
    for part in text_files.parts_of(split):
        path = text_files.file_of(options, "annotations", part)
        documents += image_text.read_documents(path)
    return pack_documents(documents, text_files.tokenizer_of(options), options.text_length, path)


def pack_documents(documents: Sequence[Sequence[str]], tokenizer: Tokenizer, length: int,
                   what: str) -> Source:
    """Examples without images: consecutive lines of one document, as many as fit into a row.

    Lines that do not fit into any row are left out, with their number in the log.

    Args: documents: lines of each. length: tokens of a row with <s> and </s>. what: for messages.
    Raises: ValueError: no line fits.
    Source: VLMo, BEiT-3: texts are filled up with whole sentences, never across documents.
    """
    blocks, left_out = [], 0
    for document in documents:
        block: list[int] = []
        for line in document:
            pieces = tokenizer.encode(line)
            if len(pieces) > length - 2:
                left_out += 1
            elif len(block) + len(pieces) <= length - 2:
                block += pieces
            else:
                blocks.append(block)
                block = pieces
        if block:
            blocks.append(block)
    if left_out:
        log.warning("%s: %d lines are longer than config.data.text_length=%d and are left out",
                    what, left_out, length)
    if not blocks:
        raise ValueError(f"config.data.text_length={length} is too short for every line of {what}")
    return Source(len(blocks), (), what, labels=np.full(len(blocks), -1, np.int32), views={},
                  texts=texts.pack(blocks, length), tokenizer=tokenizer)
