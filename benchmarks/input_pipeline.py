"""Speed of the input pipeline alone: decode, crop, resize, augment, batch. No device is touched.

python -m benchmarks.input_pipeline --recipe pretrain --name folder --path DIR
Prints one line of JSON. Without --path it writes noise JPEGs of 500 x 375 pixels into a temporary
folder first: JPEG noise is slower to decode than photographs, so give a real folder for figures to
be quoted.
"""

import argparse
import json
import os
import pathlib
import statistics
import tempfile
import time

RECIPES = {
    "pretrain": dict(image_px=224, target_px=112, color_jitter=0.4),
    "finetune": dict(image_px=224, randaugment="rand-m9-mstd0.5-inc1"),
    "crop": dict(image_px=224),
}


def write_images(folder: pathlib.Path, count: int) -> None:
    """Smoothed noise, 500 x 375 JPEG, in two class folders."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for i in range(count):
        place = folder / "train" / f"class{i % 2}"
        place.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (94, 125, 3), np.uint8))
        coarse.resize((500, 375), Image.Resampling.BICUBIC).save(place / f"{i}.jpg", quality=90)


def measure(options, *, batches: int, repeats: int) -> dict:
    """Times `batches` batches, `repeats` times, after a warm-up of as many.

    Args:
      options: DataOptions.
    Returns: images per second: median, smallest, largest.
    """
    from beit_jax.data import pipeline

    iterator = pipeline.train_batches(options, seed=0, start_step=0)
    rates = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        for _ in range(batches):
            next(iterator)
        rates.append(batches * options.global_batch_size / (time.perf_counter() - start))
    rates = rates[1:]
    return {"images_per_second": round(statistics.median(rates), 1),
            "images_per_second_min": round(min(rates), 1),
            "images_per_second_max": round(max(rates), 1)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", choices=sorted(RECIPES), default="pretrain")
    parser.add_argument("--name", default="folder", help="data source, as config.data.name")
    parser.add_argument("--path", default="", help="as config.data.path; empty: noise images")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--batches", type=int, default=20, help="in one timed run")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--fast", action="store_true", help="no antialiasing, fast inverse DCT")
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()

    from beit_jax.data.options import DataOptions

    with tempfile.TemporaryDirectory() as scratch:
        path = args.path
        if args.name == "folder" and not path:
            write_images(pathlib.Path(scratch), max(256, args.batch))
            path = scratch
        options = DataOptions(name=args.name, path=path, global_batch_size=args.batch,
                              fast=args.fast, threads=args.threads, **RECIPES[args.recipe])
        figures = measure(options, batches=args.batches, repeats=args.repeats)
    cores = args.threads or len(os.sched_getaffinity(0))
    per_core = round(figures["images_per_second"] / cores, 1)
    print(json.dumps(vars(args) | figures
                     | {"cores": cores, "images_per_second_and_core": per_core}))


if __name__ == "__main__":
    main()
