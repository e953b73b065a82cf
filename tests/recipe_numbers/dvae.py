"""configs/dvae. Sources: DALL-E (arXiv 2102.12092), Sec. 2.1 and appendix A; openai/DALL-E."""

from recipe_numbers.table import OURS, cite

PAPER = OURS | cite(
    "A.2", total_steps=3_000_000, total_epochs=0.0, data=dict(global_batch_size=512, image_px=256),
    loss=dict(tau_start=1.0, tau_end=1 / 16, tau_steps=150_000),
    optim=dict(name="adamw", learning_rate=1e-4, min_learning_rate=1.25e-6, decay_steps=1_200_000,
               schedule="cosine", warmup_steps=0, warmup_epochs=0.0, b1=0.9, b2=0.999, eps=1e-8,
               weight_decay=1e-4, weight_decay_end=-1.0, clip_norm=0.0, layer_decay=1.0,
               ema_decay=0.999),
) | cite(
    "A.2, listing 1", data=dict(crop="dvae", flip=0.5, color_jitter=0.0, randaugment="")
) | cite(
    "openai/DALL-E issue 8", loss=dict(kl_steps=5_000)
) | cite(
    "Sec. 2.1", loss=dict(likelihood="logit_laplace", kl_weight=6.6)
) | cite(
    "openai/DALL-E dall_e/", model=dict(vocab_size=8192, n_hid=256, n_init=128, num_groups=4,
                                        blocks_per_group=2)
) | cite(
    "openai/DALL-E notebooks/usage.ipynb",
    data=dict(eval_resize="crop", eval_crop_ratio=1.0, interpolation="lanczos3")
) | cite(
    "ours: a bound, and kernels alone, of which the paper is silent",
    loss=dict(ln_b_min=-7.0), optim=dict(decay_rule="kernels")
) | cite("ours", eval=dict(every_steps=25_000), checkpoint=dict(every_steps=5_000))

SHORTER = PAPER | cite(
    "ours", total_steps=250_000, loss=dict(tau_steps=100_000), optim=dict(decay_steps=0),
    eval=dict(every_steps=10_000))

DEBUG = PAPER | cite(
    "ours", total_steps=2_000, data=dict(global_batch_size=16, image_px=64, crop="none"),
    model=dict(vocab_size=512, n_hid=64, n_init=16, num_groups=4, blocks_per_group=1),
    loss=dict(kl_steps=200, tau_steps=1_000),
    optim=dict(learning_rate=1e-3, min_learning_rate=1e-5, decay_steps=0, ema_decay=0.99),
    eval=dict(every_steps=500), checkpoint=dict(every_steps=500))

RECIPES = {("dvae/paper", "base"): PAPER, ("dvae/imagenet_256", "base"): SHORTER,
           ("dvae/debug", "base"): DEBUG}
