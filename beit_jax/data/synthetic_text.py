"""Texts for the pictures of `synthetic`, of every kind that tasks read, without TensorFlow."""

import functools
import os
import tempfile

import numpy as np

from beit_jax.data import text_ops, texts
from beit_jax.data.document_source import pack_documents
from beit_jax.data.image_text import Captioned
from beit_jax.data.nlvr2 import Statement
from beit_jax.data.source import Source
from beit_jax.data.vqa import Question, answer_arrays

_NUM_PIECES = 60
_TONES = ("black", "dark", "dim", "pale", "light", "white")


def with_text(source: Source, kind: str, text_length: int) -> Source:
    """The pictures of a split with one kind of text, as `digit_scenes_text.load` gives them.

    Raises: ValueError: another kind.
    """
    if kind not in _KINDS:
        raise ValueError(f"config.data.text={kind!r} is none of {', '.join(_KINDS)}")
    return _KINDS[kind](source, tokenizer(), text_length)._replace(tokenizer=tokenizer())


@functools.cache
def tokenizer() -> text_ops.Tokenizer:
    """Trained, in a moment, on all that can be said."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "corpus.txt")
        with open(path, "w", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for tone in _TONES
                            for line in (*_said(tone), "is it grey?", "both are alike"))
        return text_ops.Tokenizer(text_ops.train([path], _NUM_PIECES, kind="bpe"))


def _said(tone: str) -> tuple[str, str]:
    return f"a {tone} picture", f"something {tone} and coarse"


def _tones(source: Source) -> list[str]:
    return [_TONES[label % len(_TONES)] for label in source.labels]


def _captions(source, tokenizer, length) -> Source:
    said = [_said(tone) for tone in _tones(source)]
    records = [Captioned(row, f"picture {row}", pair) for row, pair in enumerate(said)]
    return source._replace(records=records, texts=texts.encode(
        said, tokenizer, length, source.what, are_captions=True))


def _questions(source, tokenizer, length) -> Source:
    labels = [label % len(_TONES) for label in source.labels]
    records = [Question(row, f"picture {row}", "is it grey?", (_TONES[label],) * 10, (label,),
                        (1.0,)) for row, label in enumerate(labels)]
    arrays, best = answer_arrays(records)
    return source._replace(
        class_names=_TONES, labels=best, arrays=arrays, records=records,
        texts=texts.encode([[record.question] for record in records], tokenizer, length,
                           source.what))


def _statements(source, tokenizer, length) -> Source:
    other = np.roll(source.views["image"], 1, axis=0)
    truths = (source.labels == np.roll(source.labels, 1)).astype(np.int32)
    records = [Statement(f"synthetic-{row}", f"picture {row}", f"picture {row - 1}",
                         "both are alike", int(truth)) for row, truth in enumerate(truths)]
    return source._replace(
        class_names=("False", "True"), labels=truths, records=records,
        views={"image": np.stack([source.views["image"], other], axis=1)},
        texts=texts.encode([[record.sentence] for record in records], tokenizer, length,
                           source.what))


def _sentences(source, tokenizer, length) -> Source:
    return pack_documents([_said(tone) for tone in _tones(source)], tokenizer, length, source.what)


_KINDS = {"captions": _captions, "questions": _questions, "statements": _statements,
          "sentences": _sentences}
