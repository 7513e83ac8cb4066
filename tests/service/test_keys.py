"""Callers' keys: who is let in, how they rotate, and that nothing ever shows one."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli import main
from service.client import AsyncClient, Client
from service.errors import ServerRefused, SettingsInvalid
from service.keys import Keys

OLD_KEY, NEW_KEY, WRONG_KEY = "old-caller-key-0123", "new-caller-key-0123", "wrong-caller-key-0123"


class Guarded:
    """A service with keys."""

    def __init__(self, service, folder: Path) -> None:
        self.service, self.folder, self.keys = service, folder, folder / "keys"

    def status(self, body, key: str | None) -> int:
        return self.service.rank(body, **shown(key)).status_code


def shown(key: str | None) -> dict[str, str]:
    return {} if key is None else {"authorization": f"Bearer {key}"}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory, models_folder, fusion_file, start_service) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "keys").write_text(f"# until March\n{OLD_KEY}\n\n{NEW_KEY}\n")
    service = start_service(
        folder, models_folder, fusion_file, "--keys-file", str(folder / "keys"), DLEN_DRAIN_SECONDS="0",
        DLEN_LOG_LEVEL="debug",
    )  # fmt: skip
    yield Guarded(service, folder)
    service.stop()


def test_either_key_lets_a_caller_in(guarded, body):
    assert {guarded.status(body, key) for key in (OLD_KEY, NEW_KEY)} == {200}
    assert guarded.service.rank(body, authorization=f"bearer  {OLD_KEY}").status_code == 200


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", f"Bearer {WRONG_KEY}", f"Bearer {OLD_KEY[:-1]}", f"Bearer {OLD_KEY.upper()}",
     f"Basic {OLD_KEY}", OLD_KEY, f"Bearer {OLD_KEY} {NEW_KEY}", "Bearer # until March"],
)  # fmt: skip
def test_without_a_key_a_caller_is_told_how_to_show_one(guarded, body, header):
    answer = guarded.service.rank(body, **({} if header is None else {"authorization": header}))
    assert (answer.status_code, answer.headers["content-type"]) == (401, "application/problem+json")
    assert answer.json()["type"] == "urn:dlen:problem:caller-refused"
    wrong = header is not None and header.startswith("Bearer ") and header.strip() != "Bearer"
    assert answer.headers["www-authenticate"] == 'Bearer realm="dlen"' + (', error="invalid_token"' if wrong else "")


def test_exactly_the_routes_that_the_document_says_want_a_key(guarded):
    document = guarded.service.get("/openapi.json").json()
    assert document["components"]["securitySchemes"]["callerKey"]["scheme"] == "bearer"
    guarded_paths = set()
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            url = guarded.service.url + re.sub(
                r"\{(\w+)\}", lambda found: {"name": "tiny", "version": "1"}[found[1]], path
            )
            refused = guarded.service.client.request(method.upper(), url).status_code == 401
            assert refused == (operation.get("security") == [{"callerKey": []}]), path
            if refused:
                guarded_paths.add(path)
    infer = {"/v2/models/{name}/infer", "/v2/models/{name}/versions/{version}/infer"}
    assert guarded_paths == {path for path in document["paths"] if path.startswith("/v1/")} | infer
    assert {"/v1/rank", "/v1/models", "/v1/config"} <= guarded_paths


def test_the_open_protocols_clients_read_the_refusal_as_an_error(guarded):
    answer = guarded.service.client.post(f"{guarded.service.url}/v2/models/tiny/infer", json={})
    assert (answer.status_code, answer.json()["error"]) == (401, answer.json()["detail"])


def test_clients_and_commands_show_a_key_from_a_file(guarded, body, tmp_path, capsys):
    (tmp_path / "request.json").write_text(json.dumps(body))
    words = ["rank", "--url", guarded.service.url, "--request", str(tmp_path / "request.json")]
    assert main(words) == 2
    assert main([*words, "--key-file", str(guarded.keys)]) == 0
    load = ["loadtest", "run", "--url", guarded.service.url, "--request", str(tmp_path / "request.json")]
    load += ["--rate", "20", "--duration", "0.5", "--warmup", "0", "--json", str(tmp_path / "load.json")]
    main([*load, "--key-file", str(guarded.keys)])
    assert json.loads((tmp_path / "load.json").read_text())["result"]["statuses"].keys() == {"200"}
    told = capsys.readouterr()
    for text in (told.out, told.err, (tmp_path / "load.json").read_text()):
        assert OLD_KEY not in text
    with Client(guarded.service.url, key=NEW_KEY) as client:
        assert len(client.rank(["a", "b"]).items) == 2
    with Client(guarded.service.url, key=WRONG_KEY) as client, pytest.raises(ServerRefused, match="401") as caught:
        client.rank(["a"])
    assert WRONG_KEY not in str(caught.value)

    async def ask() -> int:
        async with AsyncClient(guarded.service.url, key=NEW_KEY) as other:
            return len((await other.rank(["a"])).items)

    assert asyncio.run(ask()) == 1


def test_a_key_file_of_a_command_that_holds_none_is_refused(guarded, tmp_path, capsys):
    (tmp_path / "request.json").write_text('{"candidates": []}')
    (tmp_path / "short").write_text("secret\n")
    for words in (["rank"], ["loadtest", "run", "--rate", "1"]):
        words += ["--url", guarded.service.url, "--request", str(tmp_path / "request.json"), "--key-file"]
        assert main([*words, str(tmp_path / "none")]) == 2
    assert main(["rank", "--request", str(tmp_path / "request.json"), "--key-file", str(tmp_path / "short")]) == 2
    assert "secret" not in capsys.readouterr().err


def test_keys_rotate_without_a_restart_and_a_bad_file_locks_nobody_out(guarded, body):
    text = guarded.keys.read_text()
    guarded.keys.write_text(f"{NEW_KEY}\n")
    assert [guarded.status(body, key) for key in (OLD_KEY, NEW_KEY)] == [401, 200]
    for bad in ("", "secret\n", "\xff"):
        guarded.keys.write_text(bad, encoding="latin-1")
        assert [guarded.status(body, key) for key in (OLD_KEY, NEW_KEY)] == [401, 200]
    guarded.keys.unlink()
    assert [guarded.status(body, key) for key in (OLD_KEY, NEW_KEY)] == [401, 200]
    guarded.keys.write_text(text)
    assert [guarded.status(body, key) for key in (OLD_KEY, NEW_KEY)] == [200, 200]


def test_no_key_stands_in_anything_that_the_service_writes(guarded, body):
    service = guarded.service
    told = [service.rank(body, **shown(key)).text for key in (OLD_KEY, WRONG_KEY)]
    told += [service.client.get(service.url + path, headers=shown(NEW_KEY)).text
             for path in ("/v1/config", "/v1/models", "/openapi.json", "/v2", "/nowhere")]  # fmt: skip
    told += [service.client.get(f"{service.url}/v1/rank", headers=shown(WRONG_KEY)).text, service.metrics()]
    told += [file.read_text() for file in guarded.folder.iterdir() if file != guarded.keys]
    for key in (OLD_KEY, NEW_KEY, WRONG_KEY):
        assert key not in "\n".join(told)
    assert service.metric("dlen_rank_refused_total", problem="caller-refused") > 0


def test_a_start_with_a_bad_key_file_is_refused(tmp_path):
    (tmp_path / "keys").write_text("short\n")
    with pytest.raises(SettingsInvalid, match=r"keys_file .*/keys: got a shorter one in line 1"):
        Keys("keys_file", tmp_path / "keys").check()


def test_two_changes_of_one_size_within_a_clock_tick_are_both_seen(tmp_path):
    file = tmp_path / "keys"
    keys = Keys("keys_file", file)
    for key in (OLD_KEY, NEW_KEY):
        file.write_text(key)
        os.utime(file)
        stamp = file.stat().st_mtime_ns
        assert keys.holds(key)
    file.write_text(OLD_KEY)
    os.utime(file, ns=(stamp, stamp))
    assert keys.holds(OLD_KEY) and not keys.holds(NEW_KEY)


def test_a_file_that_stays_the_same_is_not_read_again(tmp_path):
    file = tmp_path / "keys"
    file.write_text(OLD_KEY)
    os.utime(file, (1, 1))
    keys = Keys("keys_file", file)
    assert keys.holds(OLD_KEY)
    file.write_text(NEW_KEY)
    os.utime(file, (1, 1))
    assert keys.holds(OLD_KEY), "same time, size and inode: taken for unchanged"
