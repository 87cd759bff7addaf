"""The address of a store: what is one, and that no refusal repeats a password."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gateway.postgres.address import Address, AddressError
from gateway.setting import SettingsError
from gateway.settings import load


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("postgresql://me:hush@db:5433/app", "db:5433/app"),
        ("postgres://db/app", "db/app"),
        ("postgresql://", "localhost"),
        ("postgresql:///app", "localhost/app"),
        ("postgresql://me@db", "db"),
        ("postgresql://me:h%40%2F%23%3Fush@db/a%2Fb", "db/a/b"),
        ("postgresql://me:hush@[::1]:5432/app", "[::1]:5432/app"),
        ("postgresql://one:5432,two,[::1]/app", "one:5432,two,[::1]/app"),
        ("postgresql://me@%2Frun%2Fpostgresql/app", "/run/postgresql/app"),
        ("postgresql://db/app?sslmode=verify-full", "db/app"),
        ("postgresql://db?sslmode=require", "db"),
    ],
)
def test_what_is_shown_names_the_place_and_no_person(text: str, name: str) -> None:
    """An address is taken as it is, and shown without user, password and parameters."""
    address = Address.parse(text)
    assert (address.text, address.name) == (text, name)
    assert "hush" not in repr(address)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("mysql://me:hush@db/app", "begins with postgresql:// or postgres://"),
        ("db:5432", "begins with postgresql:// or postgres://"),
        ("postgresql://me:hush@db:0/app", "a number from 1 to 65535"),
        ("postgresql://me:hush@db:70000/app", "a number from 1 to 65535"),
        ("postgresql://me:hush@db:٣/app", "a number from 1 to 65535"),
        ("postgresql://me:hush@db:/app", "a number from 1 to 65535"),
        ("postgresql://me:hush@:5432/app", "a port and no host"),
        ("postgresql://me:hush@[::1/app", "no URL"),
        ("postgresql://me:hush@db\u2100/app", "no URL"),
        ("postgresql://me:hu@sh@db/app", "written %40"),
        ("postgresql://me:hu/sh@db/app", "written %40"),
        ("postgresql://me:hu?sh@db/app", "written %40"),
        ("postgresql://me:hu#sh@db/app", "written %40"),
        ("postgresql://me:hush@db/app#", "written %40"),
        ("postgresql://me:hush@db/app/more", "a slash in the name of the database is written %2F"),
        ("postgresql://me:hush@db/app?sslmode", "behind the database come parameters"),
        ("postgresql://me:hush@db/app?sslmode=on", "sslmode is one of disable, allow, prefer"),
        ("postgresql://me:hush@db/app?ssl=on", "'ssl' is no parameter of the store"),
        ("postgresql://db/app?password=hush", "'password' is no parameter of the store"),
        ("postgresql://db/app?p%20=hush", "this is no parameter of the store"),
        (
            "postgresql://me:hush@db/app?sslrootcert=/no/such/file",
            "names no file that is there: '/no/such/file'",
        ),
    ],
)
def test_what_is_no_address_is_refused_without_its_password(text: str, sentence: str) -> None:
    """Each mistake has its sentence, the same for the settings; no part of a password is in it."""
    with pytest.raises(AddressError, match=sentence) as caught:
        Address.parse(text)
    assert "hu" not in str(caught.value).replace(" a number", "")
    with pytest.raises(SettingsError) as refused:
        load({"store": text}, {})
    assert str(refused.value) == f"--store: {caught.value}"


def test_a_certificate_is_a_file(tmp_path: Path) -> None:
    """A file that a parameter names has to be there when the gateway starts."""
    file = tmp_path / "root.crt"
    file.write_text("")
    assert load({"store": f"postgresql://db/app?sslmode=verify-ca&sslrootcert={file}"}, {}).store


@pytest.mark.parametrize("module", ["asyncpg", "jwt", "cryptography.hazmat.primitives.ciphers.aead"])
def test_a_gateway_on_its_own_pays_for_no_driver(module: str) -> None:
    """Without a store the driver is not even imported, and without keys not what they need."""
    code = (
        "import sys; from gateway.app import Gateway; from gateway.settings import Settings; "
        "Gateway(Settings(data='memory:')); "
        f"sys.exit({module!r} in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
