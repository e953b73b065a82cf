"""NLVR2: `config.data.name="nlvr2"`; an example has two images and a statement about them."""

import functools

import numpy as np

from beit_jax.data import image_table, nlvr2, text_files, texts
from beit_jax.data.source import Source


@functools.lru_cache(maxsize=4)
def load(options, split: str) -> Source:
    """Statements of the file that `options.annotations` means, images below `options.path`.

    Labels are 1 (true), 0 (false), -1 (not told).
    Raises: as `nlvr2.read`, `image_table.with_images`; MissingSplit: no such file.
    """
    text_files.require(options, "annotations", "path")
    records = []
    for part in text_files.parts_of(split):
        path = text_files.file_of(options, "annotations", part)
        records += nlvr2.read(path, text_files.folder_of(options, part),
                              skip_defects=options.skip_defects)
    tokenizer = text_files.tokenizer_of(options)
    source = Source(len(records), nlvr2.CLASS_NAMES, path, images_per_example=2,
                    labels=np.array([record.label for record in records], np.int32),
                    texts=texts.encode([[record.sentence] for record in records], tokenizer,
                                       options.text_length, path),
                    tokenizer=tokenizer, records=records)
    pictures = [side for record in records for side in (record.left, record.right)]
    return image_table.with_images(source, pictures, options.skip_defects)
