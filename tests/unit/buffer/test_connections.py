"""URLs of servers, their options and secrets."""

from pathlib import Path

import pytest

from crescendo.buffer.connections import make_redis, redirected, without_secrets
from crescendo.common import errors


def password_of(url: str) -> object:
    return make_redis(url).connection_pool.connection_kwargs.get("password")


def test_a_password_comes_from_the_url_a_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret").write_text("s3 cret\n")
    monkeypatch.setenv("BUFFER_PASSWORD", "from-env")
    assert password_of("redis://user:plain@host:1/0") == "plain"
    assert password_of(f"redis://user@host:1/0?password_file={tmp_path / 'secret'}") == "s3 cret"
    assert password_of("rediss://user@host:1/0?password_env=BUFFER_PASSWORD&ssl_check_hostname=no") == "from-env"
    assert password_of("redis://host:1/0") is None


@pytest.mark.parametrize(
    ("url", "kind", "named"),
    [
        ("redis://h:1/0?password_file=/nowhere/at-all", errors.EnvironmentProblem, "/nowhere/at-all"),
        ("redis://h:1/0?password_env=NOT_SET_ANYWHERE", errors.EnvironmentProblem, "NOT_SET_ANYWHERE"),
        ("rediss://h:1/0?ssl_ca_certs=/nowhere/ca.pem", errors.EnvironmentProblem, "/nowhere/ca.pem"),
        ("redis://h:1/0?no_such_option=1", errors.RequestError, "no_such_option"),
        ("http://h:1/0", errors.RequestError, "not valid"),
        ("redis://h:port/0", errors.RequestError, "not valid"),
    ],
)
def test_what_is_wrong_is_named(url: str, kind: type[errors.CrescendoError], named: str) -> None:
    with pytest.raises(kind, match=named):
        make_redis(url)


def test_messages_show_no_secret() -> None:
    assert without_secrets("rediss://user:secret@host:6380/0?password_file=x") == "rediss://user@host:6380/0"


def test_another_node_gets_the_same_login() -> None:
    assert redirected("redis://u:p@a:1/0?x=1", "b", 2) == "redis://u:p@b:2/0?x=1"
