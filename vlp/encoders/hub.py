"""Files of models on the Hugging Face hub: from its cache first, then over the network, unless that is forbidden.

A file that lies in the cache is used as it is, without asking whether the hub has a newer one: a benchmark computes
the same thing tomorrow, and on a node without a network. ``VLP_OFFLINE=1`` (or ``HF_HUB_OFFLINE=1``, or ``--offline``)
makes every download a UserError at once.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlparse

from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError
from huggingface_hub.utils import validate_repo_id

from vlp.types import UserError

VARIABLE = "VLP_OFFLINE"
TOKENIZER_FILES = (
    *("tokenizer_config.json", "tokenizer.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
    *("merges.txt", "vocab.txt", "spiece.model", "tokenizer.model", "sentencepiece.bpe.model"),
)
_YES = ("1", "true", "yes", "on")
_unreachable = False


def go_offline() -> None:
    """Forbid every download of a model, in this process and in those it starts."""
    os.environ[VARIABLE] = os.environ["HF_HUB_OFFLINE"] = "1"
    constants.HF_HUB_OFFLINE = True


def is_offline() -> bool:
    """Whether downloads are forbidden, by `go_offline` or by the environment; a missing network forbids nothing."""
    if os.environ.get(VARIABLE, "").lower() in _YES:
        go_offline()
    return bool(constants.HF_HUB_OFFLINE) and not _unreachable


def spare_retries() -> None:
    """Without a network, use the hub's cache only: its client would retry each file for half a minute."""
    global _unreachable
    host = urlparse(constants.ENDPOINT).hostname
    proxied = any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"))
    if is_offline() or _unreachable or proxied or host is None:
        return
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        constants.HF_HUB_OFFLINE = _unreachable = True


class Snapshot:
    """The files of a repository at one commit: that of the first file found, whatever the hub has by then.

    ``reference`` is ``OWNER/MODEL`` or ``OWNER/MODEL@REVISION`` (a branch, a tag or a commit); ``name`` is what errors
    call it.

    Raises:
        UserError: that is no name of a repository.
    """

    def __init__(self, reference: str, name: str | None = None) -> None:
        self.repository, _, revision = reference.partition("@")
        self._revision = revision or None
        self._name = name or f"hf-hub:{reference}"
        try:
            validate_repo_id(self.repository)
        except HFValidationError as error:
            raise UserError(self._out_of_reach(error)) from error

    @property
    def commit(self) -> str | None:
        """What was asked for, or, as soon as a file has been found, the commit it belongs to."""
        return self._revision

    def file(self, *names: str) -> Path | None:
        """The first of the files that lies in the cache, else the first that the hub has; None where it has none.

        Raises:
            UserError: nothing of the repository is in the cache, and it cannot be downloaded.
        """
        cached = [try_to_load_from_cache(self.repository, name, revision=self._revision) for name in names]
        found = next((path for path in cached if isinstance(path, str)), None)
        if found is None:
            found = self._download([name for name, path in zip(names, cached, strict=True) if path is None])
        if found is None:
            return None
        self._revision = Path(found).as_posix().rpartition("/snapshots/")[2].split("/")[0]
        return Path(found)

    def require(self, *names: str) -> Path:
        """As `file`.

        Raises:
            UserError: also where the repository has none of the files.
        """
        found = self.file(*names)
        if found is None:
            raise UserError(self._missing(" or ".join(names)))
        return found

    def _download(self, names: Sequence[str]) -> str | None:
        spare_retries()
        if is_offline():
            if names and not self._is_known():
                raise UserError(self._missing("file"))
            return None
        for name in names:
            try:
                return hf_hub_download(self.repository, name, revision=self._revision)
            except LocalEntryNotFoundError as error:
                if _unreachable and self._is_known():
                    continue
                raise UserError(self._out_of_reach(error)) from error
            except EntryNotFoundError:
                continue
            except Exception as error:
                raise UserError(self._out_of_reach(error)) from error
        return None

    def _is_known(self) -> bool:
        """Whether any file of it was ever downloaded."""
        return (_cache() / f"models--{self.repository.replace('/', '--')}" / "snapshots").is_dir()

    def _missing(self, what: str) -> str:
        if is_offline():
            return (
                f"{self._name} cannot be downloaded, which --offline ({VARIABLE}, HF_HUB_OFFLINE) forbids, and no "
                f"{what} of {self.repository} lies in {_cache()}: run `hf download {self.repository}` where there is a "
                "network"
            )
        return f"{self._name} has no {what}: it is no model that open_clip or vlp can read, or not a whole one"

    def _out_of_reach(self, error: Exception) -> str:
        reason = " ".join(str(error).split())[:160]
        return (
            f"{self._name} cannot be downloaded, and is not in {_cache()}; check the name and the network, or give a "
            f"local directory ({reason})"
        )


def _cache() -> Path:
    return Path(constants.HF_HUB_CACHE)


def directory(name: str, *needed: str, others: Sequence[str] = ()) -> str:
    """A local directory with the files ``needed`` of the repository ``name``, and those of ``others`` that it has.

    Raises:
        UserError: one of ``needed`` cannot be had.
    """
    snapshot = Snapshot(name, name)
    found = [snapshot.require(file) for file in needed]
    for file in others:
        snapshot.file(file)
    return str(found[0].parent)
