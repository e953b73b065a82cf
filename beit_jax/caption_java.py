"""METEOR of captions, by the original Java program in the optional package pycocoevalcap."""

import functools
import importlib.util
import logging
import shutil
from collections.abc import Mapping, Sequence

log = logging.getLogger(__name__)


def names() -> tuple[str, ...]:
    """Of what `scores` gives on this machine."""
    is_here = importlib.util.find_spec("pycocoevalcap") and shutil.which("java")
    return ("METEOR",) if is_here else ()


def scores(candidates: Mapping, references: Mapping[object, Sequence[str]]) -> dict[str, float]:
    """{"METEOR": in [0, 1]} of one caption for each image; {} where the package or Java lacks.

    SPICE, of the same package, is left out: on its first use it loads its language models from the
    internet.

    Args: as of `caption_metrics.scores`.
    """
    if not names():
        _tell_once("no METEOR: it needs pycocoevalcap and java")
        return {}
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    split = PTBTokenizer().tokenize
    people = split({i: [{"caption": one} for one in captions]
                    for i, captions in references.items()})
    found = split({i: [{"caption": candidates[i]}] for i in references})
    return {"METEOR": Meteor().compute_score(people, found)[0]}


@functools.cache
def _tell_once(text: str) -> None:
    """A line of the log that every evaluation would repeat."""
    log.info(text)
