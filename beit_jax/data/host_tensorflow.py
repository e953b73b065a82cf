"""TensorFlow without accelerators. Every module that needs it says `from ... import tf`.

Importing this module takes seconds: only modules that are themselves imported lazily may do so.
"""
import tensorflow as tf

tf.config.set_visible_devices([], "GPU")  # before any op: JAX owns the accelerator's memory
