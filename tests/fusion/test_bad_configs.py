# ruff: noqa: E501
"""Every kind of bad config is refused with its own message: file, line, key, found, expected."""

from __future__ import annotations

from pathlib import Path

import pytest

from fusion.document import MAX_FILE_BYTES
from fusion.errors import ConfigError, ConfigInvalid, ConfigUnreadable
from fusion.policy import load_config, parse_config

GOOD = """format: 1
default: feed
negative_tasks: [hate]
policies:
  feed:
    formula: weighted_sum
    weights: {click: 1.0, hate: -2.0}
layers:
  - name: ranking
    experiments:
      - name: up
        slice: [0, 0.5]
        variants:
          - {name: off, weight: 0.5}
          - {name: boost, weight: 0.5, patch: {p_up: 1.0}}
      - name: other
        slice: [0.5, 1.0]
        variants:
          - {name: same, weight: 0.5}
          - {name: more, weight: 0.5, policy: feed}
""".replace("name: off", 'name: "off"')
WEIGHTS = "    weights: {click: 1.0, hate: -2.0}\n"


def rule(*texts):
    return (WEIGHTS, WEIGHTS + "    rules:\n" + "".join(f"      - {text}\n" for text in texts))


def formula(text):
    return ("    formula: weighted_sum\n" + WEIGHTS, text)


def layer(text):
    return ("layers:\n", f"layers:\n{text}")


# what is replaced in GOOD, by what, and what the message must say
BAD = {
    "unknown top-level key": (("format: 1", "fromat: 1"), r"f.yaml:1: fromat: got an unknown key, want one of default, format, .*did you mean format\?"),
    "unknown format": (("format: 1", "format: 2"), r"f.yaml:1: format: got 2, want"),
    "missing default": (("default: feed\n", ""), r"default: got nothing, want this key"),
    "default names no policy": (("default: feed", "default: fed"), r":2: default: got 'fed', want the name of a policy \(feed\)"),
    "no policies": (("policies:\n  feed:\n    formula: weighted_sum\n" + WEIGHTS, "policies: {}\n"), r"policies: got a mapping"),
    "policy name with a blank": (("  feed:\n", "  my feed:\n"), r":5: policies\.my feed"),
    "unknown formula": (("weighted_sum", "sum"), r":5: policies\.feed: got formula 'sum', want formula 'expression' or 'power_product'"),
    "missing formula": (("    formula: weighted_sum\n", ""), r"policies\.feed: got formula none"),
    "weights missing": ((WEIGHTS, ""), r":5: policies\.feed\.weights: got nothing, want this key"),
    "weights empty": (("{click: 1.0, hate: -2.0}", "{}"), r":7: policies\.feed\.weights: got a mapping of 0, want at least 1"),
    "weight is text": (("click: 1.0", "click: high"), r":7: policies\.feed\.weights\.click: got 'high'"),
    "weight is a quoted number": (("click: 1.0", "click: '1.0'"), r"weights\.click: got '1\.0', want a number \(that is text to YAML: write 1\.0\)"),
    "weight without a point": (("click: 1.0", "click: 5e-7"), r"weights\.click: got '5e-7', .*write 5\.0e-07"),
    "p_up among the weights": (("{click: 1.0, hate: -2.0}", "{click: 1.0, p_up: 2.0}"), r"weights\.p_up: got 'p_up', want it beside weights"),
    "weight is true": (("click: 1.0", "click: yes"), r"weights\.click: got True, .*YAML reads on/off/yes/no"),
    "weight is infinite": (("click: 1.0", "click: .inf"), r"weights\.click: got inf, want .*finite"),
    "weight too large": (("click: 1.0", "click: 10000"), r"weights\.click: got 10000, want .*less than or equal to 1000"),
    "negative weight of another task": (("click: 1.0", "click: -1.0"), r"weights\.click: got -1\.0, want at least 0, or 'click' among negative_tasks"),
    "positive weight of a negative task": (("hate: -2.0", "hate: 2.0"), r"weights\.hate: got 2\.0, want at most 0"),
    "only zero weights": (("{click: 1.0, hate: -2.0}", "{click: 0}"), r"weights: got only zeros"),
    "negative task twice": (("[hate]", "[hate, hate]"), r":3: negative_tasks\[1\]: got 'hate' again"),
    "unknown policy key": (("    formula:", "    wieghts: {}\n    formula:"), r":6: policies\.feed\.wieghts: got an unknown key"),
    "unknown signal": (("    formula:", "    signal: both\n    formula:"), r"policies\.feed\.signal: got 'both', want .*'joint' or 'marginal'"),
    "negative p_up": (("    formula:", "    p_up: -1\n    formula:"), r"policies\.feed\.p_up: got -1"),
    "gate out of range": (("    formula:", "    gate: {min_p_up: 1.5}\n    formula:"), r"gate\.min_p_up: got 1\.5"),
    "gate without threshold": (("    formula:", "    gate: {mode: drop}\n    formula:"), r"gate\.min_p_up: got nothing"),
    "unknown gate mode": (("    formula:", "    gate: {min_p_up: 0.1, mode: hide}\n    formula:"), r"gate\.mode: got 'hide'"),
    "product that overflows": (formula("    formula: power_product\n    weights: {click: 900.0}\n"), r"weights: got 8289, want Σ\|w\|·\|log epsilon\|"),
    "rank product that underflows": (formula("    formula: rank_product\n    weights: {click: 900.0}\n"), r"want Σ\|w\|·log\(2000\^beta"),
    "key of another formula": (formula("    formula: power_product\n    beta: 1.0\n    weights: {click: 1.0}\n"), r"policies\.feed\.beta: got an unknown key"),
    "expression that does not parse": (formula("    formula: expression\n    expression: click + * like\n"), r"expression: got at position 9"),
    "expression with a foreign character": (formula("    formula: expression\n    expression: click @ like\n"), r"at position 7 '@ like'"),
    "expression with attribute access": (formula("    formula: expression\n    expression: click.real\n"), r"expression: got at position 6 '\.real'"),
    "expression with a foreign call": (formula("    formula: expression\n    expression: eval(click)\n"), r"a call of 'eval', want one of log, exp, min, max, clip"),
    "expression with too few arguments": (formula("    formula: expression\n    expression: max(click)\n"), r"1 arguments of max, want 2 to 20"),
    "expression of numbers only": (formula("    formula: expression\n    expression: 1 + 2\n"), r"got at position 1 only numbers"),
    "expression nested too deeply": (formula(f"    formula: expression\n    expression: {'-' * 60}click\n"), r"deeper nesting"),
    "attribute that is not read": (formula("    formula: expression\n    expression: click\n    attributes: {age: 0.0}\n"), r"attributes\.age: got 'age', want an attribute that the expression reads"),
    "unknown rule": (rule("{type: shuffle}"), r":9: policies\.feed\.rules\[0\]: got type 'shuffle'"),
    "rule without type": (rule("{key: group}"), r"rules\[0\]: got type none, want type 'decay' or 'dpp' or 'explore'"),
    "rule that is text": (rule("decay"), r"rules\[0\]: got 'decay', want a mapping"),
    "pin of a number": (rule("{type: pin, position: 1, id: 5239}"), r"rules\[0\]\.id: got 5239, want text \(quote it: '5239'\)"),
    "two rules of diversity": (rule("{type: mmr}", "{type: dpp}"), r"rules\[0\]: got mmr and dpp, want mmr or dpp, once"),
    "mmr that does nothing": (rule("{type: mmr, relevance: 1.0}"), r"rules\[0\]\.relevance: got 1\.0, want less than 1"),
    "decay with a floor of 1": (rule("{type: decay, floor: 1.0}"), r"rules\[0\]\.floor: got 1\.0, want less than 1"),
    "exploration beyond its pool": (rule("{type: explore, positions: [3, 100]}"), r"rules\[0\]\.positions: got 100, want positions below pool"),
    "no positions to explore": (rule("{type: explore, positions: []}"), r"rules\[0\]\.positions: got a list of 0, want at least 1"),
    "attribute without a default": (formula("    formula: expression\n    expression: click * age\n    attributes: {age: }\n"), r":8: policies\.feed\.attributes\.age: got None, want a number"),
    "unknown rule key": (rule("{type: decay, half_life: 2}"), r"rules\[0\]\.half_life: got an unknown key"),
    "rules in an order that undoes one": (rule("{type: window_cap}", "{type: decay}"), r":10: policies\.feed\.rules\[1\]: got decay after window_cap"),
    "decay that does nothing": (rule("{type: decay, decay: 1.0}"), r"rules\[0\]\.decay: got 1\.0, want less than 1"),
    "window cap that does nothing": (rule("{type: window_cap, max: 5, window: 5}"), r"rules\[0\]\.max: got 5, want less than window"),
    "first cap that does nothing": (rule("{type: first_cap, key: a, max: 10}"), r"rules\[0\]\.max: got 10, want less than first"),
    "pin without target": (rule("{type: pin, position: 1}"), r"rules\[0\]: got both or neither, want one of id and attribute"),
    "two pins at one position": (rule("{type: pin, position: 1, id: a}", "{type: pin, position: 1, id: b}"), r"rules\[1\]\.position: got 1, want another position"),
    "position 0": (rule("{type: pin, position: 0, id: a}"), r"rules\[0\]\.position: got 0"),
    "experiment weights that do not add up": (("{name: same, weight: 0.5}", "{name: same, weight: 0.4}"), r"experiments\[1\]\.variants: got weights that add up to 0\.9, want 1"),
    "one variant only": (("          - {name: same, weight: 0.5}\n", ""), r"variants: got a list of 1, want at least 2"),
    "variant named by a boolean": (('name: "off"', "name: off"), r"variants\[0\]\.name: got False, .*quote"),
    "variant name twice in a layer": (("name: same", 'name: "off"'), r"variants\[0\]\.name: got 'off' again"),
    "variant of an unknown policy": (("policy: feed}", "policy: fed}"), r"variants\[1\]\.policy: got 'fed', want the name of a policy"),
    "patch that makes no policy": (("{p_up: 1.0}", "{p_up: -1.0}"), r"variants\[1\]\.patch: got a patch of 'feed' with p_up"),
    "slices that overlap": (("[0.5, 1.0]", "[0.4, 1.0]"), r":\d+: layers\[0\]\.experiments\[1\]\.slice: got \[0\.4, 1\], want no overlap with \[0, 0\.5\] of 'up'"),
    "slice backwards": (("[0.5, 1.0]", "[1.0, 0.5]"), r"experiments\[1\]\.slice: got \[1, 0\.5\]"),
    "slice out of range": (("[0.5, 1.0]", "[0.5, 1.5]"), r"experiments\[1\]\.slice\[1\]: got 1\.5"),
    "experiment name twice": (("name: other", "name: up"), r"experiments\[1\]\.name: got 'up' again"),
    "layer name twice": (layer("  - {name: ranking, salt: x}\n"), r"layers\[1\]\.name: got 'ranking' again"),
    "layers with one salt": (layer("  - {name: second, salt: ranking}\n"), r"layers\[1\]\.salt: got 'ranking', want another salt"),
    "policies named by two layers": (
        layer("  - {name: b, experiments: [{name: z, variants: [{name: z1, weight: 0.5, policy: feed}, {name: z2, weight: 0.5}]}]}\n"),
        r"policy: got 'feed', want policies named by one layer only \('b' does already\)",
    ),
    "one key patched by two layers": (
        layer("  - {name: b, experiments: [{name: z, variants: [{name: z1, weight: 0.5, patch: {p_up: 2.0}}, {name: z2, weight: 0.5}]}]}\n"),
        r"got a patch of p_up, want a key that layer 'b' does not patch",
    ),
    "unknown operator in a condition": (("        slice: [0, 0.5]", "        when: {age: {$above: 3}}\n        slice: [0, 0.5]"), r"when\.age\.\$above: got operator \$above"),
    "operator that needs a list": (("        slice: [0, 0.5]", "        when: {tab: {$in: 3}}\n        slice: [0, 0.5]"), r"when\.tab\.\$in: got 3, want a list"),
    "operator without attribute": (("        slice: [0, 0.5]", "        when: {$eq: 3}\n        slice: [0, 0.5]"), r"when\.\$eq: got operator \$eq here"),
    "joining operator below an attribute": (("        slice: [0, 0.5]", "        when: {tab: {$or: [1]}}\n        slice: [0, 0.5]"), r"when\.tab\.\$or: got operator \$or here"),
    "joined values that are no conditions": (("        slice: [0, 0.5]", "        when: {$or: [3]}\n        slice: [0, 0.5]"), r"when\.\$or\[0\]: got 3, want a condition"),
    "pattern that does not compile": (("        slice: [0, 0.5]", "        when: {tab: {$regex: '('}}\n        slice: [0, 0.5]"), r"when\.tab\.\$regex: got '\(' .*want a regular expression"),
    "patch with an unknown key": (("{p_up: 1.0}", "{pup: 1.0}"), r"got a patch of 'feed' with pup: an unknown key, .*did you mean p_up"),
    "patch that lacks a key": (("{p_up: 1.0}", "{weights: null}"), r"got a patch of 'feed' with weights: nothing, want this key"),
    "unknown status": (("        slice: [0, 0.5]", "        status: paused\n        slice: [0, 0.5]"), r"status: got 'paused'"),
    "traffic above 1": (("        slice: [0, 0.5]", "        traffic: 50\n        slice: [0, 0.5]"), r"traffic: got 50"),
    "phase 0": (("        slice: [0, 0.5]", "        phase: 0\n        slice: [0, 0.5]"), r"phase: got 0"),
    "key twice": (("default: feed", "default: feed\ndefault: feed"), r":3: default: got the key again, want it once \(line 2\)"),
    "key that is no text": (("  feed:\n", "  on:\n"), r":5: policies: got True as a key"),
    "alias": (("default: feed", "default: &a feed\ntest_users: [*a]"), r"alias \*a; anchors and aliases are not supported"),
    "a character that YAML has not": (("default: feed", "default: feed\0"), r"f\.yaml: YAML: got unacceptable character"),
    "broken YAML": (("policies:", "policies: ["), r"f\.yaml:\d+: YAML: got"),
    "foreign tag": (("default: feed", "default: !!python/name:os.system feed"), r"could not determine a constructor"),
    "list instead of a mapping": ((GOOD, "- 1\n"), r"f\.yaml:1: document: got list, want a mapping"),
    "empty file": ((GOOD, "# nothing\n"), r"f\.yaml:1: document: got an empty file"),
}  # fmt: skip


def test_the_config_that_the_bad_ones_are_made_of_is_good():
    parse_config({"f.yaml": GOOD.encode()})


@pytest.mark.parametrize("kind", BAD)
def test_bad_config_is_refused_with_its_own_message(kind):
    (old, new), message = BAD[kind]
    assert old in GOOD
    with pytest.raises(ConfigError, match=message) as caught:
        parse_config({"f.yaml": GOOD.replace(old, new, 1).encode()})
    assert "\n" not in str(caught.value)


def test_every_kind_has_another_message():
    messages = set()
    for (old, new), _ in BAD.values():
        try:
            parse_config({"f.yaml": GOOD.replace(old, new, 1).encode()})
        except ConfigError as exc:
            messages.add(str(exc))
    assert len(messages) == len(BAD) >= 30


def test_what_is_not_utf8_or_too_large_or_missing_is_unreadable(tmp_path):
    with pytest.raises(ConfigUnreadable, match="byte 9, want UTF-8"):
        parse_config({"f.yaml": b"default: \xff"})
    with pytest.raises(ConfigUnreadable, match=r"No such file.*want a readable YAML"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(ConfigUnreadable, match="directory: got 0, want 1 to 100"):
        load_config(tmp_path)
    (tmp_path / "big.yaml").write_bytes(b"#" * (MAX_FILE_BYTES + 1))
    with pytest.raises(ConfigUnreadable, match="size: got a larger file"):
        load_config(tmp_path / "big.yaml")


def test_a_directory_is_its_files_taken_together_with_the_same_version(tmp_path):
    head, tail = GOOD.split("layers:\n")
    (tmp_path / "a.yaml").write_text(head)
    (tmp_path / "b.yml").write_text("# experiments\nlayers:\n" + tail)
    (tmp_path / ".hidden.yaml").write_text("not: read")
    assert load_config(tmp_path).version == parse_config({"f.yaml": GOOD.encode()}).version


def test_a_fault_in_a_directory_names_its_file_and_line(tmp_path):
    head, tail = GOOD.split("layers:\n")
    (tmp_path / "a.yaml").write_text(head)
    (tmp_path / "b.yaml").write_text("layers:\n" + tail)
    (tmp_path / "c.yaml").write_text("layers:\n  - name: second\n    salt: 3\n")
    with pytest.raises(ConfigInvalid, match=r"c\.yaml:3: layers\[1\]\.salt: got 3"):
        load_config(tmp_path)
    (tmp_path / "c.yaml").write_text("policies:\n  feed: {}\n")
    with pytest.raises(
        ConfigInvalid, match=r"c\.yaml:2: policies\.feed: got the policy again, want it once \(.*a\.yaml:5\)"
    ):
        load_config(tmp_path)
    (tmp_path / "c.yaml").write_text("default: other\n")
    with pytest.raises(ConfigInvalid, match=r"c\.yaml:1: default: got the key again"):
        load_config(tmp_path)


def test_the_version_is_that_of_what_is_said_not_of_how():
    same = "# a comment\n" + GOOD.replace("{click: 1.0, hate: -2.0}", "{hate: -2, click: 1}")
    other = GOOD.replace("click: 1.0", "click: 1.5")
    first, second, third = (parse_config({"f.yaml": text.encode()}).version for text in (GOOD, same, other))
    assert first == second != third


def test_the_published_schema_is_current():
    from fusion.policy import json_schema

    published = Path(__file__).parents[2] / "configs/fusion.schema.json"
    assert published.read_text() == json_schema(), "run: dlen fusion schema --out configs/fusion.schema.json"
