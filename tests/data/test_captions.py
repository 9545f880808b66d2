from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from vlp.data.batches import DataOptions, TrainingData
from vlp.data.captions import CaptionLayers, CaptionSource, check_sources, draw, draw_more
from vlp.data.index import open_shard
from vlp.data.layers import LayerWriter
from vlp.data.samples import BadSample
from vlp.data.shards import Shard, find_shards
from vlp.data.stream import sample_generator
from vlp.data.transforms import AugmentOptions, PictureFormat
from vlp.types import UserError

TXT = CaptionSource(source="txt")
REWRITES = CaptionSource(source="json.rewrites")
LAYER = CaptionSource(source="layer.rewrites")
DRAWN = "apcccaaabbpbbtbbpactabcbpaaacaapcpaccbct"


def sample(txt: str | None = "plain", **record: Any) -> dict[str, bytes]:
    members = {"json": json.dumps(record).encode()} if record else {}
    return members if txt is None else {**members, "txt": txt.encode()}


def drawn(members: dict[str, bytes], sources: list[CaptionSource], times: int = 400) -> list[str]:
    generator = np.random.default_rng(0)
    return [draw(members, sources, generator) for _ in range(times)]


def test_weights_and_lists() -> None:
    sources = [TXT, CaptionSource(source="json.rewrites", weight=3)]
    captions = drawn(sample(rewrites=["a", "b"]), sources, 4000)
    assert abs(captions.count("plain") - 1000) < 120
    assert abs(captions.count("a") - 1500) < 140
    assert abs(captions.count("b") - 1500) < 140


def test_weights_are_shared_among_the_sources_that_a_sample_has() -> None:
    sources = [TXT, REWRITES, CaptionSource(source="json.title")]
    assert set(drawn(sample(title="head"), sources)) == {"plain", "head"}
    assert set(drawn(sample(None, title="head"), sources)) == {"head"}


@pytest.mark.parametrize("value", ["", "  ", [""], [], None, 7, {"a": "b"}])
def test_an_empty_or_foreign_value_falls_back_to_the_txt(value: Any) -> None:
    assert set(drawn(sample(rewrites=value), [REWRITES], 5)) == {"plain"}


def test_without_any_text_the_sample_is_bad() -> None:
    for members in (sample(" \n"), sample(None), sample(None, rewrites=[""])):
        with pytest.raises(BadSample) as caught:
            draw(members, [TXT, REWRITES], np.random.default_rng(0))
        assert caught.value.kind == "empty caption"


def test_broken_members_are_named() -> None:
    with pytest.raises(BadSample, match="broken JSON"):
        draw({"txt": b"a", "json": b"{"}, [REWRITES], np.random.default_rng(0))
    with pytest.raises(BadSample, match="UTF-8"):
        draw({"txt": b"\xff"}, [TXT], np.random.default_rng(0))
    assert draw({"txt": b"a", "json": b"{"}, [TXT], np.random.default_rng(0)) == "a"


def test_later_draws_do_not_depend_on_the_sources() -> None:
    first, second = np.random.default_rng(3), np.random.default_rng(3)
    draw(sample(rewrites=["a", "b"]), [TXT, REWRITES], first)
    draw(sample(), [TXT], second)
    assert first.random() == second.random()


def test_a_source_that_no_sample_has_is_refused() -> None:
    samples = [sample(rewrites=["a"], title="t")] * 3
    with pytest.raises(UserError, match=r"'json\.rewrite'.*JSON fields there: rewrites, title"):
        check_sources(samples, [TXT, CaptionSource(source="json.rewrite")])
    with pytest.raises(UserError, match="'txt'"):
        check_sources([sample(None, title="t")], [TXT])


def test_a_source_that_some_sample_has_is_accepted() -> None:
    check_sources([{"txt": b"\xff"}, {"txt": b"a", "json": b"{"}, sample(), sample(rewrites=["a"])], [TXT, REWRITES])


def test_a_source_that_cannot_be_decoded_is_there() -> None:
    """It is counted as a bad sample of its kind; that it were missing would send people looking for the wrong thing."""
    check_sources([{"txt": b"\xff"}], [TXT])
    check_sources([{"json": b"{"}], [REWRITES])


@pytest.mark.parametrize(
    "bad",
    [{"source": "json."}, {"source": "caption"}, {"source": "txt", "weight": -1}, {"source": "txt", "each": True}],
)
def test_options_are_checked(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        CaptionSource(**bad)


def layered(*texts: str) -> dict[str, list[str]]:
    return {"layer.rewrites": list(texts)}


def test_layers_are_drawn_with_their_weight() -> None:
    sources = [TXT, CaptionSource(source="layer.rewrites", weight=3)]
    generator = np.random.default_rng(0)
    captions = [draw(sample(), sources, generator, layered("a red dog", "a dog, red")) for _ in range(4000)]
    assert abs(captions.count("plain") - 1000) < 120
    assert abs(captions.count("a red dog") - 1500) < 140
    assert set(captions) == {"plain", "a red dog", "a dog, red"}


@pytest.mark.parametrize(
    ("txt", "rewrite", "drawn_text"),
    [
        ("plain", "dog", "plain"),  # LaCLIP: fewer than two words
        ("plain", "", "plain"),
        ("plain", "a dog", "a dog"),
        ("plain", "一只红色的狗", "一只红色的狗"),  # no spaces between words, so one "word" says nothing
        ("plain", "สุนัขสีแดง", "สุนัขสีแดง"),
        (None, "dog", "dog"),  # nothing to fall back to
        ("", "dog", "dog"),
    ],
)
def test_a_rewrite_of_one_word_falls_back_to_the_txt(txt: str | None, rewrite: str, drawn_text: str) -> None:
    assert draw(sample(txt), [LAYER], np.random.default_rng(0), layered(rewrite)) == drawn_text


def test_one_word_of_other_sources_stays() -> None:
    assert draw(sample("a b", title="dog"), [CaptionSource(source="json.title")], np.random.default_rng(0)) == "dog"
    assert draw(sample("dog"), [TXT], np.random.default_rng(0)) == "dog"


def test_a_sample_that_the_layer_does_not_cover_uses_its_other_sources() -> None:
    generator = np.random.default_rng(0)
    for texts in ({}, layered()):
        assert draw(sample("txt"), [LAYER, REWRITES], generator, texts) == "txt"
        assert draw(sample("txt", rewrites=["one"]), [LAYER, REWRITES], generator, texts) == "one"


def test_draws_of_recipes_without_layers_stay_as_they_are() -> None:
    """Written down before there were layers: a resumed run must draw what the interrupted one would have drawn."""
    sources = [TXT, CaptionSource(source="json.rewrites", weight=3), CaptionSource(source="json.title", weight=0.5)]
    members = sample(rewrites=["a", "b", "c"], title="t")
    assert "".join(drawn(members, sources, 40)).replace("plain", "p") == DRAWN


def test_sources_name_their_layer() -> None:
    assert TXT.layer is None
    assert REWRITES.layer is None
    assert LAYER.layer == ("rewrites", None)
    assert CaptionSource(source="layer.rewrites.short.one").layer == ("rewrites", "short.one")
    assert (TXT.member, REWRITES.member, LAYER.member) == ("txt", "json", "txt")
    for bad in ("layer", "layer.", "layer.a.", "layer..a", "layer.a/b"):
        with pytest.raises(ValidationError):
            CaptionSource(source=bad)


@pytest.fixture
def shards(write_shards: Any) -> list[Shard]:
    found = [open_shard(path)[0] for path in find_shards(str(write_shards(6, 3)))]
    for shard, covered in zip(found, (1, 0), strict=True):
        keys = [shard.key(row) for row in range(covered)]
        texts = {"long": [[f"  rewrite of {key} ", None, "another one"] for key in keys], "short": keys}
        LayerWriter(None, "rewrites", {}, {"long": "texts", "short": "text"}).write(shard, keys, texts)
    LayerWriter(None, "empty", {}).write(found[0], [found[0].key(0)], {"texts": [[]]})
    LayerWriter(None, "score", {}).write(found[0], [found[0].key(0)], {"value": [1.0]})
    return found


def texts_of(layers: CaptionLayers, shard: Shard, row: int) -> dict[str, list[str]]:
    return {source: list(texts) for source, texts in layers.of(shard, row).items()}


def paths_of(shards: list[Shard]) -> list[str]:
    return [shard.path for shard in shards]


def test_the_texts_of_a_sample_come_from_its_layers(shards: list[Shard]) -> None:
    sources = [TXT, CaptionSource(source="layer.rewrites.long"), CaptionSource(source="layer.rewrites.short")]
    layers = CaptionLayers(sources, paths_of(shards))
    assert texts_of(layers, shards[0], 0) == {
        "layer.rewrites.long": ["rewrite of 000000000", "another one"],
        "layer.rewrites.short": ["000000000"],
    }
    for shard, row in ((shards[0], 1), (shards[1], 0)):
        assert texts_of(layers, shard, row) == {"layer.rewrites.long": [], "layer.rewrites.short": []}
    layers.check(shards)
    drawn_text = draw(sample(), sources[1:2], np.random.default_rng(0), layers.of(shards[0], 0))
    assert drawn_text in ("rewrite of 000000000", "another one")


def test_without_sources_in_layers_nothing_is_read(shards: list[Shard]) -> None:
    layers = CaptionLayers([TXT, REWRITES], paths_of(shards))
    assert layers.of(shards[0], 0) == {}
    layers.check(shards)


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("layer.rewrite", "'layer.rewrite': no layer 'rewrite' in .*: the layers there are: rewrites, "),
        ("layer.rewrites", r"several columns, write rewrites\.COLUMN: it has long \(texts\), short \(text\)"),
        ("layer.rewrites.lon", "no column 'lon'"),
        ("layer.score", "no column of text or texts"),
        ("layer.score.value", "'value' of layer 'score' is not text or texts"),
    ],
)
def test_a_layer_that_cannot_be_drawn_from_is_refused(shards: list[Shard], source: str, sentence: str) -> None:
    with pytest.raises(UserError, match=rf"data\.captions: source .*{sentence}"):
        CaptionLayers([TXT, CaptionSource(source=source)], paths_of(shards))


def test_a_layer_without_any_text_would_have_no_effect(shards: list[Shard]) -> None:
    with pytest.raises(UserError, match=r"'layer\.empty' has no text for any shard"):
        CaptionLayers([CaptionSource(source="layer.empty")], paths_of(shards)).check(shards)


def test_a_broken_layer_file_ends_the_run(shards: list[Shard]) -> None:
    path = Path(shards[0].path).parent / "layers/rewrites/00000.parquet"
    path.write_bytes(b"")
    layers = CaptionLayers([CaptionSource(source="layer.rewrites.long")], paths_of(shards))
    assert texts_of(layers, shards[1], 0) == {"layer.rewrites.long": []}
    with pytest.raises(UserError, match=rf"unreadable layer {path} .*write it again, or remove it"):
        layers.of(shards[0], 0)


# ---- Several captions of one picture


def several(number: int, members: dict[str, bytes], seed: int = 0, **options: Any) -> list[str]:
    generator = np.random.default_rng(seed)
    first = draw(members, [TXT, REWRITES], generator)
    return draw_more(first, number, members, [TXT, REWRITES], generator, **options)


@pytest.mark.parametrize("seed", range(20))
def test_several_captions_are_different_ones_where_there_are_as_many(seed: int) -> None:
    found = several(3, sample(rewrites=["a", "b", "c"]), seed)
    assert len(set(found)) == 3
    assert set(found) <= {"plain", "a", "b", "c"}


def test_the_first_stays_and_one_is_no_further_draw() -> None:
    members, generator = sample(rewrites=["a", "b"]), np.random.default_rng(3)
    state = generator.bit_generator.state
    assert draw_more("first", 1, members, [TXT, REWRITES], generator) == ["first"]
    assert generator.bit_generator.state == state
    assert draw_more("first", 3, members, [TXT, REWRITES], generator)[0] == "first"


def test_fewer_captions_than_asked_for_repeat() -> None:
    assert several(3, sample()) == ["plain"] * 3
    found = several(4, sample(rewrites=["plain", "a"]))
    assert len(found) == 4
    assert set(found) == {"plain", "a"}


def test_several_captions_are_drawn_by_weight() -> None:
    """The second of two, where the first was the .txt: each rewrite as often as the other."""
    members, generator = sample(rewrites=["a", "b"]), np.random.default_rng(1)
    second = [draw_more("plain", 2, members, [TXT, REWRITES], generator)[1] for _ in range(2000)]
    assert abs(second.count("a") - 1000) < 100
    assert second.count("plain") < 40, "now and then, no draw finds another"


def test_several_captions_of_a_layer() -> None:
    found = draw_more(
        "plain",
        3,
        sample(),
        [TXT, LAYER],
        np.random.default_rng(0),
        {"layer.rewrites": ["two words", "three more words"]},
    )
    assert sorted(found) == ["plain", "three more words", "two words"]


# ---- Originals and rewrites (LaCLIP, AdaInf)


def shares(sources: list[CaptionSource], rewrites: dict[str, list[str]], draws: int = 10_000) -> dict[str, float]:
    """How often each text was drawn, with the generators that the loader gives to its samples."""
    counts: dict[str, int] = {}
    for position in range(draws):
        text = draw(sample("the caption"), sources, sample_generator(3, position, 0), rewrites)
        counts[text] = counts.get(text, 0) + 1
    return {text: count / draws for text, count in counts.items()}


def chi_squared(found: dict[str, float], expected: dict[str, float], draws: int = 10_000) -> float:
    assert found.keys() == expected.keys()
    return sum(draws * (found[text] - share) ** 2 / share for text, share in expected.items())


LIMIT = {1: 10.8, 2: 13.8, 3: 16.3, 4: 18.5, 5: 20.5}  # one in a thousand lies above, by degrees of freedom


@pytest.mark.parametrize("number", [1, 2, 5])
@pytest.mark.parametrize("each", [True, False])
def test_the_caption_and_each_of_its_rewrites_are_drawn_alike(number: int, each: bool) -> None:
    """As in LaCLIP; `each` for any number of rewrites, a plain weight for the number that it is."""
    rewrites = [f"rewrite {i}" for i in range(number)]
    sources = [TXT, CaptionSource(source="layer.rewrites", each=True, weight=1) if each else _weighing(number)]
    found = shares(sources, layered(*rewrites))
    assert chi_squared(found, dict.fromkeys(["the caption", *rewrites], 1 / (number + 1))) < LIMIT[number]


def _weighing(weight: float) -> CaptionSource:
    return CaptionSource(source="layer.rewrites", weight=weight)


def test_two_layers_are_drawn_alike_text_by_text() -> None:
    sources = [TXT, *(CaptionSource(source=f"layer.{name}", each=True) for name in "ab")]
    rewrites = {"layer.a": ["one way", "another way"], "layer.b": ["third way"]}
    found = shares(sources, rewrites)
    assert chi_squared(found, dict.fromkeys(["the caption", "one way", "another way", "third way"], 1 / 4)) < LIMIT[3]
    found = shares(sources, {"layer.a": [], "layer.b": ["third way"]})
    assert chi_squared(found, dict.fromkeys(["the caption", "third way"], 1 / 2)) < LIMIT[1]


@pytest.mark.parametrize(("original", "rewritten"), [(10, 1), (1, 1), (1, 3)])
def test_originals_and_rewrites_come_in_the_ratio_of_their_weights(original: float, rewritten: float) -> None:
    sources = [CaptionSource(source="txt", weight=original), _weighing(rewritten)]
    found = shares(sources, layered("one way", "another way"))
    of_each = rewritten / (original + rewritten) / 2
    assert chi_squared(found, {"the caption": 1 - 2 * of_each, "one way": of_each, "another way": of_each}) < LIMIT[2]


def test_a_rewrite_of_one_word_gives_its_share_to_the_caption() -> None:
    sources = [TXT, CaptionSource(source="layer.rewrites", each=True)]
    found = shares(sources, layered("word", "two words"))
    assert chi_squared(found, {"the caption": 2 / 3, "two words": 1 / 3}) < LIMIT[1]


def test_a_weight_of_zero_leaves_the_source_out() -> None:
    options = DataOptions(train="x", captions=[TXT, CaptionSource(source="layer.nowhere", weight=0)])
    assert options == DataOptions(train="x")
    with pytest.raises(ValidationError, match="no source has a weight above 0"):
        DataOptions(train="x", captions=[CaptionSource(source="txt", weight=0)])
    with pytest.raises(ValidationError, match="each has no effect on txt"):
        CaptionSource(source="txt", each=True)


def rows_of(folder: Path, captions: list[CaptionSource], workers: int = 0) -> list[tuple[int, str, str, bytes, bytes]]:
    """(epoch, key, caption, pixels, ids) of three epochs of the six samples there."""
    options = DataOptions(
        train=str(folder), captions=captions, workers=workers, augment=AugmentOptions(crop_scale=(0.5, 1.0), flip=0.5)
    )
    data = TrainingData(options, PictureFormat((8, 8), (0.5,) * 3, (0.5,) * 3), ids, global_batch_size=3, seed=5)
    return [
        (step // 2, key, caption, image.numpy().tobytes(), text.numpy().tobytes())
        for step, batch in enumerate(data.batches(0, 6))
        for key, caption, image, text in zip(batch.keys, batch.captions, batch.image_NCHW, batch.text_NL, strict=True)
    ]


def ids(captions: list[str]) -> torch.Tensor:
    return torch.tensor([list(caption.encode()[:12].ljust(12)) for caption in captions])


def test_without_rewrites_the_batches_are_those_of_plain_clip(shards: list[Shard]) -> None:
    """Bit for bit, in every sample without one: order, crops and flips do not depend on the sources."""
    folder = Path(shards[0].path).parent
    plain = rows_of(folder, [TXT])
    assert rows_of(folder, [TXT, CaptionSource(source="layer.rewrites.long", weight=0)]) == plain
    mixed = rows_of(folder, [TXT, CaptionSource(source="layer.rewrites.long", weight=1e9)])
    covered = shards[0].key(0)
    assert [row for row in mixed if row[1] != covered] == [row for row in plain if row[1] != covered]
    ours, theirs = ([row for row in rows if row[1] == covered] for rows in (mixed, plain))
    assert [row[3] for row in ours] == [row[3] for row in theirs], "the same crops"
    assert not {row[2] for row in ours} & {row[2] for row in theirs}, "the rewrites"


def test_epochs_draw_anew_and_runs_agree(shards: list[Shard], tmp_path: Path) -> None:
    folder = Path(shards[0].path).parent
    for shard in shards:
        keys = [shard.key(row) for row in range(len(shard))]
        texts = [[f"{n} ways to say {key}" for n in range(4)] for key in keys]
        LayerWriter(None, "ways", {}).write(shard, keys, {"rewrites": texts})
    sources = [TXT, CaptionSource(source="layer.ways", each=True)]
    rows = rows_of(folder, sources)
    assert rows_of(folder, sources, workers=2) == rows
    by_epoch = [{key: caption for epoch, key, caption, *_ in rows if epoch == wanted} for wanted in range(3)]
    assert all(epoch.keys() == by_epoch[0].keys() for epoch in by_epoch)
    assert by_epoch[0] != by_epoch[1] != by_epoch[2]
