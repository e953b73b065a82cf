"""Index files of the released BEiT-3 programs: `config.data.name="index"`.

The keys of their lines tell what an example is; its texts are ids already.
"""

import functools

import numpy as np

from beit_jax.data import image_table, index_files, nlvr2, text_files, text_ops, texts, vqa
from beit_jax.data.source import Source
from beit_jax.data.vqa_source import answer_list

_SIDES = {"statements": ("left", "right")}  # of a record's images; of other kinds it has one
_UNREAD = ("text", "questions", "image_pattern", "holdout_images", "holdout_per_class")


@functools.lru_cache(maxsize=4)
def load(options, split: str) -> Source:
    """Images with captions, questions, statements or classes of the files `options.annotations`.

    Images lie below `options.path`. A tokenizer is not needed: it writes the records' words.
    Raises: as `index_files.read`, `image_table.with_images`; ValueError: a key that has no effect
      on such files, or files of several kinds; MissingSplit: no such file.
    """
    text_files.require(options, "annotations", "path")
    paths = {part: text_files.file_of(options, "annotations", part)
             for part in text_files.parts_of(split)}
    kind = _kind(options, paths.values())
    is_training = split == options.train_split
    class_names = _class_names(options, kind, is_training)
    tokenizer = text_ops.load(options.tokenizer) if options.tokenizer else None
    records, ids = [], []
    for part, path in paths.items():
        found, said = index_files.read(
            path, text_files.folder_of(options, part), tokenizer, is_training=is_training,
            num_labels=len(class_names), skip_defects=options.skip_defects)
        records, ids = records + found, ids + said
    if kind == "labels" and is_training:
        most = max((record.label for record in records), default=-1)
        class_names = tuple(map(str, range(most + 1)))
    sides = _SIDES.get(kind, ("image",))
    source = Source(len(records), class_names, path, images_per_example=len(sides),
                    tokenizer=tokenizer, records=records, **_targets(kind, records))
    if kind != "labels":
        text_files.require(options, "text_length")
        source = source._replace(texts=texts.of_ids(ids, options.text_length, path,
                                                    are_captions=kind == "captions"))
    pictures = [getattr(record, side) for record in records for side in sides]
    return image_table.with_images(source, pictures, options.skip_defects)


def _kind(options, paths) -> str:
    """The one kind of all files. Raises: ValueError: several, or a key without effect on it."""
    kinds = {path: index_files.kind_of(path) for path in paths}
    if len(set(kinds.values())) > 1:
        held = ", ".join(f"{path} {kind}" for path, kind in kinds.items())
        raise ValueError(f"files of one split hold several kinds of data ({held}): join those of "
                         "one kind")
    kind, = set(kinds.values())
    for key in (*_UNREAD, *(() if kind == "questions" else ("answers",))):
        if value := getattr(options, key):
            raise ValueError(f"config.data.{key}={value!r} has no effect on an index file of "
                             f"{kind}: set it to {type(value)()!r}")
    return kind


def _targets(kind: str, records) -> dict:
    """What is to be told of each example: `labels` of a `Source`, and `arrays` of questions."""
    if kind == "questions":
        arrays, labels = vqa.answer_arrays(records)
        return {"labels": labels, "arrays": arrays}
    labels = [-1 if kind == "captions" else record.label for record in records]
    return {"labels": np.array(labels, np.int32)}


def _class_names(options, kind: str, is_training: bool) -> tuple[str, ...]:
    """The classes; () where there are none, or where the training files have yet to tell them."""
    if kind == "questions":
        text_files.require(options, "answers")
        return answer_list(options)
    if kind == "statements":
        return nlvr2.CLASS_NAMES
    if kind == "labels" and not is_training:
        return load(options, options.train_split).class_names
    return ()
