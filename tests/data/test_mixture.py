"""Streams of images, texts and pairs in one batch."""

import dataclasses

import numpy as np
import pytest
from text_corpora import (
    BASE,
    WORDS,
    assert_equal,
    assert_resumes_and_splits,
    is_filler,
    leaves,
    take,
    write_image,
    write_lines,
    write_tokenizer,
)

from beit_jax.data import pipeline, text_ops
from beit_jax.data.options import DataOptions
from beit_jax.data.source import MissingSplit


@pytest.fixture
def options(tmp_path):
    """12 images in a folder, 9 texts, 10 pairs; 3 images and 8 texts for evaluation, no pairs."""
    for number in range(12):
        write_image(tmp_path / "images" / "train" / f"{number}.png", number)
    for number in range(3):
        write_image(tmp_path / "images" / "val" / f"{number}.png", number)
    (tmp_path / "train.txt").write_text("\n\n".join(f"{word} cat" for word in WORDS[:9]))
    (tmp_path / "validation.txt").write_text("\n\n".join(WORDS[:8]))
    pairs = write_lines(tmp_path / "pairs.jsonl", [
        {"image": f"{i}.png", "caption": [f"{WORDS[i]} dog", "the bus"]} for i in range(10)])
    return DataOptions(**BASE | dict(
        name="mixture", global_batch_size=8, eval_batch_size=4,
        tokenizer=write_tokenizer(tmp_path), flip=0.5, target_px=8, streams={
            "images": dict(name="folder", path=str(tmp_path / "images"), share=1),
            "texts": dict(name="documents", annotations=str(tmp_path / "{split}.txt"), share=1),
            "pairs": dict(name="pairs", annotations=pairs, share=2, crop="resized",
                          path=str(tmp_path / "images" / "train"))}))


def test_each_stream_has_its_share_and_its_own_keys(options):
    info = pipeline.describe(options)
    assert info == pipeline.DataInfo(12 + 9 + 10, 3 + 8, 0, (), 90)
    batch = next(pipeline.train_batches(options, seed=0))
    assert {name: len(part["index"]) for name, part in batch.items()} == {
        "images": 2, "texts": 2, "pairs": 4}
    images = {"image", "image_for_target"}
    others = {"label", "index", "is_example"}
    texts = {"text", "text_is_valid"}
    assert batch["images"].keys() == images | others
    assert batch["texts"].keys() == texts | others
    assert batch["pairs"].keys() == images | texts | others
    tokens = pipeline.split_info(options)
    assert tokens.tokenizer.decode(batch["texts"]["text"][0]).endswith("cat")


def test_a_mixture_resumes_on_any_number_of_processes(options):
    assert_resumes_and_splits(dataclasses.replace(options, eval_batch_size=0), steps=6, start=4)


def test_a_stream_is_what_it_would_be_with_other_streams(options):
    """Its order hangs on the seed and its name, and no two streams go in step."""
    fewer = dataclasses.replace(options, global_batch_size=6, eval_batch_size=0, streams={
        name: options.streams[name] for name in ("images", "pairs")})
    ours, theirs = (take(pipeline.train_batches(o, seed=1), 3) for o in (options, fewer))
    for name in fewer.streams:
        assert_equal([batch[name] for batch in ours], [batch[name] for batch in theirs])
    same = dict(options.streams["images"])
    twins = dataclasses.replace(options, global_batch_size=12, streams={"a": same, "b": same})
    batch = next(pipeline.train_batches(twins, seed=1))
    assert batch["a"]["index"].tolist() != batch["b"]["index"].tolist()


def test_evaluation_goes_on_to_the_end_of_the_longest_stream(options):
    batches = list(pipeline.eval_batches(options))
    assert len(batches) == 8  # of one text each; three of an image, and no pairs at all
    shown = {name: [int(b[name]["is_example"].sum()) for b in batches] for name in batches[0]}
    assert shown == {"images": [1, 1, 1, 0, 0, 0, 0, 0], "texts": [1] * 8, "pairs": [0] * 8}
    assert all(is_filler(batch["pairs"]) for batch in batches)
    shapes = {name: rows.shape for name, rows in leaves(batches[0]).items()}
    for batch in batches:
        assert {name: rows.shape for name, rows in leaves(batch).items()} == shapes
    assert shapes["pairs/text"] == (2, 2, 8) and shapes["pairs/image"] == (2, 16, 16, 3)
    numbers = np.concatenate([batch["images"]["index"] for batch in batches])
    assert numbers.tolist() == [0, 1, 2, -1, -1, -1, -1, -1]
    assert len(list(pipeline.eval_batches(options, limit=2))) == 2
    assert len(list(pipeline.eval_batches(options, "train"))) == 12
    with pytest.raises(MissingSplit, match="none of the streams images, texts, pairs has"):
        list(pipeline.eval_batches(options, "test2015"))


@pytest.mark.parametrize(("changes", "message"), [
    (dict(global_batch_size=6), r"global_batch_size=6 cannot be divided into 4 shares \(images: 1"),
    (dict(eval_batch_size=2), "eval_batch_size=2 cannot be divided into 4 shares .* nearest 4"),
    (dict(streams={}), "config.data.streams={} is wrong"),
    (dict(name="folder"), "name=\"mixture\" belong together"),
    (dict(streams={"a": dict(name="folder", share=0)}), "streams.a.share=0 is no part"),
    (dict(streams={"a": dict(name="folder", cropp="none")}), "streams.a.cropp is unknown .*crop"),
    (dict(streams={"a": dict(path="x")}), "config.data.streams.a lacks name"),
    (dict(streams={"a": dict(name="folder", global_batch_size=4)}),
     "streams.a.global_batch_size cannot be set"),
    (dict(streams={"a": dict(name="mixture", streams={})}), "streams.a.streams cannot be set")],
    ids=lambda value: None if isinstance(value, dict) else value[:20])
def test_impossible_mixtures_are_one_line(changes, message, options):
    with pytest.raises(ValueError, match=message) as error:
        pipeline.describe(dataclasses.replace(options, **changes))
    assert "\n" not in str(error.value)


def test_streams_of_two_tokenizers_are_refused(options, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "words.txt").write_text("the cat is blue and red\nmany dogs are left")
    (other / "other.spm").write_bytes(text_ops.train([str(other / "words.txt")], 30, kind="bpe"))
    streams = {name: dict(section) for name, section in options.streams.items()}
    streams["texts"]["tokenizer"] = str(other / "other.spm")
    with pytest.raises(ValueError, match="streams texts, pairs have different tokenizers"):
        pipeline.describe(dataclasses.replace(options, streams=streams))


def test_a_streams_batch_that_the_processes_cannot_divide_is_one_line(options):
    with pytest.raises(ValueError, match="=1 is no multiple of 2 processes .data folder"):
        pipeline.eval_batches(options, process_count=2)


def test_a_batch_larger_than_a_stream_is_one_line(options):
    with pytest.raises(ValueError, match="larger than the 9 training examples of documents"):
        pipeline.train_batches(dataclasses.replace(options, global_batch_size=40), seed=0)
