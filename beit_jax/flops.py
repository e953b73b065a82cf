"""Analytic work of a network: the one count that all our MFU figures use.

One multiply-add is 2 FLOPs; only matrix products and convolutions count. A training step is three
times the forward pass of the trained part plus one forward pass of each frozen part; recomputation
never counts. XLA's own cost analysis counts the body of a scan once and is of no use here.
"""


def vit(model) -> float:
    """Forward FLOPs of patch embedding and blocks for one image, class token included.

    Args: model: anything with the sizes of models.vit.VisionTransformer.
    """
    patches = (model.image_px // model.patch_size) ** 2
    return (linear(patches, 3 * model.patch_size**2, model.width)
            + _blocks(model, patches + 1, model.depth))


def _blocks(model, tokens: int, depth: int) -> float:
    width, hidden = model.width, model.width * model.mlp_ratio
    block = 2 * tokens * (4 * width**2 + 2 * width * hidden) + 4 * tokens**2 * width
    return depth * block


def beitv2_head(model, num_masked: int) -> float:
    """Forward FLOPs of what BEiT v2 adds to `vit`: head blocks and both predictions."""
    patches = (model.image_px // model.patch_size) ** 2
    return (_blocks(model, patches + 1, model.head_layers)
            + 2 * linear(num_masked, model.width, model.vocab_size))


def linear(positions: int, inputs: int, outputs: int) -> float:
    """Forward FLOPs of a linear layer on `positions` vectors."""
    return 2.0 * positions * inputs * outputs


def dvae_encoder(tokenizer, image_px: int) -> float:
    """Forward FLOPs of the dVAE's encoder for one image (models/dvae.py).

    Args: tokenizer: anything with the sizes of targets.dvae.DvaeTokenizer.
    """
    n_hid, side = tokenizer.n_hid, image_px
    inputs, total = n_hid, 2.0 * side**2 * 49 * 3 * n_hid
    for group in range(tokenizer.num_groups):
        outputs = n_hid * 2**group
        for _ in range(tokenizer.blocks_per_group):
            hidden = outputs // 4
            weights = 9 * inputs * hidden + 2 * 9 * hidden**2 + hidden * outputs
            weights += inputs * outputs if inputs != outputs else 0  # the skip's 1x1 convolution
            total += 2.0 * side**2 * weights
            inputs = outputs
        side //= 2 if group < tokenizer.num_groups - 1 else 1
    return total + linear(side**2, inputs, tokenizer.vocab_size)


def vqkd_encoder(tokenizer) -> float:
    """Forward FLOPs of the VQ-KD encoder and of the search for the nearest codes (models/vqkd.py).

    Args: tokenizer: anything with the sizes of targets.vqkd.VqkdTokenizer.
    """
    patches, width = (tokenizer.image_px // tokenizer.patch_size) ** 2, tokenizer.width
    code_dim = tokenizer.code_dim
    return (vit(tokenizer) + linear(patches, width, width) + linear(patches, width, code_dim)
            + linear(patches, code_dim, tokenizer.codebook_size))


def vqkd(model) -> float:
    """Forward FLOPs of VQ-KD's encoder, search and decoder for one image (models/vqkd.py)."""
    patches, width = (model.image_px // model.patch_size) ** 2, model.width
    decoder = linear(patches, model.code_dim, width) + _blocks(model, patches + 1,
                                                               model.decoder_depth)
    return (vqkd_encoder(model) + decoder + linear(patches, width, width)
            + linear(patches, width, model.teacher_dim))


def teacher(network, dim: int) -> float:
    """Forward FLOPs of a teacher's network (targets/teachers.py) with features of width `dim`."""
    patches = (network.image_px // network.patch_size) ** 2
    projection = linear(patches, network.width, dim) if dim != network.width else 0.0
    return vit(network) + projection


def train_step(trained_forward: float, frozen_forward: float = 0.0) -> float:
    """FLOPs of one training step for one image."""
    return 3.0 * trained_forward + frozen_forward
