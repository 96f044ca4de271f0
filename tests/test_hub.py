"""Without a network nobody waits for the hub."""

import socket
from typing import Any

import pytest

pytest.importorskip("huggingface_hub")
from huggingface_hub import constants  # noqa: E402

from bestiary.corpus.hub import skip_without_network  # noqa: E402


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: [])


def unknown(*_: Any) -> Any:
    raise socket.gaierror(-2, "Name or service not known")


def test_a_hub_whose_address_is_not_found_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    skip_without_network()
    assert not constants.HF_HUB_OFFLINE
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    skip_without_network()
    assert constants.HF_HUB_OFFLINE


def test_a_proxy_looks_addresses_up_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    skip_without_network()
    assert not constants.HF_HUB_OFFLINE


@pytest.mark.parametrize("ask", ["tokenizer", "data set"])
def test_a_name_that_is_nothing_here_is_refused_at_once(ask: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from bestiary.corpus.documents import read_hub
    from bestiary.corpus.tokenizers import open_tokenizer

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    retried: list[float] = []
    monkeypatch.setattr("time.sleep", retried.append)
    if ask == "data set":
        monkeypatch.setattr(pytest.importorskip("datasets").config, "HF_HUB_OFFLINE", False)
    with pytest.raises(LookupError):
        open_tokenizer("nowhere-at-all") if ask == "tokenizer" else next(iter(read_hub("nowhere-at-all")))
    assert not retried
