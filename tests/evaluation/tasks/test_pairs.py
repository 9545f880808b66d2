import pytest

from vlp.data.write import CaptionPair, write_pairs
from vlp.evaluation.tasks.pairs import Task


@pytest.fixture
def directory(tmp_path, picture):
    right = CaptionPair(picture("#ff0000"), "png", "#ff0000", "#0000ff")
    wrong = CaptionPair(picture("#ff0000"), "png", "#0000ff", "#ff0000")
    tied = CaptionPair(picture("#00ff00"), "png", "#00ff00 here", "#00ff00 there")
    write_pairs(tmp_path / "swaps", {"swap_one": [right, right, right, wrong], "swap_two": [tied, right]})
    return tmp_path / "swaps"


def test_accuracy_by_file_micro_and_macro(directory, encoder):
    scores = Task(directory).run(encoder, batch_size=2)
    assert scores.metrics == pytest.approx(
        {"text_acc": 4 / 6, "text_acc_macro": 5 / 8, "text_acc_swap_one": 3 / 4, "text_acc_swap_two": 1 / 2}
    )
    assert scores.log == pytest.approx(
        {
            "swaps/swap_one_accuracy": 3 / 4,
            "swaps/swap_two_accuracy": 1 / 2,
            "swaps/micro_accuracy": 4 / 6,
            "swaps/macro_accuracy": 5 / 8,
        }
    )
    assert set(scores.chance.values()) == {0.5}
    assert scores.tie_rate == pytest.approx(1 / 6)
    assert [m > 0 for m in scores.details["margin"]] == [True, True, True, False, False, True]


def test_a_constant_model_scores_zero(directory, constant_encoder):
    scores = Task(directory).run(constant_encoder, batch_size=4)
    assert set(scores.metrics.values()) == {0}
    assert scores.tie_rate == 1


def test_shared_texts_are_embedded_once(directory, encoder):
    task = Task(directory)
    task.run(encoder, batch_size=4)
    assert len(task.texts) == 4
    assert encoder.num_texts_seen == 3  # to it "#00ff00 here" and "#00ff00 there" are the same
