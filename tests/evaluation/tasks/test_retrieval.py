import math
from dataclasses import replace

import pytest

from vlp.data.write import write_retrieval_set
from vlp.evaluation.tasks.retrieval import Task

COLOURS = ["#ff0000", "#00ff00", "#0000ff", "#ffff00"]


@pytest.fixture
def directory(tmp_path, picture):
    captions = [[f"{c} one", f"{c} two"] if i % 2 else [f"{c} one"] for i, c in enumerate(COLOURS)]
    write_retrieval_set(tmp_path / "colours", [(picture(c), "png", t) for c, t in zip(COLOURS, captions, strict=True)])
    return tmp_path / "colours"


def test_a_perfect_model_finds_everything(directory, encoder):
    scores = Task(directory).run(encoder, batch_size=3)
    assert (scores.num_images, scores.num_texts, scores.tie_rate) == (4, 6, 0)
    assert set(scores.metrics.values()) == {1.0}
    assert scores.log["colours/image_to_text_R@1"] == scores.log["colours/text_to_image_median_rank"] == 1
    assert scores.details == {"image_to_text_rank": [1] * 4, "text_to_image_rank": [1] * 6}


def test_names_tell_the_direction_as_clip_benchmark_does(directory, encoder):
    # A model for which all pictures are red: the captions of red win for every picture.
    task = Task(directory)
    embeddings = task.embed(encoder, batch_size=8)
    embeddings.image_ND[:] = embeddings.text_ND[0]
    scores = task.score(embeddings)
    assert scores.metrics["text_retrieval_recall@1"] == 1 / 4  # only the red picture finds its text
    assert scores.metrics["image_retrieval_recall@1"] == 0  # for a text all pictures tie
    assert scores.labels["text_retrieval_recall@1"] == "image -> text R@1"
    assert scores.labels["image_retrieval_recall@1"] == "text -> image R@1"
    assert scores.chance["text_retrieval_recall@1"] == pytest.approx((1 + 2 + 1 + 2) / 4 / 6)
    assert scores.chance["image_retrieval_recall@1"] == pytest.approx(1 / 4)


GEOMETRY = {
    *("modality_gap", "linear_separability", "alignment", "penalty_entropy"),
    *("image_uniformity", "text_uniformity", "image_effective_rank", "text_effective_rank"),
}


def test_the_geometry_of_the_embeddings_is_logged(tmp_path, picture, encoder):
    colours = [f"#{40 * i:02x}{255 - 40 * i:02x}80" for i in range(6)]
    write_retrieval_set(tmp_path / "six", [(picture(c), "png", [c, f"{c} again"]) for c in colours])
    task = Task(tmp_path / "six")
    embeddings = task.embed(encoder, batch_size=4)
    assert embeddings.logit_scale == pytest.approx(10)
    scores = task.score(embeddings)
    assert scores.geometry.keys() == GEOMETRY
    assert {f"six/{name}": value for name, value in scores.geometry.items()}.items() <= scores.log.items()
    # Pictures and texts meet at the same points.
    assert scores.geometry["modality_gap"] == pytest.approx(0, abs=1e-6)
    assert scores.geometry["alignment"] == pytest.approx(0, abs=1e-6)
    assert scores.geometry["image_effective_rank"] == pytest.approx(scores.geometry["text_effective_rank"], abs=1e-5)
    hotter = task.score(replace(embeddings, logit_scale=1.0))
    assert hotter.geometry["penalty_entropy"] > scores.geometry["penalty_entropy"] + 0.01


def test_figures_that_are_not_defined_are_not_logged(directory, encoder):
    scores = Task(directory).run(encoder, batch_size=3)
    assert math.isnan(scores.geometry["linear_separability"])  # of four pairs none can be held out
    assert {name.removeprefix("colours/") for name in scores.log} & GEOMETRY == GEOMETRY - {"linear_separability"}


def test_a_constant_model_scores_zero(directory, constant_encoder):
    scores = Task(directory).run(constant_encoder, batch_size=4)
    assert scores.metrics["text_retrieval_recall@1"] == scores.metrics["image_retrieval_recall@1"] == 0
    assert scores.tie_rate == 1


def test_a_caption_shared_by_two_pictures_is_a_tie(tmp_path, picture, encoder):
    items = [(picture("#ff0000"), "png", ["#ff0000"]), (picture("#ff1000"), "png", ["#ff0000", "#ff1000"])]
    write_retrieval_set(tmp_path / "shared", items)
    scores = Task(tmp_path / "shared").run(encoder, batch_size=4)
    assert scores.metrics["text_retrieval_recall@1"] == 1 / 2
    assert scores.tie_rate == 1 / 5  # of the queries of two pictures and three captions only the first picture ties


def test_pictures_and_captions_are_at_hand_for_a_gallery(directory):
    task = Task(directory)
    assert task.image(3).getpixel((0, 0)) == (255, 255, 0)
    assert [task.texts[t] for t, i in enumerate(task.image_of_text) if i == 3] == [
        "#ffff00 one",
        "#ffff00 two",
    ]
