from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from bundle.errors import UnknownFeature
from fusion.errors import ForceUnknown
from service import errors
from service.errors import FeatureInvalid, ServiceError, VariantRefused, problem, slug, translated


def subclasses(base: type[ServiceError]) -> list[type[ServiceError]]:
    return [found for child in base.__subclasses__() for found in (child, *subclasses(child))]


ALL = subclasses(ServiceError)


@pytest.mark.parametrize("error_class", ALL)
def test_every_error_has_a_status_a_title_and_a_problem_document(error_class):
    error = error_class("the thing", found=7, expected="8")
    document = problem(error, "r-1")
    assert document["status"] in (400, 401, 403, 404, 409, 413, 415, 422, 500, 503, 504)
    assert document["title"] != ServiceError.title
    assert document["type"] == f"urn:dlen:problem:{slug(error_class)}"
    assert document["request_id"] == "r-1"
    told = {"thing", "found", "expected"} <= document.keys()
    assert told == (error.status != 500)
    assert ("Retry-After" in error.headers) == (error.status in (503, 504))


@pytest.mark.parametrize("error_class", ALL)
def test_the_drawn_tree_holds_every_error_under_its_parent(error_class):
    drawn = re.findall(r"^([│ ├└─]*)(\w+)(?: +(\d{3}))?", inspect.getdoc(errors) or "", re.M)
    lines = [(len(indent), name, status) for indent, name, status in drawn if hasattr(errors, name)]
    names = [name for _, name, _ in lines]
    assert names.count(error_class.__name__) == 1
    at = names.index(error_class.__name__)
    indent, _, status = lines[at]
    parent = next(name for depth, name, _ in reversed(lines[:at]) if depth < indent)
    assert parent == error_class.__base__.__name__
    assert status in ("", str(error_class.status))


def test_the_api_page_lists_every_error_that_a_request_can_meet():
    page = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
    rows = re.findall(r"^\| (\d{3}) \| (.+?) \|", page, re.M)
    table = {word for _, kinds in rows for word in re.findall(r"`([\w-]+)`", kinds)}
    groups = {errors.RequestRefused, errors.NotNow}
    met = {c for g in groups for c in subclasses(g)} | {
        errors.ModelFailed,
        errors.PolicyFailed,
        errors.StateFailed,
        ServiceError,
    }
    assert table == {slug(c) for c in met}
    for status, kinds in rows:
        for kind in re.findall(r"`([\w-]+)`", kinds):
            assert next(c for c in met if slug(c) == kind).status == int(status)


def test_an_internal_error_tells_the_caller_nothing_from_inside():
    document = problem(errors.ModelFailed("/secret/path", found="secret", expected="secret"), "r-1")
    assert "secret" not in str(document)


def test_neighbours_complaints_become_refusals():
    feature = translated(UnknownFeature("feature 'x'", found="an unknown name", expected="one of y"), "candidates")
    assert type(feature) is FeatureInvalid and feature.thing == "candidates: feature 'x'"
    variant = translated(ForceUnknown("layer 'l'", found="no such layer", expected="one of m"), "force_variant")
    assert type(variant) is VariantRefused
