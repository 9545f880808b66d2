"""Prompts: ours, users' own, and what is wrong with them in one sentence."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path

import pytest

from data_tools._language_models import prompts
from vlp.types import UserError


def test_laclip_shows_three_different_pairs_and_then_the_caption() -> None:
    prompt = prompts.load("laclip")
    first, *shown, last = str(prompt.request("a blue door", 0, 0).prompt).split("\n")
    assert (first, last) == ("write image captions differently,", "a blue door =>")
    pairs = {f"{source} => {target}" for source, target in prompt.pairs}
    assert len(set(shown)) == 3
    assert set(shown) <= pairs
    assert len(prompt.pairs) == 16


def test_a_request_is_a_function_of_caption_number_and_seed_and_every_pair_is_drawn_alike() -> None:
    prompt = prompts.load("laclip")
    assert prompt.request("a", 1, 2) == prompt.request("a", 1, 2)
    others = [prompt.request("b", 1, 2), prompt.request("a", 0, 2), prompt.request("a", 1, 3)]
    assert len({prompt.request("a", 1, 2).seed, *(other.seed for other in others)}) == 4
    requests = [prompt.request("x", number, 0) for number in range(1600)]
    shown = Counter(line for request in requests for line in str(request.prompt).split("\n")[1:-1])
    expected = 1600 * 3 / 16
    chi_square = sum((count - expected) ** 2 / expected for count in shown.values())
    assert len(shown) == 16
    assert chi_square < 37.7  # of 15 degrees of freedom, exceeded once in a thousand
    assert all(0 <= request.seed < 2**31 for request in requests)
    assert len({request.seed for request in requests}) == 1600


def test_the_digest_of_laclip_does_not_change_unnoticed() -> None:
    """Texts that were paid for are kept under it: a changed prompt asks for all texts again."""
    assert prompts.load("laclip").digest == "fb45301cfd00fdd4"


def test_the_instruction_is_a_conversation_that_ends_with_the_caption() -> None:
    messages = prompts.load("instruct").request("a {{ blue }} door", 0, 0).prompt
    assert [role for role, _ in messages] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert messages[-1] == ("user", "a {{ blue }} door")


def test_an_own_template_with_its_sampling(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("messages: [{role: user, content: 'Say: {{ caption }}'}]\nsampling: {temperature: 0, stop: []}\n")
    prompt = prompts.load(str(own))
    assert prompt.request("x", 0, 0).prompt == (("user", "Say: x"),)
    assert (prompt.sampling.temperature, prompt.sampling.top_p, prompt.sampling.stop) == (0, 0.95, ())
    before = prompt.digest
    own.write_text("messages: [{role: user, content: 'Say: {{ caption }}'}]\n")
    assert prompts.load(str(own)).digest == before, "the sampling is recorded by itself"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("text: '{{ caption'", "cannot be filled in: unexpected end of template"),
        ("text: '{{ captoin }}'", "'captoin' is undefined"),
        ("text: hello", r"does not show the caption: write \{\{ caption \}\}"),
        ("text: '{{ caption.__class__.__mro__ }}'", "cannot be filled in: access to attribute '__class__'"),
        ("text: '{{ caption }} {{ 1 / 0 }}'", "cannot be filled in: division by zero"),
        ("text: '{{ caption }} {{ range(10000000) | list }}'", "cannot be filled in: Range too big"),
        ("text: '{{ caption + 1 }}'", "cannot be filled in: can only concatenate str"),
        ("text: '{{ caption[:2].nothing }}'", "cannot be filled in: .* no attribute 'nothing'"),
        ("txt: '{{ caption }}'", "unknown key 'txt', did you mean 'text'?"),
        ("text: '{{ caption }}'\nmessages: [{role: user, content: '{{ caption }}'}]", "give either text or messages"),
        ("draw: 1", "give either text or messages"),
        ("text: '{{ caption }}'\ndraw: 1", "draw 1 is more than the 0 pairs"),
        ("text: '{{ caption }}'\npairs: [[a, b]]", "pairs have no effect without draw"),
        ("messages: [{role: robot, content: '{{ caption }}'}]", "messages.*role"),
        ("text: '{{ caption }}'\nsampling: {temperature: -1}", "sampling.temperature: must be"),
        ("text: '{{ caption }}'\nsampling: {stop: ['#', '']}", "sampling.stop: an empty text .*: leave it out"),
        ("- a\n- b", "must be a mapping with text or messages"),
        ("", "must be a mapping with text or messages"),
        ("text: [", "is not YAML: "),
        ("text: '\xff'", "is not text in UTF-8"),
    ],
)
def test_what_is_wrong_with_a_prompt_is_one_sentence(tmp_path: Path, content: str, says: str) -> None:
    file = tmp_path / "own.yaml"
    file.write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=says) as raised:
        prompts.load(str(file))
    assert str(file) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "template",
    ["{{ caption.split()[1] }}", "{{ caption }}{{ 1 / (caption | wordcount - 1) }}", "{{ caption.index(' ') }}"],
)
def test_a_template_that_does_not_take_every_caption_names_itself_and_the_caption(
    tmp_path: Path, template: str
) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(f'text: "{template}"')
    prompt = pickle.loads(pickle.dumps(prompts.load(str(file))))
    with pytest.raises(UserError, match=r"own\.yaml: the template cannot be filled in for the caption 'bus' \(.*\)"):
        prompt.request("bus", 0, 0)


def test_an_unknown_prompt_names_those_there_are() -> None:
    with pytest.raises(UserError, match=r"no prompt 'laclp', did you mean 'laclip'\?; known: instruct, laclip, "):
        prompts.load("laclp")
