"""A small dVAE on built-in 64 px scenes: to see the objective work, not to make a good tokenizer.

python -m beit_jax.main --config configs/dvae/debug.py --workdir runs/dvae_debug  # ":smoke"

Sizes: n_hid 64, one block a group, 512 codes. Lengths and rates are ours; the schedules keep
the paper's order: KL warm-up first, temperature at its end in the middle of the run.
"""

from configs import common
from configs.dvae import paper


def get_config(variant: str = ""):
    _, smoke = common.choose(variant, ("base",))
    config = paper.get_config()
    config.total_steps = 2_000
    config.data.update(name="digit_scenes/multi", global_batch_size=16, image_px=64, crop="none")
    config.model = dict(vocab_size=512, n_hid=64, n_init=16, num_groups=4, blocks_per_group=1)
    config.loss.update(kl_steps=200, tau_steps=1_000)
    config.optim.update(learning_rate=1e-3, min_learning_rate=1e-5, decay_steps=0, ema_decay=0.99)
    config.eval.every_steps = 500
    config.checkpoint.every_steps = 500
    return common.shrink(config) if smoke else config
