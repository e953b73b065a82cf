"""Text to ids and back with a small model trained here: the released layout, rows, bad input."""

import io
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from beit_jax import token_ids, train_tokenizer
from beit_jax.data import text_ops

SENTENCES = [f"{article} {color} {digit} {place} a {size} blue seven."
             for article in ("a", "The") for color in ("red", "green", "orange", "Purple")
             for digit in ("three", "four", "nine", "zero") for size in ("small", "large")
             for place in ("left of", "right of", "above")]
PIECES = 200
LICENSE = Path(__file__).parents[2] / "LICENSE"  # some ordinary English, always here


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "corpus.txt"
    path.write_text("\n\n".join(SENTENCES) + LICENSE.read_text(), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def model(corpus):
    return text_ops.train([corpus], PIECES)


@pytest.fixture(scope="module")
def tokenizer(model):
    return text_ops.Tokenizer(model)


def test_the_released_layout():
    pieces = token_ids.RELEASED_PIECES
    assert (token_ids.mask_id(pieces), token_ids.num_ids(pieces),
            token_ids.table_rows(pieces)) == (64_001, 64_002, 64_010)
    assert (token_ids.BOS, token_ids.PAD, token_ids.EOS, token_ids.UNKNOWN) == (0, 1, 2, 3)


def test_ids_are_one_above_those_of_the_model(tokenizer, model):
    assert tokenizer.num_pieces == PIECES and tokenizer.mask_id == PIECES + 1
    plain = sentencepiece.SentencePieceProcessor()
    plain.LoadFromSerializedProto(model)
    theirs = plain.EncodeAsIds("The red three")
    assert min(theirs) >= 3
    assert tokenizer.encode("The red three") == [piece + 1 for piece in theirs]
    assert tokenizer.encode("\u96ea")[-1] == token_ids.UNKNOWN  # its own <unk>, 0, becomes 3


def test_case_is_kept_and_decoding_undoes_encoding(tokenizer):
    assert tokenizer.encode("The red") != tokenizer.encode("the red")
    for sentence in SENTENCES[::7]:
        assert tokenizer.decode(tokenizer.encode(sentence)) == sentence
        assert tokenizer.decode(tokenizer.row(sentence, 64)[0]) == sentence


def test_decoding_skips_special_tokens_and_unused_rows(tokenizer):
    ids = tokenizer.encode("red nine")
    noisy = [0, ids[0], tokenizer.mask_id, *ids[1:], tokenizer.mask_id + 8, 2, 1, 1]
    assert tokenizer.decode(noisy) == "red nine"
    unknown = tokenizer.encode("\u96ea")[-1]
    assert unknown == token_ids.UNKNOWN
    assert tokenizer.decode([unknown, ids[0], unknown, unknown, *ids[1:], unknown]) == "red nine"
    assert tokenizer.decode([unknown]) == ""
    for number in (tokenizer.mask_id + 9, -1):
        with pytest.raises(ValueError, match=f"token {number} is none of the table's 210"):
            tokenizer.decode([number])


def test_text_cannot_bring_special_tokens_along(tokenizer):
    special = {0, 1, 2, tokenizer.mask_id}
    assert not special & set(tokenizer.encode("<s> </s> <pad> <mask> <unk>"))


def test_rows_are_padded_and_say_what_is_real(tokenizer):
    pieces = tokenizer.encode("red nine")
    ids, is_valid = tokenizer.row("red nine", 32)
    assert ids.dtype == np.int32 and ids.shape == is_valid.shape == (32,)
    n = len(pieces) + 2
    assert ids[:n].tolist() == [0, *pieces, 2] and (ids[n:] == 1).all()
    np.testing.assert_array_equal(is_valid, ids != 1)


@pytest.mark.parametrize("spare", [-1, 0, 1], ids=["one_too_long", "just_fits", "one_to_spare"])
def test_long_texts_lose_their_last_pieces_and_keep_the_end_mark(tokenizer, spare):
    pieces = tokenizer.encode(SENTENCES[0])
    length = len(pieces) + 2 + spare
    ids, is_valid = tokenizer.row(SENTENCES[0], length)
    assert ids.shape == (length,)
    kept = pieces[:length - 2]
    assert ids[:len(kept) + 2].tolist() == [0, *kept, 2]
    assert is_valid.sum() == len(kept) + 2
    assert tokenizer.num_cut([SENTENCES[0], "red"], length) == (spare < 0)


def test_a_text_of_blanks_is_two_tokens(tokenizer):
    ids, is_valid = tokenizer.rows(["", "  \n", "red"], 8)
    np.testing.assert_array_equal(ids[:2], [[0, 2, 1, 1, 1, 1, 1, 1]] * 2)
    assert is_valid.sum(axis=1)[:2].tolist() == [2, 2] and is_valid[2].sum() > 2
    ids, is_valid = tokenizer.rows([], 8)
    assert ids.shape == is_valid.shape == (0, 8)


def test_training_again_gives_the_same_model(corpus, model):
    assert text_ops.train([corpus], PIECES) == model
    assert text_ops.train([corpus], PIECES, kind="bpe") != model


def test_the_command_writes_a_model_that_loads(corpus, tmp_path, capsys, tokenizer):
    path = tmp_path / "mine.spm"
    assert train_tokenizer.main(["--input", corpus, "--output", str(path), "--num_pieces",
                                 str(PIECES)]) == 0
    assert "<mask> is 201; the network's table of tokens needs 210 rows" in capsys.readouterr().out
    loaded = text_ops.load(str(path), table_rows=210)
    assert loaded.encode(SENTENCES[3]) == tokenizer.encode(SENTENCES[3])
    with pytest.raises(ValueError, match="has 202 ids, the network's table 50 rows"):
        text_ops.load(str(path), table_rows=50)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.spm"]


def test_a_text_without_line_breaks_is_learned_from_too(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text(" ".join(LICENSE.read_text().split()) * 10)
    assert path.stat().st_size > 2**16  # of which the library would take nothing
    made = text_ops.Tokenizer(text_ops.train([str(path)], PIECES))
    assert made.num_pieces == PIECES and len(made.encode("the License")) < 6


@pytest.mark.parametrize("text, pieces, message", [
    (None, PIECES, "no.txt is no file"), ("\n  \n", PIECES, "no text in"),
    ("a b c", 4000, "no model of num_pieces=4000 .*[Vv]ocabulary size"),
    ("a b c", 3, "num_pieces=3 leaves none"),
    ("a b c d e f", 5, "no model of num_pieces=5 .*[Vv]ocabulary size"),
    (b"caf\xe9 au lait", PIECES, "is not UTF-8 at byte 3"),
], ids=["missing", "blank", "too_little", "no_piece", "too_few", "latin_1"])
def test_text_that_cannot_be_learned_from_is_one_line(text, pieces, message, tmp_path, capsys):
    path = tmp_path / ("no.txt" if text is None else "corpus.txt")
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    code = train_tokenizer.main(["--input", str(path), "--output", str(tmp_path / "out.spm"),
                                 "--num_pieces", str(pieces)])
    error = capsys.readouterr().err
    assert code == 1 and error.count("\n") == 1 and not (tmp_path / "out.spm").exists()
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        text_ops.train([str(path)], pieces)


def test_a_missing_folder_is_told_before_the_work(corpus, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(text_ops, "train", None)
    assert train_tokenizer.main(["--input", corpus, "--output", str(tmp_path / "no/x.spm")]) == 1
    assert f"folder {tmp_path / 'no'} does not exist: make it first" in capsys.readouterr().err


def test_a_missing_or_foreign_model_is_one_line(corpus, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.spm is no file: give the SentencePiece"):
        text_ops.load(str(tmp_path / "nowhere.spm"))
    with pytest.raises(ValueError, match="corpus.txt is no SentencePiece model"):
        text_ops.load(corpus)
    other = io.BytesIO()  # T5's order of special pieces
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES), model_writer=other, vocab_size=60, model_type="bpe",
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2)
    with pytest.raises(ValueError, match=r"numbers <unk>, <s>, </s> as \(2, -1, 1\)"):
        text_ops.Tokenizer(other.getvalue())


def test_wrong_arguments_are_one_line(tokenizer):
    with pytest.raises(ValueError, match="text None is NoneType"):
        tokenizer.encode(None)
    with pytest.raises(ValueError, match="length 2 has no room"):
        tokenizer.row("red", 2)
    with pytest.raises(ValueError, match="kind 'words' is neither"):
        text_ops.train([], kind="words")


@pytest.mark.parametrize("pieces", [123, token_ids.RELEASED_PIECES])
def test_the_number_of_pieces_follows_from_the_table(pieces):
    assert token_ids.num_pieces(token_ids.table_rows(pieces)) == pieces
    assert token_ids.num_pieces(64_010) == token_ids.RELEASED_PIECES
