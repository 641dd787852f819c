"""Brokers that are not ours: their addresses, and what mosquitto is told."""

import pwd
from pathlib import Path

import pytest

from node.bus.mosquitto import encode_config
from node.bus.mqtt import parse_broker_url
from shardyard.errors import ConfigError


@pytest.mark.parametrize(
    "url",
    [
        "mqtt://my..broker:1883",
        f"mqtt://{'b' * 64}.example",
        "http://broker",
        "mqtt://",
        "mqtt://broker:70000",
        "mqtt://alice:secret@broker",
    ],
)
def test_an_address_that_nobody_can_connect_to_is_refused(url):
    with pytest.raises(ConfigError, match="broker URL: "):
        parse_broker_url(url)


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("mqtt://127.0.0.1:1900", "127.0.0.1", 1900),
        ("mqtts://[::1]", "::1", 8883),
        ("mqtt://bücher.example", "bücher.example", 1883),
    ],
)
def test_an_address_is_host_and_port(url, host, port):
    endpoint = parse_broker_url(url)
    assert (endpoint.host, endpoint.port) == (host, port)


def test_a_user_without_a_name_gives_mosquitto_none(monkeypatch):
    assert b"\nuser " in encode_config(Path("broker"), "127.0.0.1", 1883)

    def find_nobody(uid):
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", find_nobody)
    text = encode_config(Path("broker"), "127.0.0.1", 1883)
    assert text.startswith(b"listener 1883 127.0.0.1\n")
    assert b"user " not in text.replace(b"anonymous", b"")
