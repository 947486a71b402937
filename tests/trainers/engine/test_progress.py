"""What a run says while it trains: one line that is rewritten on a terminal, lines of their own elsewhere."""

import contextlib
import os
import re

from trainers.engine.progress import Progress


@contextlib.contextmanager
def terminal():
    """A pseudo-terminal in place of standard output; gives a function that tells what it has shown."""
    ours, theirs = os.openpty()
    with os.fdopen(theirs, "w") as stdout, contextlib.redirect_stdout(stdout):

        def shown() -> str:
            print(end="\0", flush=True)  # the kernel hands over what was written in pieces: read as far as this mark
            text = ""
            while not text.endswith("\0"):
                text += os.read(ours, 10_000).decode()
            return text.removesuffix("\0")

        yield shown
    os.close(ours)


def test_a_terminal_has_one_line_that_is_rewritten():
    with terminal() as shown:
        with Progress(4) as progress:
            progress.begin(0, frames_per_step=8)
            for step in (1, 2):
                progress.update(step, {"colour_loss": 0.5 / step})
            progress.note("back to the checkpoint of step 0")
            progress.update(4, {"colour_loss": 0.125})
        lines = shown().split("\r\n")
    assert [line.count("\r\x1b[K") for line in lines] == [2, 0, 1, 0]
    assert re.search(r"\x1b\[Kstep 2/4  colour_loss 0\.2500  \d+ frames/s  ETA 0:00$", lines[0])
    assert lines[1] == "back to the checkpoint of step 0" and lines[3] == ""


def test_elsewhere_a_line_comes_every_ten_seconds_and_at_the_end(capsys):
    with Progress(1000) as progress:
        for step in range(1, 1001):
            progress.update(step, {"colour_loss": 1.0})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["1/1000", "1000/1000"]
    assert "steps/s" in lines[0] and "\x1b" not in "".join(lines)


def test_workers_that_do_not_show_say_nothing():
    with terminal() as shown:
        with Progress(2, shows=False) as progress:
            progress.update(2, {})
            progress.note("done")
        print("something else")
        assert shown() == "something else\r\n"
