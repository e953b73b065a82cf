"""Ragged storage of tokens: rows, captions, choices, and what is cut."""

import numpy as np
import pytest
from text_corpora import write_tokenizer

from beit_jax.data import document_source, text_ops, texts

GROUPS = [["red cat"], ["the dog is blue", "dog"], ["what is the left bus", "bus", "many"]]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return text_ops.load(write_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture
def captions(tokenizer):
    return texts.encode(GROUPS, tokenizer, 6, "test")._replace(are_captions=True)




def test_rows_are_the_tokenizers_own_and_too_long_texts_are_cut_and_logged(tokenizer, caplog):
    with caplog.at_level("INFO"):
        made = texts.encode(GROUPS, tokenizer, 6, "a.json")
    assert "a.json: 1 of 6 texts are longer than config.data.text_length=6" in caplog.text
    rows = made.each().rows(np.arange(6))
    ids, is_valid = tokenizer.rows([text for group in GROUPS for text in group], 6)
    np.testing.assert_array_equal(rows["text"], ids)
    np.testing.assert_array_equal(rows["text_is_valid"], is_valid)
    assert rows["text"].dtype == np.int32 and rows["text_is_valid"].dtype == bool


def test_a_choice_draws_each_text_of_an_example_equally_often(captions, tokenizer):
    choice = (np.arange(300) + 0.5) / 300
    rows = captions.rows(np.full(300, 2), choice)["text"]
    found, counts = np.unique([tokenizer.decode(row) for row in rows], return_counts=True)
    assert set(found) == {"what is the left", "bus", "many"} and set(counts) == {100}


def test_evaluation_gives_all_captions_and_marks_the_missing_ones(captions, tokenizer):
    rows = captions.rows(np.array([1, 0]))
    assert rows["text"].shape == rows["text_is_valid"].shape == (2, 3, 6)
    assert rows["text_is_valid"].any(-1).tolist() == [[True, True, False], [True, False, False]]
    assert tokenizer.decode(rows["text"][0, 1]) == "dog"
    assert (rows["text"][1, 1:] == 1).all()


def test_images_without_captions_give_a_row_without_a_valid_token(tokenizer):
    bare = texts.encode([[], []], tokenizer, 6, "test", are_captions=True)
    for made in (bare, bare.subset(np.array([1, 0]))):
        rows = made.rows(np.array([0, 1]))
        assert rows["text"].shape == (2, 1, 6) and (rows["text"] == 1).all()
        assert not rows["text_is_valid"].any()


def test_a_subset_keeps_the_texts_of_its_examples(captions):
    part = captions.subset(np.array([0, 2]))
    whole = captions.rows(np.array([0, 2]))
    for key, rows in part.rows(np.array([0, 1])).items():
        np.testing.assert_array_equal(rows, whole[key])
    assert captions.subset(np.array([1])).rows(np.array([0]))["text"].shape == (1, 2, 6)


def test_documents_are_packed_whole_line_by_line_and_apart(tokenizer, caplog):
    documents = [["red cat", "blue dog", "the bus"], ["what is the left right bus", "many"],
                 ["green"]]
    with caplog.at_level("WARNING"):
        source = document_source.pack_documents(documents, tokenizer, 6, "a.txt")
    assert "a.txt: 1 lines are longer than config.data.text_length=6" in caplog.text
    rows = source.texts.rows(np.arange(source.num_examples))["text"]
    assert [tokenizer.decode(row) for row in rows] == ["red cat blue dog", "the bus", "many",
                                                       "green"]
    with pytest.raises(ValueError, match="text_length=3 is too short for every line of a.txt"):
        document_source.pack_documents([["red cat"]], tokenizer, 3, "a.txt")
