"""The config.json without which Hugging Face's transformers cannot read exported weights."""

from collections.abc import Mapping

import numpy as np

LAYER_NORM_EPS = 1e-6  # transformers' own default, 1e-12, gives other numbers


def config_of(ours: Mapping[str, np.ndarray], num_heads: int = 0) -> dict:
    """What can be read off the shapes of our leaves, as the dict of a config.json.

    Args:
      ours: flat leaves of a BEiT.
      num_heads: heads; 0 reads them off a relative-position table, or else takes width / 64, as in
        every published size.
    Raises: ValueError: the leaves are no BEiT's, a grid is not square, or the heads do not fit.
    """
    for name in ("patch_embed/proj/kernel", "blocks/mlp/fc1/kernel"):
        if name not in ours:
            raise ValueError(f"no {name} among the weights: this is no BEiT")
    patch_size, _, _, width = ours["patch_embed/proj/kernel"].shape
    depth, _, hidden = ours["blocks/mlp/fc1/kernel"].shape
    shared = ours.get("rel_pos_bias/relative_position_bias_table")
    own = ours.get("blocks/attn/relative_position_bias_table")
    table = own[0] if own is not None else shared
    grid = 0
    if table is not None:
        if num_heads not in (0, table.shape[1]):
            raise ValueError(f"--num_heads={num_heads}: the position table is of {table.shape[1]}")
        num_heads = table.shape[1]
        grid = round(((table.shape[0] - 3) ** 0.5 + 1) / 2)
        square = (2 * grid - 1) ** 2 + 3 == table.shape[0]
    elif "pos_embed" in ours:
        grid = round((ours["pos_embed"].shape[1] - 1) ** 0.5)
        square = grid**2 + 1 == ours["pos_embed"].shape[1]
    if not grid or not square:
        raise ValueError("the weights do not tell the patch grid: no positions, or not square")
    num_heads = num_heads or max(1, width // 64)
    if num_heads < 1 or width % num_heads:
        raise ValueError(f"--num_heads={num_heads} does not divide the width {width}")
    gamma = ours.get("blocks/gamma_1")
    is_mim = "lm_head/kernel" in ours
    config = {
        "architectures": ["BeitForMaskedImageModeling" if is_mim else "BeitForImageClassification"],
        "model_type": "beit",
        "image_size": grid * patch_size,
        "patch_size": patch_size,
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": num_heads,
        "intermediate_size": hidden,
        "hidden_act": "gelu",
        "layer_norm_eps": LAYER_NORM_EPS,
        # transformers makes the scales if this is above 0; their values come from the file
        "layer_scale_init_value": 0.1 if gamma is not None else 0.0,
        "use_mask_token": "mask_token" in ours,
        "use_absolute_position_embeddings": "pos_embed" in ours,
        "use_relative_position_bias": own is not None,
        "use_shared_relative_position_bias": shared is not None,
        "use_mean_pooling": is_mim or "fc_norm/scale" in ours,
    }
    if is_mim:
        config["vocab_size"] = ours["lm_head/bias"].shape[0]
    if "head/bias" in ours:
        config["id2label"] = {str(i): f"LABEL_{i}" for i in range(ours["head/bias"].shape[0])}
        config["label2id"] = {text: int(i) for i, text in config["id2label"].items()}
    return config
