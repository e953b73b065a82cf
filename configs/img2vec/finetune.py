"""Fine-tuning of Img2Vec's encoder on ImageNet-1k: as MAE's, because how Img2Vec did it is unknown.

python -m beit_jax.main --config configs/img2vec/finetune.py:base --workdir runs/finetune \
    --config.init.checkpoint=runs/pretrain

Variants and what was published (top-1): base 85.1 %, large 86.7 %, huge 87.5 %. The class token,
the blocks and the positions are taken over; a plain ViT reads the last block, whatever was fused in
pre-training. A better schedule for these features may exist: this one was tuned for pixels.
Source: Img2Vec (arXiv 2304.12535), abstract, for the results; facebookresearch/mae FINETUNE.md for
  every number.
"""

from configs.mae import finetune


def get_config(variant: str = ""):
    return finetune.get_config(variant)
