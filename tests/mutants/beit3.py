"""Faults of BEiT-3: its tasks, networks, text masks, and the measures of captions, answers, recall.
"""

from mutations import Mutation

_PRETRAIN = "beit_jax/tasks/beit3_pretrain.py"
_CAPTIONING = "beit_jax/tasks/captioning.py"
_VQA = "beit_jax/tasks/vqa.py"
_NLVR2 = "beit_jax/tasks/nlvr2.py"
_RETRIEVAL = "beit_jax/tasks/retrieval.py"
_IMAGE_TEXT = "beit_jax/tasks/image_text.py"
_STREAMS = "beit_jax/tasks/streams.py"
_MASKING = "beit_jax/text_masking.py"
_NETWORK = "beit_jax/models/beit3.py"
_HEADS = "beit_jax/models/beit3_heads.py"
_MULTIWAY = "beit_jax/models/multiway.py"
_BEAMS = "beit_jax/models/beam_search.py"
_WORDS = "beit_jax/caption_metrics.py"
_ANSWERS = "beit_jax/vqa_metrics.py"
_RECALL = "beit_jax/retrieval_metrics.py"
_LOSSES = "beit_jax/losses.py"

_OF_PRETRAIN = "tests/tasks/test_beit3_pretrain_wiring.py"
_OLD_PRETRAIN = "tests/tasks/test_beit3_pretrain.py"
_OF_CAPTIONING = "tests/tasks/test_captioning_wiring.py"
_OF_VQA = "tests/tasks/test_vqa_wiring.py"
_OF_NLVR2 = "tests/tasks/test_nlvr2_wiring.py"
_OF_RETRIEVAL = "tests/tasks/test_retrieval_wiring.py"
_OF_TASKS = "tests/tasks/test_beit3_tasks.py"
_OF_MASKING = "tests/test_text_masking.py"
_OF_NETWORK = "tests/models/test_beit3.py"
_OF_BEAMS = "tests/models/test_beam_search.py"
_OF_SPEC = "tests/golden/test_beit3_spec.py"
_GOLDEN = "tests/golden/test_golden_beit3.py"
_GOLDEN_HEADS = "tests/golden/test_beit3_heads.py"

_SUM = f"{_OF_PRETRAIN}::test_the_loss_is_that_of_what_is_hidden_alone_each_place_against_its_own" \
    "_target"
_ADDED_UP = f"{_OF_PRETRAIN}::test_evaluation_adds_up_what_is_hidden_in_examples"
_MISMATCHED = f"{_OF_PRETRAIN}::test_a_mismatched_pair_is_an_image_with_the_text_of_the_row_before"
_PATCHES = f"{_OF_PRETRAIN}::test_patches_are_hidden_in_images_and_in_pairs_and_no_two_masks_are" \
    "_alike"
_HIDDEN_WORDS = f"{_OF_PRETRAIN}::test_words_are_hidden_in_texts_and_in_pairs_and_shown_as_the_mask"
_STEPS = f"{_OF_PRETRAIN}::test_masks_differ_from_step_to_step_and_a_step_can_be_drawn_again"
_DROPPED = "::test_branches_are_dropped"

_TASKS = (
    Mutation(_PRETRAIN, 'normalise(batch["image"]), is_masked, slots,',
             'normalise(batch["image"]), None, slots,', "images are fed unmasked",
             f"{_OF_PRETRAIN}::test_pixels_of_hidden_patches_and_padding_do_not_matter_and_visible"
             "_pixels_do"),
    Mutation(_PRETRAIN, "hidden.text, is_valid, is_masked, slots,",
             "hidden.text, is_valid, jnp.zeros_like(is_masked), slots,",
             "images of pairs are fed unmasked", _PATCHES),
    Mutation(_PRETRAIN, "{\"params\": params}, hidden.text, is_valid, hidden.positions,",
             "{\"params\": params}, text, is_valid, hidden.positions,", "texts are fed unhidden",
             _HIDDEN_WORDS),
    Mutation(_PRETRAIN, 'normalise(batch["image"]), hidden.text,',
             'normalise(batch["image"]), text,', "words of pairs are fed unhidden", _HIDDEN_WORDS),
    Mutation(_PRETRAIN, '{"image": Prediction(logits, tokens.codes(frozen, batch, slots), counts)}',
             '{"image": Prediction(logits, jnp.roll(tokens.codes(frozen, batch, slots), 1, axis=1),'
             ' counts)}', "codes of images are rolled by a slot", _SUM),
    Mutation(_PRETRAIN, '{"image": Prediction(logits, tokens.codes(frozen, batch, slots), counts)}',
             '{"image": Prediction(logits, tokens.codes(frozen, {"image": batch["image"]}, slots),'
             ' counts)}', "the tokenizer reads the view of the network", _SUM),
    Mutation(_PRETRAIN, "Prediction(patches, tokens.codes(frozen, batch, slots), counts)",
             "Prediction(patches, tokens.codes(frozen, batch, slots)[::-1], counts)",
             "codes of pairs are those of other rows", _SUM),
    Mutation(_PRETRAIN, "Prediction(logits, hidden.codes, hidden.is_hidden)",
             "Prediction(logits, hidden.codes[:, ::-1], hidden.is_hidden)",
             "words of texts are asked in reverse", _SUM),
    Mutation(_PRETRAIN, "Prediction(words, hidden.codes, hidden.is_hidden)",
             "Prediction(words, jnp.take_along_axis(hidden.text, hidden.positions, axis=1),"
             " hidden.is_hidden)", "words of pairs are asked as they are shown", _SUM),
    Mutation(_PRETRAIN, "masking.masked_positions(is_masked, patch_mask.num_masked)",
             "masking.masked_positions(~is_masked, patch_mask.num_masked)",
             "visible patches are predicted", _SUM),
    Mutation(_PRETRAIN, 'jax.random.split(row_key, batch[name]["index"].shape[0])',
             'jax.random.split(row_key, 1)[0 * batch[name]["index"]]', "one mask for all rows",
             _PATCHES),
    Mutation(_PRETRAIN, "keys = jax.random.split(row_key,",
             "keys = jax.random.split(jax.random.key(0),", "one mask for all steps", _STEPS),
    Mutation(_PRETRAIN, "train=True,", "train=False,", "no drop path in pre-training",
             f"{_OF_PRETRAIN}::test_branches_are_dropped_in_every_stream"),
    Mutation(_PRETRAIN, "losses.weighted_mean(values, prediction.counts)", "jnp.mean(values)",
             "empty slots count in the loss", _SUM),
    Mutation(_PRETRAIN, 'getattr(rule, part) * parts[f"loss_{part}"]', 'parts[f"loss_{part}"]',
             "weights of losses are ignored", _SUM),
    Mutation(_PRETRAIN, "jnp.argmax(prediction.logits, axis=-1)",
             "jnp.argmax(prediction.logits[..., 1:], axis=-1)", "guesses are numbered from one",
             _ADDED_UP),
    Mutation(_PRETRAIN, "weights = (prediction.counts & is_example[:, None]).astype(jnp.float32)",
             "weights = prediction.counts.astype(jnp.float32)", "fillers count in evaluation",
             _ADDED_UP),
    Mutation(_PRETRAIN, "weights = (prediction.counts & is_example[:, None]).astype(jnp.float32)",
             "weights = jnp.ones_like(prediction.logits[..., 0]) * is_example[:, None]",
             "empty slots count in evaluation", _ADDED_UP),
    Mutation(_PRETRAIN, 'weights = found["image"].counts & rows["is_example"][:, None]',
             'weights = found["image"].counts', "the use of codes counts fillers", _ADDED_UP),
    Mutation(_PRETRAIN, 'total = sum(getattr(rule, part) * found.get(f"loss_{part}", 0.0)',
             'total = sum(found.get(f"loss_{part}", 0.0)', "the sum of evaluation has no weights",
             _ADDED_UP),
    Mutation(_PRETRAIN, 'hide_words(keys, text, is_valid, **vars(text_mask))',
             'hide_words(keys, text, is_valid, **vars(pair_mask))',
             "texts are hidden as those of pairs", _HIDDEN_WORDS),
    Mutation(_PRETRAIN, "jnp.roll(each, shift, axis=0)", "jnp.roll(each, 0, axis=0)",
             "a mismatched pair is a matched one", _MISMATCHED),
    Mutation(_PRETRAIN, 'rows["is_example"] & jnp.roll(rows["is_example"], 1)',
             'rows["is_example"]', "the text of a filler counts", _MISMATCHED),
    Mutation(_PRETRAIN, 'masking.keys_of(rows["index"])',
             'masking.keys_of(jnp.arange(rows["index"].shape[0]))',
             "masks of evaluation depend on the place in the batch",
             f"{_OF_PRETRAIN}::test_evaluation_sees_neither_fillers_nor_the_order_of_rows"),
    Mutation(_PRETRAIN, "else batch[key][:, 0]", "else batch[key][:, -1]",
             "evaluation takes the last caption",
             f"{_OLD_PRETRAIN}::test_of_several_captions_evaluation_takes_the_first"),
    Mutation(_STREAMS, "total, metrics = total + loss, metrics | more",
             "total, metrics = loss, metrics | more", "the last stream alone is trained", _SUM),
    Mutation(_STREAMS, "(leaf * of_loss).astype", "leaf.astype",
             "the gradient of a stream does not follow what comes after",
             f"{_OLD_PRETRAIN}::test_the_gradient_is_taken_with_the_value_and_scales_with_what"
             "_follows"),

    Mutation(_CAPTIONING, "image, hidden.text, is_valid, hidden.positions,",
             "image, ids, is_valid, hidden.positions,", "captions are fed unhidden",
             f"{_OF_CAPTIONING}::test_words_are_hidden_and_mostly_shown_as_the_mask"),
    Mutation(_CAPTIONING, "jax.random.split(mask_key, ids.shape[0])",
             "jax.random.split(mask_key, 1)[jnp.zeros(ids.shape[0], int)]",
             "one mask for all captions",
             f"{_OF_CAPTIONING}::test_masks_differ_from_row_to_row_and_from_step_to_step"),
    Mutation(_CAPTIONING, "mask_key, drop_key = jax.random.split(key)",
             "mask_key, drop_key = jax.random.key(0), key", "one mask of captions for all steps",
             f"{_OF_CAPTIONING}::test_masks_differ_from_row_to_row_and_from_step_to_step"),
    Mutation(_CAPTIONING, "train=True,", "train=False,", "no drop path in captioning",
             _OF_CAPTIONING + _DROPPED),
    Mutation(_CAPTIONING, "total = losses.weighted_mean(errors, hidden.is_hidden)",
             "total = jnp.mean(errors)", "empty slots count in captioning",
             f"{_OF_CAPTIONING}::test_the_loss_is_the_divergence_of_hidden_words_alone"),
    Mutation(_CAPTIONING, "losses.weighted_mean(is_correct, hidden.is_hidden)",
             "jnp.mean(is_correct)", "empty slots count in the accuracy of captioning",
             f"{_OF_CAPTIONING}::test_the_loss_is_the_divergence_of_hidden_words_alone"),
    Mutation(_CAPTIONING, "losses.smoothed_divergence(logits, hidden.codes,",
             "losses.smoothed_divergence(logits, hidden.codes[:, ::-1],",
             "words of captions are asked in reverse",
             f"{_OF_CAPTIONING}::test_the_loss_is_the_divergence_of_hidden_words_alone"),
    Mutation(_CAPTIONING, "hidden.codes, rule.label_smoothing)", "hidden.codes, 0.0)",
             "labels of captions are not smoothed",
             f"{_OF_CAPTIONING}::test_the_loss_is_the_divergence_of_hidden_words_alone"),
    Mutation(_CAPTIONING, "1.0 - rule.drop_worst)", "rule.drop_worst)",
             "four fifths of the words are dropped",
             f"{_OF_CAPTIONING}::test_late_in_training_a_fifth_of_the_hidden_words_counts_nothing"
             "_the_worst"),
    Mutation(_CAPTIONING, '["step"] > rule.drop_worst_after', '["step"] >= rule.drop_worst_after',
             "words are dropped a step early",
             f"{_OF_CAPTIONING}::test_late_in_training_a_fifth_of_the_hidden_words_counts_nothing"
             "_the_worst"),

    Mutation(_VQA, "train=True,", "train=False,", "no drop path in question answering",
             _OF_VQA + _DROPPED),
    Mutation(_VQA, "total = jnp.mean(losses.binary_cross_entropy(logits, target))",
             "total = jnp.mean(losses.binary_cross_entropy(logits, target)) / model.num_classes",
             "the loss is the mean over answers",
             f"{_OF_VQA}::test_the_loss_is_summed_over_answers_and_averaged_over_questions"),
    Mutation(_VQA, 'jnp.sum(is_answer * batch["answer_scores"][..., None], axis=1)',
             "jnp.sum(is_answer, axis=1)", "every listed answer is wholly right",
             f"{_OF_VQA}::test_the_loss_is_summed_over_answers_and_averaged_over_questions"),
    Mutation(_VQA, 'jax.nn.one_hot(batch["answer_labels"], model.num_classes)',
             'jax.nn.one_hot(batch["answer_labels"] % model.num_classes, model.num_classes)',
             "no answer stands for the last one",
             f"{_OF_VQA}::test_answers_that_are_not_listed_and_padding_do_not_matter"),
    Mutation(_VQA, 'batch["answer_labels"] >= 0, axis=-1)', 'batch["answer_labels"] > 0, axis=-1)',
             "the first answer is none",
             f"{_OF_TASKS}::test_learns_one_batch_and_the_judge_sees_it[vqa] "
             f"{_OF_VQA}::test_evaluation_gives_rows_of_the_network_without_dropped_branches"),

    Mutation(_NLVR2, "train=True,", "train=False,", "no drop path in NLVR2",
             _OF_NLVR2 + _DROPPED),
    Mutation(_NLVR2, "total = losses.weighted_mean(errors, is_labelled)",
             "total = jnp.mean(errors)", "sentences without a label count",
             f"{_OF_NLVR2}::test_the_loss_is_the_mean_over_sentences_with_a_label"),
    Mutation(_NLVR2, "accuracy = losses.weighted_mean(is_correct, is_labelled)",
             "accuracy = jnp.mean(is_correct)", "sentences without a label count as false",
             f"{_OF_NLVR2}::test_the_loss_is_the_mean_over_sentences_with_a_label"),
    Mutation(_NLVR2, "jnp.argmax(logits, axis=-1) == 1", "jnp.argmax(logits, axis=-1) == 0",
             "predictions are handed in reversed",
             f"{_OF_NLVR2}::test_evaluation_gives_rows_and_both_images_count_in_their_order"),

    Mutation(_RETRIEVAL, "train=True,", "train=False,", "no drop path in retrieval",
             _OF_RETRIEVAL + _DROPPED),
    Mutation(_RETRIEVAL, "losses.contrastive(image, text, factor)",
             "losses.contrastive(image, text, 1.0)", "the factor is not in the loss",
             f"{_OF_RETRIEVAL}::test_each_image_finds_its_text_and_each_text_its_image_among_all"
             "_of_the_batch"),
    Mutation(_RETRIEVAL, "ids.reshape(b * r, length)",
             "ids.swapaxes(0, 1).reshape(b * r, length)", "captions go to other images",
             f"{_OF_RETRIEVAL}::test_evaluation_gives_a_vector_of_each_image_and_of_each_of_its"
             "_texts"),
    Mutation(_RETRIEVAL, "jnp.any(is_valid, axis=-1)}", "jnp.all(is_valid, axis=-1)}",
             "short captions are none",
             f"{_OF_RETRIEVAL}::test_evaluation_gives_a_vector_of_each_image_and_of_each_of_its"
             "_texts"),
    Mutation(_IMAGE_TEXT, 'augment.normalise(batch["image"], mean, std)',
             'augment.normalise(batch["image"], std, mean)', "mean and deviation are exchanged",
             f"{_OF_NLVR2}::test_the_loss_is_the_mean_over_sentences_with_a_label"),
    Mutation(_IMAGE_TEXT, 'np.argsort(rows["index"], kind="stable")',
             'np.arange(len(rows["index"]))', "rows are judged in the order in which they came",
             f"{_OF_TASKS}::test_retrieval_judge_of_folds"),
)

_NETWORKS = (
    Mutation(_NETWORK, "(index <= index[:, None]) & ", "(index < index[:, None]) & ",
             "a word does not see itself in generation",
             f"{_GOLDEN}::test_the_mask_of_generation"),
    Mutation(_NETWORK, "return (index < num_image) |", "return (index >= 0) |",
             "words see later ones in generation",
             f"{_OF_NETWORK}::test_generation_sees_no_later_text_and_its_image_no_text"),
    Mutation(_NETWORK, "POSITION_OFFSET = 2  #", "POSITION_OFFSET = 1  #",
             "positions begin a row early", _OF_SPEC),
    Mutation(_NETWORK, "jnp.linspace(0.0, self.drop_path_rate, self.depth)",
             "jnp.full(self.depth, self.drop_path_rate)", "all blocks drop alike",
             f"{_OF_NETWORK}::test_samples_are_dropped_whole_and_never_by_the_first_block"),
    Mutation(_NETWORK, "return self.run(x, 0, is_valid[:, None, None, :], train=train)[0]",
             "return self.run(x, 0, train=train)[0]", "texts see their padding",
             f"{_OF_SPEC}::test_tokens_that_are_no_padding"),
    Mutation(_NETWORK, '(("VL", 0, n),) if is_pair else spans', "spans",
             "the expert for pairs is idle",
             f"{_OF_NETWORK}::test_top_blocks_of_the_papers_layout_serve_pairs_by_one_expert"),
    Mutation(_NETWORK, 'x = self.place(self.embed_text(ids), "B", index)',
             'x = self.place(self.embed_text(ids), "B")', "every word is generated as the first",
             f"{_OF_NETWORK}::test_decoding_with_a_cache_equals_full_decoding[released]"),
    Mutation(_NETWORK, "may_attend = jnp.arange(cache.key.shape[2]) <= last[:, None]",
             "may_attend = jnp.arange(cache.key.shape[2]) <= last[-1]",
             "the word sees the mask behind it",
             f"{_OF_NETWORK}::test_decoding_with_a_cache_equals_full_decoding[released]"),
    Mutation("beit_jax/models/beit3_embed.py", "jnp.where(is_masked[..., None], mask_token, x)",
             "jnp.where(is_masked[..., None], x, mask_token)", "visible patches are masked",
             f"{_OF_NETWORK}::test_padding_and_hidden_patches_do_not_matter"),
    Mutation(_MULTIWAY, "times(1.0 / jnp.sqrt(2.0 * (index + 1)))",
             "times(1.0 / jnp.sqrt(2.0 * depth))", "all blocks start like the last",
             f"{_OF_NETWORK}::test_initial_values[beit]"),
    Mutation(_MULTIWAY, "math.sqrt(math.log(2 * depth))", "math.sqrt(math.log(depth))",
             "Magneto's gain is that of half the depth",
             f"{_OF_NETWORK}::test_initial_values[magneto]"),
    Mutation(_MULTIWAY, "branch = layers.drop_path(branch, rate, self.make_rng(\"drop_path\"))",
             "branch = layers.drop_path(branch, rate, jax.random.key(0))",
             "both branches of a block are dropped together",
             f"{_OF_NETWORK}::test_images_and_texts_of_a_sample_share_the_draw"),
    Mutation(_HEADS, "jnp.repeat(each, 2, axis=0) for each in (ids, is_valid)",
             "jnp.tile(each, (2, 1)) for each in (ids, is_valid)",
             "sentences meet the images of others", f"{_OF_SPEC}::test_two_images_and_a_sentence"),
    Mutation(_HEADS, "self.mim_head(select(x[:, 1:num_image], patches))",
             "self.mim_head(select(x[:, :num_image - 1], patches))",
             "each patch of a pair is predicted from the one before",
             f"{_OF_SPEC}::test_pretraining"),
    Mutation(_HEADS, "jnp.exp(self.logit_scale))", "self.logit_scale)",
             "the factor is its own logarithm", f"{_OF_SPEC}::test_retrieval"),
    Mutation(_HEADS, "return to_unit(self.language_head(self.read(x, is_valid)))",
             "return self.language_head(self.read(x, is_valid))", "texts are no unit vectors",
             f"{_OF_SPEC}::test_retrieval"),
    Mutation(_HEADS, "return self.fc_norm(jnp.mean(x[:, 1:], axis=1))",
             "return self.fc_norm(jnp.mean(x, axis=1))", "the class token is in the mean",
             f"{_OF_SPEC}::test_classification"),
    Mutation(_HEADS, "return self.mlm_head(x[:, 1]), cache", "return self.mlm_head(x[:, 0]), cache",
             "the next word is read from the last one, not from the mask",
             f"{_GOLDEN_HEADS}::test_decoding_with_a_cache_equals_the_original_and_full_decoding"),
    Mutation(_HEADS, "return jnp.tanh(layers.Linear(x.shape[-1]",
             "return (layers.Linear(x.shape[-1]", "the pooler has no tanh",
             f"{_OF_SPEC}::test_question_answering"),

    Mutation(_BEAMS, "best_score >= top[:, 0] / (max_length - 1)**length_penalty)",
             "best_score >= top[:, 0] / length**length_penalty)",
             "beam search stops by the current length",
             f"{_OF_BEAMS}::test_a_search_goes_on_while_a_longer_sentence_can_still_be_better"),
    Mutation(_BEAMS, "length = state.index + 2", "length = state.index + 1",
             "the mask is no part of the length",
             f"{_OF_BEAMS}::test_a_wide_search_finds_the_best_sentence"),
    Mutation(_BEAMS, "jnp.cumsum(goes_on, axis=1) < beams", "jnp.cumsum(goes_on, axis=1) >= 0",
             "ends count that come after all beams are filled",
             f"{_OF_BEAMS}::test_an_end_behind_a_full_set_of_beams_is_not_taken"),
    Mutation(_BEAMS, "lambda leaf: jnp.take(leaf, flat, axis=1)", "lambda leaf: leaf",
             "beams keep the memory of others",
             f"{_OF_BEAMS}::test_the_memory_of_a_beam_moves_with_it"),
    Mutation(_BEAMS, "~jnp.all(state.is_done)", "~jnp.any(state.is_done)",
             "the first image that is done ends the others",
             f"{_OF_BEAMS}::test_an_image_that_is_done_waits_for_the_others_and_keeps_its_sentence"),
    Mutation(_BEAMS, "jnp.where(is_better, state.index, state.best_length)",
             "jnp.where(is_better, state.index + 1, state.best_length)",
             "a sentence is a word too long", _OF_BEAMS),
    Mutation(_LOSSES, "cross_entropy(logits, pairs) + cross_entropy(logits.T, pairs)",
             "cross_entropy(logits, pairs) + cross_entropy(logits, pairs)",
             "texts do not look for their images",
             f"{_OF_RETRIEVAL}::test_each_image_finds_its_text_and_each_text_its_image_among_all"
             "_of_the_batch"),
    Mutation(_LOSSES, "others = smoothing / (logits.shape[-1] - 1)",
             "others = smoothing / logits.shape[-1]", "smoothed targets do not add up to one",
             f"{_OF_CAPTIONING}::test_the_loss_is_the_divergence_of_hidden_words_alone"),
    Mutation(_LOSSES, "kept = jnp.maximum(jnp.floor(share * n), 1)",
             "kept = jnp.maximum(jnp.floor(share * flat.size), 1)",
             "the share of the worst is taken of all slots",
             f"{_OF_CAPTIONING}::test_late_in_training_a_fifth_of_the_hidden_words_counts_nothing"
             "_the_worst"),
)

_TEXTS = (
    Mutation(_MASKING, "is_hidden = jnp.arange(slots) < table[n]",
             "is_hidden = jnp.arange(slots) <= table[n]", "a word too many is hidden",
             f"{_OF_MASKING}::test_how_many_are_hidden_of_how_many_by_hand"),
    Mutation(_MASKING, "return math.floor(value + 0.5)", "return round(value)",
             "halves are rounded to even numbers",
             f"{_OF_MASKING}::test_how_many_are_hidden_of_how_many_by_hand"),
    Mutation(_MASKING, "min(max(_rounded(rate * n), 1), n)", "min(_rounded(rate * n), n)",
             "short texts hide nothing",
             f"{_OF_MASKING}::test_how_many_are_hidden_of_how_many_by_hand"),
    Mutation(_MASKING, "_rounded(rate * (n + 1))", "_rounded(rate * n)",
             "<s> is no token of a caption",
             f"{_OF_MASKING}::test_how_many_are_hidden_of_how_many_by_hand"),
    Mutation(_MASKING, "jnp.isin(text, jnp.array((token_ids.BOS, token_ids.PAD)))",
             "jnp.isin(text, jnp.array(token_ids.SPECIAL))", "captions never lose their end",
             f"{_OF_MASKING}::test_the_last_token_of_a_caption_is_hidden_as_often_as_any_other"),
    Mutation(_MASKING, "jnp.isin(text, jnp.array(token_ids.SPECIAL))",
             "jnp.isin(text, jnp.array((token_ids.BOS, token_ids.PAD)))",
             "texts lose their end",
             f"{_OF_MASKING}::test_pieces_alone_are_hidden_in_the_right_number"),
    Mutation(_MASKING, "kind < corruption[0] + corruption[1], codes, drawn",
             "kind < corruption[0] + corruption[1], drawn, codes",
             "what stays and what becomes random are exchanged",
             f"{_OF_MASKING}::test_random_tokens_reach_the_first_and_the_last_id"),
    Mutation(_MASKING, "random_ids[0], random_ids[1] + 1)", "random_ids[0], random_ids[1])",
             "the last piece never stands in for another",
             f"{_OF_MASKING}::test_random_tokens_reach_the_first_and_the_last_id"),
    Mutation(_MASKING, "place_key, kind_key, random_key = jax.random.split(key, 3)",
             "place_key = kind_key = random_key = key",
             "what is shown follows from what is hidden",
             f"{_OF_MASKING}::test_what_replaces_a_token_does_not_follow_from_where_others_are"
             "_hidden"),
    Mutation(_MASKING, "places = jnp.sort(jnp.where(is_hidden, order[:slots], text.shape[0]))",
             "places = jnp.sort(jnp.where(is_hidden, 1 + jnp.arange(slots), text.shape[0]))",
             "the first words are hidden",
             f"{_OF_MASKING}::test_every_piece_is_hidden_equally_often_and_rows_differ"),
)

_OF_WORDS = "tests/test_caption_metrics.py"
_OF_ANSWERS = "tests/test_vqa_metrics.py"
_OF_RECALL = "tests/test_retrieval_metrics.py"

_MEASURES = (
    Mutation(_WORDS, "closest += min((abs(len(r) - len(words)), len(r)) for r in references)[1]",
             "closest += min(len(r) for r in references)", "BLEU takes the shortest reference",
             _OF_WORDS),
    Mutation(_WORDS, "most |= reference[n]", "most += reference[n]",
             "BLEU adds up the counts of references", _OF_WORDS),
    Mutation(_WORDS, "1.0 - closest / length", "1.0 - length / closest",
             "BLEU punishes long captions", _OF_WORDS),
    Mutation(_WORDS, "(recall + _BETA**2 * precision)", "(precision + _BETA**2 * recall)",
             "ROUGE-L weighs precision", _OF_WORDS),
    Mutation(_WORDS, "min(weight, other.get(gram, 0.0)) * other.get(gram, 0.0)",
             "weight * other.get(gram, 0.0)", "CIDEr-D pays for repetition", _OF_WORDS),
    Mutation(_WORDS, "/ (2 * _SIGMA**2)", "/ _SIGMA**2", "CIDEr-D punishes length twice",
             _OF_WORDS),
    Mutation(_WORDS,
             "images_with[n].update(set().union(*(reference[n] for reference in references)))",
             "images_with[n].update(gram for reference in references for gram in reference[n])",
             "CIDEr-D counts references, not images", _OF_WORDS),
    Mutation(_WORDS, "10.0 * sum(each) / len(each)", "10.0 * max(each)",
             "CIDEr-D takes the best reference", _OF_WORDS),
    Mutation(_ANSWERS, "if len(set(said)) > 1 or len(said) != _OFFICIAL_PEOPLE:", "if True:",
             "answers are in normal form where all agree, too", _OF_ANSWERS),
    Mutation(_ANSWERS, "min(3 * num_agree / num_asked, 1.0)", "min(num_agree / 3, 1.0)",
             "nobody is left out", _OF_ANSWERS),
    Mutation(_ANSWERS, 'if has_number or beside_blank else " "', 'if beside_blank else " "',
             "thousands come apart", _OF_ANSWERS),
    Mutation(_ANSWERS, 'f"{sign} " in answer or f" {sign}" in answer', 'f"{sign} " in answer',
             "a sign behind a blank leaves another one", _OF_ANSWERS),
    Mutation(_ANSWERS, r're.compile(r"\.(?!\d)")', r're.compile(r"\.")',
             "numbers lose their decimal point", _OF_ANSWERS),
    Mutation(_ANSWERS, "if word not in _ARTICLES)", ")", "articles stay", _OF_ANSWERS),
    Mutation(_RECALL, "np.mean(place < k)", "np.mean(place <= k)", "recall is a place too kind",
             _OF_RECALL),
    Mutation(_RECALL, "before = (scores > value) | ((scores == value) & "
             "(np.arange(len(items)) < best))", "before = scores > value",
             "equal features find everything", _OF_RECALL),
    Mutation(_RECALL, "if name not in known]", "]", "what can only be 100 is in the mean",
             _OF_RECALL),
    Mutation(_RECALL, "with_caption = np.unique(own)", "with_caption = np.arange(len(images))",
             "images without captions count as not found", _OF_RECALL),
)

MUTATIONS = _TASKS + _NETWORKS + _TEXTS + _MEASURES
