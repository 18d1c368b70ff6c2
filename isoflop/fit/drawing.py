"""
Draw the pictures of a fit: here, or in a process beside the fit, which loads matplotlib meanwhile.

    drawn, missing, full = draw(result, arrays, folder, "png")
    with Beside() as beside:  # starts here; a fit takes longer than matplotlib's imports
        beside.draw(result, arrays, folder, "png")

The process gets its work through a pipe and ends with it; where it can't be had, the pictures are drawn here.
"""

import contextlib
import json
import os
import pickle
import signal
import subprocess
import sys

from isoflop.files import atomic
from isoflop.fit.axes import RC, Skip
from isoflop.fit.figures import PICTURES
from isoflop.options import explain

SERVE = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from isoflop.fit.drawing import serve; serve()"


def draw(result, arrays, out_dir, format):
    """
    Draw every picture in PICTURES.

    Parameters
    ----------
    result, arrays : dict
        As in report.write().
    out_dir : Path
        A folder that is there; a picture that can't be drawn is removed from it.
    format : str
        png, pdf or svg.

    Returns
    -------
    drawn : list of str
        Names of files.
    missing : list of (str, str)
        Names and reasons of the others.
    full : OSError or None
        What the disk said.
    """
    import matplotlib

    matplotlib.use("Agg")
    drawn, missing, full = [], [], None
    with matplotlib.rc_context(RC):
        for stem, picture in PICTURES.items():
            name = f"{stem}.{format}"
            try:
                fig = picture(result, arrays)
                with atomic(out_dir / name, "wb") as f:
                    if format == "png":  # savefig() draws twice, and packs for twice as long
                        fig.canvas.print_png(f, pil_kwargs={"compress_level": 3})
                    else:
                        fig.savefig(f, format=format)
                drawn.append(name)
            except Skip as why:
                if str(why):  # without a reason it is no picture of this kind of runs
                    missing.append((name, str(why)))
            except OSError as error:
                full = error
                missing.append((name, explain(error)))
            except Exception as error:  # a picture must never cost the fit that it shows
                missing.append((name, f"{type(error).__name__}: {error}"))
            if name not in drawn:
                (out_dir / name).unlink(missing_ok=True)
            if "matplotlib.pyplot" in sys.modules:  # not where a picture was skipped before it was drawn
                sys.modules["matplotlib.pyplot"].close("all")
    return drawn, missing, full


class Beside:
    """A process that draws, ended by the `with` that holds it or with this process; wanted=False is none."""

    def __init__(self, wanted: bool = True):
        self.process, self.draws = None, False
        if not wanted or not sys.executable or (os.cpu_count() or 1) == 1:
            return
        command = [sys.executable, "-c", SERVE, json.dumps(sys.path)]
        with contextlib.suppress(OSError):  # its own session: Ctrl-C is this process's to answer
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
            )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process is not None:
            with contextlib.suppress(OSError):
                self.process.stdin.close()
            self.process.stdout.close()
            if self.draws:  # it removes what is half written
                self.process.terminate()
            else:
                self.process.kill()
            self.process.wait()

    def draw(self, *work):
        """draw(*work), there if possible, else here."""
        if self.process is not None:
            with contextlib.suppress(OSError, EOFError, pickle.PickleError):
                self.draws = True
                pickle.dump(work, self.process.stdin)
                self.process.stdin.flush()
                answer = pickle.load(self.process.stdout)
                self.draws = False
                return answer
        return draw(*work)


def serve():
    """The other end of Beside: draw what stdin asks for until it ends."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # a picture that is half written is removed
    with contextlib.suppress(ImportError, EOFError, OSError):
        import matplotlib.pyplot as plt

        plt.switch_backend("Agg")
        plt.figure().text(0, 0, "$10^{21}$")
        plt.gcf().canvas.draw()  # loads the fonts
        plt.close("all")
        while True:
            answer = draw(*pickle.load(sys.stdin.buffer))
            pickle.dump(answer, sys.stdout.buffer)
            sys.stdout.buffer.flush()
