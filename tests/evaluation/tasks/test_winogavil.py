"""winogavil_dataset.csv with winogavil_images.zip as they are published, made small."""

import csv
import itertools
import json
import math
import random
import zipfile
from statistics import fmean

import pytest
import torch
import torch.nn.functional as F

from vlp.evaluation import answers, intervals, paired
from vlp.evaluation.run import find_task
from vlp.evaluation.suites import datacomp38
from vlp.evaluation.tasks.base import SetEmbeddings
from vlp.evaluation.tasks.winogavil import Task, chance, prompt
from vlp.types import UserError

HEADER = ["", "candidates", "cue", "associations", "score_fool_the_ai", "num_associations", "num_candidates"]
HEADER += ["solvers_jaccard_mean", "solvers_jaccard_std", "ID"]
RED, PINK, ROSE, GREEN, BLUE, GREY = "#ff0000", "#ff4040", "#ff6060", "#00ff00", "#0000c0", "#908080"
COLOURS = {"rose": ROSE, "fire": RED, "t-shirt": PINK, "tea party": GREEN, "sky": BLUE, "ash": GREY}
COLOURS |= {f"night {number}": f"#0000{number:02x}" for number in range(10)}
NIGHTS = [f"night {number}" for number in range(6)]


def write(directory, rows, picture=None, zipped=True):
    """``rows``: (candidates, cue, associations)."""
    directory.mkdir(parents=True)
    with open(directory / "winogavil_dataset.csv", "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(HEADER)
        for n, (candidates, cue, right) in enumerate(rows):
            numbers = [50, len(right), len(candidates), 1.0, 0.0, n]
            writer.writerow([n, json.dumps(candidates), cue, json.dumps(right), *numbers])
    names = sorted({name for candidates, _, _ in rows for name in candidates})
    content = {f"winogavil_images/{name}.jpg": picture(COLOURS[name]) if picture else b"" for name in names}
    if zipped:
        with zipfile.ZipFile(directory / "winogavil_images.zip", "w") as archive:
            for name, data in content.items():
                archive.writestr(name, data)
                archive.writestr("__MACOSX/winogavil_images/._" + name.rpartition("/")[2], b"no picture")
    else:
        (directory / "winogavil_images").mkdir()
        for name, data in content.items():
            (directory / name).write_bytes(data)
    return directory


ROWS = [
    (["fire", "t-shirt", "tea party", "sky", "ash"], RED, ["fire", "t-shirt"]),  # both found: 1
    (["fire", "t-shirt", "tea party", "sky", "ash"], RED, ["t-shirt", "sky"]),  # fire and t-shirt: 1 / 3
    (["fire", "t-shirt", "tea party", "sky", "ash", "rose"], RED, ["sky", "ash"]),  # neither: 0
    (["fire", "t-shirt", "tea party", "rose", *NIGHTS], RED, ["rose", "fire", "tea party"]),  # two of three: 1 / 2
    (["fire", "t-shirt", "tea party", "sky", "ash", "rose", *NIGHTS], RED, ["fire", "rose"]),  # one of two: 1 / 3
]


@pytest.fixture
def directory(tmp_path, picture):
    return write(tmp_path / "winogavil", ROWS, picture)


def without_prompt(encoder):
    """The encoders of these tests want the colour first."""
    plain = encoder.tokenizer
    encoder.tokenizer = lambda texts: plain([text.removeprefix("A ") for text in texts])
    return encoder


def embeddings(task, seed=0, dimensions=16):
    generator = torch.Generator().manual_seed(seed)
    image_ND, text_ND = (
        F.normalize(torch.randn(number, dimensions, generator=generator), dim=1)
        for number in (len(task.images), len(task.texts))
    )
    return SetEmbeddings(image_ND, text_ND, 10.0)


@pytest.mark.parametrize("zipped", [True, False])
def test_figures_by_hand(tmp_path, picture, encoder, zipped):
    task = find_task(write(tmp_path / "winogavil", ROWS, picture, zipped))
    assert isinstance(task, Task)
    assert task.texts == [f"A {RED}"]
    assert task.image(0).getpixel((0, 0)) == (255, 0, 0)
    scores = task.run(without_prompt(encoder), batch_size=4)
    expected = {
        "jaccard_score_10-12": (1 / 2 + 1 / 3) / 2,
        "jaccard_score_5-6": (1 + 1 / 3 + 0) / 3,
        "avg_jaccard_score": (1 + 1 / 3 + 0 + 1 / 2 + 1 / 3) / 5,
        "jaccard_score_5": (1 + 1 / 3) / 2,
        "jaccard_score_6": 0,
        "jaccard_score_10": 1 / 2,
        "jaccard_score_12": 1 / 3,
    }
    assert scores.metrics == pytest.approx(expected)
    assert scores.log == pytest.approx({f"winogavil/{metric}": value for metric, value in expected.items()})
    assert scores.metrics.keys() == scores.chance.keys() == scores.labels.keys()
    assert scores.tie_rate == 0
    assert scores.details["jaccard"] == pytest.approx([1, 1 / 3, 0, 1 / 2, 1 / 3])
    assert [(row.table, row.name, row.number, row.score) for row in scores.categories] == [
        ("candidates", name, number, pytest.approx(expected[f"jaccard_score_{name}"]))
        for name, number in (("5", 2), ("6", 1), ("10", 1), ("12", 1))
    ]
    # Those of five share their candidates, and are drawn as one.
    assert set(scores.intervals) == {"jaccard_score_10-12", "jaccard_score_5-6", "avg_jaccard_score"}
    assert scores.intervals["jaccard_score_5-6"] == intervals.of_mean([1, 1 / 3, 0], [0, 0, 1])
    assert scores.notes == ["5 associations, 2 of them with 10 to 12 candidates; cues after A or An"]
    assert (scores.num_images, scores.num_texts) == (12, 1)


def test_prompts_are_those_of_datacomp():
    assert [prompt(cue) for cue in ("bald", "America", "easel", "BLM")] == ["A bald", "An america", "An easel", "A blm"]


def test_chance_is_that_of_every_draw():
    assert chance(2, 3) == pytest.approx(0.6 / 3 + 0.1)  # as the authors work it out
    for right, wrong in ((3, 2), (4, 2), (2, 10), (5, 7)):
        draws = [set(draw) for draw in itertools.combinations(range(right + wrong), right)]
        expected = fmean(len(draw & set(range(right))) / len(draw | set(range(right))) for draw in draws)
        assert chance(right, wrong) == pytest.approx(expected)


def drawn_rows(number, seed=0):
    """As many candidates and associations as the published set has."""
    random.seed(seed)
    rows = []
    for n in range(number):
        candidates = random.sample([f"picture {k}" for k in range(300)], random.choice((5, 6, 10, 12)))
        rows.append((candidates, f"cue {n}", random.sample(candidates, random.choice((2, 2, 3)))))
    return rows


def test_random_features_are_near_chance_and_follow_the_released_rule(tmp_path):
    rows = drawn_rows(1500)
    task = Task(write(tmp_path / "winogavil", rows))
    given = embeddings(task)
    scores = task.score(given)
    assert scores.tie_rate == 0
    for metric, value in scores.metrics.items():
        low, high = scores.intervals[metric]
        assert low < value < high
        assert abs(value - scores.chance[metric]) < 0.035
    names = [image.name.rpartition("/")[2].removesuffix(".jpg") for image in task.images]
    expected = []
    for n, (candidates, _, right) in enumerate(rows):
        similarity = torch.stack([given.image_ND[names.index(name)] for name in candidates]) @ given.text_ND[n]
        taken = {candidates[k] for k in similarity.argsort()[-len(right) :]}
        expected.append(len(taken & set(right)) / len(taken | set(right)))
    assert scores.details["jaccard"] == pytest.approx(expected)


def test_two_models_are_compared_on_the_same_associations(tmp_path):
    task = Task(write(tmp_path / "winogavil", drawn_rows(400)))
    given = embeddings(task)
    better_ND = given.image_ND.clone()
    for one in task.associations[::2]:
        better_ND[list(one.right)] += 0.3 * given.text_ND[one.cue]
    both = [task.score(SetEmbeddings(image_ND, given.text_ND, 10.0)) for image_ND in (better_ND, given.image_ND)]
    kept = [answers.of(task, scores, None) for scores in both]
    for metric in ("jaccard_score_10-12", "jaccard_score_5-6", "avg_jaccard_score"):
        difference = paired.difference(metric, *kept)
        assert difference is not None
        assert difference.is_clear
        assert difference.value == pytest.approx(both[0].metrics[metric] - both[1].metrics[metric], abs=1e-6)
    assert paired.difference("acc", *kept) is None


def test_a_collapsed_model_gets_the_least_there_is(directory, constant_encoder):
    scores = Task(directory).run(without_prompt(constant_encoder), batch_size=4)
    assert set(scores.metrics.values()) == {0}
    assert scores.tie_rate == 1


@pytest.mark.parametrize("noise", [0.0, 1e-7, math.nan])
def test_ties_rounding_and_nan_count_against_a_model(tmp_path, noise):
    """Of 3 among 5 at least one is right; a model of NaN answers nothing."""
    rows = [(list("abcde"), "one", list("cde")), (list("fghijk"), "two", list("fg"))]
    task = Task(write(tmp_path / "winogavil", rows))
    torch.manual_seed(0)
    image_ND = F.normalize(torch.ones(11, 8), dim=1) + noise * torch.randn(11, 8)
    scores = task.score(SetEmbeddings(image_ND, F.normalize(torch.ones(2, 8), dim=1), 10.0))
    assert scores.details["jaccard"] == ([0, 0] if math.isnan(noise) else [1 / 5, 0])


def test_a_tie_costs_the_one_picture_that_ties(tmp_path):
    """Scores .9 .5 .5 .1, of which the first and the second are right: the third stands before the second."""
    task = Task(write(tmp_path / "winogavil", [(list("abcd"), "cue", list("ab"))]))
    image_ND = torch.tensor([[0.9, 0], [0.5, 1], [0.5, -1], [0.1, 0]])
    scores = task.score(SetEmbeddings(image_ND, torch.tensor([[1.0, 0.0]]), 10.0))
    assert scores.details["jaccard"] == [1 / 3]
    assert scores.tie_rate == 1
    assert math.isnan(scores.metrics["jaccard_score_10-12"])  # none has so many candidates
    assert "winogavil/jaccard_score_10-12" not in scores.log


def fails(directory, sentence):
    with pytest.raises(UserError, match=sentence) as error:
        find_task(directory)
    assert "\n" not in str(error.value)


def test_what_is_missing_is_named_with_its_source(tmp_path):
    directory = write(tmp_path / "winogavil", ROWS, zipped=False)
    (directory / "winogavil_images" / "t-shirt.jpg").unlink()
    fails(directory, r"picture t-shirt\.jpg is neither in .*winogavil_images\.zip nor in .*nlphuji/winogavil")
    (directory / "winogavil_images.zip").write_bytes(b"PK cut")
    fails(directory, r"winogavil_images\.zip is not a whole ZIP")
    (directory / "winogavil_dataset.csv").unlink()
    fails(directory, r"winogavil_dataset\.csv is missing: copy it from .*nlphuji/winogavil")


def test_a_damaged_table_is_named(tmp_path):
    def fails_with(row, sentence):
        path = tmp_path / "winogavil" / "winogavil_dataset.csv"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"ID,cue,candidates,associations\n7,{row}\n")
        fails(path.parent, sentence)

    fails_with('bald,"[""a"", ""b""]","[""c""]"', r"row 7 of .* names 'c', which is no candidate")
    fails_with('bald,"[""a"", ""b""]","[""a"", ""b""]"', r"names 2 of 2, as associated: some .* and not all")
    fails_with('bald,"[""a"", ""b""]",[]', "names 0 of 2")
    fails_with('bald,"[""a"", ""b', "has no list of names in 'candidates'")
    fails_with('bald,"[""a"", ""a""]","[""a""]"', "names a picture twice in 'candidates'")
    fails_with(',"[""a"", ""b""]","[""a""]"', "has no cue")
    (tmp_path / "winogavil" / "winogavil_dataset.csv").write_text("ID,cue,candidates\n")
    fails(tmp_path / "winogavil", "has no column 'associations'")
    (tmp_path / "winogavil" / "winogavil_dataset.csv").write_text("ID,cue,candidates,associations\n")
    fails(tmp_path / "winogavil", "holds no associations")


def test_the_suite_takes_it_and_its_groups_are_whole(tmp_path, directory):
    suite = datacomp38.SUITE
    directory.rename(tmp_path / "wds_winogavil_test")
    present, _ = suite.below(tmp_path)
    assert [one.name for one in present.values()] == ["WinoGAViL"]
    task = find_task(next(iter(present)))
    own = task.score(embeddings(task)).metrics
    others = {
        entry.places[0]: dict.fromkeys(entry.metrics, 0.4) for entry in suite.entries if entry.name != "WinoGAViL"
    }
    scores = suite.scores(others | {task.name: own})
    means = {mean.label: mean.value for mean in suite.means(scores)}
    assert list(means) == ["ImageNet", "ImageNet dist. shifts", "VTAB", "Retrieval", "Average"]
    assert means["Retrieval"] == pytest.approx((0.4 + 0.4 + own["jaccard_score_10-12"]) / 3)
    assert means["Average"] == pytest.approx((37 * 0.4 + own["jaccard_score_10-12"]) / 38)
