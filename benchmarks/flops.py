"""Analytic work of a network, and what chips can do: the one count that our MFU figures use.

One multiply-add is 2 FLOPs; only matrix products and convolutions count. A training step is three
times the forward pass of the trained part plus one forward pass of a frozen part; recomputation
never counts. XLA's own cost analysis counts the body of a scan once and is of no use here.
"""

# dense bfloat16 peak, TFLOP/s, by substrings of jax.Device.device_kind (vendors' data sheets)
PEAK_TFLOPS = (
    ("H200", 989.0), ("H100", 989.0), ("A100", 312.0), ("L4", 121.0), ("V100", 125.0),
    ("TPU v6", 918.0), ("TPU v5p", 459.0), ("TPU v5 lite", 197.0), ("TPU v5e", 197.0),
    ("TPU v5", 459.0), ("TPU v4", 275.0), ("TPU v3", 123.0), ("TPU v2", 45.0),
)


def peak_flops(device_kind: str) -> float | None:
    """Dense bfloat16 peak of one device in FLOP/s, or None if it is not in the table."""
    for name, tflops in PEAK_TFLOPS:
        if name.lower() in device_kind.lower():
            return tflops * 1e12
    return None


def vit_blocks(tokens: int, width: int, depth: int, mlp_ratio: float = 4.0) -> float:
    """Forward FLOPs of the blocks for one image: projections, MLP, and the two products of
    attention."""
    hidden = width * mlp_ratio
    return depth * (2 * tokens * (4 * width**2 + 2 * width * hidden) + 4 * tokens**2 * width)


def vit(image_px: int, patch_size: int, width: int, depth: int, mlp_ratio: float = 4.0) -> float:
    """Forward FLOPs of patch embedding and blocks for one image, class token included."""
    patches = (image_px // patch_size) ** 2
    embedding = 2 * patches * (3 * patch_size**2) * width
    return embedding + vit_blocks(patches + 1, width, depth, mlp_ratio)


def linear(positions: int, inputs: int, outputs: int) -> float:
    """Forward FLOPs of a linear layer on `positions` vectors."""
    return 2.0 * positions * inputs * outputs


def dvae_encoder(image_px: int, n_hid: int, vocab_size: int, num_groups: int,
                 blocks_per_group: int) -> float:
    """Forward FLOPs of the dVAE's encoder for one image (beit_jax/models/dvae.py)."""
    side, total, inputs = image_px, 2.0 * image_px**2 * 49 * 3 * n_hid, n_hid
    for group in range(num_groups):
        outputs = n_hid * 2**group
        for _ in range(blocks_per_group):
            hidden = outputs // 4
            weights = 9 * inputs * hidden + 2 * 9 * hidden**2 + hidden * outputs
            weights += inputs * outputs if inputs != outputs else 0  # the skip's 1x1 convolution
            total += 2.0 * side**2 * weights
            inputs = outputs
        side //= 2 if group < num_groups - 1 else 1
    return total + linear(side**2, inputs, vocab_size)


def train_step(trained_forward: float, frozen_forward: float = 0.0) -> float:
    """FLOPs of one training step for one image."""
    return 3.0 * trained_forward + frozen_forward


def of_config(config) -> dict[str, float]:
    """FLOPs per image of a step of this recipe, and of its parts.

    Args:
      config: of task beit_pretrain or classification.
    Returns: {"trained_forward", "frozen_forward", "step"}.
    Raises: ValueError: another task.
    """
    model = config.model
    trained = vit(model["image_px"], model["patch_size"], model["width"], model["depth"],
                  model.get("mlp_ratio", 4.0))
    frozen = 0.0
    if config.task == "classification":
        trained += linear(1, model["width"], model["num_classes"])
    elif config.task == "beit_pretrain":
        patches = (model["image_px"] // model["patch_size"]) ** 2
        is_all = config.loss.get("positions", "masked") == "all"
        outputs = 3 * model["patch_size"] ** 2
        if config.target.get("kind", "dvae") == "dvae":
            sizes = {"n_hid": 256, "vocab_size": 8192, "num_groups": 4, "blocks_per_group": 2}
            sizes = {key: config.target.get(key, value) for key, value in sizes.items()}
            outputs = sizes["vocab_size"]
            frozen = dvae_encoder(config.data["target_px"] or config.data["image_px"], **sizes)
        trained += linear(patches if is_all else config.mask["num_masked"], model["width"],
                          outputs)
    else:
        raise ValueError(f"no FLOP count for task {config.task!r}: beit_pretrain, classification")
    return {"trained_forward": trained, "frozen_forward": frozen,
            "step": train_step(trained, frozen)}
