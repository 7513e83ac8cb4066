"""Every way in which the service can refuse or fail, and the status each one is answered with.

ServiceError
├── StartRefused                 the service cannot start
│   ├── SettingsInvalid          a setting is unknown, of a wrong type or out of bounds
│   ├── ModelsMissing            no model folder to serve
│   └── PortTaken                a port that cannot be bound
├── RequestRefused               the caller must change the request
│   ├── BodyMalformed            422  not JSON, or not of the request's shape; names the JSON path
│   ├── FeatureInvalid           422  a feature's values cannot be encoded
│   ├── TooManyCandidates        422  more than `max_candidates`
│   ├── DuplicateCandidate       422  two candidates of one id
│   ├── ModelChoiceNeeded        422  several models are served and the request names none
│   ├── VariantRefused           422  a forced variant that does not exist or may not be forced
│   ├── CallerRefused            401  a route that wants a key was called without a valid one
│   ├── AdminRefused             403  an admin route without a valid key
│   ├── VersionUnknown           409  a config version that is not stored or cannot serve
│   ├── HeaderInvalid            400  a header that does not parse
│   ├── ModelUnknown             404  a model that is not served
│   ├── BodyTooLarge             413  more bytes than `max_body_bytes`
│   └── MediaTypeUnsupported     415  a content type or encoding that the route does not read
├── NotNow                       the caller may try again
│   ├── Overloaded               503  no permit left; with Retry-After
│   ├── NotReady                 503  no warmed model yet, or stopping
│   └── DeadlineExceeded         504  the caller's deadline passed before the answer
├── ModelFailed                  500  the model raised, or gave numbers that are not finite
├── PolicyFailed                 500  the fusion policy gave a score that is not finite
├── StateFailed                  500  the fusion state folder cannot be read or written
└── ClientError                  `dlen rank` or the client could not get an answer
    ├── RequestFileInvalid       the request file does not read
    ├── ServerUnreachable        no connection, or it broke
    ├── ServerRefused            the server answered with a problem document
    └── AnswerInvalid            the server's answer does not read

A message gives the thing, the value found and the value expected. Status codes live here and nowhere else;
`problem` turns any error into an RFC 9457 document.
"""

from __future__ import annotations

import re
from typing import ClassVar

from bundle.errors import Refused, ValueInvalid
from fusion.errors import ForceError

PROBLEM_MEDIA_TYPE = "application/problem+json"
LONGEST_TEXT = 900
"""Characters of a text in a problem document."""


class ServiceError(Refused):
    """The service cannot start, refuses a request, or fails at one."""

    status: ClassVar[int] = 500
    title: ClassVar[str] = "the service failed"

    @property
    def headers(self) -> dict[str, str]:
        """Response headers that go with the error."""
        return {}


class StartRefused(ServiceError):
    """The service cannot start."""

    title = "the service cannot start"


class SettingsInvalid(StartRefused):
    """A setting is unknown, of a wrong type or out of bounds."""

    title = "a setting is invalid"


class ModelsMissing(StartRefused):
    """There is no model folder to serve."""

    title = "no model to serve"


class PortTaken(StartRefused):
    """A port that cannot be bound."""

    title = "a port cannot be bound"


class RequestRefused(ServiceError):
    """The caller must change the request."""

    status = 400
    title = "the request is refused"


class BodyMalformed(RequestRefused):
    """The body is not JSON, or not of the request's shape."""

    status = 422
    title = "the body does not parse"


class FeatureInvalid(RequestRefused):
    """A feature's values cannot be encoded."""

    status = 422
    title = "a feature is invalid"


class TooManyCandidates(RequestRefused):
    """More candidates than `max_candidates`."""

    status = 422
    title = "too many candidates"


class DuplicateCandidate(RequestRefused):
    """Two candidates of one id."""

    status = 422
    title = "a candidate stands twice"


class ModelChoiceNeeded(RequestRefused):
    """Several models are served and the request names none."""

    status = 422
    title = "the request must name a model"


class VariantRefused(RequestRefused):
    """A forced variant that does not exist or may not be forced."""

    status = 422
    title = "the variant cannot be forced"


class CallerRefused(RequestRefused):
    """A route that wants a key was called without a valid one."""

    status = 401
    title = "a key is needed"

    def __init__(self, thing: str, *, found: object, expected: object, shown: bool = False) -> None:
        """Build the message; `shown` is whether there was a key at all."""
        super().__init__(thing, found=found, expected=expected)
        self.shown = shown

    @property
    def headers(self) -> dict[str, str]:
        """Say how to show a key (RFC 6750, 3)."""
        return {
            "WWW-Authenticate": 'Bearer realm="dlen", error="invalid_token"' if self.shown else 'Bearer realm="dlen"'
        }


class AdminRefused(RequestRefused):
    """An admin route was called without a valid key."""

    status = 403
    title = "an admin key is needed"


class VersionUnknown(RequestRefused):
    """A config version that is not stored, or that cannot serve."""

    status = 409
    title = "the version cannot serve"


class HeaderInvalid(RequestRefused):
    """A header that does not parse."""

    title = "a header is invalid"


class ModelUnknown(RequestRefused):
    """A model that is not served."""

    status = 404
    title = "the model is not served"


class BodyTooLarge(RequestRefused):
    """More bytes than `max_body_bytes`."""

    status = 413
    title = "the body is too large"


class MediaTypeUnsupported(RequestRefused):
    """A content type or content encoding that the route does not read."""

    status = 415
    title = "the media type is not supported"


class NotNow(ServiceError):
    """The caller may try again."""

    status = 503
    title = "not now"

    def __init__(self, thing: str, *, found: object, expected: object, retry_after_seconds: int = 1) -> None:
        """Build the message; `retry_after_seconds` goes into the Retry-After header."""
        super().__init__(thing, found=found, expected=expected)
        self.retry_after_seconds = retry_after_seconds

    @property
    def headers(self) -> dict[str, str]:
        """Say when to try again."""
        return {"Retry-After": str(self.retry_after_seconds)}


class Overloaded(NotNow):
    """No permit is left."""

    title = "the service is at its limit"


class NotReady(NotNow):
    """No warmed model yet, or the service is stopping."""

    title = "the service is not ready"


class DeadlineExceeded(NotNow):
    """The caller's deadline passed before the answer."""

    status = 504
    title = "the deadline has passed"


class ModelFailed(ServiceError):
    """The model raised, or gave numbers that are not finite."""

    title = "the model failed"


class PolicyFailed(ServiceError):
    """The fusion policy gave a score that is not finite."""

    title = "the fusion policy failed"


class StateFailed(ServiceError):
    """The fusion state folder cannot be read or written."""

    title = "the fusion state failed"


class ClientError(ServiceError):
    """A client could not get an answer."""

    title = "no answer"


class RequestFileInvalid(ClientError):
    """The request file does not read."""


class ServerUnreachable(ClientError):
    """No connection to the server, or it broke."""


class ServerRefused(ClientError):
    """The server answered with a problem document."""


class AnswerInvalid(ClientError):
    """The server's answer does not read."""


def slug(error_class: type[ServiceError]) -> str:
    """Return the class's name in a problem's `type`: DuplicateCandidate → duplicate-candidate."""
    return re.sub(r"(?<!^)(?=[A-Z])", "-", error_class.__name__).lower()


def problem(error: ServiceError, request_id: str | None = None) -> dict[str, object]:
    """Return the RFC 9457 problem document of an error; what a 5xx found inside the service is not told."""
    document: dict[str, object] = {
        "type": f"urn:dlen:problem:{slug(type(error))}",
        "title": error.title,
        "status": error.status,
    }
    if request_id is not None:
        document["request_id"] = request_id
    if error.status == 500:
        return document | {"detail": "an internal error; the log has it under the request id"}
    told = {"thing": _plain(error.thing), "found": _plain(error.found), "expected": _plain(error.expected)}
    return document | {"detail": _plain(str(error))} | told


def translated(error: ValueInvalid | ForceError, where: str) -> RequestRefused:
    """Return the refusal that a neighbour package's complaint about a request's values becomes."""
    if isinstance(error, ForceError):
        return VariantRefused(f"{where}: {error.thing}", found=error.found, expected=error.expected)
    return FeatureInvalid(f"{where}: {error.thing}", found=error.found, expected=error.expected)


def _plain(value: object) -> object:
    """Return what JSON holds, long texts cut: an answer is not to be as large as what it complains about."""
    if isinstance(value, bool | None) or (isinstance(value, int) and abs(value) < 2**63):
        return value
    text = str(value)
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}…"
