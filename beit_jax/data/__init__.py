"""Data: everything between files and uint8 batches. TensorFlow is loaded only when it is needed.

`SOURCES` names the kinds of data; each is a function (options, split) -> Source. A name that is
not here is looked up among prepared TFDS data sets.
"""
import os

# Before anybody loads TensorFlow, TFDS included: its greetings are not ours.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # says so on every start, and helps no image op

from beit_jax.data import (  # noqa: E402
    caption_source,
    digit_scenes_source,
    document_source,
    folder,
    index_source,
    nlvr2_source,
    synthetic,
    tfds_source,
    vqa_source,
)

SOURCES = {
    "digit_scenes": digit_scenes_source.load,
    "documents": document_source.load,
    "folder": folder.load,
    "index": index_source.load,
    "karpathy": caption_source.load_karpathy,
    "nlvr2": nlvr2_source.load,
    "pairs": caption_source.load_pairs,
    "synthetic": synthetic.load,
    "tfds": tfds_source.load,
    "vqa": vqa_source.load,
}
