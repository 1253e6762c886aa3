"""Settings files: what they may hold, and one line for every mistake."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from config_loader import ConfigError, FallbackConfig, PrimaryConfig, load
from stt_cascade.admission.keys import api_keys, check_keys
from stt_cascade.config import TierConfig
from stt_cascade.config_file import MAX_FILE_BYTES, allowed, config_path, fields, in_force

ROOT = Path(__file__).parent.parent
LEAST = "CT2_SMALL_PATH=/models/whisper-small-ct2\nFALLBACK_URL=http://stt-fallback:8082\n"


def written(tmp_path: Path, text: str | bytes) -> Path:
    file = tmp_path / "p.env"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return file


def loaded(tmp_path: Path, text: str | bytes) -> PrimaryConfig:
    return load(PrimaryConfig, written(tmp_path, text))


def mistakes(tmp_path: Path, text: str, model: type[TierConfig] = PrimaryConfig) -> list[str]:
    """The lines that the start ends with, each without the file's name."""
    file = written(tmp_path, text)
    with pytest.raises(ConfigError) as refused:
        load(model, file)
    lines = str(refused.value).splitlines()
    assert all(line.startswith(f"{file}:") for line in lines)
    return [line.removeprefix(f"{file}:").strip() for line in lines]


def number(field: FieldInfo) -> bool:
    return allowed(field).startswith(("a number", "a whole number"))


def test_the_specifications_values_are_the_defaults(tmp_path: Path) -> None:
    config = loaded(tmp_path, LEAST)
    expected: dict[str, Any] = {
        "device": "cuda",
        "device_index": 0,
        "compute_type": "float16",
        "cpu_threads": None,  # 2 with a GPU, as specified; on a CPU by its cores
        "max_concurrency": 2,
        "conf_logprob_threshold": 0.55,
        "conf_langprob_threshold": 0.70,
        "min_words_for_conf": 3,
        "conf_weakest_threshold": 0,
        "rate_limit_rps": 15,
        "rate_limit_burst": 30,
        "max_upload_mb": 16,
        "api_keys": (),
        "beam_size": 1,
        "max_audio_seconds": 600,
        "request_timeout_s": 60,
        "fallback_timeout_s": 30,
        "on_fallback_failure": "error",
        "log_format": "json",
        "log_text": False,
        "vad": True,
        "cors_origins": (),
        "trusted_proxies": (),
    }
    assert {name: getattr(config, name) for name in expected} == expected
    assert config.queue_limit == 8 * config.max_concurrency
    assert config.upload_limit == 16 * 1_048_576


def test_the_fallbacks_own_defaults(tmp_path: Path) -> None:
    config = load(FallbackConfig, written(tmp_path, "CT2_MEDIUM_PATH=/m/whisper-medium-ct2\n"))
    assert (config.compute_type, config.beam_size) == ("int8", 5)
    assert (config.rate_limit_rps, config.rate_limit_burst) == (60, 120)


@pytest.mark.parametrize(
    ("folder", "name", "shown"),
    [
        ("/models/whisper-small-ct2", "", "small"),
        ("models/whisper-tiny.en-ct2/", "", "tiny.en"),
        ("/opt/our-model", "", "our-model"),
        ("/models/whisper-small-ct2", "MODEL_NAME=ours\n", "ours"),
    ],
)
def test_a_model_is_called_by_its_folder_or_its_setting(
    tmp_path: Path, folder: str, name: str, shown: str
) -> None:
    text = f"CT2_SMALL_PATH={folder}\nFALLBACK_URL=http://f\n{name}"
    assert loaded(tmp_path, text).model == shown


@pytest.mark.parametrize(
    "file", sorted((ROOT / "configs").rglob("*.env")), ids=lambda path: str(path.relative_to(ROOT))
)
def test_every_file_under_configs_loads(file: Path) -> None:
    model = PrimaryConfig if file.name == "stt_primary.env" else FallbackConfig
    assert load(model, file).source == file


def test_a_mistake_is_one_line_with_file_line_key_and_what_is_allowed(tmp_path: Path) -> None:
    text = LEAST + "\n# a comment\nDEVICE=tpu\nCPU_THREADS=many\n"
    assert mistakes(tmp_path, text) == [
        "5: DEVICE=tpu: must be one of cpu, cuda, auto",
        "6: CPU_THREADS=many: must be a whole number, at least 1, at most 256",
    ]


@pytest.mark.parametrize(
    ("line", "must"),
    [
        ("DEVICE_INDEX=-1", "a whole number, at least 0"),
        ("DEVICE_INDEX=1.5", "a whole number"),
        ("COMPUTE_TYPE=int4", "one of auto, default, int8"),
        ("MAX_CONCURRENCY=0", "at least 1"),
        ("BEAM_SIZE=99", "at most 16"),
        ("VAD=maybe", "on or off"),
        ("TRUSTED_PROXIES=10.0.0.1,proxy", "addresses and networks such as 10.0.0.0/8"),
        ("TRUSTED_PROXIES=10.0.0.1/8", "addresses and networks such as 10.0.0.0/8"),
        ("MAX_UPLOAD_MB=0", "a number, at least 0.001, at most 1024"),
        ("CONF_LOGPROB_THRESHOLD=1.01", "a number, at least 0, at most 1"),
        ("CONF_LANGPROB_THRESHOLD=nan", "a number, at least 0, at most 1"),
        ("REQUEST_TIMEOUT_S=inf", "a number"),
        ("RATE_LIMIT_RPS=0", "a number, at least 0.0001, at most 1000000"),
        ("RATE_LIMIT_BURST=0", "at least 1"),
        ("ON_FALLBACK_FAILURE=ignore", "one of error, primary"),
        ("LOG_FORMAT=xml", "one of json, console"),
        ("SLO_CLIP_SECONDS=-3", "at least 0.1, at most 14400"),
    ],
)
def test_a_wrong_value_is_answered_with_what_is_allowed(
    tmp_path: Path, line: str, must: str
) -> None:
    (mistake,) = mistakes(tmp_path, LEAST + line)
    assert mistake.startswith(f"3: {line}: must be")
    assert must in mistake


def test_a_language_that_whisper_does_not_have_is_named_with_those_that_it_has(
    tmp_path: Path,
) -> None:
    found = mistakes(tmp_path, f"{LEAST}LANGUAGES=en,xx, english\n")
    must = "3: LANGUAGES=en,xx, english: must be "
    must += "a comma-separated list of Whisper's codes such as en; "
    for mistake, code in zip(found, ("english", "xx"), strict=True):
        named, _, codes = mistake.partition(" is none of ")
        assert named == must + code
        assert {"en", "de", "haw", "yue"} <= set(codes.split(", "))


def test_languages_may_be_written_as_callers_write_them(tmp_path: Path) -> None:
    text = (
        "CT2_SMALL_PATH=/m/whisper-base-ct2\nFALLBACK_URL=http://f\nLANGUAGES=nb-NO, DE,fil,zho\n"
    )
    assert loaded(tmp_path, text).languages == ("no", "de", "tl", "zh")


def test_a_language_that_only_some_models_know_is_taken(tmp_path: Path) -> None:
    text = "CT2_SMALL_PATH=/m/whisper-tiny.en-ct2\nFALLBACK_URL=http://f\nLANGUAGES=en, de,yue\n"
    assert loaded(tmp_path, text).languages == ("en", "de", "yue")


@pytest.mark.parametrize(
    "name", sorted(name for name, field in fields(PrimaryConfig).items() if number(field))
)
@pytest.mark.parametrize("value", ["inf", "-inf", "nan", "1e400", "9" * 400])
def test_no_number_is_without_bounds(tmp_path: Path, name: str, value: str) -> None:
    (mistake,) = mistakes(tmp_path, f"{LEAST}{name}={value}")
    assert mistake.startswith(f"3: {name}={value}: must be a ")


@pytest.mark.parametrize(
    "name",
    sorted(
        name
        for name, field in fields(PrimaryConfig).items()
        if number(field) and not name.startswith(("CONF_", "SHADOW_", "WEDGED_"))
    ),
)
@pytest.mark.parametrize("value", ["1e-320", "1e-300", "1e-9"])
def test_what_is_next_to_nothing_is_no_limit(tmp_path: Path, name: str, value: str) -> None:
    assert len(mistakes(tmp_path, f"{LEAST}{name}={value}")) == 1


@pytest.mark.parametrize(
    "url",
    [
        "stt-fallback:8082",
        "ftp://f",
        "http://",
        "http://a b",
        "http://f/v1/transcribe",
        "http://stt-fallback:8O82",
        "http://f:0",
        "http://f:99999",
        "http://f:+80",
        "http://f:8_0",
        "http://f:80:90",
        "http://f:",
        "http://:8082",
        "http://[::1:8082",
        "http://[f]:8082",
        "http://1.2.3.999:8082",
        "http://f..example:8082",
        f"http://{'f' * 64}:8082",
    ],
)
def test_an_address_must_be_one(tmp_path: Path, url: str) -> None:
    (mistake,) = mistakes(tmp_path, f"CT2_SMALL_PATH=m\nFALLBACK_URL={url}\n")
    must = f"2: FALLBACK_URL={url}: must be an address such as http://stt-fallback:8082"
    assert mistake.partition("; ")[0] == must


@pytest.mark.parametrize(
    "url",
    [
        "http://f",
        "https://f.example:8443",
        "http://f.example.:8082",
        "http://stt_fallback:65535",
        "http://192.0.2.20:8082",
        "http://[::1]:8082/",
        "http://[fe80::1%eth0]:8082",
    ],
)
def test_an_address_that_is_one_is_taken(tmp_path: Path, url: str) -> None:
    assert loaded(tmp_path, f"CT2_SMALL_PATH=m\nFALLBACK_URL={url}\n").fallback_url == url


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    assert mistakes(tmp_path, "# nothing\n") == [
        "CT2_SMALL_PATH: missing; it must be a path",
        "FALLBACK_URL: missing; it must be an address such as http://stt-fallback:8082",
    ]


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("MAX_CONCURENCY", "MAX_CONCURRENCY"),
        ("API_KEY", "API_KEYS"),
        ("max_upload_mb", "MAX_UPLOAD_MB"),
        ("CONF_LOGPROB_TRESHOLD", "CONF_LOGPROB_THRESHOLD"),
    ],
)
def test_a_misspelt_setting_is_answered_with_the_one_that_was_meant(
    tmp_path: Path, wrong: str, meant: str
) -> None:
    (mistake,) = mistakes(tmp_path, f"{LEAST}{wrong}=1\n")
    assert mistake == f"3: {wrong}: no such setting of the primary; did you mean {meant}?"


def test_an_unknown_setting_is_answered_with_those_there_are(tmp_path: Path) -> None:
    (mistake,) = mistakes(tmp_path, f"{LEAST}QUUX=1\n")
    assert "QUUX: no such setting" in mistake
    assert "VAD" in mistake
    assert "FALLBACK_URL" in mistake


def test_a_setting_of_the_other_tier_is_none_of_this_one(tmp_path: Path) -> None:
    text = "CT2_MEDIUM_PATH=m\nFALLBACK_URL=http://f\n"
    (mistake,) = mistakes(tmp_path, text, FallbackConfig)
    assert "FALLBACK_URL: no such setting of the fallback" in mistake


def test_a_path_that_no_system_could_open_is_a_mistake(tmp_path: Path) -> None:
    (mistake,) = mistakes(tmp_path, f"{LEAST}API_KEYS_FILE=/etc/keys\0\n")
    assert mistake == "3: not of the form KEY=value"


def test_a_double_key_is_named_with_both_lines(tmp_path: Path) -> None:
    (mistake,) = mistakes(tmp_path, f"{LEAST}VAD=on\n\nVAD=off\n")
    assert mistake == "5: VAD: already set in line 3"


@pytest.mark.parametrize(
    ("line", "said"),
    [("VAD", "VAD: no value"), ("= on", "not of the form KEY=value"), ("VAD='on", "KEY=value")],
)
def test_a_line_that_is_no_setting_is_named(tmp_path: Path, line: str, said: str) -> None:
    assert said in mistakes(tmp_path, f"{LEAST}{line}\n")[0]


def test_a_key_without_a_value_leaves_the_default(tmp_path: Path) -> None:
    assert loaded(tmp_path, f"{LEAST}MAX_QUEUE=\nVAD=  \nMODEL_NAME=''\n").queue_limit == 16


@pytest.mark.parametrize("value", ["sec ret", "geheimnis-ü", "x" * 5])
def test_a_secret_is_never_printed(tmp_path: Path, value: str) -> None:
    text = f"{LEAST}API_KEYS={value}\nFALLBACK_API_KEY={value}\nMAX_QUEUE=-1\n"
    assert value not in "\n".join(mistakes(tmp_path, text))
    config = loaded(tmp_path, text.replace("MAX_QUEUE=-1", ""))
    assert value not in repr(config) + str(config) + str(in_force(config))
    assert in_force(config)["API_KEYS"] != ""


def test_a_secret_behind_a_mistake_is_not_printed_either(tmp_path: Path) -> None:
    lines = ("API_KEY=geheim", "API_KEYS geheim", "API_KEYS=geheim", "API_KEYS=geheim")
    found = mistakes(tmp_path, LEAST + "\n".join(lines))
    assert len(found) == 3
    assert "geheim" not in str(found)


def test_nothing_comes_from_the_process_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in fields(PrimaryConfig):
        monkeypatch.setenv(name, "7")
        monkeypatch.setenv(name.lower(), "7")
    config = loaded(tmp_path, LEAST)
    assert (config.max_queue, config.cpu_threads, config.api_keys) == (None, None, ())
    assert "FALLBACK_URL: missing" in mistakes(tmp_path, "CT2_SMALL_PATH=m\n")[0]


def test_no_variable_of_the_environment_is_put_into_a_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/root")
    text = "CT2_SMALL_PATH=${HOME}/m\nFALLBACK_URL=http://f\nAPI_KEYS=$HOME,${HOME:-x}\n"
    config = loaded(tmp_path, text)
    assert str(config.model_path) == "${HOME}/m"
    assert [key.get_secret_value() for key in config.api_keys] == ["$HOME", "${HOME:-x}"]


@pytest.mark.parametrize(
    "text",
    [
        LEAST.encode("utf-8-sig"),
        LEAST.replace("\n", "\r\n").encode(),
        LEAST.rstrip("\n").encode(),
        b"\n\n" + LEAST.encode() + b"\n\n",
        LEAST.replace("=", " = ").encode(),
        b"export " + LEAST.encode(),
    ],
    ids=["bom", "crlf", "no-newline", "blank-lines", "spaces", "export"],
)
def test_what_editors_do_to_a_file_does_not_matter(tmp_path: Path, text: bytes) -> None:
    config = loaded(tmp_path, text)
    assert str(config.model_path) == "/models/whisper-small-ct2"
    assert config.fallback_url == "http://stt-fallback:8082"


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("MODEL_NAME=a # a comment", "a"),
        ("MODEL_NAME='a # b'", "a # b"),
        ('MODEL_NAME="a b"', "a b"),
        ("MODEL_NAME=a#b", "a#b"),
    ],
)
def test_comments_and_quotes_are_those_of_env_files(tmp_path: Path, line: str, value: str) -> None:
    assert loaded(tmp_path, f"{LEAST}{line}\n").model == value


@pytest.mark.parametrize("word", ["on", "off", "true", "False", "1", "0", "yes", "no"])
def test_a_switch_has_many_names(tmp_path: Path, word: str) -> None:
    assert loaded(tmp_path, f"{LEAST}VAD={word}\n").vad == (word in ("on", "true", "1", "yes"))


def test_a_list_is_separated_by_commas(tmp_path: Path) -> None:
    config = loaded(tmp_path, f"{LEAST}API_KEYS= a1 ,b2,, c3,\nCORS_ORIGINS=https://a,https://b\n")
    assert [key.get_secret_value() for key in config.api_keys] == ["a1", "b2", "c3"]
    assert config.cors_origins == ("https://a", "https://b")


@pytest.mark.parametrize("separators", [",", ",,", " , ,", '","'])
@pytest.mark.parametrize("name", ["API_KEYS", "METRICS_KEYS", "LANGUAGES", "CORS_ORIGINS"])
def test_a_list_of_nothing_but_separators_is_a_mistake(
    tmp_path: Path, name: str, separators: str
) -> None:
    (mistake,) = mistakes(tmp_path, f"{LEAST}{name}={separators}\n")
    assert mistake.startswith(f"3: {name}=")
    assert ": must be a comma-separated list of " in mistake
    assert mistake.endswith("; nothing but commas")


@pytest.mark.parametrize("nothing", ["", "  "])
def test_keys_that_are_empty_are_as_good_as_none(tmp_path: Path, nothing: str) -> None:
    config = loaded(tmp_path, f"{LEAST}API_KEYS={nothing}\nMETRICS_KEYS={nothing}\n")
    assert (config.api_keys, config.metrics_keys) == ((), ())


@pytest.mark.parametrize("lost", ['""', "''", '" "', "\u00a0", " # the key", "  ''  # none"])
@pytest.mark.parametrize("name", ["API_KEYS", "METRICS_KEYS_FILE", "FALLBACK_API_KEY"])
def test_a_value_that_got_lost_does_not_open_a_tier(tmp_path: Path, name: str, lost: str) -> None:
    (mistake,) = mistakes(tmp_path, f"{LEAST}{name}={lost}\n")
    assert mistake.startswith(f"3: {name}: no value is left")


@pytest.mark.parametrize("name", ["FALLBACK_URL", "OTLP_ENDPOINT"])
@pytest.mark.parametrize(
    "address",
    [
        *("http://user:geheim@f:8082", "http://geheim@f", "http://:geheim@f:999999", "u:geheim@f"),
        *(
            "http://u:geheim\uff20f",
            "http://u:geheim@[::1",
            "http://f/?key=geheim",
            "http://f#geheim",
        ),
    ],
)
def test_an_address_holds_no_secret_and_no_mistake_shows_one(
    tmp_path: Path, name: str, address: str
) -> None:
    text = (
        f"{LEAST}{name}={address}\n"
        if name not in LEAST
        else f"CT2_SMALL_PATH=m\n{name}={address}\n"
    )
    (mistake,) = mistakes(tmp_path, text)
    assert f"{name}=(hidden): must be an address such as http://" in mistake
    assert "no user, password, query or fragment" in mistake
    assert "geheim" not in mistake
    settings: dict[str, Any] = {"model_path": Path("m"), "fallback_url": "http://f"}
    settings[name.lower()] = address
    with pytest.raises(ValidationError) as refused:
        PrimaryConfig(**settings)
    assert "geheim" not in str(refused.value)


def test_proxies_are_addresses_or_networks_of_both_families(tmp_path: Path) -> None:
    config = loaded(tmp_path, f"{LEAST}TRUSTED_PROXIES=127.0.0.1, 10.0.0.0/8,fd00::/8\n")
    assert in_force(config)["TRUSTED_PROXIES"] == "127.0.0.1/32,10.0.0.0/8,fd00::/8"


def test_a_file_that_cannot_be_read_is_named_with_what_to_do(tmp_path: Path) -> None:
    for file in (tmp_path / "missing.env", tmp_path):
        with pytest.raises(ConfigError, match="CONFIG_PATH") as refused:
            load(PrimaryConfig, file)
        assert str(file) in str(refused.value)


def test_a_file_that_never_ends_or_never_begins_is_refused_at_once(tmp_path: Path) -> None:
    pipe, huge = tmp_path / "pipe", tmp_path / "huge"
    os.mkfifo(pipe)
    with huge.open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    for path, why in (
        (Path("/dev/zero"), "Not a regular"),
        (pipe, "Not a regular"),
        (huge, "Larger"),
    ):
        with pytest.raises(ConfigError, match=why):
            load(PrimaryConfig, path)
        for name in ("API_KEYS_FILE", "METRICS_KEYS_FILE", "FALLBACK_API_KEY_FILE"):
            with pytest.raises(ConfigError, match=why):
                check_keys(loaded(tmp_path, f"{LEAST}{name}={path}\n"))


def test_a_file_with_a_byte_order_mark_is_read_without_it(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_bytes(b"\xef\xbb\xbf# ours\r\nfirst\r\nsecond\r\n")
    text = f"{LEAST}API_KEYS_FILE={keys}\r\n".encode("utf-8-sig")
    assert api_keys(loaded(tmp_path, text)) == ("first", "second")


@pytest.mark.parametrize("name", ["API_KEYS", "METRICS_KEYS", "FALLBACK_API_KEY"])
@pytest.mark.parametrize("value", ["#abc", '"#abc"', "#"])
def test_a_comment_is_no_key(tmp_path: Path, name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}: a key may not begin with #"):
        check_keys(loaded(tmp_path, f"{LEAST}{name}={value}\n"))


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not UTF-8 text"):
        loaded(tmp_path, b"\xff\xfe\x00")


def test_the_file_is_the_one_that_config_path_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CONFIG_PATH", raising=False)
    assert config_path(PrimaryConfig) == Path("stt_primary.env")
    assert config_path(FallbackConfig) == Path("stt_fallback.env")
    monkeypatch.setenv("CONFIG_PATH", str(written(tmp_path, LEAST)))
    assert load(PrimaryConfig).fallback_url == "http://stt-fallback:8082"


@pytest.mark.parametrize("model", [PrimaryConfig, FallbackConfig])
def test_every_setting_says_what_it_may_be_and_what_it_is_for(model: type[TierConfig]) -> None:
    for name, field in fields(model).items():
        assert name == name.upper()
        assert allowed(field)
        assert field.description, name
