"""The discrete VAE of DALL-E as published, on ImageNet-1k instead of 250 M text-image pairs.

python -m beit_jax.main --config configs/dvae/paper.py --workdir runs/dvae  # CPU: ":smoke"

The published run took 64 GPUs for 3,000,000 updates; nobody has run this file to its end. The EMA
weights of the run are the tokenizer: give its workdir as config.target.checkpoint.
Source: DALL-E (arXiv 2102.12092), Sec. 2.1 and appendix A.2; openai/DALL-E issue 8 (KL warm-up).
Where the paper is silent, and so ours: half cosines and no decay of biases.
"""

from configs import common

SIZE = dict(vocab_size=8192, n_hid=256, n_init=128, num_groups=4, blocks_per_group=2)  # dall_e/


def get_config(variant: str = ""):
    _, smoke = common.choose(variant, ("base",))
    config = common.base()
    config.task = "dvae_train"
    config.total_steps = 3_000_000  # A.2
    config.data.update(
        name="imagenet2012",
        global_batch_size=512,  # A.2: 64 GPUs x 8
        image_px=256,
        crop="dvae",  # listing 1
        eval_crop_ratio=1.0,  # the notebook of openai/DALL-E: short side to 256, centre crop
        interpolation="lanczos3",  # the same notebook
    )
    config.model = dict(SIZE)
    config.loss = dict(
        likelihood="logit_laplace",  # Sec. 2.1, A.3
        kl_weight=6.6, kl_steps=5_000,  # Sec. 2.1; issue 8
        tau_start=1.0, tau_end=1 / 16, tau_steps=150_000,  # A.2
        ln_b_min=-7.0,  # ours: the density has no upper bound
    )
    config.optim.update(
        learning_rate=1e-4, min_learning_rate=1.25e-6, decay_steps=1_200_000,  # A.2
        b1=0.9, b2=0.999, eps=1e-8, weight_decay=1e-4,  # A.2
        decay_rule="kernels",  # ours: the paper does not say what is decayed
        ema_decay=0.999,  # A.2
    )
    config.eval.every_steps = 25_000
    config.checkpoint.every_steps = 5_000
    return common.shrink(config) if smoke else config
