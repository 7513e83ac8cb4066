import asyncio
import time

import pytest
import uvloop

from loadtest.alarm import Alarm


@pytest.mark.parametrize("platform", ["linux", "other"])
def test_it_rings_when_the_time_has_come_and_not_before(platform, monkeypatch):
    monkeypatch.setattr("loadtest.alarm.sys.platform", platform)
    rang = []

    async def main():
        done = asyncio.Event()

        def wake():
            rang.append(time.monotonic_ns() - at_ns[len(rang)])
            if len(rang) < len(at_ns):
                alarm.set(at_ns[len(rang)])
            else:
                done.set()

        alarm = Alarm(asyncio.get_running_loop(), wake)
        start = time.monotonic_ns()
        at_ns = [start + 300_000 * i for i in range(1, 21)]
        alarm.set(at_ns[0])
        await asyncio.wait_for(done.wait(), 10)
        alarm.set(time.monotonic_ns() + 1_000_000)
        alarm.close()
        await asyncio.sleep(0.02)

    uvloop.run(main())
    assert len(rang) == 20  # and none after close
    assert min(rang) >= 0
