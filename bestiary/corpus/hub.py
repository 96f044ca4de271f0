"""Whether the Hugging Face hub can be asked: without a network its client tries for half a minute before it says so."""

import socket
import sys
import urllib.request
from urllib.parse import urlparse


def skip_without_network() -> None:
    """Tell the hub's client, for the rest of the process, to use its cache alone if the hub's address is not found.

    Does nothing where a proxy stands between, which looks addresses up by itself.
    """
    from huggingface_hub import constants

    host = urlparse(constants.ENDPOINT).hostname
    if constants.HF_HUB_OFFLINE or "https" in urllib.request.getproxies() or host is None:
        return
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        constants.HF_HUB_OFFLINE = True
        if "datasets" in sys.modules:
            sys.modules["datasets"].config.HF_HUB_OFFLINE = True
