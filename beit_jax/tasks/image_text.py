"""What the tasks on images with texts share: their network, its inputs, and rows put in order."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from beit_jax import augment, options, token_ids
from beit_jax.models.beit3 import POSITION_OFFSET
from beit_jax.tasks import task as contract


def build(cls, config, **fields):
    """The network of config.model for texts of config.data.text_length tokens.

    Args: cls: a subclass of models.beit3.Beit3; fields: of it, that other sections decide.
    Raises: ValueError: values that do not fit together.
    """
    model = options.build(cls, config.model, "config.model", dtype=contract.compute_dtype(config),
                          **fields)
    model.check()
    if token_ids.num_pieces(model.vocab_size) < token_ids.FIRST_PIECE:
        raise ValueError(f"config.model.vocab_size={model.vocab_size} has no room for a piece and "
                         "the mask: -1 takes what the tokenizer needs, 64010 the released one's")
    for where, length in text_lengths(config).items():
        check_length(length, model, where)
    return model


def text_lengths(config) -> dict[str, int]:
    """{where the config says so: tokens of a text}; of a mixture, for each stream with texts."""
    length = config.data.get("text_length", 0)
    streams = config.data.get("streams") or {}
    if not streams:
        return {"config.data.text_length": length}
    lengths = {f"config.data.streams.{name}.text_length": stream.get("text_length", length)
               for name, stream in streams.items()}
    return {where: length for where, length in lengths.items() if length}


def check_length(length: int, model, where: str) -> None:
    """Refuses texts that hold no word, or more than the network's positions. Raises: ValueError."""
    most = model.text_positions - POSITION_OFFSET
    if not 3 <= length <= most:
        raise ValueError(f"{where}={length} tokens of a text, <s> and </s> included, must be 3 to "
                         f"{most} with config.model.text_positions={model.text_positions}")


def inputs(config) -> Callable[[Mapping[str, Any]], tuple]:
    """batch -> (image float [b, h, w, 3] or [b, 2, h, w, 3], normalised; ids int [b, l]; is_valid).

    In evaluation with several texts of an image, ids and is_valid are [b, r, l].
    """
    mean, std = config.data.mean, config.data.std

    def of(batch):
        require(batch, "image", "text", "text_is_valid")
        return augment.normalise(batch["image"], mean, std), batch["text"], batch["text_is_valid"]

    return of


def require(batch, *names: str) -> None:
    """Refuses data of another kind than the task's. Raises: ValueError."""
    missing = [name for name in names if name not in batch]
    if missing:
        raise ValueError(f"the data give no {', '.join(missing)}, which this task needs: choose "
                         "config.data.name, and config.data.text where it is read, by the table in "
                         "docs/data.md")


def in_order(rows: Mapping[str, np.ndarray], records) -> tuple[dict[str, np.ndarray], list]:
    """Rows by their "index", and what the data know of each, None where they know nothing.

    Args: records: one for each index of the split, or None.
    """
    order = np.argsort(rows["index"], kind="stable")
    rows = {name: np.asarray(values)[order] for name, values in rows.items()}
    return rows, [None if records is None else records[i] for i in rows["index"]]
