"""VQAv2: `config.data.name="vqa"`; an example is a question, its classes are the listed answers."""

import functools
import logging
import os

import numpy as np

from beit_jax.data import image_table, text_files, texts, vqa
from beit_jax.data.source import MissingSplit, Source

log = logging.getLogger(__name__)

_HOLDOUT = "holdout"
_HOLDOUT_SEED = 0  # fixed: which images are held out never depends on a run


@functools.lru_cache(maxsize=4)
def load(options, split: str) -> Source:
    """Questions of the files that `options.questions` and `annotations` mean.

    Questions without any listed answer are dropped from training, and kept otherwise. Splits whose
    names begin with "test" need no annotations.
    Raises: as `vqa.read`, `image_table.with_images`; MissingSplit: no such file, or "holdout"
      without `holdout_images`.
    """
    text_files.require(options, "questions", "annotations", "path")
    answers = answer_list(options)
    if split == _HOLDOUT:
        last = text_files.parts_of(options.train_split)[-1]
        held_out = _held_out(options, last)
        records = [question for question in _read(options, last, answers, drop_unlisted=False)
                   if question.image in held_out]
    else:
        records = _joined(options, split, answers)
    tokenizer = text_files.tokenizer_of(options)
    arrays, labels = vqa.answer_arrays(records)
    source = Source(len(records), answers, f"{options.questions} ({split})", labels=labels,
                    texts=texts.encode([[record.question] for record in records], tokenizer,
                                       options.text_length, options.questions),
                    tokenizer=tokenizer, arrays=arrays, records=records)
    return image_table.with_images(source, [record.image for record in records],
                                   options.skip_defects)


def _joined(options, split: str, answers: tuple[str, ...]) -> list[vqa.Question]:
    """All questions of a split; of the training split those of images that are not held out."""
    is_training = split == options.train_split
    records = [question for part in text_files.parts_of(split)
               for question in _read(options, part, answers, drop_unlisted=is_training)]
    if not (is_training and options.holdout_images):
        return records
    held_out = _held_out(options, text_files.parts_of(split)[-1])
    return [question for question in records if question.image not in held_out]


def _read(options, part: str, answers: tuple[str, ...], *, drop_unlisted: bool):
    """The questions of one split's files."""
    questions = text_files.file_of(options, "questions", part)
    try:
        annotations = text_files.file_of(options, "annotations", part)
    except MissingSplit:
        if not part.startswith("test"):
            raise
        annotations = None
    pattern = (options.image_pattern or vqa.COCO_IMAGES).replace("{split}", part)
    return vqa.read(questions, annotations, text_files.folder_of(options, part), answers,
                    as_written=_as_written(options, answers), image_pattern=pattern,
                    drop_unlisted=drop_unlisted, skip_defects=options.skip_defects)


def _as_written(options, answers: tuple[str, ...]) -> bool:
    """Whether people's answers must stand on the list letter by letter."""
    if options.answer_matching == "auto":  # the reference's way belongs to the reference's list
        return len(answers) == vqa.VQAV2_ANSWERS
    return options.answer_matching == "written"


@functools.lru_cache(maxsize=4)
def answer_list(options) -> tuple[str, ...]:
    """The list of `options.answers`, or the one that the training splits' annotations give."""
    if options.answers:
        answers = vqa.read_answer_list(os.path.expanduser(options.answers))
    else:
        paths = [text_files.file_of(options, "annotations", part)
                 for part in text_files.parts_of(options.train_split)]
        answers = vqa.make_answer_list(paths, min_count=options.answers_min_count, expected=None)
    log.info("%d answers to choose among, SHA-256 %s", len(answers), vqa.list_hash(answers))
    if options.name == "vqa":  # index files bring labels, no words
        log.info("people's answers count %s",
                 "as they wrote them" if _as_written(options, answers) else
                 "in normal form: small letters, digits, no articles or punctuation")
    if len(answers) != vqa.VQAV2_ANSWERS:
        log.warning("VQAv2's list has %d answers, this one %d: right for questions of your "
                    "own; for VQAv2 give train_split=train2014+val2014, whole, or answers",
                    vqa.VQAV2_ANSWERS, len(answers))
    return answers


@functools.lru_cache(maxsize=1)
def _held_out(options, part: str) -> set[str]:
    """The images of one split that are kept out of training, by their paths."""
    if not options.holdout_images:
        raise MissingSplit('split "holdout" needs config.data.holdout_images, e.g. 1000')
    images = sorted({question.image
                     for question in _read(options, part, (), drop_unlisted=False)})
    if options.holdout_images >= len(images):
        raise ValueError(f"config.data.holdout_images={options.holdout_images} leaves nothing of "
                         f"{part} to train on, which has {len(images)} images")
    rng = np.random.default_rng(_HOLDOUT_SEED)
    return set(rng.choice(images, options.holdout_images, replace=False).tolist())
