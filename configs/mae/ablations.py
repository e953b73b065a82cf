"""What a masked autoencoder predicts, hides and decodes with: base, 300 epochs.

python -m beit_jax.main --config configs/mae/ablations.py:mask_90 --workdir runs/ablation

Three stages: pre-training (pretrain.py:base_300e with one change), fine-tuning, linear probe.
  full                     normalised pixels, 75 % hidden, 8 decoder blocks
  pixels                   raw pixels
  hog                      MaskFeat's target
  dino, clip               tokens of a frozen ViT-B/16, distillation as the baseline of Img2Vec:
                           --config.stages.pretrain.target.checkpoint=dino.npz
  ema                      data2vec's target: the student's own average
  mask_40 ... mask_90      another share of hidden patches
  block_50, block_75       BEiT's blocks in place of single patches
  decoder_1, _2, _4, _12   blocks of the decoder
Published, but for 1,600 epochs (fine-tuned, base / large / huge): raw pixels 83.3 / 85.1 / 86.2 %,
normalised 83.6 / 85.9 / 86.9 %; and for large, 800 epochs, raw pixels: 84.9 % as it is, 83.9 % with
block_50. The size and length of the runs here, and the targets hog, dino, clip and ema in this
network, are our choice.
Source: MAE (arXiv 2111.06377), Tables 1, 3 and 7; MaskFeat (arXiv 2112.09133) and data2vec (arXiv
  2202.03555) for their targets alone: mask tokens in the encoder are not built.
"""

from configs import common
from configs.mae import finetune, linear_probe, pretrain

LOSS = dict(kind="smooth_l1", beta=2.0)  # of data2vec and Img2Vec, for all targets of unit scale
VIT_TEACHER = dict(checkpoint="", image_px=224, dtype="bfloat16", norm="layernorm")
TARGETS = {  # (target, loss); None: as in pretrain.py
    "full": (None, None),
    "pixels": (dict(kind="pixels", image_px=224, patch_size=16, normalise=False, norm="none",
                    **common.IMAGENET_MEAN_STD), None),
    "hog": (dict(kind="hog", image_px=224, patch_size=16, norm="none",
                 **common.IMAGENET_MEAN_STD), None),
    "dino": (dict(kind="dino_vitb16", **VIT_TEACHER), LOSS),
    "clip": (dict(kind="clip_vitb16", **VIT_TEACHER), LOSS),
    # data2vec's, ViT-B: beit/README.md there, --target_layers [6,...,11] --ema_decay 0.9998
    # --post_target_layer_norm; the norms before and behind the average belong to kind "ema"
    "ema": (dict(kind="ema", decay=0.9998, blocks=6, norm="none"), LOSS),
}
MASKS = {  # of 196 patches; the kept ones are rounded down, as in models_mae.py
    **{f"mask_{percent}": dict(kind="random", num_masked=count, cell=1)
       for percent, count in ((40, 79), (50, 98), (60, 118), (80, 157), (85, 167), (90, 177))},
    "block_50": dict(kind="block_exact", num_masked=98, min_block=16),
    "block_75": dict(kind="block_exact", num_masked=147, min_block=16),
}
DECODERS = {f"decoder_{depth}": depth for depth in (1, 2, 4, 12)}


def get_config(variant: str = ""):
    name, smoke = common.choose(variant, (*TARGETS, *MASKS, *DECODERS))
    start = pretrain.get_config("base_300e")
    target, loss = TARGETS.get(name, (None, None))
    if target:
        start.target = target
    if loss:
        start.loss = loss
    if name in MASKS:
        start.mask = MASKS[name]
    start.model.decoder_depth = DECODERS.get(name, start.model.decoder_depth)
    config = common.staged()
    config.stages.update(pretrain=start, finetune=finetune.get_config("base"),
                         probe=linear_probe.get_config("base"))
    config.stages.finetune.init.checkpoint = "stage:pretrain"
    config.stages.probe.init.checkpoint = "stage:pretrain"
    return common.shrink(config) if smoke else config
