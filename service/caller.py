"""What a route depends on that only callers with a key may use."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi import Depends, Request
from fastapi.params import Depends as Dependency
from fastapi.security import HTTPBearer

from service.errors import CallerRefused
from service.keys import Keys
from service.worker import Worker


def for_callers(worker: Worker) -> list[Dependency]:
    """Return the dependencies of a route that wants a caller's key; none where the service has no keys."""
    return [] if worker.settings.keys_file is None else [Depends(CallerKey(worker.caller_keys))]


class CallerKey(HTTPBearer):
    """Lets in who shows one of the keys; stands in the OpenAPI document."""

    def __init__(self, keys: Keys) -> None:
        """Let in holders of `keys`."""
        super().__init__(scheme_name="callerKey", description="A key of `keys_file`.", auto_error=False)
        self._keys = keys

    async def __call__(self, request: Request) -> None:  # type: ignore[override]  # nobody needs what was shown
        """Check the Authorization header.

        Raises:
            CallerRefused: no key, or none of ours.
        """
        self.check(request.headers)

    def check(self, headers: Mapping[str, str]) -> None:
        """Check what headers, by their names in lower case, show.

        Raises:
            CallerRefused: no key, or none of ours.
        """
        scheme, _, key = headers.get("authorization", "").partition(" ")
        shown = scheme.lower() == "bearer" and bool(key.strip())
        if not (shown and self._keys.holds(key.strip())):
            found = "another key" if shown else "no bearer key"
            raise CallerRefused("header Authorization", found=found, expected="Bearer and one of the keys", shown=shown)
