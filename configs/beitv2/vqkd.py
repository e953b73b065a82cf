"""VQ-KD: the tokenizer of BEiT v2, 100 epochs on the images of ImageNet-1k. No labels are used.

python -m beit_jax.main --config configs/beitv2/vqkd.py --workdir runs/vqkd \
    --config.target.checkpoint=clip.npz  # on a CPU, in seconds: ":smoke"

The teacher's file comes from python -m beit_jax.convert, --source clip or dino.
Variants and what was published (validation images, share of the 8,192 codes in use):
  clip           CLIP ViT-B/16, decoder of 3 blocks     97 %
  clip_decoder1  CLIP ViT-B/16, decoder of 1 block     100 %
  dino           DINO ViT-B/16, decoder of 1 block     100 %
The loss starts near 1 and ends near 0.19 (microsoft/unilm issues 865, 1556, 1724). A low loss does
not exclude that most codes are dead: look at eval/validation/usage.
Source: BEiT v2 (arXiv 2208.06366), Sec. 2.1; microsoft/unilm beit2/TOKENIZER.md and the defaults of
  beit2/run_vqkd_training.py.
"""

from configs import common

TEACHER = {"clip": "clip_vitb16", "clip_decoder1": "clip_vitb16", "dino": "dino_vitb16"}
DECODER_DEPTH = {"clip": 3, "clip_decoder1": 1, "dino": 1}  # the released tokenizers


def get_config(variant: str = ""):
    name, smoke = common.choose(variant, ("clip", "clip_decoder1", "dino"))
    config = common.base()
    config.task = "vqkd_train"
    config.total_epochs = 100.0  # TOKENIZER.md: 250,200 steps
    config.data.update(
        name="imagenet2012",
        global_batch_size=512,  # 8 x 64
        image_px=224,
        crop_scale=(0.08, 1.0), interpolation="bicubic", flip=0.5,
        color_jitter=0.0,
        **common.HALF_MEAN_STD,  # the encoder sees 2 x - 1; the teacher's own stand beside it
    )
    config.model = dict(
        image_px=224, patch_size=16, **common.VIT["base"],
        decoder_depth=DECODER_DEPTH[name],
        code_dim=32, codebook_size=8192,
    )
    config.target = dict(kind=TEACHER[name], checkpoint="")
    config.loss = dict(
        commitment_weight=1.0, decay=0.99, kmeans_iterations=10,
        kmeans_images=64,  # what one GPU saw: 12,544 vectors; ours is one codebook for all devices
    )
    config.optim.update(
        learning_rate=2e-4,  # 5e-5 x 512 / 128: the code scales it
        min_learning_rate=1e-5,  # not scaled
        warmup_epochs=10.0,  # the command of TOKENIZER.md; the script's default is 5
        weight_decay=1e-4, b1=0.9, b2=0.99, eps=1e-8,
    )
    config.eval.every_epochs = 5.0
    return common.shrink(config) if smoke else config
