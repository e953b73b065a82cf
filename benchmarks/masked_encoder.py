"""What it saves that the encoder sees visible patches only: time and memory of a training step.

python -m benchmarks.masked_encoder  # a laptop, about a minute
python -m benchmarks.masked_encoder --size base --batch 256  # one GPU
Two networks of the same sizes predict the pixels of hidden patches: MAE's, and one with the hidden
patches in the encoder as mask tokens, so that it sees the whole sequence. Their steps are timed in
turn, on a synthetic batch that already lies on the device. Prints one line of JSON: for each, the
median and spread of the step in ms, images/s, the analytic count of beit_jax/flops.py and what the
compiled step needs of memory, temporary buffers and all; then "full" over "visible": steps, memory,
and what the count predicts for the step. --only gives one of the two a process of its own and adds
the peak of that process's resident set, and of the device's memory where the device tells it.
Needs neither TensorFlow nor ml_collections.
"""

import argparse
import functools
import json
import resource
import statistics
import time

import jax
import jax.numpy as jnp

from benchmarks import train_step

SIZES = {name: dict(**size, decoder_width=512, decoder_depth=8, decoder_num_heads=16)
         for name, size in train_step.SIZES.items()}
SIZES["laptop"] = dict(width=192, depth=6, num_heads=3, decoder_width=96, decoder_depth=2,
                       decoder_num_heads=3)
KINDS = ("visible", "full")


def full_sequence(fields):
    """MaskedAutoencoder with the hidden patches in its encoder: MAE's ablation of the encoder."""
    from beit_jax.models import blocks
    from beit_jax.models.masked_autoencoder import MaskedAutoencoder, Prediction

    class FullSequence(MaskedAutoencoder):
        def setup(self):
            super().setup()
            self.encoder_mask_token = self.param(
                "encoder_mask_token", blocks.token_init(self.initializer), (1, 1, self.width))

        def __call__(self, image, is_masked, num_masked, positions=None, *, train=False):
            del num_masked
            fused, _ = self.fuse(self.embed(image, is_masked, self.encoder_mask_token), train)
            places = jnp.broadcast_to(jnp.arange(self.num_patches), is_masked.shape)
            return Prediction(self.decode(fused, (places, places), positions), None)

    return FullSequence(**fields)


def make_task(kind: str, fields: dict, num_masked: int):
    """A task without a config: squared error of the normalised pixels of hidden patches."""
    from beit_jax import augment, flops, losses, masking
    from beit_jax.models.masked_autoencoder import MaskedAutoencoder
    from beit_jax.targets import pixels
    from beit_jax.tasks import task as contract

    model = MaskedAutoencoder(**fields) if kind == "visible" else full_sequence(fields)
    mask = masking.MaskOptions(kind="random", num_masked=num_masked, min_block=16)
    mask.check(model.grid)
    normalise = functools.partial(augment.normalise, mean=(0.5,) * 3, std=(0.5,) * 3)

    def draw(key, rows):
        return mask.draw(jax.random.split(key, rows), model.grid)

    def init(key, batch):
        image = normalise(batch["image"])
        return model.init(key, image, draw(key, image.shape[0]), num_masked)

    def loss(params, state, frozen, batch, key):
        image = normalise(batch["image"])
        is_masked = draw(key, image.shape[0])
        slots, _ = masking.masked_positions(is_masked, num_masked)
        values = pixels.patch_pixels(image, model.patch_size, normalise=True)
        target = jnp.take_along_axis(values, slots[..., None], axis=1)
        out = model.apply({"params": params}, image, is_masked, num_masked, slots)
        total = jnp.mean(losses.squared_error(out.patches, target))
        return total, (state, {"loss": total})

    seen = model.num_patches - (num_masked if kind == "visible" else 0)
    work = flops.masked_autoencoder(model, seen, num_masked)
    return contract.Task(init, loss, None, None, flops_per_image=flops.train_step(work))


def compiled(task, batch, mesh):
    """(state, compiled step, bytes that the step needs: arguments, results, temporary buffers)."""
    state, _, train_step_of, _ = train_step.start(task, batch, mesh)
    program = jax.jit(lambda state, batch: train_step_of(state, {}, batch), donate_argnums=0)
    program = program.lower(state, batch).compile()
    sizes = program.memory_analysis()
    needs = {"temporary": sizes.temp_size_in_bytes,
             "all": sizes.temp_size_in_bytes + sizes.argument_size_in_bytes
             + sizes.output_size_in_bytes - sizes.alias_size_in_bytes}
    return state, program, needs


def measure(args) -> dict:
    """Compiles and times the steps in turn. Returns: the figures to print."""
    from beit_jax.tasks.task import compute_dtype
    from beit_jax.training import sharding

    patches = (args.image_px // args.patch_size) ** 2
    num_masked = patches - int(patches * (1 - args.mask_ratio) + 1e-6)  # as MAE rounds
    fields = dict(image_px=args.image_px, patch_size=args.patch_size, **SIZES[args.size],
                  attention=args.attention, token_multiple=args.token_multiple, remat=args.remat,
                  dtype=compute_dtype({"dtype": args.dtype}), target_dim=3 * args.patch_size**2)
    kinds = (args.only,) if args.only else KINDS
    made = {kind: make_task(kind, fields, num_masked) for kind in kinds}
    mesh = sharding.make_mesh(sharding.MeshOptions())
    sharding.check_divisible(args.batch, mesh, "--batch")
    image = jax.random.randint(jax.random.key(0), (args.batch, args.image_px, args.image_px, 3), 0,
                               256).astype(jnp.uint8)
    step_ms = {kind: [] for kind in kinds}
    with sharding.use(mesh):
        batch = sharding.global_batch({"image": jax.device_get(image)}, mesh)
        runs = {kind: compiled(task, batch, mesh) for kind, task in made.items()}
        states = {kind: run[0] for kind, run in runs.items()}
        for _ in range(args.repeats + 1):
            for kind, (_, program, _) in runs.items():
                began = time.perf_counter()
                for _ in range(args.steps):
                    states[kind], metrics = program(states[kind], batch)
                jax.block_until_ready((states[kind], metrics))
                step_ms[kind].append(1e3 * (time.perf_counter() - began) / args.steps)
    device = jax.devices()[0]
    figures = {"device": device.device_kind, "devices": jax.device_count(), "jax": jax.__version__,
               "num_visible": patches - num_masked, "num_patches": patches}
    for kind, (_, _, needs) in runs.items():
        times = step_ms[kind][1:]  # the first run is the warm-up
        median = statistics.median(times)
        figures[kind] = {
            "step_ms_median": round(median, 3), "step_ms_min": round(min(times), 3),
            "step_ms_max": round(max(times), 3),
            "images_per_second": round(1e3 * args.batch / median, 2),
            "gflops_per_image": round(made[kind].flops_per_image / 1e9, 3),
            "temporary_memory_gib": round(needs["temporary"] / 2**30, 4),
            "memory_gib": round(needs["all"] / 2**30, 4)}
    if args.only:
        peak = (device.memory_stats() or {}).get("peak_bytes_in_use")
        kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return figures | {"peak_memory_gib": round(peak / 2**30, 3) if peak else None,
                          "peak_resident_gib": round(kilobytes / 2**20, 3)}

    def ratio(name):
        return round(figures["full"][name] / figures["visible"][name], 3)

    return figures | {"step_ratio": ratio("step_ms_median"),
                      "predicted_step_ratio": ratio("gflops_per_image"),
                      "temporary_memory_ratio": ratio("temporary_memory_gib"),
                      "memory_ratio": ratio("memory_gib")}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=sorted(SIZES), default="laptop")
    parser.add_argument("--batch", type=int, default=8, help="global batch size")
    parser.add_argument("--image_px", type=int, default=224)
    parser.add_argument("--patch_size", type=int, default=16)
    parser.add_argument("--mask_ratio", type=float, default=0.75)
    parser.add_argument("--only", choices=KINDS, default="", help="time one of the two")
    parser.add_argument("--dtype", default="auto", help="auto, float32 or bfloat16")
    parser.add_argument("--attention", default="xla", help="xla or cudnn")
    parser.add_argument("--token_multiple", type=int, default=1, help="cudnn needs 8")
    parser.add_argument("--remat", default="none", help="none, dots or full")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    print(json.dumps(vars(args) | measure(args)))


if __name__ == "__main__":
    main()
