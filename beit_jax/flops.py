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


def _blocks(model, tokens: int, depth: int, width: int = 0) -> float:
    width = width or model.width
    block = 2 * tokens * (4 + 2 * model.mlp_ratio) * width**2 + 4 * tokens**2 * width
    return depth * block


def multiway(model, num_image: int, num_text: int) -> float:
    """Forward FLOPs of models.beit3 without heads for one sequence; an expert costs what one does.

    Args: num_image: tokens of the image, class token included, or 0; num_text: of the text, or 0.
    """
    pixels = linear(num_image - 1, 3 * model.patch_size**2, model.width) if num_image else 0.0
    return pixels + _blocks(model, num_image + num_text, model.depth)


def masked_autoencoder(model, num_visible: int, num_predicted: int) -> float:
    """Forward FLOPs of models.masked_autoencoder: encoder on visible patches, decoder on all.

    Args: num_visible: patches the encoder sees; num_predicted: tokens the patch head predicts.
    """
    patches, width = (model.image_px // model.patch_size) ** 2, model.width
    encoder = (linear(patches, 3 * model.patch_size**2, width)
               + _blocks(model, num_visible + 1, model.depth))
    decoder = (linear(num_visible + 1, width, model.decoder_width)
               + _blocks(model, patches + 1, model.decoder_depth, model.decoder_width)
               + linear(num_predicted, model.decoder_width, model.target_dim))
    if not model.global_layers:
        return encoder + decoder
    widths = [width, *[model.global_hidden] * (model.global_layers - 1), model.target_dim]
    return encoder + decoder + sum(linear(1, *pair) for pair in zip(widths[:-1], widths[1:]))


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


def plain_vit(network) -> float:
    """Forward FLOPs of models.plain_vit.PlainVit for one image, registers included."""
    patches = (network.image_px // network.patch_size) ** 2
    return (linear(patches, 3 * network.patch_size**2, network.width)
            + _blocks(network, patches + 1 + network.num_registers, network.depth)
            + linear(patches, network.width, network.output_dim))


def resnet(network, image_px: int) -> float:
    """Forward FLOPs of models.resnet.ResNet for one image, whose side is a multiple of 32."""
    side, inputs = image_px // 2, network.stem_width
    total = linear(side**2, 49 * 3, inputs)
    side //= 2  # pooling
    for stage, (num_blocks, width) in enumerate(zip(network.layers, network.widths)):
        for block in range(num_blocks):
            total += linear(side**2, inputs, width)
            side //= 2 if stage > 0 and block == 0 else 1
            total += linear(side**2, 9 * width, width) + linear(side**2, width, 4 * width)
            total += linear(side**2, inputs, 4 * width) if block == 0 else 0.0  # the shortcut
            inputs = 4 * width
    return total


def train_step(trained_forward: float, frozen_forward: float = 0.0) -> float:
    """FLOPs of one training step for one image."""
    return 3.0 * trained_forward + frozen_forward
