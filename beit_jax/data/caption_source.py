"""Images with captions: `config.data.name="karpathy"` (COCO, Flickr30k) and "pairs" (JSON lines).

An image is an example; see `pipeline` for which of its captions it shows. One that is not trained
on may lack captions.
"""

import functools
import os
from collections.abc import Sequence

import numpy as np

from beit_jax.data import image_table, image_text, text_files, texts
from beit_jax.data.source import Source


@functools.lru_cache(maxsize=4)
def load_karpathy(options, split: str) -> Source:
    """A split, or several, of the JSON file `options.annotations`, images below `options.path`.

    Raises: as `image_text.read_karpathy`, `image_table.with_images`; MissingSplit: no such split.
    """
    text_files.require(options, "annotations", "path")
    path = os.path.expanduser(options.annotations)
    records = image_text.read_karpathy(path, text_files.folder_of(options, split),
                                       text_files.parts_of(split),
                                       needs_captions=split == options.train_split,
                                       skip_defects=options.skip_defects)
    return _source(options, path, records)


@functools.lru_cache(maxsize=4)
def load_pairs(options, split: str) -> Source:
    """The pairs of the file that `options.annotations` means, images below `options.path`.

    Raises: as `image_text.read_pairs`, `image_table.with_images`; MissingSplit: no such file.
    """
    text_files.require(options, "annotations", "path")
    records = []
    for part in text_files.parts_of(split):
        path = text_files.file_of(options, "annotations", part)
        records += image_text.read_pairs(path, text_files.folder_of(options, part),
                                         needs_captions=split == options.train_split,
                                         skip_defects=options.skip_defects)
    return _source(options, path, records)


def _source(options, what: str, records: Sequence[image_text.Captioned]) -> Source:
    """what: for messages."""
    tokenizer = text_files.tokenizer_of(options)
    rows = texts.encode([record.captions for record in records], tokenizer, options.text_length,
                        what, are_captions=True)
    source = Source(len(records), (), what, labels=np.full(len(records), -1, np.int32),
                    texts=rows, tokenizer=tokenizer, records=records)
    return image_table.with_images(source, [record.image for record in records],
                                   options.skip_defects)
