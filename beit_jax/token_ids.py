"""Numbers of text tokens: four special ones, the pieces of a SentencePiece model, the mask.

The layout is XLM-R's, which the released BEiT-3 has: its 64,000 pieces make ids 0 to 64,001, and
its table of 64,010 rows has eight that nothing uses.
"""

BOS, PAD, EOS, UNKNOWN = 0, 1, 2, 3  # <s> (the class token of a text), <pad>, </s>, <unk>
FIRST_PIECE = 4
SPECIAL = (BOS, PAD, EOS)
RELEASED_PIECES = 64_000
_UNUSED_ROWS = 8


def mask_id(num_pieces: int) -> int:
    """The id of <mask>, the last one: 64,001 of 64,000 pieces."""
    return num_pieces + 1


def num_ids(num_pieces: int) -> int:
    """How many ids there are, <mask> included: 64,002 of 64,000 pieces."""
    return num_pieces + 2


def table_rows(num_pieces: int) -> int:
    """Rows of the embedding table and of the head: 64,010 of 64,000 pieces."""
    return num_ids(num_pieces) + _UNUSED_ROWS


def num_pieces(rows: int) -> int:
    """Pieces of the tokenizer that a table of so many rows belongs to: 64,000 of 64,010."""
    return rows - table_rows(0)
