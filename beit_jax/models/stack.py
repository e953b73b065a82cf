"""Blocks behind each other as one scan: parameters bear a leading layer axis."""

import flax.linen as nn
import jax

REMAT_POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}
_UNROLLED_BLOCKS = 12  # a flat program is faster up to here, and compiles much slower beyond


def scanned(block, length: int, shared: int, *, static: tuple[int, ...], unroll: int, remat: str):
    """The class of a stack of `length` blocks.

    Args:
      block: linen module; its first argument is carried on, its second one holds arrays [length].
      shared: how many further arguments all blocks get alike.
      static: numbers of arguments that are no arrays; the module itself counts as 0.
      unroll: blocks per step of the compiled scan; 0: all, up to 12 blocks.
      remat: what the backward pass recomputes: "none", "dots" (all but matrix products), "full".
    Raises: ValueError: an unknown remat.
    """
    if remat != "none":
        if remat not in REMAT_POLICIES:
            raise ValueError(f"model.remat={remat!r} is none of none, {', '.join(REMAT_POLICIES)}")
        block = nn.remat(block, prevent_cse=False, static_argnums=static,
                         policy=REMAT_POLICIES[remat])
    return nn.scan(block, variable_axes={"params": 0}, length=length,
                   unroll=unroll or (length if length <= _UNROLLED_BLOCKS else 1),
                   split_rngs={"params": True, "drop_path": True},
                   in_axes=(0, *[nn.broadcast] * shared))
