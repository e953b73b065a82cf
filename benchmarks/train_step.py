"""Speed of the bare training step, on a synthetic batch that already lies on the devices.

python -m benchmarks.train_step --task mim --size base --batch 256
Prints one line of JSON: images/s, median and spread of the step in ms, MFU by the analytic count of
beit_jax/flops.py where the chip's peak is known, peak device memory, seconds to compile.
Needs neither TensorFlow nor ml_collections.
"""

import argparse
import json
import statistics
import time

import jax
import numpy as np

SIZES = {
    "tiny": dict(width=192, depth=12, num_heads=3),
    "small": dict(width=384, depth=12, num_heads=6),
    "base": dict(width=768, depth=12, num_heads=12),
    "large": dict(width=1024, depth=24, num_heads=16),
    "huge": dict(width=1280, depth=32, num_heads=16),
}
# configs/mae and configs/img2vec: width, depth and heads of the decoder
DECODERS = {"mae": (512, 8, 16), "img2vec": (512, 2, 16)}
# with these sizes the encoder costs next to nothing: what a step with stored codes would cost
CODES_AT_NO_COST = dict(n_hid=4, blocks_per_group=1)


class Section(dict):
    """A config section without ml_collections: keys are attributes too."""

    __getattr__ = dict.__getitem__


def make_config(args) -> Section:
    """The recipe of unilm's base models (configs/beit), or of configs/mae or img2vec, with the
    sizes asked for."""
    model = Section(image_px=args.image_px, patch_size=args.patch_size, **SIZES[args.size],
                    mlp_ratio=4.0, attention=args.attention, token_multiple=args.token_multiple,
                    unroll=args.unroll, remat=args.remat)
    grid = args.image_px // args.patch_size
    patches = grid ** 2
    config = Section(
        dtype=args.dtype, model=model, mask=Section(), target=Section(), loss=Section(),
        augment=Section(), probe=Section(),
        data=Section(image_px=args.image_px, target_px=0, mean=(0.5,) * 3, std=(0.5,) * 3,
                     global_batch_size=args.batch))
    if args.task in DECODERS:
        sizes = zip(("decoder_width", "decoder_depth", "decoder_num_heads"), DECODERS[args.task])
        model.update(sizes, fusion="last" if args.task == "mae" else "mean")
        config.update(task=f"{args.task}_pretrain")
        if args.task == "mae":  # a quarter of the patches is seen
            config.mask.update(kind="random", num_masked=patches - patches // 4)
            config.target.update(kind="pixels", image_px=args.image_px,
                                 patch_size=args.patch_size)
        else:  # 40 % of the cells of 2 x 2 patches are seen, for each of which the teacher has one
            cells = (grid // 2) ** 2
            config.mask.update(kind="random", num_masked=4 * (cells - cells * 2 // 5), cell=2)
            config.target.update(kind="dino_resnet50", image_px=16 * grid,
                                 dtype=args.tokenizer_dtype, norm="layernorm")
            if 16 * grid != args.image_px:
                config.data.update(target_px=16 * grid)
        return config
    model.update(layer_scale_init=0.1, drop_path_rate=0.1)
    config.data.update(target_px=8 * grid)
    if args.task == "classify":
        config.update(task="classification", loss=Section(label_smoothing=0.1),
                      augment=Section(random_erasing=0.25, mixup=0.8, cutmix=1.0))
        model.update(use_rel_pos=True, num_classes=1000)
        return config
    config.update(
        task="beit_pretrain", loss=Section(positions="masked"),
        mask=Section(kind="block", num_masked=round(patches * 75 / 196),
                     min_block=min(16, patches // 5)),
        target=Section(kind="dvae", vocab_size=8192, dtype=args.tokenizer_dtype,
                       **({} if args.task == "mim" else CODES_AT_NO_COST)))
    model.update(use_shared_rel_pos=True)
    return config


def make_batch(config, rows: int) -> dict[str, np.ndarray]:
    """Noise images, random labels."""
    rng = np.random.default_rng(0)
    px, target_px = config.data.image_px, config.data.target_px
    batch = {
        "image": rng.integers(0, 256, (rows, px, px, 3), np.uint8),
        "label": rng.integers(0, 1000, rows).astype(np.int32),
        "index": np.arange(rows, dtype=np.int32),
        "is_example": np.ones(rows, bool),
    }
    if config.task != "classification" and target_px:
        batch["image_for_target"] = rng.integers(0, 256, (rows, target_px, target_px, 3), np.uint8)
    return batch


def start(task, batch, mesh, learning_rate: float = 1e-4):
    """A fresh state of a task and its step, not yet compiled; `sharding.use` is in force.

    Returns: (state, frozen, step function, number of parameters).
    """
    from beit_jax.training import optim, sharding, state, step

    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), batch)
    params = jax.eval_shape(task.init, jax.random.key(0), shapes)["params"]
    options = optim.OptimOptions(learning_rate=learning_rate, clip_norm=3.0)
    tx, _ = optim.make_optimizer(options, params, 1000, 1000)
    abstract, make_state = state.create(task, tx, jax.random.key(0), shapes, mesh, with_ema=False)
    frozen = {name: jax.jit(network.init, out_shardings=sharding.replicated(mesh))(
        jax.random.key(1)) for name, network in task.frozen.items()}
    train_step = step.make_train_step(
        task, tx, jax.random.key(2),
        out_shardings=(jax.tree.map(lambda leaf: leaf.sharding, abstract),
                       sharding.replicated(mesh)))
    return make_state(), frozen, train_step, sum(leaf.size for leaf in jax.tree.leaves(params))


def measure(config, *, rows: int, steps: int, repeats: int) -> dict:
    """Compiles and times the step.

    Args:
      rows: global batch.
      steps: steps in one timed run, after which the host waits once.
      repeats: timed runs; the median counts.
    Returns: the figures to print.
    """
    from beit_jax import tasks
    from beit_jax.training import sharding

    mesh = sharding.make_mesh(sharding.MeshOptions())
    sharding.check_divisible(rows, mesh, "--batch")
    task = tasks.make(config)
    with sharding.use(mesh):
        batch = sharding.global_batch(make_batch(config, rows), mesh)
        train_state, frozen, train_step, parameters = start(task, batch, mesh)
        began = time.perf_counter()
        train_state, metrics = train_step(train_state, frozen, batch)
        jax.block_until_ready(metrics)
        first_seconds = time.perf_counter() - began
        step_ms = []
        for _ in range(repeats + 1):
            began = time.perf_counter()
            for _ in range(steps):
                train_state, metrics = train_step(train_state, frozen, batch)
            jax.block_until_ready((train_state, metrics))
            step_ms.append(1e3 * (time.perf_counter() - began) / steps)
    step_ms = step_ms[1:]  # the first run is the warm-up
    return report(config, rows, step_ms, first_seconds, float(metrics["loss"]), parameters,
                  task.flops_per_image)


def report(config, rows: int, step_ms: list[float], first_seconds: float, loss: float,
           parameters: int, work: float) -> dict:
    """The figures as JSON knows them; work: FLOPs per image of a step."""
    from beit_jax.training import chips

    device = jax.devices()[0]
    median = statistics.median(step_ms)
    images_per_second = 1e3 * rows / median
    peak = chips.peak_flops()
    memory = (device.memory_stats() or {}).get("peak_bytes_in_use")
    return {
        "device": device.device_kind, "devices": jax.device_count(), "jax": jax.__version__,
        "task": config.task, "dtype": config.dtype, "global_batch_size": rows,
        "parameters": parameters,
        "images_per_second": round(images_per_second, 2),
        "step_ms_median": round(median, 3),
        "step_ms_min": round(min(step_ms), 3), "step_ms_max": round(max(step_ms), 3),
        "gflops_per_image": round(work / 1e9, 2),
        "mfu": round(images_per_second * work / peak, 4) if peak else None,
        "peak_memory_gib": round(memory / 2**30, 3) if memory else None,
        "first_step_seconds": round(first_seconds, 2),
        "loss": loss,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--task", choices=("mim", "mim_stored_codes", "classify", *DECODERS), default="mim",
        help="mim: BEiT with the dVAE in the step; mim_stored_codes: without its cost; mae: "
        "normalised pixels; img2vec: with the ResNet-50 in the step")
    parser.add_argument("--size", choices=sorted(SIZES), default="base")
    parser.add_argument("--batch", type=int, default=64, help="global batch size")
    parser.add_argument("--image_px", type=int, default=224)
    parser.add_argument("--patch_size", type=int, default=16)
    parser.add_argument("--dtype", default="auto", help="auto, float32 or bfloat16")
    parser.add_argument("--tokenizer_dtype", default="bfloat16", help="of dVAE and ResNet-50")
    parser.add_argument("--attention", default="xla", help="xla or cudnn")
    parser.add_argument("--token_multiple", type=int, default=1, help="cudnn needs 8")
    parser.add_argument("--unroll", type=int, default=0)
    parser.add_argument("--remat", default="none", help="none, dots or full")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    config = make_config(args)
    figures = measure(config, rows=args.batch, steps=args.steps, repeats=args.repeats)
    print(json.dumps(vars(args) | figures))


if __name__ == "__main__":
    main()
