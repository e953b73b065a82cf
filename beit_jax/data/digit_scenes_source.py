"""`digit_scenes` for the pipeline: made once, then read into memory."""
import os

from beit_jax.data import digit_scenes
from beit_jax.data.source import MissingSplit, Source


def cache_dir(path: str = "") -> str:
    """Where prepared scenes lie: `path`, else $BEIT_JAX_DATA, else ~/.cache/beit_jax."""
    chosen = path or os.environ.get("BEIT_JAX_DATA") or "~/.cache/beit_jax"
    return os.path.abspath(os.path.expanduser(chosen))


def load(options, split: str) -> Source:
    """A split of a variant; makes the data set first where it is not there yet (under a minute).

    Labels are digits; scenes of several digits ("multi") have label -1. `options.text` says which
    of the scenes' sentences are read.
    Raises: ValueError: unknown variant, split or kind of text. OSError: the cache folder cannot be
      written.
    """
    variant = options.name.partition("/")[2] or "plain"
    digit_scenes.find_config(variant)
    if split not in digit_scenes.SPLITS:
        raise MissingSplit(f"digit_scenes has no split {split!r}; known: "
                           f"{', '.join(digit_scenes.SPLITS)}")
    from beit_jax.data import digit_scenes_builder, tfds_source  # TensorFlow: seconds to import
    data_dir = digit_scenes_builder.prepare(variant, cache_dir(options.path))
    what = f"digit_scenes/{variant} in {data_dir}"
    if not options.text:
        return tfds_source.read_prepared(data_dir, split, what)
    from beit_jax.data import digit_scenes_text
    return digit_scenes_text.load(data_dir, split, what, options.text, options.tokenizer,
                                  options.text_length)
