"""The slash commands, without a terminal."""

import json
from pathlib import Path

import pytest
from chat_fakes import FakeModel, fake_tokenizer

from flashnorm_mlx.chat import Settings
from flashnorm_mlx.chat.session import Session
from flashnorm_mlx.chat.slash import ALSO, COMMANDS, SETTABLE, Action, Desk, execute
from flashnorm_mlx.errors import FlashNormError


class Talk:
    """A desk whose words are kept."""

    def __init__(self, **settings) -> None:
        self.session = Session(FakeModel(), fake_tokenizer(), Settings(temp=0, **settings))
        self.words: list[str] = []
        self.desk = Desk(self.session, "fake", self.words.append, lambda rows: self.words.extend(map(" | ".join, rows)))

    def __call__(self, line: str) -> str:
        self.words.clear()
        self.action = execute(self.desk, line)
        return "\n".join(self.words)

    def ask(self, text: str) -> str:
        return "".join(self.session.send(text))


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


@pytest.fixture
def talk() -> Talk:
    return Talk()


def test_help_names_every_command(talk):
    shown = talk("/help")
    assert all(f"/{name}" in shown and command.help in shown for name, command in COMMANDS.items())
    assert talk.action is Action.NOTHING


@pytest.mark.parametrize(
    ("line", "hint"), [("/sav x", "/save?"), ("/regenn", "/regen?"), ("/usr/bin/env", "//"), ("/", "/help")]
)
def test_an_unknown_command_gets_a_hint(talk, line, hint):
    with pytest.raises(FlashNormError, match="There is no command") as caught:
        talk(line)
    assert hint in str(caught.value)


@pytest.mark.parametrize("line", ["/quit", "/exit", "/bye"])
def test_there_is_a_way_out(talk, line):
    talk(line)
    assert talk.action is Action.QUIT


def test_other_names_are_those_of_commands():
    assert set(ALSO.values()) <= set(COMMANDS) and not set(ALSO) & set(COMMANDS)


def test_actions_are_left_to_the_caller(talk):
    talk("/REGEN")
    assert talk.action is Action.REGENERATE


def test_clear_keeps_system_prompt_and_settings():
    talk = Talk(system="S", max_tokens=7)
    talk.ask("a")
    talk("/clear")
    assert talk.session.messages == [] and talk.session.settings == Settings(temp=0, system="S", max_tokens=7)


def test_system_shows_sets_and_removes(talk):
    assert "no system prompt" in talk("/system")
    talk.ask("a")
    talk("/system be\nbrief ")
    assert talk.session.settings.system == "be\nbrief" and talk.session.messages == []
    assert talk("/system") == "be\nbrief"
    talk("/system -")
    assert talk.session.settings.system is None


def test_set_lists_shows_and_changes(talk):
    listed = talk("/set")
    assert (
        all(f"{name} | " in listed for name in SETTABLE) and "temp | 0 | temperature" in listed and "(0 to 5)" in listed
    )
    talk("/set temp 0.7")
    assert talk.session.settings.temp == 0.7
    talk("/set temp=0.25")
    assert talk.session.settings.temp == 0.25
    assert "temp is 0.25 (0 to 5)" in talk("/set temp")
    talk("/set seed 5")
    talk("/set seed off")
    assert talk.session.settings.seed is None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/set temp x", "temp takes 0 to 5"),
        ("/set tmep 1", "did you mean temp"),
        ("/set system x", "/system"),
        ("/set colour x", "/set lists"),
        ("/set __class__ x", "no setting"),
        ("/stats maybe", "stats takes on or off"),
        ("/save", "Which file"),
        ("/save -f", "Which file"),
        ("/load", "Which file"),
    ],
)
def test_wrong_arguments_are_one_line_and_change_nothing(talk, line, message):
    before = talk.session.settings
    with pytest.raises(FlashNormError, match=message):
        talk(line)
    assert talk.session.settings is before


def test_stats(talk):
    assert "no figures yet" in talk("/stats")
    talk.ask("ab")
    talk.ask("cd")
    shown = talk("/stats")
    first, second = talk.session.answers
    assert f"prompt | {second.prompt} tokens, {second.reused} of them reused" in shown
    assert f"prompt | {first.prompt + second.prompt} tokens, {second.reused} of them reused" in shown
    for word in ("first token", "prefill", "decode", "peak memory", "context", "answers | 2"):
        assert word in shown
    talk("/stats on")
    assert talk.session.settings.stats is True


def test_save_and_load_are_inverse(talk, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    talk("/system S é")
    talk.ask("ab")
    assert "2 messages" in talk("/save ~/my talk.json")
    path = tmp_path / "my talk.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["model"] == "fake" and content["settings"]["system"] == "S é"
    assert path.stat().st_mode & 0o077 == 0
    other = Talk(markdown=True)
    other.desk.name = "else"
    assert "held with fake" in other("/load ~/my talk.json")
    assert other.session.messages == talk.session.messages and other.session.settings == talk.session.settings
    assert other.ask("cd") == "cdcd#2"
    other("/save ~/my talk.json")  # it is this conversation's file now
    assert names(tmp_path) == ["my talk.json"]


def test_save_replaces_only_its_own(talk, tmp_path):
    path = tmp_path / "x"
    path.write_text("precious")
    with pytest.raises(FlashNormError, match=r"exists already.*-f"):
        talk(f"/save {path}")
    assert path.read_text() == "precious"
    talk(f"/save -f {path}")
    talk.ask("a")
    talk(f"/save {path}")
    assert len(json.loads(path.read_text())["messages"]) == 2


def test_save_through_a_link_writes_its_target(talk, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "target")
    talk(f"/save {tmp_path / 'link'}")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target").is_file()


@pytest.mark.parametrize("name", [".", "no/such/folder", "x" * 300, "nul\0", "/dev/null", "~nobody_of_this_name/x"])
def test_save_to_a_bad_place_is_one_line(talk, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FlashNormError):
        talk(f"/save -f {name}")
    assert names(tmp_path) == []


def test_a_failed_write_leaves_the_old_file(talk, tmp_path, monkeypatch):
    path = tmp_path / "x"
    talk(f"/save {path}")
    before = path.read_bytes()
    talk.ask("a")

    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(FlashNormError, match="No space left"):
        talk(f"/save {path}")
    assert path.read_bytes() == before and names(tmp_path) == ["x"]


GOOD = {
    "format": "flashnorm-chat-1",
    "model": "m",
    "settings": {},
    "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "not a saved conversation"),
        ({"model": 3}, "model's name"),
        ({"settings": []}, "settings are missing"),
        ({"settings": {"temp": "hot"}}, "temp takes"),
        ({"settings": {"colour": 1}}, "no setting 'colour'"),
        ({"messages": None}, "not a list"),
        ({"messages": GOOD["messages"][:1]}, "not a list of questions with"),
        ({"messages": GOOD["messages"][::-1]}, "message 1 is not a text of the user"),
        ({"messages": [{"role": "user", "content": 3}, 4]}, "message 1"),
        ({"messages": [GOOD["messages"][0], 4]}, "message 2 is not a text of the assistant"),
    ],
)
def test_a_wrong_file_is_one_line_and_changes_nothing(talk, tmp_path, change, message):
    path = tmp_path / "x"
    path.write_text(json.dumps(GOOD))
    talk(f"/load {path}")
    assert talk.session.messages == GOOD["messages"]
    before = talk.session.settings
    path.write_text(json.dumps(GOOD | change))
    with pytest.raises(FlashNormError, match=message) as caught:
        talk(f"/load {path}")
    assert "\n" not in str(caught.value)
    assert talk.session.settings is before and talk.session.messages == GOOD["messages"]


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"3", b"\xff\xfe", b"[" * 100_000, None])
def test_no_file_or_no_json(talk, tmp_path, content):
    path = tmp_path / "x"
    if content is not None:
        path.write_bytes(content)
    for name in (path, tmp_path, "/dev/zero"):
        with pytest.raises(FlashNormError, match=r"not a saved conversation|does not exist|not a regular file"):
            talk(f"/load {name}")


def test_a_file_nobody_may_read(talk, tmp_path, monkeypatch):
    path = tmp_path / "x"
    path.write_text(json.dumps(GOOD))

    def refuse(self: Path, **options) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(FlashNormError, match="can't be read: Permission denied"):
        talk(f"/load {path}")


def test_half_characters_can_be_saved(tmp_path):
    talk = Talk(system="a\udce9")
    talk(f"/save {tmp_path / 'x'}")
    assert json.loads((tmp_path / "x").read_text())["settings"]["system"] == "a?"
