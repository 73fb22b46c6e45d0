"""Keys, whose they are, and addresses that guess."""

import os
from pathlib import Path

import pytest
from starlette.datastructures import Headers

from tests.server.test_slots import Clock
from worker.core.errors import SettingError
from worker.core.http_errors import KeyInvalid, TooManyWrongKeys
from worker.core.settings import load
from worker.server.keys import MAX_ADDRESSES, Keys

HERE = "11.0.0.1"


def keys(clock: Clock | None = None, **values: str) -> Keys:
    return Keys(load(values), clock or Clock())


def caller(of: Keys, key: str | None, address: str = HERE) -> str:
    return of.caller(Headers({} if key is None else {"x-api-key": key}), address)


def test_names_of_a_file_are_callers_and_a_key_alone_is_its_own(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("# team\n\nk1 ann\nk2  ann \nk3 bob and co\nk4\n")
    several = keys(API_KEY="k5", API_KEY_FILE=str(tmp_path / "keys"))
    names = [caller(several, f"k{number}") for number in range(1, 6)]
    assert names[0] == names[1]
    assert len(set(names)) == several.num_callers == 4
    assert all(len(name) == 32 and "ann" not in name for name in names)


def test_a_key_that_is_changed_under_one_name_stays_nameless(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("old ann\nnew ann\n")
    rotating = keys(API_KEY_FILE=str(tmp_path / "keys"))
    assert caller(rotating, "old") == caller(rotating, "new") == ""


def test_the_bearer_and_keys_that_are_no_ascii() -> None:
    some = keys(API_KEY="schlüssel")
    raw = "schlüssel".encode()
    assert some.caller(Headers(raw=[(b"authorization", b"bearer " + raw)]), HERE) == ""
    assert some.caller(Headers(raw=[(b"x-api-key", raw)]), HERE) == ""
    for value in (b"basic " + raw, raw, b"Bearer", b""):
        with pytest.raises(KeyInvalid):
            some.caller(Headers(raw=[(b"authorization", value)]), HERE)


def test_a_file_is_read_again_when_it_changes_and_not_at_every_request(tmp_path: Path) -> None:
    file, clock = tmp_path / "keys", Clock()
    file.write_text("k1\n")
    some = keys(clock, API_KEY_FILE=str(file))
    file.write_text("k2 \n")
    os.utime(file, ns=(1, 1))
    assert caller(some, "k1") == ""
    clock.now += 1.5
    assert caller(some, "k2") == ""
    with pytest.raises(KeyInvalid):
        caller(some, "k1")
    file.write_text("# none any more\n")
    clock.now += 1.5
    assert caller(some, "k2") == ""


def test_a_file_without_keys_is_told_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("# none\n")
    (tmp_path / "large").write_bytes(b"k\n" * 2**20)
    for name, said in (("missing", "cannot be read"), ("empty", "no key"), ("large", "more than")):
        with pytest.raises(SettingError, match=said):
            keys(API_KEY_FILE=str(tmp_path / name))


def test_guesses_are_a_few_a_minute_for_each_address() -> None:
    clock = Clock()
    some = keys(clock, API_KEY="k1,k2", MAX_WRONG_KEYS="2")
    caller(some, "k1")

    def guess(key: str | None = "no", address: str = HERE) -> str:
        try:
            caller(some, key, address)
        except KeyInvalid:
            return "wrong"
        except TooManyWrongKeys as error:
            return str(error.wait_s)
        return "right"

    assert [guess(), guess(), guess()] == ["wrong", "wrong", "60"]
    assert guess("k2") == "60"  # a right one that this address never used: nothing is told of it
    assert guess("k1") == "right"
    assert guess(None) == "wrong"  # it is no guess
    assert guess(address="11.0.0.2") == "wrong"
    clock.now += 45
    assert guess() == "15"
    clock.now += 16
    assert guess("k2") == "right"
    assert guess() == "wrong"


def test_an_address_inside_of_a_network_may_be_a_proxys(caplog: pytest.LogCaptureFixture) -> None:
    for trusted, expected in (("", ""), ("10.0.0.1", None)):
        some = keys(API_KEY="k1", MAX_WRONG_KEYS="1", TRUSTED_PROXIES=trusted)
        for error in (KeyInvalid, TooManyWrongKeys):
            with pytest.raises(error):
                caller(some, "no", "10.0.0.1")
        if expected is None:
            with pytest.raises(TooManyWrongKeys):
                caller(some, "k1", "10.0.0.1")
        else:
            assert caller(some, "k1", "10.0.0.1") == expected
    assert "1 wrong keys in a minute from 10.0.0.1" in caplog.messages


def test_no_key_at_all_is_no_guess_and_an_ipv6_network_is_one_address() -> None:
    some = keys(API_KEY="k1", MAX_WRONG_KEYS="1")
    for _ in range(3):
        with pytest.raises(KeyInvalid):
            caller(some, None)
    with pytest.raises(KeyInvalid):
        caller(some, "no", "2a00:1::1")
    with pytest.raises(TooManyWrongKeys):
        caller(some, "no", "2a00:1::ffff:1")
    with pytest.raises(KeyInvalid):
        caller(some, "no", "2a00:1:0:1::1")


def test_an_ipv4_address_in_ipv6_clothes_is_itself() -> None:
    some = keys(API_KEY="k1", MAX_WRONG_KEYS="1")
    with pytest.raises(KeyInvalid):
        caller(some, "no", "::ffff:11.0.0.3")
    with pytest.raises(TooManyWrongKeys):
        caller(some, "no", "11.0.0.3")
    with pytest.raises(KeyInvalid):
        caller(some, "no", "::ffff:11.0.0.4")


def test_what_is_remembered_of_addresses_is_bounded() -> None:
    some = keys(API_KEY="k1", MAX_WRONG_KEYS="1")
    for number in range(MAX_ADDRESSES + 10):
        with pytest.raises(KeyInvalid):
            caller(some, "no", f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
    with pytest.raises(KeyInvalid):
        caller(some, "no", "10.0.0.0")  # forgotten
    with pytest.raises(TooManyWrongKeys):
        caller(some, "no", "10.0.39.16")
