"""python -m beit_jax.train_tokenizer --input corpus.txt --output mine.spm --num_pieces 8000

Trains a SentencePiece tokenizer on text files of your own, one sentence or paragraph a line.
"""

import argparse
import os
import sys

from beit_jax import token_ids
from beit_jax.data import text_ops


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code: 0, or 1 after one line about what is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m beit_jax.train_tokenizer", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--input", required=True, nargs="+", metavar="FILE",
                        help="UTF-8 text files")  # fmt: skip
    parser.add_argument("--output", required=True, metavar="FILE", help="the model file to write")
    parser.add_argument("--num_pieces", type=int, default=token_ids.RELEASED_PIECES,
                        help="entries of the model (%(default)s, as released)")  # fmt: skip
    parser.add_argument("--kind", choices=("unigram", "bpe"), default="unigram")
    parser.add_argument("--num_threads", type=int, default=1)
    parser.add_argument("--helpfull", action="help", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    try:
        write(arguments)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


def write(arguments) -> None:
    """Trains, writes the file whole or not at all, and says what the network has to know."""
    folder = os.path.dirname(os.path.abspath(arguments.output))
    if not os.path.isdir(folder):
        raise ValueError(f"--output={arguments.output}: folder {folder} does not exist: make it "
                         "first")
    model = text_ops.train(arguments.input, arguments.num_pieces, kind=arguments.kind,
                           num_threads=arguments.num_threads)
    tokenizer = text_ops.Tokenizer(model)
    part = f"{arguments.output}.part"
    with open(part, "wb") as file:
        file.write(model)
    os.replace(part, arguments.output)
    print(f"wrote {tokenizer.num_pieces} pieces to {arguments.output}; <mask> is "
          f"{tokenizer.mask_id}; the network's table of tokens needs "
          f"{token_ids.table_rows(tokenizer.num_pieces)} rows")


if __name__ == "__main__":
    sys.exit(main())
