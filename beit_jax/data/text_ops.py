"""Text into rows of token ids and back, around anybody's SentencePiece model file."""

import hashlib
import io
import os
from collections.abc import Iterable, Sequence

import numpy as np
import sentencepiece

from beit_jax import token_ids

_LONGEST_LINE = 2**16  # bytes; the library leaves longer ones out without a word, so we cut
_MOST_LINES = 10_000_000  # lines kept for training, drawn at random out of more


class Tokenizer:
    """A SentencePiece model with the ids of `token_ids`; captions go in as they are written.

    Words such as "<mask>" or "</s>" inside a text are text: nobody can smuggle in special tokens.

    Attributes:
      num_pieces: entries of the model file, its own <unk>, <s> and </s> included.
      mask_id: id of <mask>.
      num_ids: ids that can occur, <mask> included.
      sha256: of the model, 64 hexadecimal digits: equal hashes, equal ids.
    """

    def __init__(self, model: bytes, name: str = "tokenizer"):
        """model: a SentencePiece model, serialized; name: of it in messages.

        Raises: ValueError: no SentencePiece model, or one whose special pieces stand elsewhere.
        Source: microsoft/unilm beit3 reads its file with transformers' XLMRobertaTokenizer.
        """
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model)
        except RuntimeError:
            raise ValueError(f"{name} is no SentencePiece model: give the .spm or .model file "
                             "itself, or train one with python -m beit_jax.train_tokenizer"
                             ) from None
        found = (self._processor.unk_id(), self._processor.bos_id(), self._processor.eos_id())
        if found != (0, 1, 2):
            raise ValueError(f"{name} numbers <unk>, <s>, </s> as {found}, not (0, 1, 2): it was "
                             "made for another network; take BEiT-3's or XLM-R's kind of file")
        self.sha256 = hashlib.sha256(model).hexdigest()
        self.num_pieces = self._processor.GetPieceSize()
        self.mask_id = token_ids.mask_id(self.num_pieces)
        self.num_ids = token_ids.num_ids(self.num_pieces)

    def encode(self, text: str) -> list[int]:
        """Ids of a text's pieces, without <s> and </s>; [] where there is nothing but blanks.

        Raises: ValueError: not a string.
        """
        if not isinstance(text, str):
            raise ValueError(f"text {text!r} is {type(text).__name__}, not a string")
        # The model's own 0 is <unk>; its <s> and </s> (1 and 2) never come out of a text.
        return [piece + 1 if piece else token_ids.UNKNOWN
                for piece in self._processor.EncodeAsIds(text)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids; special tokens and unused rows of the table leave no trace.

        Special are <s>, <pad>, </s>, <mask> and <unk>, for which the model itself would write a
        sign, which measures of captions would take for a word.
        Raises: ValueError: an id that no table has.
        Source: microsoft/unilm beit3/engine_for_finetuning.py, which decodes captions with
          skip_special_tokens=True.
        """
        rows = token_ids.table_rows(self.num_pieces)
        pieces = []
        for number in map(int, ids):
            if not 0 <= number < rows:
                raise ValueError(f"token {number} is none of the table's {rows}")
            if token_ids.UNKNOWN < number < self.mask_id:
                pieces.append(number - 1)
        return self._processor.DecodeIds(pieces)

    def row(self, text: str, length: int) -> tuple[np.ndarray, np.ndarray]:
        """<s> pieces </s>, then <pad>, the pieces cut after the first length - 2.

        A text of blanks is <s> </s> (an error in the reference).

        Returns: (ids int32 [length], is_valid bool [length], True = a real token, no padding).
        Raises: ValueError: length leaves no room for a piece.
        """
        if length < 3:
            raise ValueError(f"text length {length} has no room for <s>, a piece and </s>: at "
                             "least 3")
        ids = [token_ids.BOS, *self.encode(text)[:length - 2], token_ids.EOS]
        row = np.full(length, token_ids.PAD, np.int32)
        row[:len(ids)] = ids
        return row, np.arange(length) < len(ids)

    def rows(self, texts: Sequence[str], length: int) -> tuple[np.ndarray, np.ndarray]:
        """`row` of each text: (ids int32 [b, length], is_valid bool [b, length])."""
        if not texts:
            return np.zeros((0, length), np.int32), np.zeros((0, length), bool)
        ids, is_valid = zip(*(self.row(text, length) for text in texts))
        return np.stack(ids), np.stack(is_valid)

    def num_cut(self, texts: Iterable[str], length: int) -> int:
        """How many of some texts `row` cuts: say so to whoever chose the length."""
        return sum(len(self.encode(text)) > length - 2 for text in texts)


def load(path: str, table_rows: int | None = None) -> Tokenizer:
    """The tokenizer of a model file.

    Args: table_rows: rows of the network's table of tokens, 64,010 in the released ones; None
      asks nothing. Ids beyond it would read no row, silently.
    Raises: FileNotFoundError: no such file. ValueError: not a model of this kind, or too large.
    """
    path = os.path.expanduser(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"tokenizer {path} is no file: give the SentencePiece model that "
                                "belongs to the checkpoint, or train one with python -m "
                                "beit_jax.train_tokenizer")
    with open(path, "rb") as file:
        tokenizer = Tokenizer(file.read(), f"tokenizer {path}")
    if table_rows is not None and tokenizer.num_ids > table_rows:
        raise ValueError(f"tokenizer {path} has {tokenizer.num_ids} ids, the network's table "
                         f"{table_rows} rows: this is not the tokenizer it was trained with")
    return tokenizer


def train(paths: Sequence[str], num_pieces: int = token_ids.RELEASED_PIECES, *,
          kind: str = "unigram", num_threads: int = 1) -> bytes:
    """Trains a SentencePiece model on text files, one sentence or paragraph a line.

    Args:
      paths: UTF-8 text files.
      num_pieces: entries of the model, <unk>, <s> and </s> included.
      kind: "unigram" or "bpe".
      num_threads: of the trainer.
    Returns: the model, for a file or for `Tokenizer`.
    Raises: FileNotFoundError: a file is missing. ValueError: a file is not UTF-8, there is no
      text, too little of it for so many pieces or too few pieces for its letters, or an unknown
      kind.
    """
    if kind not in ("unigram", "bpe"):
        raise ValueError(f"tokenizer kind {kind!r} is neither unigram nor bpe")
    if num_pieces < token_ids.FIRST_PIECE:
        raise ValueError(f"num_pieces={num_pieces} leaves none beside <unk>, <s> and </s>: 64000 "
                         "as released, a few thousand for little text")
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing:
        raise FileNotFoundError(f"text file {missing[0]} is no file: check the spelling")
    lines = _lines(paths)
    first = next(lines, None)
    if first is None:
        raise ValueError(f"no text in {', '.join(paths) or 'no files'}: nothing to learn from")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_chain(first, lines), model_writer=model, vocab_size=num_pieces,
            model_type=kind, unk_id=0, bos_id=1, eos_id=2, pad_id=-1, num_threads=num_threads,
            max_sentence_length=_LONGEST_LINE, input_sentence_size=_MOST_LINES,
            shuffle_input_sentence=True, minloglevel=2)
    except RuntimeError as error:  # it knows by how much the number is wrong, and says so
        reason = " ".join(str(error).split()).rpartition("] ")[2]
        raise ValueError(f"no model of num_pieces={num_pieces} out of {', '.join(paths)}: "
                         f"{reason or 'too little text'}") from None
    return model.getvalue()


def _chain(first, others):
    yield first
    yield from others


def _lines(paths):
    """Lines of text files that hold more than blanks; very long ones in parts."""
    step = _LONGEST_LINE // 4  # characters: each has at most four bytes
    for path in paths:
        try:
            with open(path, encoding="utf-8-sig") as file:  # with or without a byte order mark
                for line in filter(None, map(str.strip, file)):
                    yield from (line[i:i + step] for i in range(0, len(line), step))
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 at byte {error.start}: convert it") from None
