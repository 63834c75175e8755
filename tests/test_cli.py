"""The command line as a person uses it: output, exit codes, one-line errors."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import pytest
from checkpoints import edit_config, write_checkpoint

from flashnorm_mlx import cli, fold


def run(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    try:
        code = cli.main([str(a) for a in args])
    except SystemExit as stop:
        code = int(stop.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def flashnorm(*args: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """As a process of its own."""
    command = [sys.executable, "-m", "flashnorm_mlx", *args]
    return subprocess.run(command, capture_output=True, text=True, **options)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model", "qwen3", hidden_size=128, intermediate_size=192)


@pytest.mark.parametrize("command", ["chat", "generate", "convert", "info", "verify", "bench", "serve"])
def test_help_has_examples(capsys: pytest.CaptureFixture[str], command: str) -> None:
    code, out, _ = run(capsys, command, "--help")
    assert code == 0
    assert f"flashnorm {command}" in out.partition("examples:")[2]


def test_convert_info_verify_generate(capsys: pytest.CaptureFixture[str], model: Path, tmp_path: Path) -> None:
    code, out, err = run(capsys, "convert", model, tmp_path / "t", "--group-size", 32)
    assert (code, err) == (0, "")
    assert "7 of 13 norms folded" in out
    assert "q_norm: fused into RoPE's tables" in out
    code, out, _ = run(capsys, "info", tmp_path / "t")
    assert code == 0
    for word in ("qwen3, 3 layers", "4-bit (group 32)", "folded already", "input_layernorm", "cancelled"):
        assert word in out, word
    code, out, _ = run(capsys, "verify", tmp_path / "t", "--greedy-tokens", 8)
    assert code == 0
    assert out.count(" ok ") == 2
    assert "not judged" in out
    code, out, err = run(capsys, "generate", tmp_path / "t", "-p", "w5 w6", "--max-tokens", 4, "--stats")
    assert code == 0
    assert out.strip()
    assert "qwen3, 4-bit (group 32), flashnorm, " in err
    assert "decode" in err


def test_info_says_what_becomes_of_each_norm(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "m", "llama", tie_word_embeddings=True)
    _, out, _ = run(capsys, "info", path)
    assert "folded into" in out
    assert "kept: the head is tied to the embeddings" in out
    weights = sum(f.stat().st_size for f in path.glob("*.safetensors"))
    read = float(out.split("each token reads")[1].split()[0])
    assert abs(read - weights / 1e6) < 0.1


def test_verify_sees_a_broken_fold(
    capsys: pytest.CaptureFixture[str], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fold, "fold_gain", lambda weight, gain, **_: weight * 1.01)
    code, out, _ = run(capsys, "verify", model, "--greedy-tokens", 4)
    assert code == 1
    assert "DIFFERS" in out


def test_sampling_is_repeatable(capsys: pytest.CaptureFixture[str], model: Path) -> None:
    args = ("generate", model, "-p", "w5", "--raw", "--temp", 1.5, "--max-tokens", 12, "--seed")
    first, again, other = (run(capsys, *args, seed)[1] for seed in (1, 1, 2))
    assert first == again != other


ERRORS = [
    (["info", "nowhere"], 1, "nowhere: no such folder"),
    (["chat", "./nowhere"], 1, "./nowhere: no such folder"),
    (["generate", "MODEL", "-p", "  "], 1, "the prompt is empty"),
    (["convert", "MODEL", "MODEL"], 1, "is the source"),
    (["convert", "MODEL", "t", "--bits", "3"], 2, "invalid choice"),
    (["convert", "MODEL", "t", "--group-size", "x"], 2, "invalid"),
    (["generate", "MODEL", "-p", "w5", "--temp", "-1"], 2, "-1 is not between 0 and 5"),
    (["generate", "MODEL", "-p", "w5", "--max-tokens", "none"], 2, "'none' is not a number"),
    (["generate", "MODEL", "-p", "w5", "--kernels", "fused"], 1, "fused kernels need a GPU"),
    (["verify", "MODEL", "--text", "no.txt"], 1, "no.txt: No such file"),
    (["serve", "MODEL", "--port", "99999"], 2, "is not between 1 and 65535"),
    (["convert", "MODEL", "t [1]"], 1, "give it another name"),
    (["convert", "MODEL", "t", "--no-quantize", "--bits", "8"], 1, "--no-quantize goes without --bits"),
    (["info", "MODEL", "--revision", "x"], 1, "a folder has no revisions"),
    (["info", "bad\udcff"], 1, "not a name in UTF-8"),
    (["verify", "MODEL", "--text", ""], 1, "the path is empty"),
    (["verify", "MODEL", "--text", "/dev/null"], 1, "/dev/null: a device, not a file"),
    (["timing", "--check"], 1, "--check goes with --predict"),
    (["bench", "compare", "/dev/null", "/dev/null"], 1, "/dev/null: a device, not a file"),
    (["bench", "--model", "MODEL", "--json", "f", "--csv", "./f"], 1, "each format needs a file of its own"),
    (["sing"], 2, "invalid choice: 'sing'"),
    ([], 2, "required"),
]


@pytest.mark.parametrize(("args", "code", "message"), ERRORS, ids=[" ".join(a[:2]) for a, _, _ in ERRORS])
def test_errors_are_one_line(
    capsys: pytest.CaptureFixture[str], model: Path, args: list[str], code: int, message: str
) -> None:
    got, out, err = run(capsys, *(str(model) if a == "MODEL" else a for a in args))
    assert got == code
    assert message in err
    assert out == ""
    assert "Traceback" not in err
    if code == 1:
        lines = [line for line in err.splitlines() if line.startswith("flashnorm: ")]
        assert len(lines) == 1


def test_broken_checkpoint_through_the_command(tmp_path: Path) -> None:
    """As a process of its own: exit code 1, a line, no traceback."""
    path = write_checkpoint(tmp_path / "m")
    edit_config(path, hidden_size=-1)
    done = subprocess.run(
        [sys.executable, "-m", "flashnorm_mlx", "info", path], capture_output=True, text=True, env=os.environ
    )
    assert done.returncode == 1
    assert done.stderr.strip() == f"flashnorm: {path}: config.json: hidden_size must be a positive integer, not -1"


def test_a_server_that_can_not_answer_any_more_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    from flashnorm_mlx import serve

    class Handler:
        validate_model_parameters = None

    class Generator:
        def __init__(self, failed: bool) -> None:
            self._generation_failed = failed

        def _run_generate(self) -> None:
            pass

    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    serve._mend(SimpleNamespace(APIHandler=Handler, ResponseGenerator=Generator), "m")
    for failed in (False, True):
        Generator(failed)._run_generate()
    assert codes == [1]


@pytest.mark.skipif(mx.default_device() == mx.gpu, reason="nothing is compiled in a folder there")
def test_a_device_that_fails_is_one_line(model: Path, tmp_path: Path) -> None:
    """MLX's compiler for the CPU needs a temporary folder."""
    for command in (["generate", str(model), "-p", "w5"], ["convert", str(model), str(tmp_path / "t")]):
        done = flashnorm(*command, env={**os.environ, "TMPDIR": str(tmp_path / "none")})
        last = done.stderr.splitlines()[-1]
        assert done.returncode == 1 and last.startswith("flashnorm: ") and "Traceback" not in done.stderr
        assert [f.name for f in tmp_path.iterdir()] == ["model"]


def test_streams_of_any_encoding_or_none(model: Path) -> None:
    done = flashnorm("info", str(model), env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0 and "? input_layernorm" in done.stdout
    for closed, code in ((">&-", 0), ("2>&-", 0), ("<&-", 0)):
        command = shlex.join([sys.executable, "-m", "flashnorm_mlx", "generate", str(model), "-p", "w5"])
        done = subprocess.run(["bash", "-c", f"{command} {closed}"], capture_output=True, text=True)
        assert done.returncode == code and "Traceback" not in done.stderr


def test_a_source_without_a_tokenizer_is_said(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "s", tokenizer=False)
    code, _, err = run(capsys, "convert", source, tmp_path / "t", "--no-quantize")
    assert (code, err.startswith("It has no tokenizer")) == (0, True), err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("args", [["timing"], ["info", "MODEL"]], ids=["timing", "info"])
def test_output_that_can_not_be_written_is_one_line(args: list[str], model: Path) -> None:
    given = [str(model) if a == "MODEL" else a for a in args]
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "flashnorm_mlx", *given]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, "flashnorm: No space left on device\n")


def test_server_answers_with_our_model(model: Path, tmp_path: Path) -> None:
    """mlx-lm's server over HTTP on the loopback, its answer the same as generate's."""
    import http.client
    import socket
    import time

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "flashnorm_mlx", "serve", str(model), "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    body = {"messages": [{"role": "user", "content": "w5 w6"}], "max_tokens": 5, "temperature": 0}
    try:
        for _ in range(200):
            time.sleep(0.1)
            try:
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
                connection.request(
                    "POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"}
                )
                answer = json.loads(connection.getresponse().read())
                break
            except ConnectionRefusedError:
                assert process.poll() is None
        text = answer["choices"][0]["message"]["content"]
        for wrong, says in (({"stop": 5}, "stop must be"), ({"messages": "hi"}, "messages must be"), ({}, "")):
            connection.request("POST", "/v1/chat/completions", json.dumps(body | wrong), {"Content-Type": "text/json"})
            response = connection.getresponse()
            answer = json.loads(response.read())
            assert response.status == (400 if wrong else 200) and says in answer.get("error", "")
        assert answer["choices"][0]["message"]["content"] == text
        connection.request("GET", "/v1/models")
        listed = json.loads(connection.getresponse().read())["data"]
        assert [found["id"] for found in listed] == [model.name]
        named = body | {"model": model.name}
        connection.request("POST", "/v1/chat/completions", json.dumps(named), {"Content-Type": "text/json"})
        assert json.loads(connection.getresponse().read())["choices"][0]["message"]["content"] == text
    finally:
        process.terminate()
        process.wait(timeout=20)
    from flashnorm_mlx import generate, load

    model_, tokenizer = load(model)
    prompt = tokenizer.apply_chat_template(body["messages"], add_generation_prompt=True)
    assert text == generate(model_, tokenizer, prompt, max_tokens=5)
