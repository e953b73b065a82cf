"""Faults of masked autoencoders, their targets and teachers, and of the dVAE's training."""

from mutations import Mutation

MAE = "tests/tasks/test_mae_wiring.py"
IMG2VEC = "tests/tasks/test_img2vec_wiring.py"
AVERAGE = "tests/tasks/test_self_teacher_wiring.py"
DVAE = "tests/tasks/test_dvae_wiring.py"
SHARED = "tests/tasks/test_masked_prediction.py"
DIVERSITY = "tests/tasks/test_token_diversity.py"
OLD_DVAE = "tests/tasks/test_dvae_train.py"
DVAE_NETWORK = "tests/models/test_dvae.py"
NETWORK = "tests/models/test_masked_autoencoder.py"
TEACHERS = "tests/targets/test_teachers.py"
TARGETS = "tests/targets/test_targets.py"
HOG = "tests/targets/test_hog.py"
GOLDEN_TEACHERS = "tests/golden/test_golden_teachers.py"
GOLDEN_MAE = "tests/golden/test_golden_masked_autoencoder.py"
GOLDEN_RESNET = "tests/golden/test_golden_resnet.py"

OF_MASKS = f"{MAE}::test_six_of_sixteen_patches_of_each_image_are_hidden_and_not_the_same"
OF_LOSS = f"{MAE}::test_the_loss_and_its_metrics_are_those_of_the_hidden_patches"
OF_EVALUATION = (
    f"{MAE}::test_evaluation_sums_over_real_examples_whose_masks_follow_their_numbers")
OF_FEATURES = f"{MAE}::test_features_are_the_mean_patch_of_the_normalised_image"
OF_DROP_PATH = f"{MAE}::test_drop_path_follows_the_key_where_the_masks_do_not"
OF_AVERAGE = (f"{AVERAGE}::"
              "test_the_loss_is_the_distance_of_hidden_patches_to_the_averaged_encoder_s_tokens")
OF_UPDATE = f"{AVERAGE}::test_an_update_moves_the_average_a_quarter_of_the_way_to_the_student"
OF_BOTH = f"{IMG2VEC}::test_the_loss_is_that_of_hidden_patches_and_half_that_of_the_whole_image"
OF_SWITCHES = (f"{IMG2VEC}::test_the_global_loss_may_read_the_last_block_and_aim_at_the_mean_of_"
               "normed_tokens")
OF_CELLS = (f"{IMG2VEC}::"
            "test_the_recipe_predicts_each_hidden_cell_of_the_convolutional_teacher_once")
OF_POOLED = f"{NETWORK}::test_the_pooled_prediction_is_a_perceptron_of_the_mean_visible_patch"
OF_FUSION = f"{NETWORK}::test_fusion_is_what_its_name_says"
OF_CONSTANTS = f"{TEACHERS}::test_every_teacher_normalises_by_its_own_constants"
OF_DVAE = f"{DVAE}::test_the_loss_is_the_density_of_relaxed_codes_and_the_kl_of_plain_ones"
OF_RECONSTRUCTION = f"{DVAE}::test_evaluation_measures_relaxed_and_hard_codes_of_real_examples"
OF_NOISE = f"{DVAE}::test_noise_differs_between_positions_and_examples_and_between_keys"

TASK = "beit_jax/tasks/masked_prediction.py"
IMG2VEC_TASK = "beit_jax/tasks/img2vec_pretrain.py"
SELF_TEACHER = "beit_jax/tasks/self_teacher.py"
FEATURE_TARGETS = "beit_jax/tasks/feature_targets.py"
TEACHER_FEATURES = "beit_jax/tasks/teacher_features.py"
TOKEN_DIVERSITY = "beit_jax/tasks/token_diversity.py"
DVAE_TASK = "beit_jax/tasks/dvae_train.py"
DVAE_LOSSES = "beit_jax/dvae_losses.py"
DVAE_MODEL = "beit_jax/models/dvae.py"
LOSSES = "beit_jax/losses.py"
MODEL = "beit_jax/models/masked_autoencoder.py"
PLAIN_VIT = "beit_jax/models/plain_vit.py"
RESNET = "beit_jax/models/resnet.py"

OF_THE_TASK = (
    Mutation(TASK, "axis=1)  # [b, m, c]", "axis=1)[:, ::-1]",
             "targets in the reverse order", OF_LOSS),
    Mutation(TASK, "tokens, wanted[..., None]", "tokens, jnp.roll(wanted, 1, 1)[..., None]",
             "targets rolled by one", OF_LOSS),
    Mutation(TASK, "tokens, wanted[..., None]", "jnp.roll(tokens, 1, 0), wanted[..., None]",
             "targets of the neighbouring image", OF_LOSS),
    Mutation(TASK, 'normalise_image(batch["image"]), is_masked, mask.num_masked,',
             'normalise_image(batch["image"]), jnp.zeros_like(is_masked), mask.num_masked,',
             "the encoder does not know the mask", OF_MASKS),
    Mutation(TASK, 'normalise_image(batch["image"]), is_masked, mask.num_masked,',
             'batch["image"] / 255.0, is_masked, mask.num_masked,',
             "the input is not normalised", OF_LOSS),
    Mutation(TASK, 'mask.draw(jax.random.split(mask_key, batch["image"].shape[0]), grid)',
             'mask.draw(jnp.broadcast_to(mask_key, batch["image"].shape[:1]), grid)',
             "one mask for all rows", OF_MASKS),
    Mutation(TASK, "mask_key, drop_key = jax.random.split(key)",
             "mask_key, drop_key = jax.random.key(0), key",
             "one mask for all steps", OF_MASKS),
    Mutation(TASK, "is_masked, train=True,", "is_masked, train=False,",
             "drop path is off", OF_DROP_PATH),
    Mutation(TASK, 'rngs={"drop_path": drop_key}', 'rngs={"drop_path": jax.random.key(0)}',
             "drop path is the same at each step", OF_DROP_PATH),
    Mutation(TASK, "jnp.sum(value * weights) for", "jnp.sum(value) for",
             "filler rows count in evaluation", OF_EVALUATION),
    Mutation(TASK, 'mask.draw_for(batch["index"], grid)',
             'mask.draw_for(jnp.arange(batch["index"].size), grid)',
             "masks of evaluation follow the place in the batch", OF_EVALUATION),
    Mutation(TASK, "jnp.mean(tokens[:, 1:], axis=1)", "jnp.mean(tokens, axis=1)",
             "features pool the class token too", OF_FEATURES),
    Mutation(TASK, "rows // repeats * target.grid[1]", "rows // repeats * grid[1]",
             "cells counted in rows of patches",
             f"{SHARED}::test_repeat_gives_every_patch_the_token_it_lies_in"),
    Mutation(TASK, "target.scale(hidden, frozen), pooled, tokens)", "hidden, pooled, tokens)",
             "targets are not scaled", OF_BOTH),
    Mutation(TASK, "target.scale(hidden, frozen), pooled, tokens)",
             "target.scale(hidden, frozen), pooled, hidden)",
             "the global target is the mean of hidden tokens alone", OF_BOTH),
    Mutation(TASK, "jnp.var(values, axis=(0, 1))", "jnp.var(values, axis=1)",
             "the spread is that within an image", OF_LOSS),
    Mutation(IMG2VEC_TASK, "scale(jnp.mean(predicted.tokens, axis=1))",
             "scale(jnp.mean(predicted.tokens[:, :8], axis=1))",
             "the global target is of eight tokens", OF_BOTH),
    Mutation(IMG2VEC_TASK, "scale(jnp.mean(predicted.tokens, axis=1))",
             "jnp.mean(scale(predicted.tokens), axis=1)",
             "normed before pooled, whatever is set", OF_BOTH),
    Mutation(IMG2VEC_TASK, "wanted = jnp.mean(scale(predicted.tokens), axis=1)",
             "wanted = scale(jnp.mean(scale(predicted.tokens), axis=1))",
             "the mean of normed tokens is normed again", OF_SWITCHES),
    Mutation(IMG2VEC_TASK, "loss_patch + rule.global_weight * loss_global",
             "loss_patch + loss_global", "the global loss has its whole weight", OF_BOTH),
    Mutation(IMG2VEC_TASK, "global_source=rule.global_source", 'global_source="fused"',
             "global_source of the config is ignored", OF_SWITCHES),
    Mutation("beit_jax/tasks/mae_pretrain.py", "error(predicted.patches, predicted.target)",
             "error(predicted.patches, predicted.patches)",
             "predictions are compared with themselves", OF_LOSS),
)

OF_TARGETS = (
    Mutation(SELF_TEACHER, "outputs[-blocks:, :, 1:]", "outputs[:blocks, :, 1:]",
             "the self-teacher reads its first blocks", OF_AVERAGE),
    Mutation(SELF_TEACHER, "outputs[-blocks:, :, 1:]", "outputs[-blocks:, :, :-1]",
             "the self-teacher's tokens begin with the class token", OF_AVERAGE),
    Mutation(SELF_TEACHER, "jnp.mean(standardise(patches, _EPSILON), axis=0)",
             "jnp.mean(patches, axis=0)", "no norm before the average of blocks", OF_AVERAGE),
    Mutation(SELF_TEACHER, "stop_gradient(standardise(mean, _EPSILON))", "stop_gradient(mean)",
             "no norm behind the average of blocks", OF_AVERAGE),
    Mutation(SELF_TEACHER, "decay * old + (1.0 - decay) * new",
             "(1.0 - decay) * old + decay * new", "the average forgets what it should keep",
             OF_UPDATE),
    Mutation(SELF_TEACHER, "jax.tree.map(jnp.copy, {", "jax.tree.map(jnp.zeros_like, {",
             "the average begins at zero", OF_UPDATE),
    Mutation(FEATURE_TARGETS, 'normalise_image(batch["image"]),',
             'normalise_image(batch["image"][:, :, ::-1]),',
             "the self-teacher sees a mirrored image", OF_AVERAGE),
    Mutation(FEATURE_TARGETS, 'normalise_image(batch["image"]),', 'batch["image"] / 255.0,',
             "the self-teacher's image is not normalised", OF_AVERAGE),
    Mutation(TEACHER_FEATURES, 'frozen.get("teacher", {}), image01)',
             'frozen.get("teacher", {}), image01[:, :, ::-1])',
             "the teacher sees a mirrored image", OF_BOTH),
    Mutation(TEACHER_FEATURES, 'batch.get("image_for_target", batch["image"])', 'batch["image"]',
             "the teacher sees the student's view", OF_LOSS),
    Mutation(TEACHER_FEATURES, '{"mean": config.data.mean, "std": config.data.std} | fields',
             'fields | {"mean": config.data.mean, "std": config.data.std}',
             "the target's own normalisation is ignored",
             f"{TEACHERS}::test_a_target_without_weights_may_be_normalised_in_its_own_way"),
    Mutation("beit_jax/targets/normalise.py", '(tokens - statistics["mean"])', "tokens",
             "whitened tokens keep their mean", f"{SHARED}::test_scaled_tokens_have_unit_scale"),
    Mutation("beit_jax/targets/pixels.py", "patches.var(axis=-1, keepdims=True, ddof=1)",
             "patches.var(axis=-1, keepdims=True)", "the variance of a patch is the biased one",
             OF_LOSS),
    Mutation("beit_jax/targets/pixels.py", "patch_pixels(self.normalised(image01),",
             "patch_pixels(image01,", "pixels are not normalised by mean and deviation", OF_LOSS),
    Mutation("beit_jax/targets/preprocess.py", "(image01.astype(jnp.float32) -",
             "(image01[..., ::-1].astype(jnp.float32) -", "teachers see BGR", OF_CONSTANTS),
    Mutation("beit_jax/targets/hog.py", "jnp.arctan2(gx, gy)", "jnp.arctan2(gy, gx)",
             "directions are turned by a quarter",
             f"{HOG}::test_histograms_without_a_window"),
    Mutation("beit_jax/targets/hog.py", "/ jnp.pi * BINS", "/ (2.0 * jnp.pi) * BINS",
             "bins of a whole turn", f"{HOG}::test_histograms_without_a_window"),
    Mutation("beit_jax/targets/hog.py", 'mode="reflect"', 'mode="edge"',
             "borders are repeated, not mirrored", f"{HOG}::test_histograms_without_a_window"),
    Mutation("beit_jax/targets/hog.py", "jnp.where(is_bin, length[..., None], 0.0)",
             "jnp.where(is_bin, 1.0, 0.0)", "every pixel has one vote",
             f"{HOG}::test_histograms_without_a_window"),
    Mutation("beit_jax/targets/backbone.py", "stop_gradient(standardise(tokens[:, 1:]))",
             "stop_gradient(tokens[:, 1:])", "a backbone's tokens are not normed",
             f"{TEACHERS}::test_a_backbone_gives_any_of_its_blocks_under_a_norm_without_parameters"),
    Mutation("beit_jax/targets/backbone.py", 'self._network(self.block % self.model["depth"] + 1)',
             'self._network(self.model["depth"])', "a backbone's block is always the last",
             f"{TEACHERS}::test_a_backbone_gives_any_of_its_blocks_under_a_norm_without_parameters"),
    Mutation("beit_jax/targets/vit_teachers.py", "mean, std = preprocess.CLIP",
             "mean, std = preprocess.IMAGENET", "CLIP sees ImageNet's normalisation",
             f"{OF_CONSTANTS}[clip_vitb16]"),
    Mutation("beit_jax/targets/vit_teachers.py", 'image, method="features")[:, 1:]',
             'image, method="encode")[:, 1:]', "MAE as a teacher without its norm",
             f"{OF_CONSTANTS}[mae_vitb16]"),
    Mutation("beit_jax/targets/resnet.py", "grid_map.reshape(", "grid_map.swapaxes(1, 2).reshape(",
             "the ResNet's map is read column by column", OF_CELLS),
)

OF_NETWORKS = (
    Mutation(MODEL, "jnp.mean(source[:, 1:], axis=1)", "source[:, 0]",
             "the global head reads the class token", OF_POOLED),
    Mutation(MODEL, "jnp.mean(source[:, 1:], axis=1)", "jnp.mean(source, axis=1)",
             "the global head pools the class token too", OF_POOLED),
    Mutation(MODEL, 'source = fused if self.global_source == "fused" else last', "source = fused",
             "global_source of the network is ignored", OF_POOLED),
    Mutation(MODEL, "x = linear(jax.nn.relu(x) if i else x)", "x = linear(x)",
             "no ReLU in the global head", OF_POOLED),
    Mutation(MODEL, "jax.lax.stop_gradient(self.decoder_pos_embed)", "self.decoder_pos_embed",
             "the decoder's positions are trained",
             f"{MAE}::test_the_gradient_is_the_slope_of_that_loss_and_reaches_every_trained_leaf"),
    Mutation(MODEL, "*reversed(order))", "*order)", "patches do not go back to their places",
             f"{GOLDEN_MAE}::test_visible_tokens_and_predictions"),
    Mutation(MODEL, "self.fusion_blocks or range(self.depth)", "range(self.depth)",
             "fusion_blocks is ignored", OF_FUSION),
    Mutation(MODEL, 'mix="norm" if self.fusion == "mean_norm" else "raw"', 'mix="raw"',
             "mean_norm is mean", OF_FUSION),
    Mutation(MODEL, "self.fuse(self.embed(image))[0]", "self.fuse(self.embed(image))[1]",
             "features are those of the last block", OF_FUSION),
    Mutation(MODEL, "cells = jnp.mean(cells, axis=(2, 4))", "cells = cells[:, :, 0, :, 0]",
             "one patch stands for its cell",
             f"{NETWORK}::test_pooling_before_the_linear_head_equals_pooling_behind_it"),
    Mutation(MODEL, "jnp.argsort(is_masked, axis=1, stable=True)",
             "jnp.argsort(~is_masked, axis=1, stable=True)", "the encoder sees what is hidden",
             f"{NETWORK}::test_hidden_pixels_do_not_reach_any_prediction[mae]"),
    Mutation(MODEL, "visible], axis=1), train)", "visible], axis=1))",
             "the encoder drops no paths",
             f"{NETWORK}::test_only_the_encoder_drops_paths_and_only_in_training"),
    Mutation(MODEL, "self.run(self.decoder_blocks, self.decoder_depth, x)",
             "self.run(self.decoder_blocks, self.decoder_depth, x, train=True)",
             "the decoder drops paths",
             f"{NETWORK}::test_only_the_encoder_drops_paths_and_only_in_training"),
    Mutation(MODEL, "return permute(x, order, back), back", "return permute(x, order, back), order",
             "gradients of patches come from other places",
             f"{NETWORK}::test_permuting_there_and_back_changes_nothing_and_gradients_follow"),
    Mutation(PLAIN_VIT, "x[..., 1 + self.num_registers:, :]", "x[..., 1:-self.num_registers, :]",
             "registers stand for patches",
             f"{TEACHERS}::test_registers_have_no_place_and_speak_through_attention_alone"),
    Mutation(PLAIN_VIT, "x = self.pre_norm(x)", "self.pre_norm(x)",
             "CLIP without the norm before its blocks",
             f"{GOLDEN_TEACHERS}::test_clip_tokens_and_image_embedding"),
    Mutation(RESNET, "padding=symmetric(kernel_size),", 'padding="SAME",',
             "convolutions pad one side more",
             f"{GOLDEN_RESNET}::test_every_stage_of_a_narrow_resnet"),
    Mutation(RESNET, "return jax.nn.relu(y + shortcut)", "return y + shortcut",
             "no ReLU behind the shortcut",
             f"{GOLDEN_RESNET}::test_every_stage_of_a_narrow_resnet"),
)

OF_THE_DVAE = (
    Mutation(DVAE_TASK, "losses.kl_to_uniform(logits))\n", "losses.kl_to_uniform(logits / tau))\n",
             "the KL is that of the tempered softmax", OF_DVAE),
    Mutation(DVAE_TASK, "losses.relax(logits, losses.gumbel(uniform), tau)",
             "losses.relax(logits, losses.gumbel(uniform), 1.0)",
             "the temperature is not used", OF_DVAE),
    Mutation(DVAE_TASK, "losses.relax(logits, losses.gumbel(uniform), tau)",
             "losses.relax(logits, 0.0, tau)", "no noise", OF_DVAE),
    Mutation(DVAE_TASK, "relaxed, method=\"decode\")",
             "jax.nn.one_hot(jnp.argmax(relaxed, -1), model.vocab_size), method=\"decode\")",
             "hard codes in training: the encoder learns nothing", OF_DVAE),
    Mutation(DVAE_TASK, "rule.tau_start, rule.tau_end, rule.tau_steps",
             "rule.tau_start, rule.tau_end, rule.kl_steps",
             "the temperature falls as fast as the KL's weight rises", OF_DVAE),
    Mutation(DVAE_TASK, "losses.half_cosine(step, 0.0, rule.kl_weight, rule.kl_steps)",
             "jnp.float32(rule.kl_weight)", "the KL has its whole weight from the start", OF_DVAE),
    Mutation(DVAE_TASK, "jax.random.uniform(key, _logits_shape(mapped.shape, model))",
             "jnp.broadcast_to(jax.random.uniform(key, (model.vocab_size,)), "
             "_logits_shape(mapped.shape, model))", "one noise for all positions", OF_NOISE),
    Mutation(DVAE_TASK, 'fold_in(key, index))(batch["index"])',
             'fold_in(key, index))(jnp.arange(batch["index"].size))',
             "noise of evaluation follows the place in the batch", OF_NOISE),
    Mutation(DVAE_TASK, "codes = jnp.argmax(logits, -1)", "codes = jnp.argmax(relaxed, -1)",
             "codes are drawn, not the likeliest", OF_RECONSTRUCTION),
    Mutation(DVAE_TASK, "_code_counts(codes, model.vocab_size, is_example)",
             "_code_counts(codes, model.vocab_size)", "codes of filler rows are counted",
             OF_RECONSTRUCTION),
    Mutation(DVAE_LOSSES, "kl_weight / (3 * downsampling**2)", "kl_weight / downsampling**2",
             "the KL weighs three times as much", OF_DVAE),
    Mutation(DVAE_LOSSES, "(1 + jnp.cos(jnp.pi * progress)) / 2", "jnp.cos(jnp.pi / 2 * progress)",
             "schedules along a quarter of a cosine", f"{OLD_DVAE}::test_schedules_of_the_paper"),
    Mutation(DVAE_LOSSES, "+ ln_b + log_volume +", "+ ln_b - log_volume +",
             "the density's volume has the wrong sign", f"{OLD_DVAE}::test_logit_laplace"),
    Mutation(DVAE_MODEL, "if g + 1 < self.num_groups:  # the last", "if True:  # the last",
             "the last group pools too", f"{DVAE_NETWORK}::test_fewer_groups_make_a_finer_grid"),
    Mutation(DVAE_MODEL, 'name="conv")(jax.nn.relu(x))', 'name="conv")(x)',
             "no ReLU before the output",
             f"{DVAE_NETWORK}::test_small_decoder_gives_the_numbers_of_the_original"),
)

OF_OTHERS = (
    Mutation(LOSSES, "distance - 0.5 * beta)", "distance - 0.5)", "smooth-l1 jumps at beta",
             f"{SHARED}::test_smooth_l1_and_its_gradient"),
    Mutation(LOSSES, "0.5 / beta * jnp.square(distance)", "0.5 * jnp.square(distance)",
             "smooth-l1 has the parabola of beta 1", f"{SHARED}::test_smooth_l1_and_its_gradient"),
    Mutation(LOSSES, "jnp.sum(to_unit(predicted) * to_unit(target)",
             "jnp.sum(predicted * to_unit(target)", "the cosine's prediction has any length",
             OF_LOSS),
    Mutation(LOSSES, "jnp.mean(jnp.square(predicted", "jnp.sum(jnp.square(predicted",
             "squares are summed over channels", OF_LOSS),
    Mutation(TOKEN_DIVERSITY, "share * (1.0 - share) * step ** 2", "0.0",
             "variance between batches is lost",
             f"{DIVERSITY}::test_variance_of_channels_far_from_zero_keeps_its_digits"),
    Mutation(TOKEN_DIVERSITY, 'tokens - variables["statistics"]["mean"]',
             "tokens - jnp.mean(tokens, axis=(0, 1))", "tokens are centred by their own batch",
             f"{DIVERSITY}::test_evaluation_measures_raw_centred_and_pooled_tokens_of_each_image_"
             "once"),
    Mutation(TOKEN_DIVERSITY, "jnp.where(is_example, value, 0.0)", "value",
             "filler rows are measured",
             f"{DIVERSITY}::test_evaluation_measures_raw_centred_and_pooled_tokens_of_each_image_"
             "once"),
    Mutation(TOKEN_DIVERSITY, "max(count - 1.0, 1.0)", "max(count, 1.0)",
             "the standard error is that of the biased variance",
             f"{DIVERSITY}::test_evaluation_measures_raw_centred_and_pooled_tokens_of_each_image_"
             "once"),
    Mutation(TOKEN_DIVERSITY, "jnp.where(jnp.isfinite(similarity), 0.0, jnp.nan)",
             "0.0 * jnp.ones(())", "a broken teacher is measured to the end",
             f"{DIVERSITY}::test_a_teacher_whose_features_are_no_numbers_gives_a_loss_that_stops_"
             "the_run"),
)

MUTATIONS = (*OF_THE_TASK, *OF_TARGETS, *OF_NETWORKS, *OF_THE_DVAE, *OF_OTHERS)
