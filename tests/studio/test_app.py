"""Starting the studio, and what it says where it cannot start."""

import builtins
import socket
import subprocess
import sys

import pytest

from negah.cli.main import main
from negah.errors import InputError, install
from negah.studio import app


def test_nothing_of_it_is_imported_before_it_is_asked_for():
    # Threads at import, or gradio's own start-up, would slow down and endanger every other verb.
    code = (
        "import sys, threading; import negah.cli.main, negah.studio.app;"
        "assert 'gradio' not in sys.modules and threading.active_count() == 1"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_gradio_one_line_says_what_to_install(monkeypatch, capsys):
    load = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "gradio":
            raise ImportError(name)
        return load(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    assert main(["studio", "--no-browser"]) == 2
    assert capsys.readouterr().err == f"negah: the studio needs the extra: {install('studio')}\n"


@pytest.mark.parametrize(("given", "said"), [({"port": 0}, "--port 0"), ({"upload_mb": 0}, "--upload-mb 0")])
def test_arguments_that_make_no_sense(given, said):
    with pytest.raises(InputError, match=said), app.served(**given):
        pass


def test_a_port_that_is_taken():
    pytest.importorskip("gradio")
    with socket.socket() as taken:
        taken.bind((app.HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port} .* is taken"), app.served(port=port):
            pass
