import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from vlp.data.write import write_retrieval_set
from vlp.evaluation.tasks.base import SetEmbeddings
from vlp.evaluation.tasks.retrieval import Task
from vlp.evaluation.team import everyone
from vlp.types import UserError

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


def test_ranks_rsum_and_captions_stand_in_the_result(directory, encoder):
    task = Task(directory)
    embeddings = task.embed(encoder, batch_size=8)
    embeddings.image_ND[:2] = embeddings.image_ND[:2].flip(0)  # the first two pictures are each other
    scores = task.score(embeddings)
    ranks = scores.details
    # By hand: two of the four pictures ask with each other's features.
    assert scores.figures["image_to_text_mean_rank"] == sum(ranks["image_to_text_rank"]) / 4
    assert scores.figures["text_to_image_median_rank"] == scores.log["colours/text_to_image_median_rank"]
    assert scores.figures["rsum"] == pytest.approx(100 * sum(scores.metrics.values()))
    assert scores.metrics["text_retrieval_recall@1"] == 1 / 2
    assert scores.notes == ["4 images, 6 texts, any-of; all captions are kept"]
    assert scores.intervals.keys() == scores.metrics.keys()
    low, high = scores.intervals["text_retrieval_recall@1"]
    assert (low, high) == (0, 1)  # of four pictures


NUM_TEXTS = [3, 1, 5, 2, 4, 5, 1]  # captions of a picture


def drawn(task, collapsed=False):
    generator = torch.Generator().manual_seed(4)
    image_ND = torch.randn(len(task.images), 12, generator=generator)
    text_ND = image_ND[task.image_of_text] + 1.5 * torch.randn(len(task.texts), 12, generator=generator)
    if collapsed:
        image_ND, text_ND = torch.ones_like(image_ND), torch.ones_like(text_ND)
    return SetEmbeddings(F.normalize(image_ND, dim=1), F.normalize(text_ND, dim=1), 10.0)


@pytest.fixture
def many(tmp_path, picture):
    colours = [f"#{5 * i:02x}{255 - 5 * i:02x}80" for i in range(42)]
    texts = [[f"{colour} {n}" for n in range(NUM_TEXTS[i % 7])] for i, colour in enumerate(colours)]
    write_retrieval_set(tmp_path / "many", [(picture(c), "png", t) for c, t in zip(colours, texts, strict=True)])
    return tmp_path / "many"


def clip_benchmark(task, embeddings, batch_size=8):
    """What CLIP_benchmark's own evaluator says of these features, over batches of pictures with their captions."""
    evaluator = pytest.importorskip("clip_benchmark.metrics.zeroshot_retrieval")

    class Model:
        def encode_image(self, image_NCHW):
            return embeddings.image_ND[image_NCHW[:, 0, 0, 0].long()]

        def encode_text(self, text_NL):
            return embeddings.text_ND[text_NL[:, 0]]

    captions = [[t for t, own in enumerate(task.image_of_text) if own == i] for i in range(len(task.images))]
    numbers = torch.arange(len(task.images)).view(-1, 1, 1, 1)
    loader = [(numbers[s : s + batch_size], captions[s : s + batch_size]) for s in range(0, len(numbers), batch_size)]
    tokenizer = torch.tensor
    return evaluator.evaluate(
        Model(), loader, lambda rows: tokenizer(rows)[:, None], "cpu", amp=False, recall_k_list=[1, 5, 10]
    )


def test_agrees_with_clip_benchmark_to_the_last_digit(many):
    task = Task(many)
    embeddings = drawn(task)
    found = task.score(embeddings)
    assert found.tie_rate == 0
    expected = clip_benchmark(task, embeddings)
    assert expected.keys() == found.metrics.keys()
    assert 0 < expected["image_retrieval_recall@1"] < expected["text_retrieval_recall@1"] < 1
    for name, value in expected.items():
        assert found.metrics[name] == pytest.approx(value, abs=1e-7)  # theirs are means in fp32


def test_where_all_ties_clip_benchmark_goes_by_the_order_of_the_set(many):
    """Its top-k takes K of equal candidates as they come, so a collapsed model finds some; here it finds nothing."""
    task = Task(many)
    embeddings = drawn(task, collapsed=True)
    assert set(task.score(embeddings).metrics.values()) == {0}
    assert max(clip_benchmark(task, embeddings).values()) > 0.1


def together(rank, world, directory, encoder):
    try:
        scores = Task(directory).run(encoder, 4, everyone())
    except UserError as error:
        return str(error)
    return scores.metrics, scores.details, scores.intervals, scores.figures, scores.tie_rate


@pytest.mark.parametrize("world", [2, 4])
def test_processes_evaluate_together(run_ranks, many, encoder, world):
    (expected,) = run_ranks(together, 1, many, encoder)
    for found in run_ranks(together, world, many, encoder):
        assert found == expected


def test_fewer_pictures_than_processes(run_ranks, tmp_path, picture, encoder):
    write_retrieval_set(tmp_path / "two", [(picture(c), "png", [c]) for c in COLOURS[:2]])
    (expected,) = run_ranks(together, 1, tmp_path / "two", encoder)
    assert run_ranks(together, 3, tmp_path / "two", encoder) == [expected] * 3


@pytest.mark.parametrize("world", [2, 6])  # more processes than pictures, too
def test_an_unreadable_picture_ends_all_processes_with_its_sentence(run_ranks, tmp_path, picture, encoder, world):
    items = [(picture(c), "png", [c]) for c in COLOURS]
    items[2] = (b"no picture", "png", [COLOURS[2]])
    write_retrieval_set(tmp_path / "broken", items)
    sentences = run_ranks(together, world, tmp_path / "broken", encoder)
    assert len(set(sentences)) == 1
    assert "cannot be used" in sentences[0]
    assert "an evaluation set must be whole, replace the picture" in sentences[0]


def broken_on_the_last(rank, world, directory, encoder):
    def fail(image_NCHW):
        raise UserError("the disk of this one is gone")

    if rank == world - 1:
        encoder.encode_image = fail
    return together(rank, world, directory, encoder)


@pytest.mark.parametrize("world", [2, 6])
def test_what_fails_on_one_process_alone_ends_all(run_ranks, directory, encoder, world):
    assert run_ranks(broken_on_the_last, world, directory, encoder) == ["the disk of this one is gone"] * world
