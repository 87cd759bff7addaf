"""The settings: where values come from, which win, and what is refused in which words."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.app import create_app
from gateway.setting import SettingsError, Unit
from gateway.settings import FIELDS, Settings, load
from gateway.settings_page import page
from gateway.units import GIB, KIB, MIB, format_bytes, format_seconds, parse_bytes, parse_seconds


def refusal(
    flags: dict[str, object] | None = None,
    environ: dict[str, str] | None = None,
    config: str | None = None,
) -> str:
    """Return the sentence with which these settings are refused."""
    with pytest.raises(SettingsError) as caught:
        load(flags, environ or {}, config)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("port = " + "9" * 5000, "not TOML"),
        ("port = 0x" + "f" * 5000, "a whole number"),
        ("port = " + "[" * 10_000, "not TOML"),
    ],
    ids=["many digits", "many hexadecimal digits", "deep"],
)
def test_what_breaks_pythons_parsers_is_a_refusal(text: str, said: str, tmp_path: Path) -> None:
    """What int(), str() and the stack cannot take is refused like any other mistake."""
    path = tmp_path / "sluice.toml"
    path.write_text(text)
    assert said in refusal(config=str(path))


@pytest.mark.parametrize(
    ("name", "scheme"), [("backbone", "amqp"), ("store", "postgresql")], ids=["backbone", "store"]
)
def test_a_port_of_many_digits_is_refused(name: str, scheme: str) -> None:
    """More digits than int() takes are no port either."""
    assert "port" in refusal({name: f"{scheme}://host:{'9' * 5000}/x"})


@pytest.mark.parametrize("name", ["data", "backbone_ca", "backbone_certificate", "config"])
def test_the_home_of_nobody_is_refused(name: str) -> None:
    """A path of a user who is not there is refused at the start, not by a traceback when it is used."""
    path = "~nobody-of-this-name/x"
    flags: dict[str, object] = {} if name == "config" else {name: path, "backbone": "amqps://localhost"}
    assert "no such user" in refusal(flags, config=path if name == "config" else None)


def test_a_bad_name_of_a_service_is_refused_on_a_broker_too() -> None:
    """What else is checked of services asks for their names, and must find good ones."""
    assert refusal({"services": "a b", "backbone": "amqp://localhost"}).startswith("--services:")


@pytest.mark.parametrize("exchanges", ["x" * 251, "events:" + "a" * 251, "a:#," + "ä" * 126])
def test_names_that_are_too_long_for_a_broker_are_refused(exchanges: str) -> None:
    """What AMQP cannot carry is no setting."""
    with pytest.raises(SettingsError, match="more than 250 bytes"):
        Settings(exchanges=exchanges)


def test_without_anything_the_defaults_hold() -> None:
    """A start without any setting serves this machine only and keeps its log in a folder of the user's."""
    settings = load({}, {})
    assert (settings.host, settings.port, settings.insecure) == ("127.0.0.1", 8000, False)
    assert settings.retention_seconds == 7 * 86_400
    assert settings.buffer_bytes == 64 * KIB
    assert settings.max_message_bytes == settings.max_event_bytes + 64 * KIB
    assert settings == Settings()


def test_flag_wins_over_variable_over_file(tmp_path: Path) -> None:
    """Of one setting given everywhere the flag counts, then the variable, then the file."""
    file = tmp_path / "sluice.toml"
    file.write_text('port = 1\nmax_topics = 1\nqueue_bytes = "1MiB"\n')
    settings = load({"port": "3"}, {"SLUICE_PORT": "2", "SLUICE_MAX_TOPICS": "2"}, str(file))
    assert (settings.port, settings.max_topics, settings.queue_bytes) == (3, 2, MIB)


def test_a_flag_that_was_not_given_leaves_the_variable(tmp_path: Path) -> None:
    """None is what the command line has for a flag that was not given; it hides nothing."""
    assert load({"port": None}, {"SLUICE_PORT": "2"}).port == 2


def test_the_file_can_be_named_by_a_variable(tmp_path: Path) -> None:
    """`SLUICE_CONFIG` names the file, and `--config` wins over it."""
    first, second = tmp_path / "first.toml", tmp_path / "second.toml"
    first.write_text("port = 1\n")
    second.write_text("port = 2\n")
    assert load({}, {"SLUICE_CONFIG": str(first)}).port == 1
    assert load({}, {"SLUICE_CONFIG": str(first)}, str(second)).port == 2


def test_the_variable_of_the_client_commands_is_no_setting() -> None:
    """`SLUICE_URL` may be set on a machine that serves."""
    assert load({}, {"SLUICE_URL": "http://127.0.0.1:9", "HOME": "/"}) == Settings()


@pytest.mark.parametrize("name", FIELDS)
def test_every_setting_can_be_given_as_variable_and_in_the_file(name: str, tmp_path: Path) -> None:
    """The text form of each default, given as a variable or as TOML text, is that default again."""
    field = FIELDS[name]
    value = getattr(Settings(), name)
    text = str(value).lower() if isinstance(value, bool) else str(value)
    file = tmp_path / "sluice.toml"
    file.write_text(f"{name} = '{text}'\n")
    assert getattr(load({}, {field.variable: text}), name) == value
    assert getattr(load({}, {}, str(file)), name) == value


@pytest.mark.parametrize("name", FIELDS)
def test_every_setting_says_what_it_is_and_why(name: str) -> None:
    """Each field has a description, a reason for its default, and a default within its own bounds."""
    field = FIELDS[name]
    assert field.about.what.endswith(".")
    assert field.about.why.endswith(".")
    field.check(getattr(Settings(), name))


@pytest.mark.parametrize("name", [n for n, field in FIELDS.items() if field.about.unit is not Unit.TEXT])
def test_every_typed_setting_refuses_nonsense_from_everywhere(name: str, tmp_path: Path) -> None:
    """A text that is no number, time, size or truth is refused, and the sentence names where it stood."""
    field = FIELDS[name]
    file = tmp_path / "sluice.toml"
    file.write_text(f"{name} = 'seventy'\n")
    assert refusal({name: "seventy"}) == f"{field.flag}: 'seventy' is not {field.demand}"
    assert refusal({}, {field.variable: "seventy"}) == f"{field.variable}: 'seventy' is not {field.demand}"
    assert refusal({}, {}, str(file)) == f"{name} in {file}: 'seventy' is not {field.demand}"


@pytest.mark.parametrize("toml", ["[]", "{}", "1979-05-27", "nan", "-1", "-inf"])
@pytest.mark.parametrize("name", FIELDS)
def test_every_setting_refuses_other_types_of_toml(name: str, toml: str, tmp_path: Path) -> None:
    """Lists, tables, dates and numbers that are no values are refused for each setting."""
    file = tmp_path / "sluice.toml"
    file.write_text(f"{name} = {toml}\n")
    assert refusal({}, {}, str(file)).startswith(f"{name} in {file}: ")


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"SLUICE_PORT": "70000"}, "SLUICE_PORT: '70000' is not a whole number from 0 to 65535"),
        ({"SLUICE_PORT": ""}, "SLUICE_PORT: '' is not a whole number from 0 to 65535"),
        ({"SLUICE_PROT": "1"}, "SLUICE_PROT: no setting has this name; did you mean SLUICE_PORT?"),
        ({"SLUICE_ZZZZ": "1"}, "SLUICE_ZZZZ: no setting has this name"),
        ({"SLUICE_LOG_LEVEL": "loud"}, "SLUICE_LOG_LEVEL: 'loud' is not one of debug, info, warning, error"),
        ({"SLUICE_INSECURE": "maybe"}, "SLUICE_INSECURE: 'maybe' is not true or false"),
        ({"SLUICE_DATA": "a\nb"}, r"SLUICE_DATA: 'a\nb' is not a text without control characters"),
        (
            {"SLUICE_BUFFER_BYTES": "1MIL"},
            f"SLUICE_BUFFER_BYTES: '1MIL' is not {FIELDS['buffer_bytes'].demand}",
        ),
        (
            {"SLUICE_STALL_TIMEOUT": "0"},
            f"SLUICE_STALL_TIMEOUT: '0' is not {FIELDS['stall_timeout'].demand}",
        ),
    ],
)
def test_a_refusal_says_which_and_why(given: dict[str, str], sentence: str) -> None:
    """The sentence names the variable, shows the value and says what would have been right."""
    assert refusal({}, given) == sentence


def test_a_demand_tells_bounds_and_forms() -> None:
    """What a size or a time must be is said with its bounds and the texts that may be given."""
    size = FIELDS["buffer_bytes"].demand
    assert size == "a size from 1 KiB to 1024 TiB, in bytes or like 64KiB or 10MB"
    time = FIELDS["stall_timeout"].demand
    assert time == "a time from 0.05 s to 36500 d, in seconds or like 500ms, 5m or 7d"


def test_an_unknown_key_of_the_file_is_refused_with_a_guess(tmp_path: Path) -> None:
    """A misspelt key in the file is refused, naming the file and the likely key."""
    file = tmp_path / "sluice.toml"
    file.write_text("retention_second = 3\n")
    assert refusal({}, {}, str(file)) == (
        f"retention_second in {file}: no setting has this name; did you mean retention_seconds?"
    )


def test_a_file_that_is_missing_or_no_toml_is_refused(tmp_path: Path) -> None:
    """A named file must be there and must be TOML in UTF-8."""
    missing = str(tmp_path / "missing.toml")
    assert refusal({}, {}, missing) == f"{missing}: the file cannot be read: No such file or directory"
    assert refusal({}, {}, str(tmp_path)) == f"{tmp_path}: the file cannot be read: Is a directory"
    broken = tmp_path / "broken.toml"
    broken.write_text("port = \n")
    assert refusal({}, {}, str(broken)).startswith(f"{broken}: the file is not TOML: ")
    broken.write_bytes(b"host = '\xff'\n")
    assert refusal({}, {}, str(broken)).startswith(f"{broken}: the file is not TOML: ")


@pytest.mark.parametrize(
    "environ",
    [
        {"SLUICE_PORT": "tcp://10.0.0.7:80"},
        {"SLUICE_SERVICE_HOST": "10.0.0.7"},
        {"SLUICE_PORT_80_TCP": "tcp://10.0.0.7:80"},
    ],
)
def test_variables_made_by_kubernetes_are_recognised(environ: dict[str, str]) -> None:
    """A service named sluice makes Kubernetes set `SLUICE_PORT`; the refusal says so."""
    assert "enableServiceLinks: false" in refusal({}, environ)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.0.2.1", "gateway.example", "::ffff:192.0.2.1"])
def test_other_machines_are_served_only_if_asked_for(host: str) -> None:
    """Anything but loopback is refused without keys or `insecure`, and allowed with them."""
    assert refusal({"host": host}).endswith("nobody is asked who they are: set jwt_key, or --insecure")
    assert load({"host": host, "insecure": True}, {}).host == host
    assert load({"host": host, "jwt_key": "k" * 32}, {}).host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_loopback_needs_no_permission(host: str) -> None:
    """Every way to write this machine's own address is allowed."""
    assert load({"host": host}, {}).host == host


@pytest.mark.parametrize("name", ["backbone_ca", "backbone_certificate"])
@pytest.mark.parametrize("backbone", ["", "amqp://me:hush@broker"])
def test_a_certificate_without_encryption_is_refused(name: str, backbone: str) -> None:
    """Who names certificates means to encrypt: an address that does not is refused, and not repeated."""
    sentence = refusal({name: "ca.pem", "backbone": backbone})
    assert sentence.startswith(f"--{name.replace('_', '-')}: it says what to do with amqps://")
    assert "hush" not in sentence
    assert load({name: "ca.pem", "backbone": "amqps://broker"}, {}).backbone_ca in ("ca.pem", "")


def test_a_stream_does_not_count_its_events() -> None:
    """What a broker cannot do is refused, not ignored."""
    sentence = refusal({"retention_events": "5", "backbone": "amqp://me:hush@broker"})
    assert (
        sentence == "--retention-events: a stream on a broker is kept by age and by bytes only; leave it at 0"
    )


def test_several_workers_need_a_broker() -> None:
    """Processes cannot share the embedded log; the sentence says why and what to do."""
    assert refusal({"workers": "2"}) == (
        "--workers: 2 processes cannot share the embedded log, which has one writer: give a --backbone"
    )
    assert load({"workers": "2", "backbone": "amqp://broker"}, {}).workers == 2


@pytest.mark.parametrize("workers", ["0", "65", "-1", "1.5", "all"])
def test_the_number_of_workers_has_bounds(workers: str) -> None:
    """There is at least one worker, and not more than a machine has use for."""
    sentence = refusal({"workers": workers, "backbone": "amqp://broker"})
    assert sentence == f"--workers: {workers!r} is not a whole number from 1 to 64"


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"sticky": "redirect"}, "--sticky: clients are sent to other replicas only on a backbone"),
        ({"sticky": "redirect", "backbone": "amqp://b"}, "--sticky: clients are sent to other replicas only"),
        ({"sticky": "on"}, "--sticky: 'on' is not one of off, redirect"),
        (
            {"advertise": "push-1.example.com"},
            "--advertise: 'push-1.example.com' is no address like https://",
        ),
        ({"advertise": "https://a.example/?x=1"}, "--advertise: 'https://a.example/?x=1' is no address like"),
        ({"advertise": "https://me:hush@a.example"}, "--advertise: "),
        ({"services": "a.b"}, "--services: 'a.b' is no name of a service"),
        ({"services": "a", "backbone": "amqp://b", "exchanges": "x:y"}, "--services: requests are events on"),
        ({"services": "a", "request_bytes": "2MiB"}, "--request-bytes: a request has to fit into an event"),
        ({"services": "a", "request_result_bytes": "2MiB"}, "--request-result-bytes: a result has to fit"),
    ],
)
def test_what_replicas_and_requests_need_is_checked(flags: dict[str, object], sentence: str) -> None:
    """Settings that cannot be are refused at the start, by name."""
    assert refusal(flags).startswith(sentence)


def test_what_nobody_uses_need_not_fit() -> None:
    """The bounds of requests contradict nothing where none are taken."""
    assert load({"max_event_bytes": "100", "max_body_bytes": "100"}, {}).max_event_bytes == 100


def test_what_webhooks_may_reach_is_checked() -> None:
    """Networks and ports that are none are refused, with a sentence."""
    assert refusal({"webhooks_allow": "10.0.0.1/8"}) == (
        "--webhooks-allow: '10.0.0.1/8' is no network: one looks like 10.0.0.0/8, "
        "with nothing but zeros behind its prefix"
    )
    assert refusal({"webhooks_ports": "443,http"}) == (
        "--webhooks-ports: 'http' is no port and no range like 8000-8999"
    )
    assert load({"webhooks": False, "webhooks_allow": "127.0.0.0/8,::1"}, {}).webhooks is False


def test_an_application_has_no_workers() -> None:
    """A gateway that is mounted in another application does not start processes, and says so."""
    with pytest.raises(SettingsError, match="only sluice serve starts them"):
        create_app(Settings(workers=2, backbone="amqp://broker"))


def test_an_empty_data_folder_is_refused() -> None:
    """An empty `data` would be the working directory by accident."""
    assert refusal({}, {"SLUICE_DATA": ""}).startswith("SLUICE_DATA: empty is no folder")


def test_settings_made_in_code_are_checked_too() -> None:
    """Who embeds the gateway gets the same refusals, by the setting's name."""
    with pytest.raises(SettingsError, match=r"^port: 70000 is not a whole number"):
        Settings(port=70_000)
    with pytest.raises(SettingsError, match=r"^port: true is not a whole number"):
        Settings(port=True)


def test_the_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default follows the XDG variable if it is absolute; `memory:` is no folder; a tilde is the home."""
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    assert Settings().data_folder == Path("/home/someone/.local/share/sluicegate")
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    assert Settings().data_folder == Path("/home/someone/.local/share/sluicegate")
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert Settings().data_folder == Path("/data/sluicegate")
    assert Settings(data="memory:").data_folder is None
    assert Settings(data="~/log").data_folder == Path("/home/someone/log")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("64KiB", 64 * KIB),
        ("10MB", 10_000_000),
        ("1.5 GiB", 3 * GIB // 2),
        ("7b", 7),
        ("0.5", None),
        ("-1", None),
        ("1e3", None),
        ("KiB", None),
        ("9" * 400, None),
        ("٣", None),
    ],
)
def test_sizes(text: str, size: int | None) -> None:
    """Sizes are read in decimal and binary units, whatever their case."""
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("1.5", 1.5), ("500ms", 0.5), ("5m", 300), ("2h", 7200), ("7d", 604_800), ("1w", 604_800)]
    + [(text, None) for text in ("5M", "-5s", "1h30m", "inf", "nan", "")],
)
def test_times(text: str, seconds: float | None) -> None:
    """Times are read in seconds or with a unit; a capital M would be ambiguous and is refused."""
    assert parse_seconds(text) == seconds


@given(st.integers(0, 2**50), st.integers(0, 10**9))
def test_shown_sizes_and_times_are_read_back(size: int, seconds: int) -> None:
    """What the documentation shows as a default may be given as a value and means the same."""
    assert parse_bytes(format_bytes(size)) == size
    assert parse_seconds(format_seconds(seconds)) == seconds


def test_the_documentation_is_up_to_date() -> None:
    """`docs/settings.md` is what the code says now; `make docs` writes it."""
    file = Path(__file__).parents[2] / "docs" / "settings.md"
    assert file.read_text() == page()
