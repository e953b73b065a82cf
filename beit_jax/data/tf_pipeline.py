"""The `tf.data` graphs behind `pipeline.py`; imported only when a batch is asked for."""
import functools
import os

import numpy as np

from beit_jax.data import broken_files, image_file, views
from beit_jax.data.host_tensorflow import tf
from beit_jax.data.image_file import decode_with_pil
from beit_jax.data.options import DataOptions
from beit_jax.data.source import Source

# The functions below have no Python branches on tensors: without AutoGraph's translation of their
# source, building a graph takes a fraction of the time.
_as_written = tf.autograph.experimental.do_not_convert


def train_batches(source: Source, options: DataOptions, *, steps, chosen, num_train, batch, seed,
                  start_step, rows):
    """Endless batches; see `pipeline.train_batches` and `pipeline._finished_train_batches`."""
    threads = options.threads or len(os.sched_getaffinity(0))
    first, last = int(rows[0]), int(rows[-1]) + 1
    seed = seed % 2**31
    sides = source.images_per_example  # of each example: they stay neighbours all the way
    pictures = slice(first * sides, last * sides)
    in_memory = None if source.images is None else tf.constant(source.images)
    labels = None if source.labels is None else tf.constant(source.labels, tf.int32)
    used = None if chosen is None else tf.constant(chosen, tf.int64)

    @_as_written
    def batch_views(rows_of_step):
        of_step = tf.stack([rows_of_step["step"], tf.cast(seed, tf.int64)])
        draws = tf.random.stateless_uniform([batch * sides, views.DRAWS], of_step)[pictures]
        images = tf.gather(in_memory, rows_of_step["place"])
        return views.train_batch(images, draws, options) | _labels(labels, rows_of_step)

    @_as_written
    def example_views(example):
        made = views.train_example(_image(source, in_memory, example), example["seed"], options)
        made |= {key: example[key] for key in ("label", "index", "seed")}
        return augmented(made) if options.randaugment else made

    @_as_written
    def augmented(made):
        image = views.augment(made["image"], tf.reverse(made["seed"], [0]), options)
        return made | {"image": image}

    if source.sequence is not None:
        return _sequential_train_batches(source, options, example_views, batch, seed, steps,
                                         start_step, first, last, threads)

    def build(start):
        is_broken = broken_files.examples(source)
        stand_in = None if is_broken is None else tf.constant(
            broken_files.stand_ins(is_broken, chosen))

        @_as_written
        def choose(step):
            """step -> what the local rows are, and the random numbers that belong to them."""
            epoch = step // steps
            position = (step % steps) * batch + tf.range(first, last, dtype=tf.int64)
            index = tf.random.experimental.index_shuffle(
                position, tf.stack([tf.cast(seed, tf.int64), epoch]), num_train - 1)
            index = index if used is None else tf.gather(used, index)
            index = index if stand_in is None else tf.gather(stand_in, index)
            # Drawn for the global batch, then cut: a row's numbers do not depend on the processes.
            of_step = tf.stack([tf.cast(seed, tf.int64), step])
            seeds = tf.random.stateless_uniform([batch * sides, 2], of_step, None, None, tf.int64)
            return _pictures(index, source) | {"seed": seeds[pictures], "step": step}

        dataset = tf.data.Dataset.range(start, np.iinfo(np.int64).max)
        dataset = dataset.map(choose, num_parallel_calls=1)
        if in_memory is not None and views.can_batch(source.images, options):
            dataset = dataset.map(batch_views, num_parallel_calls=threads)
            if options.randaugment:
                dataset = dataset.unbatch().map(augmented, num_parallel_calls=threads)
                dataset = dataset.batch((last - first) * sides, drop_remainder=True)
        else:
            dataset = _examples(dataset, source, labels)
            dataset = dataset.map(example_views, num_parallel_calls=threads)
            dataset = dataset.batch((last - first) * sides, drop_remainder=True)
        made = _numpy_batches(dataset.map(lambda made: _finish(made, sides)), threads, source)
        return made, lambda step: choose(tf.constant(step, tf.int64))["place"].numpy()

    return broken_files.batches(build, source, options.max_broken, start_step,
                                functools.partial(_defect_of, source))


def eval_batches(source: Source, options: DataOptions, *, batch, rows):
    """One pass, filled up; see `pipeline.eval_batches`."""
    threads = options.threads or len(os.sched_getaffinity(0))
    first, last = int(rows[0]), int(rows[-1]) + 1
    num_examples, sides = source.num_examples, source.images_per_example

    @_as_written
    def batch_views(rows_of_step):
        images = tf.gather(in_memory, rows_of_step["place"])
        return views.eval_batch(images, options) | _labels(labels, rows_of_step)

    @_as_written
    def example_views(example):
        made = views.eval_example(_image(source, in_memory, example), options)
        kept = ("label", "index", "is_example")
        return made | {key: example[key] for key in kept if key in example}

    in_memory = None if source.images is None else tf.constant(source.images)
    labels = None if source.labels is None else tf.constant(source.labels, tf.int32)
    steps = -(-num_examples // batch)
    if source.sequence is not None:
        dataset = source.sequence(None).map(example_views, num_parallel_calls=threads)
        return _sequential_eval_batches(dataset, steps, batch, first, last, threads, source)

    def build(start):
        is_broken = broken_files.examples(source)
        stand_in = None if is_broken is None else tf.constant(broken_files.stand_ins(is_broken))

        @_as_written
        def choose(step):
            position = step * batch + tf.range(first, last, dtype=tf.int64)
            is_example, index = position < num_examples, tf.minimum(position, num_examples - 1)
            if stand_in is not None:
                is_example &= ~tf.gather(is_broken, index)
                index = tf.gather(stand_in, index)
            return _pictures(index, source) | {"is_example": tf.repeat(is_example, sides)}

        dataset = tf.data.Dataset.range(start, steps).map(choose, num_parallel_calls=1)
        if in_memory is not None and views.can_batch(source.images, options):
            dataset = dataset.map(batch_views, num_parallel_calls=threads)
        else:
            dataset = _examples(dataset, source, labels)
            dataset = dataset.map(example_views, num_parallel_calls=threads)
            dataset = dataset.batch((last - first) * sides, drop_remainder=True)
        made = _numpy_batches(dataset.map(lambda made: _finish(made, sides)), threads, source)
        return made, lambda step: choose(tf.constant(step, tf.int64))["place"].numpy()

    return broken_files.batches(build, source, options.max_broken, 0,
                                functools.partial(_defect_of, source))


def _pictures(index, source: Source):
    """Examples [b] to their pictures [b * k]: the number of the example, the place of the image."""
    sides = source.images_per_example
    picture = tf.reshape(index[:, None] * sides + tf.range(sides, dtype=tf.int64), [-1])
    place = picture if source.image_of is None else tf.gather(source.image_of, picture)
    return {"index": tf.repeat(index, sides), "place": place}


def _labels(labels, rows):
    """The rows without their step, and with their labels."""
    kept = {key: rows[key] for key in ("index", "seed", "is_example") if key in rows}
    return kept | {"label": tf.gather(labels, rows["index"])}


def _examples(dataset, source: Source, labels):
    """Batches of rows to single rows with labels; records are read a batch at a time."""
    @_as_written
    def complete(rows):
        extra = {"label": tf.gather(labels, rows["index"])} if labels is not None else {}
        if source.read_many is not None:
            extra = source.read_many(rows["place"]) | extra
        rows = {key: value for key, value in rows.items() if key != "step"}
        return rows | extra

    # Two calls: the next batch is read while this one is being decoded.
    return dataset.map(complete, num_parallel_calls=2).unbatch()


def _image(source: Source, in_memory, example):
    """What the views start from: pixels, or encoded bytes that TensorFlow decodes rightly."""
    if in_memory is not None:
        return tf.gather(in_memory, example["place"])
    if source.read is None:
        return example["encoded"]
    encoded = source.read(example["place"])
    if source.needs_pil is None or not source.needs_pil.any():
        return encoded

    def odd():
        # As PNG, so that both branches give bytes: such files are few.
        image = tf.numpy_function(decode_with_pil, [encoded], tf.uint8, stateful=False)
        return tf.io.encode_png(tf.ensure_shape(image, [None, None, 3]), compression=0)

    return tf.cond(tf.gather(source.needs_pil, example["place"]), odd, lambda: encoded)


def _defect_of(source: Source, place: int) -> str | None:
    """What is wrong with the file of an image; None if nothing is."""
    try:
        image_file.inspect(source.paths[place], decode=True)
        views.decode(_image(source, None, {"place": tf.constant(place)}))
    except ValueError as error:
        return str(error)
    except tf.errors.OpError as error:
        return " ".join(str(error.message).split())[:100]
    return None


def _finish(made, sides: int = 1):
    """Pictures [b * k] to examples: int32 numbers, filler rows marked, seeds dropped."""
    batch = {key: value if sides == 1 else tf.reshape(value, [-1, sides, *value.shape[1:]])
             for key, value in made.items() if key.startswith("image")}
    is_example = made.get("is_example", tf.ones_like(made["index"], tf.bool))
    for key in ("label", "index"):
        batch[key] = tf.where(is_example, tf.cast(made[key], tf.int32), -1)[::sides]
    return batch | {"is_example": is_example[::sides]}


def _numpy_batches(dataset, threads: int, source: Source):
    """Runs a data set: its own threads, two batches ahead, one-line errors."""
    options = tf.data.Options()
    options.deterministic = True
    options.threading.private_threadpool_size = threads
    options.threading.max_intra_op_parallelism = 1
    # nothing here is left for it to choose, and its thread, which sleeps for up to a minute at a
    # time, is waited for when the iterator goes: up to a minute lost between two stages
    options.autotune.enabled = False
    iterator = dataset.prefetch(2).with_options(options).as_numpy_iterator()
    op_error = tf.errors.OpError  # at exit `tf` may be gone before this generator is

    def batches():
        while True:
            try:
                yield next(iterator)
            except StopIteration:
                return
            except op_error as error:
                reason = " ".join(str(error.message).split())[:300]
                raise broken_files.Unreadable(
                    f"{source.what} cannot be read ({reason}): check the files, "
                    "remove or replace the broken ones, and start again") from error

    return batches()


def _sequential_train_batches(source, options, example_views, batch, seed, steps, start_step,
                              first, last, threads):
    """Without random access: each epoch's fixed order, and what is already done skipped unread."""
    def epoch_dataset(epoch, skipped):
        dataset = source.sequence(seed * 100_003 + epoch).take(steps * batch).skip(skipped * batch)
        dataset = dataset.enumerate(skipped * batch).filter(
            lambda position, _: (first <= position % batch) & (position % batch < last))

        @_as_written
        def seeded(position, example):
            of_example = tf.stack([tf.cast(seed, tf.int64), epoch * steps * batch + position])
            return example | {"seed": of_example}

        dataset = dataset.map(seeded).map(example_views, num_parallel_calls=threads)
        return dataset.batch(last - first, drop_remainder=True).map(_finish)

    def batches():
        epoch, skipped = divmod(start_step, steps)
        while True:
            yield from _numpy_batches(epoch_dataset(epoch, skipped), threads, source)
            epoch, skipped = epoch + 1, 0

    return batches()


def _sequential_eval_batches(dataset, steps, batch, first, last, threads, source):
    """A pass without random access: complete with copies of the last example, keep our rows."""
    num_examples = source.num_examples
    filler = steps * batch - num_examples
    last_one = dataset.skip(num_examples - 1).take(1).repeat(filler)
    dataset = dataset.concatenate(last_one).enumerate()
    dataset = dataset.filter(
        lambda position, _: (first <= position % batch) & (position % batch < last))
    dataset = dataset.map(
        lambda position, example: example | {"is_example": position < num_examples})
    dataset = dataset.batch(last - first, drop_remainder=True).map(_finish)
    return _numpy_batches(dataset, threads, source)
