"""vlp bench loss: its figures are of the recipe's own losses and size, and each peer has the loss it is compared by."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
import torch

from vlp import cli, recipe
from vlp.bench import _losses, _traffic, loss
from vlp.objectives import base


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "_USUAL", 64)
    monkeypatch.setattr(loss, "_REPEATS", {64: 2, 128: 1})
    monkeypatch.setattr(_losses, "_LEAST_SECONDS", 0)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], [("infonce", 32), ("infonce", 64)]),
        (["objectives=[{name: siglip}]", "train.global_batch_size=64"], [("siglip", 64)]),
        (["train.global_batch_size=1000"], [("infonce", 128)]),
    ],
)
def test_figures_of_a_recipe(small, capsys, overrides, expected):
    figures = loss.run(recipe.load("quickstart", ["profile=smoke", *overrides]))
    assert [(row["objective"], row["batch"]) for row in figures["rows"]] == expected
    assert figures["width"] == 64
    assert all(row["loss_difference"] < 1e-4 for row in figures["rows"])
    assert all(len(row["losses"]) == 3 for row in figures["rows"])
    assert figures["traffic"]["2"]["gradient_difference"] < 1e-5
    printed = capsys.readouterr().out
    assert f"{expected[0][0]}, batch {expected[0][1]}" in printed
    assert ("measured at 128" in printed) == ("train.global_batch_size=1000" in overrides)
    assert "bytes that each of 2 processes sends" in printed


def test_an_objective_is_measured_with_its_options_and_others_are_named(small, capsys, monkeypatch):
    monkeypatch.setattr(loss, "_USUAL", 32)
    monkeypatch.setattr(_losses, "in_child", lambda function, *arguments: function(*arguments))  # so as to look on
    measured, real = [], _losses.of_objective

    def looked_on(objective: base.Objective, *arguments: torch.Tensor) -> torch.Tensor:
        measured.append((objective.name, objective.model_dump().get("captions")))
        return real(objective, *arguments)

    monkeypatch.setattr(_losses, "of_objective", looked_on)
    with_options = "{name: infonce, duplicates: masked, captions: 2}"
    objectives = f"objectives=[{with_options}, {{name: triple, queue_size: 0}}, {{name: decoupled}}]"
    figures = loss.run(recipe.load("quickstart", ["profile=smoke", objectives]))
    assert [(row["objective"], row["options"]) for row in figures["rows"]] == [
        ("infonce", {"duplicates": "masked", "captions": 2}),
        ("decoupled", {}),
    ]
    assert figures["left_out"] == ["triple"]
    assert {("infonce", 2), ("decoupled", None)} <= {*measured}
    assert figures["rows"][0]["loss_difference"] is None
    printed = capsys.readouterr().out
    assert "left out, as they need more than features and identities: triple" in printed
    assert "vlp with duplicates: masked, captions: 2; the peers compute the plain loss" in printed
    assert "instead" not in printed


def test_an_objective_with_options_is_the_one_that_is_trained():
    """Equal captions, each counted once: with all rows different, two views of a text give the loss of one."""
    image, text = _losses.features(40, 8)
    scale, bias = torch.tensor(20.0), torch.tensor(-4.0)

    def of(**options) -> torch.Tensor:
        return _losses.of_objective(base.parse({"name": "infonce", **options}), image, text, scale, bias)

    torch.testing.assert_close(of(captions=2, duplicates="masked"), of(), rtol=1e-5, atol=1e-6)
    assert of(label_smoothing=0.1) > of() + 0.01


def test_command_writes_all_figures(small, tmp_path: Path):
    path = tmp_path / "figures.json"
    cli.main(["bench", "loss", "quickstart", "profile=smoke", "--json", str(path)])
    assert json.loads(path.read_text())["rows"][0]["losses"]["vlp"]["seconds"] > 0


@pytest.mark.parametrize("name", list(_losses.PEERS))
def test_peers_have_the_same_loss_and_gradients(monkeypatch, name):
    """The emulations too, over several of their chunks."""
    monkeypatch.setattr(_losses, "_CHUNK", 16)

    def gradients(of: _losses.Loss) -> torch.Tensor:
        leaves = [*_losses.features(40, 8), torch.tensor(20.0), torch.tensor(-4.0)]
        for leaf in leaves:
            leaf.requires_grad_()
        total = of(*leaves)
        total.backward()
        return torch.cat([total.detach()[None], *(x.grad.reshape(-1) for x in leaves if x.grad is not None)])

    expected = gradients(lambda *x: _losses.ours(name, *x) + 0 * x[3])
    for peer in _losses.PEERS[name].values():
        torch.testing.assert_close(gradients(lambda *x, p=peer: p(*x) + 0 * x[3]), expected, rtol=1e-4, atol=1e-6)


def _takes(mib: int) -> None:
    torch.ones(mib << 18).sum()


def test_memory_and_time_are_of_the_measured_loss(monkeypatch):
    def hungry(image: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        _takes(len(image))
        return image.sum()

    assert 240 <= _losses.measure(hungry, 256, 8)["mib"] < 300
    assert _losses.measure(lambda image, *others: image.sum(), 256, 8)["mib"] < 16


def test_a_child_that_dies_is_told():
    with pytest.raises(RuntimeError, match="without a result"):
        _losses.in_child(lambda: exec("import os; os._exit(9)"))


@pytest.mark.skipif(not _traffic.can_count(), reason="this system's sockets do not tell what they sent")
def test_bytes_are_those_that_were_sent():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        before = _traffic._bytes_sent()
        client.sendall(bytes(12345))
        assert _traffic._bytes_sent() - before == 12345


@pytest.mark.skipif(not _traffic.can_count(), reason="this system's sockets do not tell what they sent")
def test_open_clip_sends_each_feature_to_each_other_process_and_back():
    found = _traffic.sent(3, 64, 32)
    features = 64 * 32 * 4
    assert 4 * 2 * features < found["open_clip"] < 4 * 2 * features * 1.1
    assert found["gradient_difference"] < 1e-5
