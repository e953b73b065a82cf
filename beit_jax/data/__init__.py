"""Data: everything between files and uint8 batches. TensorFlow is loaded only when it is needed.

`SOURCES` names the kinds of data; each is a function (options, split) -> Source. A name that is
not here is looked up among prepared TFDS data sets.
"""
import os

# Before anybody loads TensorFlow, TFDS included: its greetings are not ours.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # says so on every start, and helps no image op

from beit_jax.data import digit_scenes_source, folder, synthetic, tfds_source  # noqa: E402

SOURCES = {
    "digit_scenes": digit_scenes_source.load,
    "folder": folder.load,
    "synthetic": synthetic.load,
    "tfds": tfds_source.load,
}
