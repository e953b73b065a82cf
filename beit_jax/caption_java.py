"""METEOR of captions, by the original Java program in the optional package pycocoevalcap."""

import importlib.util
import shutil
from collections.abc import Mapping, Sequence

from absl import logging


def scores(candidates: Mapping, references: Mapping[object, Sequence[str]]) -> dict[str, float]:
    """{"METEOR": in [0, 1]} of one caption for each image; {} where the package or Java lacks.

    SPICE, of the same package, is left out: on its first use it loads its language models from the
    internet.

    Args: as of `caption_metrics.scores`.
    """
    if importlib.util.find_spec("pycocoevalcap") is None or shutil.which("java") is None:
        logging.log_first_n(logging.INFO, "no METEOR: it needs pycocoevalcap and java", 1)
        return {}
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    split = PTBTokenizer().tokenize
    people = split({i: [{"caption": one} for one in captions]
                    for i, captions in references.items()})
    found = split({i: [{"caption": candidates[i]}] for i in references})
    return {"METEOR": Meteor().compute_score(people, found)[0]}
