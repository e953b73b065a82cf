"""BEiT-3's downstream tasks on tiny networks: their losses by hand, learning, what judges say."""

import functools
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from beit3_steps import log_softmax, started

from beit_jax import flops, tasks, text_masking, token_ids
from beit_jax.data import image_text, nlvr2, text_ops, vqa
from beit_jax.models import beit3_heads
from configs import common

B, LENGTH, ROWS = 8, 10, 120
NETWORK = dict(image_px=8, patch_size=4, width=32, depth=2, num_heads=2, mlp_ratio=2.0,
               vocab_size=ROWS, text_positions=16, unroll=1)
SECTIONS = {
    "vqa": dict(model=dict(NETWORK, num_classes=5)),
    "nlvr2": dict(model=dict(NETWORK, num_classes=2)),
    "retrieval": dict(model=NETWORK),
    "captioning": dict(model=NETWORK, mask=dict(rate=0.7), measure=dict(max_length=14)),
}
CAPTIONS = ("a red three left of a blue seven", "a green one", "two small yellow sixes",
            "a blue seven above a red three", "one large nine", "nothing but a pink eight",
            "a four and a five", "the digit zero in white")


def make(name, **sections):
    config = common.base()
    with config.unlocked():
        config.update(task=name, dtype="float32", measure={})
        config.data.update(common.HALF_MEAN_STD, text_length=LENGTH)
        for section, values in {**SECTIONS[name], **sections}.items():
            config[section] = values
    return tasks.make(config)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("spm") / "text.txt"
    path.write_text("\n".join(CAPTIONS * 4))
    made = text_ops.Tokenizer(
        text_ops.train([str(path)], token_ids.num_pieces(ROWS), kind="bpe"))
    assert token_ids.table_rows(made.num_pieces) == ROWS and not made.num_cut(CAPTIONS, LENGTH)
    return made


def batch_of(name, tokenizer, seed=0):
    """A fixed batch whose texts are CAPTIONS and whose labels follow from nothing."""
    rng = np.random.default_rng(seed)
    shape = (B, 2, 2, 2, 3) if name == "nlvr2" else (B, 2, 2, 3)
    image = 255 * rng.integers(0, 2, shape).astype(np.uint8)  # patches of one colour
    text, is_valid = tokenizer.rows(CAPTIONS, LENGTH)
    batch = {"image": image.repeat(4, axis=-3).repeat(4, axis=-2), "text": text,
             "text_is_valid": is_valid, "index": np.arange(B, dtype=np.int32),
             "label": np.full(B, -1, np.int32), "is_example": np.ones(B, bool)}
    if name == "nlvr2":
        batch["label"] = np.array([0, 1, 1, 0, 1, 0, 0, 1], np.int32)
    if name == "vqa":
        best = rng.integers(0, 5, B)
        batch["answer_labels"] = np.stack([best, np.where(np.arange(B) % 2, (best + 1) % 5, -1)],
                                          axis=1).astype(np.int32)
        # a score without an answer counts nothing
        batch["answer_scores"] = np.tile(np.float32([1.0, 0.3]), (B, 1))
    return batch


def for_evaluation(name, batch, captions=2):
    """The same, with r texts of each image where the task evaluates so; the last ones lack."""
    if name not in ("retrieval", "captioning"):
        return batch
    text = np.repeat(batch["text"][:, None], captions, axis=1)
    is_valid = np.repeat(batch["text_is_valid"][:, None], captions, axis=1)
    text[:, 1:], is_valid[:, 1:] = token_ids.PAD, False
    return batch | {"text": text, "text_is_valid": is_valid}


def with_fillers(batch, count=3):
    """As the last batch of a split is filled up."""
    filler = {key: np.zeros((count, *value.shape[1:]), value.dtype)
              for key, value in batch.items()}
    for key in ("index", "label", "answer_labels"):
        if key in filler:
            filler[key] -= 1
    filler["text"] += token_ids.PAD
    filler["text"][..., 0], filler["text_is_valid"][..., 0] = token_ids.BOS, True
    return {key: np.concatenate([value, filler[key]]) for key, value in batch.items()}


def rows_of(eval_step, variables, batch):
    """What the floor above hands to the judge."""
    rows = jax.device_get(eval_step(variables, {}, batch))
    return {name: value[batch["is_example"]] for name, value in rows.items()}


def facts(name, tokenizer, batch):
    records = {
        "vqa": lambda i: vqa.Question(100 + i, "", "", ("b",) * 10, (), ()),
        "nlvr2": lambda i: nlvr2.Statement(f"dev-{i}-0", "", "", "", int(batch["label"][i])),
        "retrieval": lambda i: None,
        "captioning": lambda i: image_text.Captioned(f"img{i}", "", (CAPTIONS[i],)),
    }[name]
    return SimpleNamespace(records=[records(i) for i in range(B)], class_names=tuple("abcde"),
                           tokenizer=tokenizer)


class Case:
    """A task, its batch and weights, and its compiled loss with gradients."""

    def __init__(self, task, batch):
        self.task, self.batch = task, batch
        self.params, self.state = started(task, batch)
        self.grad = jax.jit(jax.value_and_grad(task.loss, has_aux=True))

    @functools.cached_property
    def first(self):
        """(loss, metrics, gradients) with the weights at the start."""
        (total, (_, metrics)), grads = self.grad(self.params, self.state, {}, self.batch,
                                                 jax.random.key(0))
        return jax.device_get((total, metrics, grads))

    def fit(self, steps, rate=3e-3):
        """Variables after so many steps, and the last metrics."""
        tx, params, state = optax.adam(rate), self.params, self.state
        opt_state = tx.init(params)

        @jax.jit
        def update(grads, opt_state, params):
            updates, opt_state = tx.update(grads, opt_state)
            return optax.apply_updates(params, updates), opt_state

        for number in range(steps):
            (_, (state, metrics)), grads = self.grad(params, state, {}, self.batch,
                                                     jax.random.key(number))
            params, opt_state = update(grads, opt_state, params)
        return {"params": params, **state}, jax.device_get(metrics)


@pytest.fixture(scope="module")
def cases(tokenizer):
    """name -> Case; what is compiled for one test serves the next."""
    return functools.cache(lambda name: Case(make(name), batch_of(name, tokenizer)))


def apply(name, cls, params, batch, text=None):
    """What the network says, in float64; logits or several arrays."""
    model = cls(**SECTIONS[name]["model"])
    image = (batch["image"] / np.float32(255) - np.float32(0.5)) / np.float32(0.5)
    text = batch["text"] if text is None else text
    said = jax.jit(model.apply)({"params": params}, image, text, batch["text_is_valid"])
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), said)


def test_vqa_loss_by_hand(cases):
    case = cases("vqa")
    total, metrics, _ = case.first
    logits = apply("vqa", beit3_heads.Beit3ForVqa, case.params, case.batch)
    probability = 1.0 / (1.0 + np.exp(-logits))
    expected, scores = 0.0, []
    for i in range(B):
        target = np.zeros(5)
        for label, score in zip(case.batch["answer_labels"][i], case.batch["answer_scores"][i]):
            if label >= 0:
                target[label] = score
        expected -= np.sum(target * np.log(probability[i])
                           + (1 - target) * np.log(1 - probability[i])) / B
        scores.append(target[probability[i].argmax()])
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], np.mean(scores), rtol=1e-6)


def test_nlvr2_loss_by_hand_and_without_unlabelled(cases):
    case = cases("nlvr2")
    batch = case.batch | {"label": np.where(np.arange(B) == 2, -1, case.batch["label"])}
    (total, (_, metrics)), _ = case.grad(case.params, {}, {}, batch, jax.random.key(0))
    log_p = log_softmax(apply("nlvr2", beit3_heads.Beit3ForNlvr2, case.params, batch))
    known = [i for i in range(B) if i != 2]
    np.testing.assert_allclose(total, -np.mean([log_p[i, batch["label"][i]] for i in known]),
                               rtol=1e-5)
    assert metrics["accuracy"] == pytest.approx(
        np.mean([log_p[i].argmax() == batch["label"][i] for i in known]))


def test_retrieval_loss_by_hand(cases):
    case = cases("retrieval")
    total, metrics, _ = case.first
    image, text, factor = apply("retrieval", beit3_heads.Beit3ForRetrieval, case.params,
                                case.batch)
    np.testing.assert_allclose([factor, metrics["factor"]], 7.0, rtol=1e-6)
    scores = 7.0 * image @ text.T
    own = np.arange(B)
    each = np.diag(log_softmax(scores)) + np.diag(log_softmax(scores.T))
    np.testing.assert_allclose(total, -each.mean() / 2, rtol=1e-5)
    assert metrics["accuracy"] == pytest.approx(
        np.mean([scores.argmax(0) == own, scores.argmax(1) == own]))


def test_captioning_loss_by_hand_before_and_after_the_worst_words_are_dropped(tokenizer):
    # nothing is left to chance: all words are hidden, and all by the mask
    task = make("captioning", mask=dict(rate=1.0, corruption=text_masking.ALWAYS_MASK),
                loss=dict(label_smoothing=0.1, drop_worst=0.3, drop_worst_after=3))
    batch = batch_of("captioning", tokenizer)
    params, state = started(task, batch)
    text, is_valid = batch["text"], batch["text_is_valid"]
    is_hidden = is_valid & (text != token_ids.BOS)
    shown = np.where(is_hidden, tokenizer.mask_id, text)
    log_p = log_softmax(apply("captioning", beit3_heads.Beit3ForCaptioning, params, batch, shown))
    errors = []
    for row, place in np.argwhere(is_hidden):
        q = np.full(ROWS, 0.1 / (ROWS - 1))
        q[text[row, place]] = 0.9
        errors.append(np.sum(q * (np.log(q) - log_p[row, place])))
    easier = np.mean(np.sort(errors)[:int(0.7 * len(errors))])
    assert easier < 0.99 * np.mean(errors)

    loss = jax.jit(task.loss)
    for step in range(5):
        assert state["counter"]["step"] == step
        total, (state, _) = loss(params, state, {}, batch, jax.random.key(0))
        np.testing.assert_allclose(total, easier if step > 3 else np.mean(errors), rtol=1e-5)
        state = task.end_step(params, state)


def test_captioning_counts_steps_only_to_drop_words(tokenizer):
    key, batch = jax.random.key(0), batch_of("captioning", tokenizer)
    task = make("captioning")
    assert task.end_step is None and set(jax.eval_shape(task.init, key, batch)) == {"params"}
    task = make("captioning", loss=dict(drop_worst=0.2, drop_worst_after=12))
    start = jax.jit(lambda key: task.init(key, batch)["counter"])(key)
    assert start["step"] == 0 and start["step"].dtype == jnp.int32


@pytest.mark.parametrize("name", SECTIONS)
def test_both_modalities_get_gradients(name, cases):
    grads = cases(name).first[2]
    assert np.abs(grads["vision_embed"]["proj"]["kernel"]).max() > 0
    assert np.abs(grads["text_embed"]["embedding"]).max() > 0
    # what these two read stands in one modality: the other's last feed-forward layer is not seen
    unseen = {("vqa", "B"), ("captioning", "A")}
    for expert in ("A", "B"):
        ends = np.abs(grads["blocks"]["ffn"][expert]["fc2"]["kernel"]).max(axis=(1, 2))
        np.testing.assert_array_equal(ends > 0, [True, (name, expert) not in unseen])


LEARNING = {"vqa": 40, "nlvr2": 60, "retrieval": 40, "captioning": 120}
PERFECT = {"vqa": {"accuracy": 1.0}, "nlvr2": {"accuracy": 1.0},
           "retrieval": {"tr_r1": 100.0, "ir_r1": 100.0, "mean": 100.0},
           "captioning": {"BLEU-4": 1.0, "ROUGE-L": 1.0}}


@pytest.mark.parametrize("name", SECTIONS)
def test_learns_one_batch_and_the_judge_sees_it(name, cases, tokenizer):
    case = cases(name)
    variables, last = case.fit(LEARNING[name])
    total, metrics, _ = case.first
    assert last["loss"] < 0.5 * total and last["accuracy"] > metrics["accuracy"]

    batch = with_fillers(for_evaluation(name, case.batch))
    known = facts(name, tokenizer, batch)
    eval_step = jax.jit(case.task.eval_step)
    rows = rows_of(eval_step, variables, batch)
    assert len(rows["index"]) == B
    values, files = case.task.judge(rows, known)
    assert {key: values[key] for key in PERFECT[name]} == pytest.approx(PERFECT[name], abs=1e-6)
    check_files(name, files, batch)

    # whatever stands in the fillers, and in whatever order rows come
    batch = {key: np.where(batch["is_example"].reshape(-1, *[1] * (value.ndim - 1)), value,
                           value[:1]) for key, value in batch.items() if key != "is_example"} | {
        "is_example": batch["is_example"]}
    rows = rows_of(eval_step, variables, batch)
    order = np.random.default_rng(3).permutation(B)
    again, same_files = case.task.judge({key: value[order] for key, value in rows.items()}, known)
    assert same_files == files
    assert again == pytest.approx(values, rel=1e-5)
    if name == "retrieval":
        np.testing.assert_array_equal(rows["has_text"], [[True, False]] * B)
        assert np.isfinite(rows["text"]).all()  # of captions that are not there, too
        features = jax.jit(case.task.features)(variables, {}, batch)
        np.testing.assert_allclose(features[:B], rows["image"], atol=1e-5)


def check_files(name, files, batch):
    if name == "vqa":
        assert json.loads(files["answers.json"]) == [
            {"question_id": 100 + i, "answer": "abcde"[batch["answer_labels"][i, 0]]}
            for i in range(B)]
    if name == "nlvr2":
        assert files == {"predictions.csv": "".join(
            f"dev-{i}-0,{'True' if batch['label'][i] else 'False'}\n" for i in range(B))}
    if name == "retrieval":
        assert files == {}
    if name == "captioning":
        assert json.loads(files["captions.json"]) == [
            {"image_id": f"img{i}", "caption": CAPTIONS[i]} for i in range(B)]


def vqa_rows(score, is_answered, label=(0, 1, 2)):
    return {"index": np.arange(3), "label": np.array(label), "score": np.array(score),
            "loss": np.array([1.0, 2.0, 4.0]), "is_answered": np.array(is_answered)}


def question(number, *answers):
    return vqa.Question(number, "", "", answers, (), ())


def test_vqa_judge_counts_unlisted_answers_and_no_unknown_ones():
    known = SimpleNamespace(class_names=tuple("bcdef"), records=[
        question(7, *"bbbbbccccc"), question(8, *["unlisted"] * 10), question(9)])
    values, files = make("vqa").judge(vqa_rows([1.0, 0.0, 0.0], [True, False, False]), known)
    # 5 of 10 said "b": leaving out any one of them, 3 or more agree
    assert values == {"accuracy": 0.5, "loss": 1.5, "official_accuracy": 0.5}
    assert [each["question_id"] for each in json.loads(files["answers.json"])] == [7, 8, 9]


def test_vqa_judge_of_a_test_split_measures_nothing():
    known = SimpleNamespace(class_names=tuple("abcde"), records=[question(i) for i in range(3)])
    values, files = make("vqa").judge(vqa_rows([0.0] * 3, [False] * 3), known)
    assert values == {} and "answers.json" in files


def test_judges_without_records_name_examples_by_their_number(tokenizer):
    unknown = SimpleNamespace(class_names=tuple("abcde"), records=None, tokenizer=tokenizer)
    values, files = make("vqa").judge(vqa_rows([1.0, 0.6, 0.2], [True] * 3), unknown)
    assert values == pytest.approx({"accuracy": 0.6, "loss": 7 / 3})
    assert json.loads(files["answers.json"])[1] == {"question_id": 1, "answer": "b"}
    words = np.array([tokenizer.encode(CAPTIONS[1]) + [0] * 3])
    values, files = make("captioning").judge(
        {"index": np.array([4]), "words": words, "is_valid": np.arange(words.size)[None] <
         words.size - 3}, unknown)
    assert values == {}
    assert json.loads(files["captions.json"]) == [{"image_id": 4, "caption": CAPTIONS[1]}]


def caption_rows(tokenizer):
    """The first three of CAPTIONS as the network may have found them."""
    text, is_valid = tokenizer.rows(CAPTIONS[:3], LENGTH)
    return {"index": np.arange(3), "words": text[:, 1:], "is_valid": is_valid[:, 1:]}


def test_captioning_judge_measures_the_images_that_people_described(tokenizer, caplog):
    judge = make("captioning").judge
    records = [image_text.Captioned(i, "", (CAPTIONS[i],)) for i in range(3)]
    known = SimpleNamespace(records=records, tokenizer=tokenizer)
    whole, files = judge(caption_rows(tokenizer), known)
    assert "no captions by people" not in caplog.text
    known.records = [records[0], records[1]._replace(captions=()), records[2]]
    values, same = judge(caption_rows(tokenizer), known)
    assert same == files
    assert values.keys() == whole.keys() and values["BLEU-1"] == pytest.approx(1.0)
    assert "1 of 3 images have no captions by people: the measures leave" in caplog.text
    assert [each["caption"] for each in json.loads(files["captions.json"])] == [*CAPTIONS[:3]]
    known.records = [record._replace(captions=()) for record in records]
    values, same = judge(caption_rows(tokenizer), known)
    assert values == {} and same == files
    assert "3 of 3 images have no captions by people: captions.json is" in caplog.text
    assert "the id of an earlier one" not in caplog.text
    known.records = [records[0], records[1], records[2]._replace(image_id=0)]
    _, files = judge(caption_rows(tokenizer), known)
    assert "1 image(s) have the id of an earlier one" in caplog.text
    assert [each["image_id"] for each in json.loads(files["captions.json"])] == [0, 1]


def test_captions_of_index_files_need_a_tokenizer():
    config = common.base()
    config.data.update(common.HALF_MEAN_STD, text_length=LENGTH, name="index")
    config.update(task="captioning", dtype="float32")
    with config.unlocked():
        config.update(SECTIONS["captioning"])
    with pytest.raises(ValueError, match="set config.data.tokenizer"):
        tasks.make(config)
    config.data.tokenizer = "beit3.spm"
    tasks.make(config)


def test_nlvr2_judge_of_a_test_split_gives_predictions_alone():
    rows = {"index": np.array([1, 0]), "is_true": np.array([True, False]),
            "is_labelled": np.zeros(2, bool), "is_correct": np.zeros(2, bool),
            "loss": np.zeros(2)}
    statements = [nlvr2.Statement(name, "", "", "", -1) for name in ("test1-0", "test1-1")]
    values, files = make("nlvr2").judge(rows, SimpleNamespace(records=statements))
    assert values == {} and files == {"predictions.csv": "test1-0,False\ntest1-1,True\n"}


def test_retrieval_judge_of_folds(caplog):
    """Images 0 and 1 make a fold, 2 and 3 the other: only across folds are two alike."""
    image = np.eye(2)[[0, 0, 1, 1]]
    rows = {"index": np.array([0, 2, 1, 3]), "image": image, "text": np.stack([image] * 2, axis=1),
            "has_text": np.array([[True, False]] * 4)}
    known = SimpleNamespace(records=None)
    values, files = make("retrieval", measure=dict(folds=2)).judge(rows, known)
    assert files == {}
    assert values["tr_r1"] == values["ir_r1"] == 50.0 and values["tr_r5"] == 100.0
    assert values["1k_tr_r1"] == values["1k_ir_r1"] == values["1k_mean"] == 100.0
    assert "tr_r5, tr_r10, ir_r5, ir_r10 of 4 images and 4 captions can only be 100" in caplog.text
    assert values["mean"] == 50.0
    caplog.clear()
    values, _ = make("retrieval", measure=dict(folds=4)).judge(rows, known)
    assert "or of one image" in caplog.text and "1k_tr_r1" not in values
    values, _ = make("retrieval", measure=dict(folds=3)).judge(rows, known)
    assert "config.measure.folds=3 do not divide the 4 images" in caplog.text
    assert values["tr_r1"] == 50.0 and not any(name.startswith("1k_") for name in values)
    caplog.clear()
    rows["has_text"] = np.array([[True, False], [False, False]] * 2)  # of images 0 and 1 alone
    values, _ = make("retrieval", measure=dict(folds=2)).judge(rows, known)
    assert "leave a part without captions" in caplog.text
    assert values["ir_r5"] == 100.0 and not any(name.startswith("1k_") for name in values)


def test_retrieval_judge_of_images_without_captions_measures_nothing(caplog):
    rows = {"index": np.arange(2), "image": np.eye(2), "text": np.eye(2)[:, None],
            "has_text": np.zeros((2, 1), bool)}
    assert make("retrieval", measure=dict(folds=2)).judge(
        rows, SimpleNamespace(records=None)) == ({}, {})
    assert "none of the 2 images of the split has a caption" in caplog.text
    rows["has_text"] = np.array([[True], [False]])  # the other image is looked at, too
    values, _ = make("retrieval").judge(rows, SimpleNamespace(records=None))
    assert values["tr_r1"] == values["ir_r1"] == 100.0


def test_imagenet_with_the_network_of_beit3():
    config = common.base()
    network = {key: NETWORK[key] for key in NETWORK if key not in ("vocab_size", "text_positions")}
    config.update(task="classification", dtype="float32")
    config.model = dict(network, kind="beit3", num_classes=4, drop_path_rate=0.1)
    config.loss = dict(label_smoothing=0.1)
    config.data.update(common.IMAGENET_MEAN_STD)
    rng = np.random.default_rng(0)
    image = 255 * rng.integers(0, 2, (B, 2, 2, 3)).astype(np.uint8)
    case = Case(tasks.make(config), {
        "image": image.repeat(4, axis=1).repeat(4, axis=2),
        "label": np.arange(B, dtype=np.int32) % 4, "is_example": np.ones(B, bool)})
    assert set(case.params["blocks"]["ffn"]) == {"A"} and "text_embed" not in case.params
    assert case.task.flops_per_image == 3 * (
        flops.multiway(SimpleNamespace(**NETWORK), 5, 0) + 2 * 32 * 4)
    variables, _ = case.fit(30)
    sums = jax.jit(case.task.eval_step)(variables, {}, case.batch)
    assert sums["top1"] == B == sums["count"]
    with config.unlocked():
        config.model.kind = "vit"
    with pytest.raises(ValueError, match="config.model.kind='vit' is none of beit, beit3"):
        tasks.make(config)


def test_work_of_a_step_counts_both_images_and_the_hidden_words_alone():
    network = SimpleNamespace(**NETWORK)
    pair = flops.multiway(network, 5, LENGTH)
    assert make("vqa").flops_per_image == 3 * (pair + 2 * (32 * 32 + 32 * 64 + 64 * 5))
    assert make("nlvr2").flops_per_image == 3 * (2 * pair + 2 * (4 * 32 * 64 + 64 * 2))
    assert make("retrieval").flops_per_image == 3 * (
        flops.multiway(network, 5, 0) + flops.multiway(network, 0, LENGTH) + 2 * 2 * 32 * 32)
    # 7 of 10 words are hidden
    assert make("captioning").flops_per_image == 3 * (pair + 2 * 7 * 32 * ROWS)


@pytest.mark.parametrize("name, sections, message", [
    ("vqa", dict(model=dict(NETWORK, num_classes=0)), "config.model.num_classes=0"),
    ("vqa", dict(model=dict(NETWORK, vocab_size=12)), "config.model.vocab_size=12"),
    ("vqa", dict(mask=dict(rate=0.5)), "config.mask is set"),
    ("vqa", dict(model=dict(NETWORK, image_px=9)), "image_px=9"),
    ("retrieval", dict(model=dict(NETWORK, modalities="text")), "model.modalities='text'"),
    ("nlvr2", dict(model=dict(NETWORK, num_classes=3)), "config.model.num_classes=3"),
    ("nlvr2", dict(model=dict(NETWORK, text_positions=11)), "config.data.text_length=10"),
    ("retrieval", dict(measure=dict(folds=-1)), "config.measure.folds=-1"),
    ("retrieval", dict(measure=dict(beams=3)), "config.measure.beams"),
    ("captioning", dict(mask=dict(rate=1.5)), "mask.rate=1.5"),
    ("captioning", dict(mask={}), "config.mask lacks rate"),
    ("captioning", dict(loss=dict(drop_worst=1.0)), "config.loss.drop_worst=1.0"),
    ("captioning", dict(measure=dict(max_length=15)), "config.measure.max_length=15"),
    ("captioning", dict(measure=dict(max_length=14, beams=0)), "config.measure.beams=0"),
])
def test_values_that_do_not_fit_are_refused_in_one_line(name, sections, message):
    with pytest.raises(ValueError, match=message) as error:
        make(name, **sections)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", SECTIONS)
def test_results_are_float32_whatever_products_are_made_in(name, tokenizer):
    task, batch = make(name, dtype="bfloat16"), batch_of(name, tokenizer)
    key = jax.random.key(0)
    variables = dict(jax.eval_shape(task.init, key, batch))
    rows = jax.eval_shape(task.eval_step, variables, {}, for_evaluation(name, batch))
    assert all(row.shape[0] == B for row in rows.values())
    total, (_, metrics) = jax.eval_shape(task.loss, variables.pop("params"), variables, {}, batch,
                                         key)
    floats = [leaf.dtype for leaf in jax.tree.leaves((total, metrics, rows))
              if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert len(floats) > 2 and set(floats) == {jnp.dtype("float32")}


def test_vqa_judge_refuses_another_list_of_answers():
    known = SimpleNamespace(class_names=("yes", "no"), records=None)
    with pytest.raises(ValueError, match="num_classes=5, but the data list 2 answers"):
        make("vqa").judge(vqa_rows([1.0] * 3, [True] * 3), known)
