"""VQAv2's files in small: the list of answers, soft targets, and what can be wrong with them."""

import copy
import json

import pytest

from beit_jax.data import vqa

QUESTIONS = {
    "info": {"version": "2.0"}, "task_type": "Open-Ended", "data_type": "mscoco", "license": {},
    "data_subtype": "val2014", "questions": [
        {"image_id": 42, "question": "What color is it?", "question_id": 42000},
        {"image_id": 42, "question": "How many?", "question_id": 42001},
        {"image_id": 7, "question": "Is it?", "question_id": 7000}]}


def annotation(number, image, best, *answers):
    return {"question_type": "what", "answer_type": "other", "multiple_choice_answer": best,
            "image_id": image, "question_id": number, "answers": [
                {"answer": answer, "answer_confidence": "yes", "answer_id": i + 1}
                for i, answer in enumerate(answers)]}


ANNOTATIONS = {
    "info": {}, "data_type": "mscoco", "data_subtype": "val2014", "license": {}, "annotations": [
        annotation(42000, 42, "red", *["red"] * 5, *["dark red"] * 3, "Red", "blue"),
        annotation(42001, 42, "Two.", *["2"] * 8, "two", "two"),
        annotation(7000, 7, "maybe", *["maybe"] * 10)]}
ANSWERS = ("2", "red", "blue", "yes")


@pytest.fixture
def files(tmp_path):
    """write(questions, annotations) -> arguments of vqa.read."""
    for image in (42, 7):
        file = tmp_path / "coco" / "val2014" / f"COCO_val2014_{image:012d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()

    def write(questions=QUESTIONS, annotations=ANNOTATIONS):
        for name, content in (("questions", questions), ("annotations", annotations)):
            (tmp_path / f"{name}.json").write_text(json.dumps(content))
        return (str(tmp_path / "questions.json"), str(tmp_path / "annotations.json"),
                str(tmp_path / "coco"))
    return write


def test_answers_are_matched_as_written_against_the_list(files):
    paths = files()
    red, two = vqa.read(*paths, ANSWERS)
    assert (red.question_id, red.question) == (42000, "What color is it?")
    assert red.image == f"{paths[2]}/val2014/COCO_val2014_000000000042.jpg"
    assert dict(zip(red.labels, red.scores)) == {1: 1.0, 2: 0.3}  # neither "Red" nor "dark red"
    assert dict(zip(two.labels, two.scores)) == {0: 1.0}  # not "two"
    assert len(red.answers) == 10


def test_questions_without_a_listed_answer_are_dropped_or_kept(files):
    assert [q.question_id for q in vqa.read(*files(), ANSWERS)] == [42000, 42001]
    last = vqa.read(*files(), ANSWERS, drop_unlisted=False)[-1]
    assert (last.question_id, last.labels, last.scores) == (7000, (), ())
    with pytest.raises(ValueError, match="none of 3 questions .* the 2 on the list"):
        vqa.read(*files(), ("zebra", "yes"))


@pytest.mark.parametrize("subset, folder", [("test2015", "test2015"), ("test-dev2015", "test2015")])
def test_test_questions_have_no_answers(files, tmp_path, subset, folder):
    (tmp_path / "coco" / folder).mkdir()
    for image in (42, 7):
        (tmp_path / "coco" / folder / f"COCO_{folder}_{image:012d}.jpg").touch()
    path, _, images = files(QUESTIONS | {"data_subtype": subset})
    found = vqa.read(path, None, images)
    assert len(found) == 3 and found[2].answers == found[2].labels == ()
    assert found[2].image.endswith(f"{folder}/COCO_{folder}_000000000007.jpg")


def test_the_answer_list_is_in_order_of_first_appearance(files, tmp_path):
    train = tmp_path / "train.json"
    best = ["The Dog.", "two", "cat", "2", "dog", "CAT", "bus"]
    train.write_text(json.dumps({"annotations": [
        annotation(i, i, answer, "x") for i, answer in enumerate(best)]}))
    _, val, _ = files()
    make = vqa.make_answer_list
    assert make([str(train)], min_count=2, expected=None) == ("dog", "2", "cat")
    assert make([str(train), val], min_count=3, expected=1) == ("2",)  # val has "Two."
    assert make([val, str(train)], min_count=1, expected=None)[:2] == ("red", "2")
    with pytest.raises(ValueError, match="give 3 answers, not 3129: VQAv2's"):
        make([str(train)], min_count=2)
    with pytest.raises(ValueError, match="no answer occurs 9 times"):
        make([str(train)], expected=None)


def test_the_list_survives_a_file_and_its_hash_tells_order(tmp_path):
    path = str(tmp_path / "answer2label.txt")
    vqa.write_answer_list(path, ANSWERS)
    assert vqa.read_answer_list(path) == ANSWERS
    assert (tmp_path / "answer2label.txt").read_text().startswith('{"answer": "2", "label": 0}\n')
    assert len({vqa.list_hash(ANSWERS), vqa.list_hash(ANSWERS[::-1])}) == 2
    assert len(vqa.list_hash(ANSWERS)) == 64


@pytest.mark.parametrize("content, message", [
    ('{"answer": "a", "label": 0}\n{"answer": "b", "label": 2}', "line 2: .* label 1 is next"),
    ('{"answer": "a", "label": 0}\n{"answer": "a", "label": 1}', "line 2: answer 'a' .*twice"),
    ('{"answer": "a"}', "line 1 has no 'label'"), ("", "is empty")])
def test_a_broken_list_is_one_line(content, message, tmp_path):
    path = tmp_path / "answer2label.txt"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        vqa.read_answer_list(str(path))


def test_an_answer_outside_the_list_is_one_line_with_its_normal_form():
    assert vqa.label_of("red", ANSWERS) == 1
    with pytest.raises(ValueError, match="'The Red' is none of the 4 .*: 'red'"):
        vqa.label_of("The Red", ANSWERS)


def test_peoples_capitals_and_articles_count_in_normal_form_where_asked(files):
    """Questions of one's own, whose list is made of these very annotations."""
    said = copy.deepcopy(ANNOTATIONS)
    said["annotations"][0] = annotation(42000, 42, "Yes", *["Yes"] * 6, *["no"] * 4)
    said["annotations"][2] = annotation(7000, 7, "The Red bird.", *["The Red bird."] * 10)
    paths = files(annotations=said)
    listed = vqa.make_answer_list([paths[1]], min_count=1, expected=None)
    assert listed == ("yes", "2", "red bird")
    found = vqa.read(*paths, listed, as_written=False)
    assert [dict(zip(q.labels, q.scores)) for q in found] == [{0: 1.0}, {1: 1.0}, {2: 1.0}]
    # the reference's way, for its own list: "Yes" is not "yes", and the question is dropped
    assert [q.question_id for q in vqa.read(*paths, listed)] == [42001]
    # an own list need not be in normal form; of two with the same one each keeps its own
    find = vqa.label_finder(("The Dog", "dog", "Cat"), as_written=False)
    assert [find(answer) for answer in ("The Dog", "dog", "a dog", "cat", "bee")] == [0, 1, 0, 2,
                                                                                     None]


def test_dropped_questions_are_told(files, caplog):
    caplog.set_level("INFO", logger="beit_jax")
    vqa.read(*files(), ANSWERS)
    assert "questions.json: 1 of 3 questions have no answer on the list and are dropped" \
        in caplog.text


@pytest.mark.parametrize("pattern, image_id, name", [
    ("{subset}/{id}.jpg", "shot_7", "val/shot_7.jpg"), ("{id}", "a/b.png", "a/b.png"),
    ("x/{id:06d}.png", 42, "x/000042.png"), ("{id:03d}", "7", "007"), ("{id}.jpg", 7, "7.jpg"),
    (vqa.COCO_IMAGES, 42, "val/COCO_val_000000000042.jpg")])
def test_image_files_are_called_as_the_pattern_says(pattern, image_id, name):
    assert vqa.image_name(pattern, "val", image_id, "q.json", "question 1") == name


@pytest.mark.parametrize("pattern", ["", "x.jpg", "{id}{split}", "{id:d}", "{id.real}", "{id}}"])
def test_another_pattern_is_one_line(pattern, files):
    with pytest.raises(ValueError, match="config.data.image_pattern=.* must hold {id}"):
        vqa.read(*files(), ANSWERS, image_pattern=pattern)


DEFECTS = {  # change of (questions, annotations), message, ids that are left
    "twice": (lambda q, a: q[1].update(question_id=42000), "question 42000 occurs twice", [42000]),
    "empty": (lambda q, a: q[1].update(question="  "), "question 42001 is empty", [42000]),
    "unanswered": (lambda q, a: a.pop(1), "question 42001 has no annotation", [42000]),
    "nobody": (lambda q, a: a[1].update(answers=[]), "question 42001 has no answers", [42000]),
    "annotated_twice": (lambda q, a: a.append(a[0]), "question 42000 occurs twice in",
                        [42000, 42001]),
    "not_asked": (lambda q, a: a[2].update(question_id=9) or q.pop(2),
                  "annotation of question 9, which is not asked", [42000, 42001]),
    "no_image": (lambda q, a: q[0].update(image_id=43),
                 "question 42000: image val2014/COCO_val2014_000000000043.jpg is not in", [42001]),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_is_one_line_or_left_out(defect, files):
    change, message, left = DEFECTS[defect]
    questions, annotations = copy.deepcopy((QUESTIONS, ANNOTATIONS))
    change(questions["questions"], annotations["annotations"])
    paths = files(questions, annotations)
    with pytest.raises(ValueError, match=f"questions.json, .*{message}.*skip_defects") as error:
        vqa.read(*paths, ANSWERS)
    assert "\n" not in str(error.value)
    found = vqa.read(*paths, ANSWERS, skip_defects=True)
    assert [question.question_id for question in found] == left


@pytest.mark.parametrize("questions, message", [
    ({"questions": []}, "no 'data_subtype'"), (QUESTIONS | {"questions": []}, "has no questions"),
    (QUESTIONS | {"questions": [{"question_id": 1}]}, "questions 0 has no 'image_id'")])
def test_another_layout_is_one_line(questions, message, files):
    with pytest.raises(ValueError, match=message):
        vqa.read(*files(questions), ANSWERS)
