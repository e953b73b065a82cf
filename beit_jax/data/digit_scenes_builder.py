"""The TFDS data set `digit_scenes`: scenes and their sentences, made once on this machine."""
import fcntl
import io
import logging
import os
import shutil
import struct
import tempfile
import zlib

import numpy as np
import tensorflow_datasets as tfds

from beit_jax.data import digit_scenes, scene_text

log = logging.getLogger(__name__)

# variant -> scenes in (train, validation). A larger image or more digits cost more time.
SIZES = {"plain": (24_000, 2_000), "varied": (40_000, 4_000), "multi": (10_000, 1_000),
         "tiles": (16_000, 1_000),
         "photo": (10_000, 1_000)}
VERSION = "1.2.0"  # raise it whenever other scenes come out
_SEED = 0


class DigitScenes(tfds.core.GeneratorBasedBuilder):
    """Coloured handwritten digits in scenes, with captions, questions and statements."""

    VERSION = tfds.core.Version(VERSION)
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name, version=tfds.core.Version(VERSION))
                       for name in SIZES]
    # TFDS 4.9 would look for checksums beside this file, by a package that it does not require.
    code_path = None

    def _info(self) -> tfds.core.DatasetInfo:
        config = digit_scenes.find_config(self.builder_config.name)
        side, slots = config.image_px, config.max_digits
        texts = tfds.features.Sequence(tfds.features.Text())
        return tfds.core.DatasetInfo(
            builder=self,
            description="Handwritten digits of scikit-learn, drawn as coloured scenes.",
            disable_shuffling=True,  # `other` below is an example number
            features=tfds.features.FeaturesDict({
                "image": tfds.features.Image(shape=(side, side, 3), encoding_format="png"),
                "label": tfds.features.ClassLabel(names=list(scene_text.DIGITS)),
                "segmentation": tfds.features.Image(shape=(side, side, 1), encoding_format="png"),
                "digits": tfds.features.Tensor(shape=(slots,), dtype=np.int32),
                "captions": texts,
                "questions": texts,
                "answers": texts,  # of each question ten, one a line: 30 strings take TFDS long
                # A statement about two scenes: this one is on the left, number `other` right.
                "other": np.int32,
                "statement": tfds.features.Text(),
                "statement_is_true": np.bool_,
            }))

    def _split_generators(self, dl_manager):
        del dl_manager  # nothing is downloaded
        sizes = zip(digit_scenes.SPLITS, SIZES[self.builder_config.name], strict=True)
        return {split: self._generate_examples(split, n) for split, n in sizes}

    def _generate_examples(self, split: str, n: int):
        name = self.builder_config.name
        side = digit_scenes.find_config(name).image_px
        scenes = digit_scenes.make_scenes(name, split, n, _SEED)
        rng = np.random.default_rng([_SEED, digit_scenes.SPLITS.index(split)])
        things = [scene_text.things_in(scenes, row, name) for row in range(n)]
        others = (np.arange(n) + rng.integers(1, n, n)) % n  # never the scene itself
        for row in range(n):
            sentence, is_true = scene_text.statement(things[row], things[others[row]], rng)
            asked = scene_text.questions(things[row], side, rng)
            yield row, {
                "image": _png(scenes["image"][row]),
                "label": int(scenes["label"][row]),
                "segmentation": _png(scenes["segmentation"][row]),
                "digits": scenes["digits"][row],
                "captions": scene_text.captions(things[row], side, rng),
                "questions": [question for question, _ in asked],
                "answers": ["\n".join(answers) for _, answers in asked],
                "other": others[row],
                "statement": sentence,
                "statement_is_true": is_true,
            }


def _png(image: np.ndarray) -> io.BytesIO:
    """PNG bytes of uint8 [h, w, 3] or [h, w].

    Written by hand: PIL takes four times as long for so small an image, and TFDS, given pixels,
    would run a TensorFlow graph for each.
    """
    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)

    height, width = image.shape[:2]
    color_type = 2 if image.ndim == 3 else 0
    rows = np.zeros((height, 1 + image[0].size), np.uint8)  # each row begins with 0: no filter
    rows[:, 1:] = image.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, color_type, 0, 0, 0)
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
                      + chunk(b"IDAT", zlib.compress(rows.tobytes(), 1)) + chunk(b"IEND", b""))


def prepare(variant: str, cache_dir: str) -> str:
    """Makes a variant under `cache_dir` unless it is there; returns the folder of the data set.

    It is built beside its place and moved there whole, by one process at a time: what bears the
    final name is complete, whoever was killed meanwhile.
    Raises: OSError: the cache folder cannot be written.
    """
    final = os.path.join(cache_dir, "digit_scenes", variant, VERSION)
    if os.path.isdir(final):
        return final
    try:
        os.makedirs(os.path.dirname(final), exist_ok=True)
        with open(os.path.join(cache_dir, "digit_scenes", f".{variant}.lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the others wait, then find it finished
            if not os.path.isdir(final):
                _build(variant, final)
    except OSError as error:
        raise OSError(f"digit_scenes cannot be written to {cache_dir} ({error.strerror or error}): "
                      "set the environment variable BEIT_JAX_DATA, or config.data.path, to a "
                      "folder that can be written") from error
    return final


def _build(variant: str, final: str) -> None:
    log.info("making digit_scenes/%s in %s: under a minute, once", variant, final)
    tfds.disable_progress_bar()
    work_dir = tempfile.mkdtemp(prefix=".building-", dir=os.path.dirname(final))
    try:
        builder = DigitScenes(config=variant, data_dir=work_dir, file_format="array_record")
        builder.download_and_prepare()
        os.rename(builder.data_dir, final)
    finally:
        shutil.rmtree(work_dir, ignore_errors=True)
