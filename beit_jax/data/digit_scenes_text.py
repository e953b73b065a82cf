"""The sentences of prepared `digit_scenes`: captions, questions, statements about two scenes."""

import functools
import os
import tempfile

import numpy as np

from beit_jax import vqa_metrics
from beit_jax.data import text_ops, texts, tfds_reader, tfds_source
from beit_jax.data.document_source import pack_documents
from beit_jax.data.image_text import Captioned
from beit_jax.data.nlvr2 import CLASS_NAMES, Statement
from beit_jax.data.source import Source
from beit_jax.data.vqa import Question, answer_arrays, label_finder, listed_scores

NUM_PIECES = 200  # of the scenes' own tokenizer: every word of any variant is one piece
_COLUMNS = {"captions": str, "questions": str, "answers": str, "other": int, "statement": str,
            "statement_is_true": int}


@functools.lru_cache(maxsize=8)
def load(data_dir: str, split: str, what: str, kind: str, tokenizer_path: str,
         text_length: int) -> Source:
    """A split with one kind of text.

    Args:
      data_dir: the prepared variant. what: for messages.
      kind: "captions" (two for each scene), "questions" (three; every one is an example, the
        classes are the answers of the training split), "statements" (one; the two images are this
        scene and another) or "sentences" (all of these as texts without images).
      tokenizer_path: "" = one trained on the sentences of the training split, kept in `data_dir`.
    Raises: ValueError: another kind. OSError: the tokenizer cannot be written.
    """
    if kind not in _KINDS:
        raise ValueError(f"config.data.text={kind!r} is none of {', '.join(_KINDS)}")
    tokenizer = text_ops.load(tokenizer_path or own_tokenizer(data_dir, what))
    source = _KINDS[kind](data_dir, split, what, tokenizer, text_length)
    return source._replace(tokenizer=tokenizer)


def own_tokenizer(data_dir: str, what: str) -> str:
    """The path of the scenes' own SentencePiece model, trained on first use.

    It follows from the scenes alone, and what bears its name is complete.
    """
    path = os.path.join(data_dir, "tokenizer.spm")
    if os.path.isfile(path):
        return path
    with tempfile.TemporaryDirectory(prefix=".building-", dir=os.path.dirname(data_dir)) as folder:
        corpus, model = os.path.join(folder, "corpus.txt"), os.path.join(folder, "tokenizer.spm")
        with open(corpus, "w", encoding="utf-8") as file:
            file.writelines(line + "\n" for document in _documents(data_dir, "train", what)
                            for line in document)
        with open(model, "wb") as file:
            # unigram finds no more than 58 to 73 pieces in so few words, and spells out the rest
            file.write(text_ops.train([corpus], NUM_PIECES, kind="bpe"))
        os.replace(model, path)
    return path


@functools.lru_cache(maxsize=4)
def _columns(data_dir: str, split: str, what: str) -> dict[str, list]:
    return tfds_reader.read_columns(data_dir, split, what, _COLUMNS)


def _documents(data_dir: str, split: str, what: str) -> list[list[str]]:
    """All that is said of each scene."""
    columns = _columns(data_dir, split, what)
    return [captions + questions + statement for captions, questions, statement in zip(
        columns["captions"], columns["questions"], columns["statement"], strict=True)]


def _captions(data_dir, split, what, tokenizer, length) -> Source:
    captions = _columns(data_dir, split, what)["captions"]
    records = [Captioned(row, f"scene {row}", tuple(said)) for row, said in enumerate(captions)]
    return tfds_source.read_prepared(data_dir, split, what)._replace(
        texts=texts.encode(captions, tokenizer, length, what, are_captions=True),
        records=records)


def _questions(data_dir, split, what, tokenizer, length) -> Source:
    answers = _answers(data_dir, what)
    label_of = label_finder(answers, as_written=True)
    columns = _columns(data_dir, split, what)
    records, image_of = [], []
    for row, (questions, said) in enumerate(zip(columns["questions"], columns["answers"],
                                                strict=True)):
        for question, lines in zip(questions, said, strict=True):
            spoken = _spoken(lines)
            scores = listed_scores(spoken, label_of)
            records.append(Question(len(records), f"scene {row}", question, spoken, tuple(scores),
                                    tuple(scores.values())))
            image_of.append(row)
    arrays, best = answer_arrays(records)
    return tfds_source.read_prepared(data_dir, split, what)._replace(
        num_examples=len(records), class_names=answers, labels=best, arrays=arrays,
        records=records, image_of=np.array(image_of),
        texts=texts.encode([[q.question] for q in records], tokenizer, length, what))


def _answers(data_dir: str, what: str) -> tuple[str, ...]:
    """The distinct answers of the training split, sorted."""
    columns = _columns(data_dir, "train", what)
    return tuple(sorted({answer for lines in columns["answers"] for line in lines
                         for answer in _spoken(line)}))


def _spoken(lines: str) -> tuple[str, ...]:
    """Ten people's answers in normal form, digits for words, as those of VQAv2 are."""
    return tuple(vqa_metrics.normalize_answer(answer) for answer in lines.split("\n"))


def _statements(data_dir, split, what, tokenizer, length) -> Source:
    columns = _columns(data_dir, split, what)
    others, truths = (np.array(columns[name], np.int64)[:, 0]
                      for name in ("other", "statement_is_true"))
    records = [Statement(f"{split}-{row}", f"scene {row}", f"scene {other}", sentence, truth)
               for row, (other, (sentence,), truth) in enumerate(zip(
                   others.tolist(), columns["statement"], truths.tolist(), strict=True))]
    pictures = np.stack([np.arange(len(records)), others], axis=1)
    return tfds_source.read_prepared(data_dir, split, what)._replace(
        class_names=CLASS_NAMES, labels=truths.astype(np.int32), records=records,
        images_per_example=2, image_of=pictures.reshape(-1),
        texts=texts.encode(columns["statement"], tokenizer, length, what))


def _sentences(data_dir, split, what, tokenizer, length) -> Source:
    return pack_documents(_documents(data_dir, split, what), tokenizer, length, what)


_KINDS = {"captions": _captions, "questions": _questions, "statements": _statements,
          "sentences": _sentences}
