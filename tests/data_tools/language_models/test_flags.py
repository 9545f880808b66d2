"""Fields of engines as flags: one for each name, and a sentence for each mistake."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence

import pytest

from data_tools._language_models import flags
from data_tools._language_models.base import Sampling
from data_tools._rewrite_gate import GateOptions
from vlp.types import UserError


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    flags.add_engine_arguments(parser)
    flags.add_prompt_arguments(parser, "laclip", "instruct")
    for name, info in GateOptions.model_fields.items():
        flags.add_field(parser, "gate", name, info, "")
    return parser.parse_args(arguments)


def test_every_field_of_every_engine_is_one_flag() -> None:
    parser = argparse.ArgumentParser()
    flags.add_engine_arguments(parser)
    text = " ".join(parser.format_help().split())
    for name, engine in flags.engines().items():
        for field, info in engine.model_fields.items():
            assert flags.flag(field) in text
            assert info.description, f"{name}.{field} says nothing in --help"
            assert " ".join(info.description.split())[:20] in text
    assert text.count(" --model MODEL ") == 1, "in the list, where the usage has brackets"


def test_the_options_of_the_chosen_engine() -> None:
    engine = flags.engine(parsed(["--engine", "server", "--url", "http://h:1/v1/", "--model", "m", "--in-flight", "7"]))
    assert engine.model_dump(include={"url", "model", "in_flight"}) == {
        "url": "http://h:1/v1",
        "model": "m",
        "in_flight": 7,
    }


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--engine scene", r"^--engine: unknown engine 'scene', did you mean 'scenes'\?; known: .*server"),
        ("--engine scenes --url x", "^--url has no effect on --engine scenes: it is an option of --engine server$"),
        ("--engine server", "^--engine server needs --url: address of the server"),
        ("--engine server --url http://h --model m --in-flight 0", "^--in-flight: must be greater than or equal to 1"),
        ("--engine server --url http://h --model m --in-flight x", r"^--in-flight: must be an integer.*got 'x'"),
        ("--engine server --url ftp://h --model m", "^--url: give http://HOST"),
        ("--engine scenes --grammar C", "^--grammar: must be 'A', 'B' or 'both'"),
    ],
)
def test_what_is_wrong_with_an_engine_is_one_sentence_that_names_flags(arguments: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        flags.engine(parsed(arguments.split()))


def test_sampling_is_that_of_the_prompt_unless_a_flag_says_otherwise() -> None:
    prompts = Sampling(temperature=0.3, stop=("#",))
    assert flags.sampling(parsed([]), prompts) == prompts
    changed = flags.sampling(parsed(["--temperature", "0", "--max-tokens", "9"]), prompts)
    assert changed == Sampling(temperature=0, max_tokens=9, stop=("#",))
    with pytest.raises(UserError, match=r"^--top-p: must be less than or equal to 1"):
        flags.sampling(parsed(["--top-p", "2"]), prompts)


def test_rules_of_a_gate_as_flags() -> None:
    arguments = parsed(["--min-words", "3", "--off", "list", "near_copy", "--off", "dialogue"])
    gate = flags.checked(GateOptions, flags.given(arguments, "gate", GateOptions.model_fields))
    assert gate == GateOptions(min_words=3, off=("list", "near_copy", "dialogue"))
    for wrong, says in {
        "--min-words 9 --max-words 3": "^--min-words 9 is above --max-words 3: no rewrite passes$",
        "--off lists": "^--off: no rule 'lists'; known: empty",
        "--min-clip-ratio 0.5": "^--min-clip-ratio has no effect without --clip-model: name a MODEL$",
    }.items():
        given = flags.given(parsed(wrong.split()), "gate", GateOptions.model_fields)
        with pytest.raises(UserError, match=says):
            flags.checked(GateOptions, given)


def test_parts_share_the_shards_out() -> None:
    paths = [f"{number}.tar" for number in range(7)]
    parts = [flags.part_of(paths, f"{number}/3") for number in range(3)]
    assert parts == [["0.tar", "3.tar", "6.tar"], ["1.tar", "4.tar"], ["2.tar", "5.tar"]]
    assert flags.part_of(paths, None) == paths
    assert flags.part_of(paths[:1], "1/2") == []
    for wrong, says in {
        "3/3": r"^--part 3/3: parts count from 0, so the last of 3 is 2/3: with SLURM write --array=0-2$",
        "0/0": "^--part 0/0: ",
        "-1/3": "is not of the form I/N",
        "1": "is not of the form I/N: write 0/16",
    }.items():
        with pytest.raises(UserError, match=says):
            flags.part_of(paths, wrong)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom vlp.cli import main\ntry: main(['data', 'rewrite', '--help'])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'pyarrow', 'transformers', 'openai', 'spacy', 'vllm', 'jinja2', 'PIL'}\n"
        "print(sorted(heavy & sys.modules.keys()), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert "--in-flight" in done.stdout
