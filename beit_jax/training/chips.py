"""What chips can do: dense bfloat16 peaks, of the vendors' data sheets."""

import jax

# TFLOP/s by jax.Device.device_kind. The whole name: a slice of a GPU has one of its own.
PEAK_TFLOPS = {
    "NVIDIA H200": 989.0,
    "NVIDIA H100 80GB HBM3": 989.0,
    "NVIDIA A100-SXM4-40GB": 312.0,
    "NVIDIA A100-SXM4-80GB": 312.0,
    "TPU v4": 275.0,
    "TPU v5 lite": 197.0,
    "TPU v5": 459.0,
    "TPU v5p": 459.0,
    "TPU v6 lite": 918.0,
}


def peak_flops() -> float | None:
    """Peak of all devices of the run together in FLOP/s; None if it is not known, as of a CPU."""
    peak = PEAK_TFLOPS.get(jax.devices()[0].device_kind)
    return None if peak is None else 1e12 * peak * jax.device_count()
