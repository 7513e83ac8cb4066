import pytest

from simulator.errors import ScenarioInvalid, ScenarioUnknown
from simulator.scenario import read_scenario, scenario_names


def test_every_scenario_of_the_package_reads_and_bears_its_file_name():
    assert "default" in scenario_names()
    for name in scenario_names():
        assert name == read_scenario(name).name


def test_an_extension_changes_only_what_it_names(tmp_path):
    file = tmp_path / "quiet.yaml"
    file.write_text("extends: default\nname: quiet\nemotion: {hour: 0.0}\ntasks: {like: {base_rate: 0.02}}\n")
    base, quiet = read_scenario("default"), read_scenario(str(file))
    assert quiet.emotion.hour == 0.0
    assert base.emotion == quiet.emotion.model_copy(update={"hour": base.emotion.hour})
    assert [t.base_rate if t.name != "like" else 0.02 for t in base.tasks] == [t.base_rate for t in quiet.tasks]


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ScenarioUnknown, match="got 'nosuch', want one of .*default"):
        read_scenario("nosuch")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "got list, want a mapping"),
        ("{unclosed", "want YAML text"),
        ("extends: default\nk: 2", "k: got 2"),
        ("extends: default\nk: .nan", "k: got nan"),
        ("extends: default\nkk: 0.2", "kk"),
        ("extends: default\ntasks: {nosuch: {habit: 1}}", "tasks: got nosuch"),
        ("extends: default\nstyles: {lurker: {tasks: {nosuch: 1}}}", "unknown tasks: nosuch"),
        ("extends: default\nsize: {days: 1}", "size.days"),
    ],
)
def test_a_bad_file_is_refused_with_the_place(tmp_path, text, message):
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(ScenarioInvalid, match=message):
        read_scenario(str(file))


def test_a_file_that_is_not_there_is_refused():
    with pytest.raises(ScenarioInvalid, match="No such file"):
        read_scenario("/nosuch/file.yaml")


def test_extending_itself_ends(tmp_path):
    file = tmp_path / "loop.yaml"
    file.write_text(f"extends: {file}\n")
    with pytest.raises(ScenarioInvalid, match="four deep"):
        read_scenario(str(file))
