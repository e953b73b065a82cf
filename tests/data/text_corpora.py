"""Small files in the layouts in which texts about images are published, for tests of `data`."""

import functools
import itertools
import json
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from beit_jax.data import pipeline, text_ops

WORDS = ("red", "green", "blue", "cat", "dog", "bus", "left", "right", "many", "what", "is", "the")
SPLITS = ("train", "restval", "train", "val", "val", "val", "test")  # of pictures 0 to 6
BASE = dict(image_px=16, crop="none", flip=0.0, threads=2, text_length=8)


def write_tokenizer(folder):
    """Path of a model that has a piece for each of `WORDS`."""
    corpus = folder / "corpus.txt"
    corpus.write_text("\n".join(" ".join(np.roll(WORDS, i)) for i in range(len(WORDS))))
    path = folder / "words.spm"
    path.write_bytes(text_ops.train([str(corpus)], 80, kind="bpe"))
    return str(path)


@functools.cache
def tokenizer():
    """The model that `write_tokenizer` writes."""
    with tempfile.TemporaryDirectory() as folder:
        return text_ops.load(write_tokenizer(Path(folder)))


def captions_of(number):
    """One to three captions of picture `number`."""
    return [f"{WORDS[number]} cat", f"the {WORDS[number]} dog", "bus"][:1 + number % 3]


def pixel(number):
    """The value of every pixel of picture `number`."""
    return 10 * number + 100


def picture_of(image):
    """Numbers of the pictures in a batch, [b]."""
    return np.rint((image.reshape(len(image), -1).mean(1) - pixel(0)) / 10).astype(int)


def write_image(path, number, size=16):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size, size, 3), pixel(number), np.uint8)).save(path)


def write_json(path, content):
    path.write_text(json.dumps(content), encoding="utf-8")
    return str(path)


def write_lines(path, entries):
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    return str(path)


def take(iterator, count):
    return list(itertools.islice(iterator, count))


def leaves(batch):
    """{"key" or "stream/key": array}."""
    return {f"{name}/{key}" if isinstance(value, dict) else name: leaf
            for name, value in batch.items()
            for key, leaf in (value.items() if isinstance(value, dict) else [("", value)])}


def assert_equal(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(map(leaves, ours), map(leaves, theirs), strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key], err_msg=key)
            assert a[key].dtype == b[key].dtype


def joined(halves):
    """Batches of two processes as those of one."""
    def join(a, b):
        return {key: join(a[key], b[key]) if isinstance(a[key], dict) else
                np.concatenate([a[key], b[key]]) for key in a}
    return [join(a, b) for a, b in zip(*halves, strict=True)]


def assert_resumes_and_splits(options, steps=5, start=3):
    """A resumed run and two processes see what one unbroken run sees."""
    whole = take(pipeline.train_batches(options, seed=3), steps)
    assert_equal(take(pipeline.train_batches(options, seed=3, start_step=start), steps - start),
                 whole[start:])
    assert_equal(joined([take(pipeline.train_batches(
        options, seed=3, process_index=i, process_count=2), steps) for i in range(2)]), whole)
    assert_equal(joined([list(pipeline.eval_batches(options, process_index=i, process_count=2))
                         for i in range(2)]), list(pipeline.eval_batches(options)))
    return whole


def is_filler(batch):
    """Whether all rows of a batch are what fillers must be."""
    text, is_valid = batch["text"], batch["text_is_valid"]
    return not batch["is_example"].any() and all((
        (batch["label"] == -1).all(), (batch["index"] == -1).all(), (text[..., 0] == 0).all(),
        (text[..., 1:] == 1).all(), is_valid[..., 0].all(), not is_valid[..., 1:].any()))
