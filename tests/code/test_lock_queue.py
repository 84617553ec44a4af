"""The queue of the promotion lock by a clock that the test moves; `test_registry_lock.py` has real stores."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from textmill.errors import UserError
from textmill.registry.promotion import lock
from textmill.registry.promotion.lock import CLAIM, Claim, HeldLock

KEY = f"{CLAIM}m"
ELSEWHERE = Claim(1, "elsewhere boot pid", 7, 1.0)
TAKEN = "another process is promoting a version of tiny. Wait for it, then run the command again."


class Client:
    """A registered model's tags, and the clock."""

    def __init__(self) -> None:
        self.tags: dict[str, str] = {"owner": "me"}
        self.now = 1000.0
        self.step = 1.0
        self.events: dict[float, Callable[[], Any]] = {}
        self.written: list[Claim] = []

    def get_registered_model(self, name: str) -> Any:
        assert name == "tiny"
        return SimpleNamespace(tags=dict(self.tags))

    def set_registered_model_tag(self, name: str, key: str, value: str) -> None:
        assert (name, key) == ("tiny", KEY)
        self.tags[key] = value
        self.written.append(Claim(**json.loads(value)))

    def delete_registered_model_tag(self, name: str, key: str) -> None:
        assert name == "tiny"
        del self.tags[key]

    def put(self, key: str, claim: Claim) -> None:
        self.tags[f"{CLAIM}{key}"] = json.dumps(asdict(claim))

    def sleep(self, seconds: float) -> None:
        assert seconds == 0.2
        self.now += self.step
        assert self.now < 1400, "it waits for ever"
        for moment in sorted(moment for moment in self.events if moment <= self.now - 1000):
            self.events.pop(moment)()

    @property
    def waited(self) -> float:
        return self.now - 1000


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Client:
    made = Client()
    monkeypatch.setattr(lock, "_clock", lambda: made.now)
    monkeypatch.setattr(lock, "time", SimpleNamespace(sleep=made.sleep))
    return made


def test_clock_counts_suspended_time_where_the_system_does(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = SimpleNamespace(clock_gettime=lambda clock: {1: "with sleep"}[clock], CLOCK_BOOTTIME=1)
    monkeypatch.setattr(lock, "time", fake)
    assert lock._clock() == "with sleep"  # type: ignore[comparison-overlap]
    monkeypatch.setattr(lock, "time", SimpleNamespace(monotonic=lambda: "without"))
    assert lock._clock() == "without"  # type: ignore[comparison-overlap]


def queue(client: Client) -> Claim:
    lock._queue(client, "tiny", KEY)  # type: ignore[arg-type]
    return client.written[-1]


def test_alone_it_gets_the_first_number_at_once(client: Client) -> None:
    own = lock._own_claim()
    assert own.number == own.beat == 0
    assert not lock._is_dead(own)
    assert lock._is_dead(replace(own, started=own.started - 1))
    assert lock._is_dead(replace(own, pid=max(psutil.pids()) + 1000))
    assert not lock._is_dead(ELSEWHERE)
    queue(client)
    assert client.written == [own, replace(own, number=1)]
    assert client.waited == 0


def test_first_claim_that_another_deleted_is_written_again(client: Client) -> None:
    write = client.set_registered_model_tag

    def lose_the_first(name: str, key: str, value: str) -> None:
        write(name, key, value)
        if len(client.written) == 1:
            del client.tags[key]

    client.set_registered_model_tag = lose_the_first  # type: ignore[method-assign]
    assert queue(client).number == 1


def test_it_waits_for_smaller_numbers_and_for_those_that_choose(client: Client) -> None:
    client.put("choosing", replace(ELSEWHERE, number=0))
    client.put("first", replace(ELSEWHERE, number=4))
    client.events = {
        3: lambda: client.put("choosing", replace(ELSEWHERE, number=9)),
        6: lambda: client.tags.pop(f"{CLAIM}first"),
    }
    assert queue(client).number == 5
    assert client.waited == 6


@pytest.mark.parametrize(("other", "waits"), [("a", 8), ("z", 0)])
def test_equal_numbers_go_by_key(client: Client, other: str, waits: float) -> None:
    """Both saw the same claims when they chose."""
    write = client.set_registered_model_tag

    def meanwhile(name: str, key: str, value: str) -> None:
        write(name, key, value)
        client.put(other, ELSEWHERE)

    client.set_registered_model_tag = meanwhile  # type: ignore[method-assign]
    client.events = {8: lambda: client.tags.pop(f"{CLAIM}{other}")}
    client.written.clear()
    monkey = lock._claims

    def unseen(model: Any, name: str) -> dict[str, Claim]:
        found = monkey(model, name)
        return {key: claim for key, claim in found.items() if len(client.written) > 1 or key == KEY}

    lock._claims = unseen
    try:
        assert queue(client).number == 1
    finally:
        lock._claims = monkey
    assert client.waited == waits


def test_dead_process_of_this_machine_is_not_waited_for(client: Client) -> None:
    own = lock._own_claim()
    client.put("dead", replace(own, number=1, started=own.started - 1))
    assert queue(client).number == 2
    assert client.waited == 1
    assert list(client.tags) == ["owner", KEY]


def test_silent_process_of_another_machine_is_removed_after_a_minute(client: Client) -> None:
    client.put("silent", ELSEWHERE)
    client.events = {9: lambda: client.put("silent", replace(ELSEWHERE, beat=1))}
    queue(client)
    assert client.waited == 9 + 61 + 1  # more than 60 s after its last sign, and one more look
    # While it waits it says itself that it lives, more than 5 s after the last time.
    assert [claim.beat for claim in client.written] == [0, 0, *range(1, 12)]


def test_process_that_lives_is_waited_for_but_not_for_ever(client: Client) -> None:
    beats = {
        second: lambda beat=second: client.put("b", replace(ELSEWHERE, number=2, beat=beat))
        for second in range(0, 400, 30)
    }
    client.put("b", replace(ELSEWHERE, number=2))
    own = lock._own_claim()
    client.put("a", replace(own, number=3, machine="third boot pid"))
    more = {
        second + 1: lambda beat=second: client.put("a", replace(own, number=3, machine="third boot pid", beat=beat))
        for second in range(0, 400, 30)
    }
    client.events = {**beats, **more}
    with pytest.raises(UserError) as refused:
        queue(client)
    said = "process 7 on elsewhere is promoting a version of tiny. Wait for it, then run the command again."
    assert str(refused.value) == said
    assert client.waited == 151


def test_claim_that_others_deleted_is_given_up(client: Client) -> None:
    client.put("first", ELSEWHERE)
    client.events = {2: lambda: client.tags.pop(KEY)}
    with pytest.raises(UserError) as refused:
        queue(client)
    assert str(refused.value) == TAKEN
    assert client.waited == 2


@pytest.mark.parametrize(("suspended", "goes_on"), [(30.0, True), (30.5, False)])
def test_process_that_slept_too_long_gives_up(client: Client, suspended: float, goes_on: bool) -> None:
    client.put("first", ELSEWHERE)
    client.step = suspended
    client.events = {suspended: lambda: client.tags.pop(f"{CLAIM}first")}
    if goes_on:
        queue(client)
        return
    with pytest.raises(UserError) as refused:
        queue(client)
    assert str(refused.value) == TAKEN


def test_holder_may_write_for_half_a_minute(client: Client) -> None:
    client.tags[KEY] = "{}"
    held = HeldLock(client, "tiny", KEY)  # type: ignore[arg-type]
    client.now += 30
    held.check()
    client.now += 0.5
    said = (
        "the store was too slow: the lock on tiny timed out. "
        "Run the command again; it first completes or undoes the interrupted move."
    )
    with pytest.raises(UserError) as late:
        held.check()
    assert str(late.value) == said
    again = HeldLock(client, "tiny", KEY)  # type: ignore[arg-type]
    again.check()
    del client.tags[KEY]
    with pytest.raises(UserError) as removed:
        again.check()
    assert str(removed.value) == said
