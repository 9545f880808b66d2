"""Captions equal those of a slow search that reads each text anew, stop where they end and do not depend on a batch."""

from __future__ import annotations

import math
from pathlib import Path

import open_clip.coca_model
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from tokenizers import BertWordPieceTokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from vlp.data.benchmark_sets import StoredFile
from vlp.encoders import openclip
from vlp.encoders.captioner import CaptionerOptions
from vlp.encoders.two_tower import TwoTower
from vlp.generation import caption_images, captions_of, generate
from vlp.generation_options import GenerationOptions
from vlp.types import UserError

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [*SPECIAL, "a", "red", "blue", "green", "circle", "square", "left", "of", ".", "two", "three"]
PADDING, START, END = 0, 2, 3
VISION = {"image_size": 16, "patch_size": 8, "layers": 1, "width": 32, "head_width": 16}
CONTEXT = 10
TEXT = {"context_length": CONTEXT, "vocab_size": len(WORDS), "width": 32, "heads": 2, "layers": 2}
HEAD = {"layers": 2, "width": 16, "heads": 2, "queries": 3}
KINDS = {"CoCa": None, "head": CaptionerOptions(**HEAD), "own half": CaptionerOptions(**HEAD, text_layers=1)}


def coca(text: dict, **more: object) -> dict:
    vision = {**VISION, "attentional_pool": True, "attn_pooler_heads": 2, "attn_pooler_queries": 5}
    return {
        "embed_dim": 32,
        "custom_text": True,
        "vision_cfg": {**vision, "output_tokens": True},
        "text_cfg": {**text, "embed_cls": True, "output_tokens": True, **more},
        "multimodal_cfg": text,
    }


@torch.no_grad()
def livened(model: TwoTower, head_std: float = 0.3, end: float = 2.0) -> TwoTower:
    """The model with weights of which texts differ between pictures and places, and end at several lengths."""
    generator = torch.Generator().manual_seed(5)
    path = model.caption_path()
    assert path is not None
    for parameter in model.parameters():
        parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    path.half.token_embedding.weight.mul_(10)
    path.half.positional_embedding.mul_(30)
    for cross in path.decoder.cross_attn:
        cross.attn.out_proj.weight.mul_(5)
    path.head_WV.normal_(std=head_std, generator=generator)
    path.head_WV[:, model.special_tokens.end] *= end
    return model.eval()


def write_tokenizer(directory: Path, start: str = "[CLS]") -> Path:
    inner = BertWordPieceTokenizer(vocab={word: i for i, word in enumerate(WORDS)}, cls_token=start)._tokenizer
    names = {f"{word[1:-1].lower()}_token": word for word in SPECIAL}
    PreTrainedTokenizerFast(tokenizer_object=inner, **{**names, "cls_token": start}).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def words_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("words"))


@pytest.fixture(scope="module")
def models(words_directory: Path) -> dict[str, TwoTower]:
    """Of a few words, by how they tell captions."""
    tokenizer = {"hf_tokenizer_name": str(words_directory)}
    clip = {"embed_dim": 32, "vision_cfg": VISION, "text_cfg": {**TEXT, **tokenizer}}
    found = {}
    for kind, head in KINDS.items():
        options = openclip.ModelOptions(config=clip if head else coca(TEXT, **tokenizer), captioner=head)
        found[kind] = livened(openclip.build(options, seed=0))
    return found


@pytest.fixture(scope="module")
def ending(models: dict[str, TwoTower]) -> TwoTower:
    """One whose texts end early."""
    config = models["CoCa"].openclip_config["model_cfg"]
    return livened(openclip.build(openclip.ModelOptions(config=config), seed=0), end=5.0)


@pytest.fixture(scope="module")
def clips_words() -> TwoTower:
    """A CoCa with CLIP's tokenizer."""
    return livened(openclip.build(openclip.ModelOptions(config=coca({**TEXT, "vocab_size": 49408})), seed=0))


def pictures(number: int, seed: int = 0) -> Tensor:
    return torch.randint(256, (number, 3, 16, 16), generator=torch.Generator().manual_seed(seed)).byte()


@torch.no_grad()
def next_scores(model: TwoTower, image_CHW: Tensor, texts: list[list[int]]) -> Tensor:
    """Log-probabilities KV of what follows texts of one length, from the whole texts."""
    path = model.caption_path()
    memory_KQW = model.caption_memory(image_CHW[None]).expand(len(texts), -1, -1)
    return (path.states(torch.tensor(texts), memory_KQW)[:, -1] @ path.head_WV).log_softmax(1)


def allowed(scores_KV: Tensor, length: int, options: GenerationOptions, limit: int) -> Tensor:
    """What may follow texts of ``length`` ids."""
    scores_KV = scores_KV.clone()
    scores_KV[:, [PADDING, START]] = -math.inf
    if length + 1 < options.min_length:
        scores_KV[:, END] = -math.inf
    if length + 1 == limit:
        scores_KV[:, torch.arange(len(WORDS)) != END] = -math.inf
    return scores_KV


def slow_greedy(model: TwoTower, image_CHW: Tensor, text: list[int], options: GenerationOptions) -> list[int]:
    limit = min(options.max_length, CONTEXT)
    while text[-1] != END:
        scores_1V = allowed(next_scores(model, image_CHW, [text]), len(text), options, limit)
        text = [*text, int(scores_1V.argmax())]
    return text


def slow_beams(model: TwoTower, image_CHW: Tensor, begin: list[int], options: GenerationOptions) -> list[int]:
    """As the definition says it, with lists."""
    beams, penalty = options.num_beams, 1.0 if options.length_penalty is None else options.length_penalty
    limit = min(options.max_length, CONTEXT)
    going: list[tuple[float, list[int]]] = [(0.0, begin)]
    ended: list[tuple[float, list[int]]] = []
    for length in range(len(begin) + 1, limit + 1):
        scores_KV = allowed(next_scores(model, image_CHW, [text for _, text in going]), length - 1, options, limit)
        found = [
            (total + score, [*text, id_])
            for (total, text), scores in zip(going, scores_KV.tolist(), strict=True)
            for id_, score in enumerate(scores)
        ]
        found.sort(key=lambda one: -one[0])
        ends = [(total / length**penalty, text) for total, text in found[:beams] if text[-1] == END]
        ended = sorted([*ended, *ends], key=lambda one: -one[0])[:beams]
        if len(ended) == beams and ended[-1][0] >= found[0][0] / length**penalty:
            break
        going = [one for one in found if one[1][-1] != END][:beams]
    return ended[0][1]


def texts(ids_NL: Tensor) -> list[list[int]]:
    """Up to the end; what stands behind is padding."""
    found = []
    for row in ids_NL.tolist():
        length = row.index(END) + 1
        assert set(row[length:]) <= {PADDING}
        found.append(row[:length])
    return found


OPTIONS = {
    "greedy": {"beams": 1},
    "greedy, long": {"beams": 1, "min_length": 9},
    "greedy, short": {"beams": 1, "max_length": 4},
    "two beams": {"beams": 2},
    "beams": {},
    "many beams": {"beams": 7},
    "beams, long texts": {"length_penalty": 3.0},
    "beams, sums": {"length_penalty": 0.0},
    "beams, bounds": {"beams": 4, "min_length": 4, "max_length": 7},
    "beams, empty texts too": {"min_length": 2},
    "beams, prompt": {"prompt": "a red circle"},
    "greedy, prompt": {"beams": 1, "prompt": "two"},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OPTIONS)
def test_captions_equal_a_slow_search_that_reads_each_text_anew(models, kind, name):
    model, options, image_NCHW = models[kind], GenerationOptions(**OPTIONS[name]), pictures(4)
    begin = [START, *(WORDS.index(word) for word in options.prompt.split())]
    slow = slow_greedy if options.num_beams == 1 else slow_beams
    expected = [slow(model, image_CHW, begin, options) for image_CHW in image_NCHW]
    assert texts(generate(model, image_NCHW, options)) == expected


def test_the_searches_have_something_to_find(models):
    """Else the test above could not fail: texts differ in words and length, and the searches in what they find."""
    image_NCHW = pictures(40)
    found = {name: texts(generate(models["CoCa"], image_NCHW, GenerationOptions(**OPTIONS[name]))) for name in OPTIONS}
    for name in ("greedy", "beams"):
        assert len({tuple(text) for text in found[name]}) > 10
        assert len({len(text) for text in found[name]}) > 3
    for one, other in (("greedy", "beams"), ("beams", "beams, long texts"), ("beams", "beams, sums")):
        assert found[one] != found[other]


@pytest.mark.parametrize(("beams", "penalty"), [(2, 3.0), (3, 3.0), (3, 1.0)])
def test_a_search_stops_when_none_that_goes_on_is_better(ending, beams, penalty):
    """Many pictures: some are done long before others, and could find another text if they went on."""
    options, image_NCHW = GenerationOptions(beams=beams, length_penalty=penalty, min_length=2), pictures(24)
    expected = [slow_beams(ending, image_CHW, [START], options) for image_CHW in image_NCHW]
    assert texts(generate(ending, image_NCHW, options)) == expected


@pytest.mark.parametrize("options", [{"beams": 1}, {"beams": 4}, {"top_p": 0.9, "seed": 3}])
@pytest.mark.parametrize("kind", KINDS)
def test_a_caption_does_not_depend_on_its_batch(models, kind, options):
    options, image_NCHW = GenerationOptions(**options), pictures(10)
    together = texts(generate(models[kind], image_NCHW, options))
    assert [texts(generate(models[kind], one_CHW[None], options))[0] for one_CHW in image_NCHW] == together
    backwards = texts(generate(models[kind], image_NCHW.flip(0), options))
    assert backwards[::-1] == together


@pytest.mark.parametrize(("options", "beams"), [({"beams": 1}, 1), ({"beams": 3}, 3), ({"top_p": 0.8}, 1)])
def test_ended_pictures_leave_the_batch(ending, options, beams):
    image_NCHW, read = pictures(32), []
    hook = ending.clip.text.token_embedding.register_forward_hook(lambda m, inputs, o: read.append(inputs[0].numel()))
    found = texts(generate(ending, image_NCHW, GenerationOptions(**options)))
    hook.remove()
    lengths = [len(text) for text in found]
    assert min(lengths) < max(lengths)
    assert len(read) >= max(lengths) - 1
    assert len(read) <= CONTEXT - 1, "no id behind the last one is read"
    assert read[:2] == [32, 32 * beams]
    assert read == sorted(read[:1]) + sorted(read[1:], reverse=True)
    assert read[-1] < 0.75 * 32 * beams


def test_texts_may_end_at_once(ending):
    image_NCHW = pictures(20)
    for more in ({"beams": 1}, {"beams": 3}, {"top_p": 0.5}):
        options = GenerationOptions(min_length=2, **more)
        found = texts(generate(ending, image_NCHW, options))
        assert [START, END] in found, "some of them"
        assert max(map(len, found)) > 2
        assert captions_of(ending, image_NCHW, options)[found.index([START, END])] == ""
        longer = texts(generate(ending, image_NCHW, GenerationOptions(**more)))
        assert min(map(len, longer)) == 3, "by default no caption is empty"


def test_length_is_bounded_by_the_options_and_by_the_context(models):
    image_NCHW = pictures(6)
    for more in ({"beams": 1}, {"beams": 3}, {"top_p": 1.0}):
        for wanted, bound in ((8, 8), (300, CONTEXT)):
            found = generate(models["CoCa"], image_NCHW, GenerationOptions(max_length=wanted, min_length=8, **more))
            assert found.shape == (6, bound)
            assert all(8 <= len(text) <= bound for text in texts(found))
        exact = generate(models["CoCa"], image_NCHW, GenerationOptions(max_length=9, min_length=9, **more))
        assert {len(text) for text in texts(exact)} == {9}


def repeats(text: list[int], size: int) -> int:
    runs = [tuple(text[i : i + size]) for i in range(len(text) - size + 1)]
    return len(runs) - len(set(runs))


@pytest.mark.parametrize("more", [{"beams": 1}, {"beams": 3}, {"top_p": 0.9}])
def test_repetition_is_controlled(models, more):
    def told(**control: float) -> list[list[int]]:
        return texts(generate(models["CoCa"], pictures(12), GenerationOptions(min_length=9, **more, **control)))

    plain = told()
    assert sum(repeats(text, 1) for text in plain) > 12
    assert sum(repeats(text, 2) for text in plain) > 6
    assert sum(repeats(text, 2) for text in told(no_repeat_ngram=2)) == 0
    assert sum(repeats(text, 1) for text in told(no_repeat_ngram=1)) == 0
    assert sum(repeats(text, 1) for text in told(repetition_penalty=3.0)) < 0.8 * sum(
        repeats(text, 1) for text in plain
    )


def test_a_start_that_is_the_end_is_told_as_the_end(tmp_path):
    """As with tokenizers of GPT-2: it neither counts as a repetition nor is it banned."""
    config = coca(TEXT, hf_tokenizer_name=str(write_tokenizer(tmp_path, start="[SEP]")))
    model = livened(openclip.build(openclip.ModelOptions(config=config), seed=0), end=5.0)
    assert model.special_tokens == (END, END, PADDING)
    for more in ({"beams": 1}, {"beams": 3}, {"top_p": 0.9}):
        for control in ({}, {"no_repeat_ngram": 1}, {"repetition_penalty": 3.0}):
            options = GenerationOptions(min_length=2, **more, **control)
            text_NL = generate(model, pictures(30), options)
            lengths = model.special_tokens.lengths(text_NL)
            assert (text_NL[:, 0] == END).all()
            assert (text_NL.gather(1, lengths[:, None] - 1) == END).all()
            assert lengths.min() < CONTEXT - 2


def test_start_and_padding_are_never_told(clips_words, models):
    for model in (clips_words, models["CoCa"]):
        path, special = model.caption_path(), model.special_tokens
        kept = path.head_WV.detach().clone()
        with torch.no_grad():
            path.head_WV[:, [special.padding, special.start]] = 0
            path.decoder.ln_final.bias[0] += 100
            path.head_WV[0, [special.padding, special.start]] = 1  # far likelier than all others
        for more in ({"beams": 1}, {"beams": 3}, {"top_p": 0.9}):
            ids_NL = generate(model, pictures(3), GenerationOptions(**more))
            lengths = special.lengths(ids_NL)
            for text, length in zip(ids_NL.tolist(), lengths.tolist(), strict=True):
                assert not {special.padding, special.start} & set(text[1:length])
        with torch.no_grad():
            path.head_WV.copy_(kept)
            path.decoder.ln_final.bias[0] -= 100


def test_a_narrow_nucleus_is_greedy_and_seeds_are_kept(models):
    model, image_NCHW = models["CoCa"], pictures(16)
    greedy = generate(model, image_NCHW, GenerationOptions(beams=1))
    assert torch.equal(generate(model, image_NCHW, GenerationOptions(top_p=1e-6, seed=4)), greedy)
    assert torch.equal(generate(model, image_NCHW, GenerationOptions(top_p=1.0, temperature=1e-3)), greedy)
    first, again, other = (generate(model, image_NCHW, GenerationOptions(top_p=0.95, seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, greedy)
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    generate(model, image_NCHW, GenerationOptions(top_p=0.9))
    assert torch.equal(torch.random.get_rng_state(), before), "the state of a run is left alone"


@pytest.mark.parametrize(("top_p", "temperature"), [(1.0, None), (0.7, None), (0.9, 2.0)])
def test_ids_are_drawn_as_often_as_they_are_probable(models, words_directory, top_p, temperature):
    """The first id of pictures that differ, from a model that does not look at them."""
    config = coca(TEXT, hf_tokenizer_name=str(words_directory))
    model = livened(openclip.build(openclip.ModelOptions(config=config), seed=0), head_std=0.1, end=1.0)
    with torch.no_grad():
        for cross in model.clip.text_decoder.cross_attn:
            cross.attn.out_proj.weight.zero_()
    scores_V = allowed(next_scores(model, pictures(1)[0], [[START]]), 1, GenerationOptions(), 4)[0]
    likely = (scores_V / (temperature or 1)).softmax(0).sort(descending=True)
    inside = likely.values.cumsum(0) - likely.values < top_p
    expected_V = torch.zeros(len(WORDS)).index_put((likely.indices[inside],), likely.values[inside])
    expected_V /= expected_V.sum()
    assert (expected_V > 0.02).sum() > 3
    options = GenerationOptions(top_p=top_p, temperature=temperature, max_length=4, seed=1)
    number = 4000
    first_N = generate(model, pictures(number), options)[:, 1]
    found_V = first_N.bincount(minlength=len(WORDS)) / number
    error_V = (expected_V * (1 - expected_V) / number).sqrt()
    assert ((found_V - expected_V).abs() <= 4.5 * error_V).all(), (found_V, expected_V)
    other_N = generate(model, pictures(number), GenerationOptions(**{**options.model_dump(), "seed": 2}))[:, 1]
    chance = float((expected_V**2).sum())
    assert abs(float((other_N == first_N).float().mean()) - chance) < 0.05, "seeds are independent"


def test_a_picture_is_captioned_alike_wherever_it_stands(models):
    image_NCHW = pictures(3)[[0, 1, 0, 2, 0]]
    found = texts(generate(models["CoCa"], image_NCHW, GenerationOptions(top_p=1.0)))
    assert found[0] == found[2] == found[4]
    assert found[0] != found[1]


def test_the_model_gets_its_modes_back(models):
    model = models["head"]
    before = generate(model, pictures(4), GenerationOptions())
    modes = {module: place % 3 == 0 for place, module in enumerate(model.modules())}
    for module, mode in modes.items():
        module.training = mode
    inner = []
    hook = model.clip.visual.register_forward_hook(lambda module, inputs, output: inner.append(module.training))
    found = generate(model, pictures(4), GenerationOptions())
    hook.remove()
    assert {module: module.training for module in model.modules()} == modes
    assert inner == [False]
    assert torch.equal(found, before)
    assert not found.requires_grad
    model.eval()


@pytest.mark.parametrize("more", [{"beams": 1}, {"beams": 3}, {"top_p": 0.9}])
def test_half_precision(models, words_directory, more):
    image_NCHW, options = pictures(8), GenerationOptions(**more)
    with torch.autocast("cpu", torch.bfloat16):
        texts(generate(models["CoCa"], image_NCHW, options))
    model = livened(
        openclip.build(
            openclip.ModelOptions(config=models["head"].openclip_config["model_cfg"], captioner=KINDS["head"]), 0
        )
    )
    model.to(torch.bfloat16)
    model.normalise = lambda image_NCHW: image_NCHW.bfloat16()  # type: ignore[method-assign]
    texts(generate(model, image_NCHW, options))


# open_clip's own


@pytest.mark.skipif(
    not open_clip.coca_model._has_transformers,
    reason="open_clip 3.3.0's generate needs transformers' BeamSearchScorer, which 4.57 no longer has",
)
@pytest.mark.parametrize("beams", [1, 2, 3, 6])
def test_texts_equal_those_of_open_clips_generate(ending, beams):
    """Of those that it ended: it compares those that it cut off by the likelihood of their beginning.

    Its decoder gets a hook that makes log-probabilities, as it would add up logits.
    """
    image_NCHW, length = pictures(40), CONTEXT
    search = {"generation_type": "top_k", "top_k": 1} if beams == 1 else {"num_beams": beams, "num_beam_groups": 1}
    ids = {"sot_token_id": START, "eos_token_id": END, "pad_token_id": PADDING}
    hook = ending.clip.text_decoder.register_forward_hook(never_told)
    theirs_NL = ending.clip.generate(ending.normalise(image_NCHW), seq_len=length, min_seq_len=2, **search, **ids)
    hook.remove()
    ours = texts(generate(ending, image_NCHW, GenerationOptions(beams=beams, max_length=length, min_length=3)))
    compared = 0
    for text, theirs in zip(ours, theirs_NL.tolist(), strict=True):
        if END in theirs:
            compared += 1
            assert text == theirs[: theirs.index(END) + 1]
    assert compared > 20
    assert len({len(text) for text in ours}) > 3


def never_told(module: object, inputs: object, logits: Tensor) -> Tensor:
    scores = logits.log_softmax(-1)
    scores[..., [PADDING, START]] = -1e4
    return scores


# Strings


def test_strings_of_both_tokenizers(models, clips_words):
    words = models["CoCa"]
    ids_NL = generate(words, pictures(8), GenerationOptions())
    for caption, text in zip(captions_of(words, pictures(8), GenerationOptions()), texts(ids_NL), strict=True):
        told = [WORDS[id_] for id_ in text[1:-1] if WORDS[id_] not in SPECIAL]
        assert caption == " ".join(told).replace(" .", ".")
    from vlp.generation import _string

    tokenizer = clips_words.tokenizer
    for caption in (
        "a dog, a cat and 3 birds (all of them) don't move.",
        "it's 2019: what's new?",
        "café, 50% off!",
    ):
        assert _string(tokenizer, tokenizer.encode(caption)) == caption.replace("(all", "( all")
    assert _string(tokenizer, []) == ""


def test_captions_of_files_come_in_their_order_and_equal_files_once(models, tmp_path):
    model, found = models["CoCa"], []
    for number, image_CHW in enumerate(pictures(5)):
        path = tmp_path / f"{number}.png"
        Image.fromarray(image_CHW.permute(1, 2, 0).numpy()).save(path)
        found.append(StoredFile(path, path.name))
    seen: list[int] = []
    hook = model.clip.visual.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    captions = caption_images(model, [*found, found[1], found[0]], 2, GenerationOptions())
    hook.remove()
    assert seen == [2, 2, 1]
    assert captions == [*(expected := captions_of(model, pictures(5), GenerationOptions())), expected[1], expected[0]]
    assert caption_images(model, [], 2, GenerationOptions()) == []
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"broken\.png cannot be used"):
        caption_images(model, [StoredFile(tmp_path / "broken.png", "broken.png")], 2, GenerationOptions())


# Mistakes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beams": 3, "top_p": 0.9}, "beams 3 and top_p 0.9 exclude each other"),
        ({"temperature": 0.7}, "temperature is of drawn captions: set top_p"),
        ({"seed": 0}, "seed is of drawn captions"),
        ({"beams": 1, "length_penalty": 1.0}, "length_penalty compares beams"),
        ({"top_p": 0.9, "length_penalty": 1.0}, "length_penalty compares beams"),
        ({"min_length": 31}, "min_length 31 is more than max_length 30"),
        ({"beams": 0}, "greater than or equal to 1"),
        ({"top_p": 0.0}, "greater than 0"),
        ({"num_beams": 3}, "Extra inputs are not permitted"),
    ],
)
def test_options_without_effect_are_refused(options, message):
    with pytest.raises(ValidationError, match=message):
        GenerationOptions(**options)


def test_options_survive_a_round_trip():
    for options in ({}, {"beams": 1}, {"top_p": 0.9}, {"beams": 1, "top_p": 0.9, "temperature": 0.5, "seed": 1}):
        one = GenerationOptions(**options)
        assert GenerationOptions(**one.model_dump()) == one
    assert [GenerationOptions(**o).num_beams for o in ({}, {"beams": 6}, {"top_p": 0.5})] == [3, 6, 1]


def test_mistakes_come_with_a_cure(models, tiny_model):
    image_NCHW = pictures(2)
    plain = openclip.build(openclip.ModelOptions(config=tiny_model), seed=0)
    with pytest.raises(UserError, match=r"tells no captions: take a CoCa.*model\.captioner"):
        generate(plain, torch.zeros(1, 3, 32, 32, dtype=torch.uint8), GenerationOptions())
    with pytest.raises(UserError, match=r"has 9 ids with the start, which leaves no place for a caption in 10"):
        generate(models["CoCa"], image_NCHW, GenerationOptions(prompt="a red circle left " * 2))
    with pytest.raises(UserError, match="min_length is 20, but the model's texts have at most 10 ids"):
        generate(models["CoCa"], image_NCHW, GenerationOptions(min_length=20))
    config = models["CoCa"].openclip_config["model_cfg"]
    broken = openclip.build(openclip.ModelOptions(config=config), seed=0)
    with torch.no_grad():
        broken.clip.text_decoder.ln_final.weight.fill_(math.nan)
    with pytest.raises(UserError, match="not finite: its weights have diverged"):
        generate(broken, image_NCHW, GenerationOptions())
