"""TensorFlow without accelerators. Every module that needs it says `from ... import tf`.

Importing this module takes seconds: only modules that are themselves imported lazily may do so.
"""
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # read once, when TensorFlow is loaded

import tensorflow as tf  # noqa: E402

tf.config.set_visible_devices([], "GPU")  # before any op: JAX owns the accelerator's memory
