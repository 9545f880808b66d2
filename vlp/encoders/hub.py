"""The Hugging Face hub, when there is no way to it."""

from __future__ import annotations

import os
import socket
from urllib.parse import urlparse

from huggingface_hub import constants


def spare_retries() -> None:
    """Without a network, use the hub's cache only: its client would retry each file for half a minute."""
    host = urlparse(constants.ENDPOINT).hostname
    proxied = any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"))
    if constants.HF_HUB_OFFLINE or proxied or host is None:
        return
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        constants.HF_HUB_OFFLINE = True
