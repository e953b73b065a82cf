"""A caption as the words that caption metrics compare: Penn Treebank style, without Java.

Published figures come out of Stanford's tokenizer. These rules cover what captions hold (letters,
numbers, contractions, hyphens, punctuation); rarer things (addresses, fractions, emoticons) may be
cut differently, so scores built on them are approximate: say so beside the number.
"""

import re

_TITLES = ("mr", "mrs", "ms", "dr", "st", "jr", "sr", "prof", "vs", "etc", "no", "ave", "inc")
# Words that the treebank writes as two.
_FUSED = {"cannot": ("can", "not"), "gonna": ("gon", "na"), "gotta": ("got", "ta"),
          "wanna": ("wan", "na"), "gimme": ("gim", "me"), "lemme": ("lem", "me")}
_CLITIC = r"'(?:s|m|d|re|ve|ll)(?![\w'])"
_TOKEN = re.compile(rf"""
    (?:[a-z]\.){{2,}}                          # u.s.
  | (?:{'|'.join(t for t in _TITLES if t != 'no')})\.(?=\s+\w)  # a title before a name
  | \d+(?:[.,:]\d+)*(?:st|nd|rd|th|s)?(?![^\W_])  # 1,000  2.5  10:30  3rd  1980s
  | n't(?![\w'])
  | {_CLITIC}
  | [^\W_]+?(?=n't(?![\w']))                   # the "do" of don't
  | [^\W_]+(?:[-/][^\W_]+)*                    # half-eaten and black/white stay whole
  | \.\.\. | -- | [^\w\s] | _
""", re.VERBOSE)
_DROPPED = frozenset("' \" ` . ? ! , : ; - -- ... ( ) { } [ ]".split())
_CURLY = str.maketrans("\u2018\u2019\u201c\u201d\u2013\u2014\u2026", "''\"\"--.")


def split(caption: str) -> list[str]:
    """Words of a caption in small letters, without punctuation.

    Contractions come apart ("do n't", "man 's"); words with hyphens stay whole; signs that are
    read aloud (& % $ # + /) remain.

    Source: salaniz/pycocoevalcap and tylin/coco-caption, tokenizer/ptbtokenizer.py, for the
      punctuation left out; Penn Treebank tokenization for the rest.
    """
    found = _TOKEN.findall(caption.lower().translate(_CURLY))
    return [word for token in found if token not in _DROPPED
            for word in _FUSED.get(token, (token,))]
