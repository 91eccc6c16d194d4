"""Entry point of ``penstock``: the verbs, and the one place where errors become exit codes.

0 done, 1 our own fault, 2 the user's mistake, 3 infeasible, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import errno
import os
import sys

import typer

from penstock import __version__
from penstock.cli import (
    bench,
    calibrate,
    compare,
    demo,
    deploy,
    doctor,
    export,
    init,
    plan,
    profile,
    replay_ops,
    reproduce,
    schema,
    serve,
    simulate,
    sweep,
    trace,
    validate,
)
from penstock.errors import PenstockError

INTERRUPTED = 130
DISK_ERRORS = {
    errno.ENOSPC: "no space left on the disk; free some and run again",
    errno.EDQUOT: "the disk quota is used up; free some and run again",
    errno.EROFS: "the file system is read-only; write somewhere else with -o",
    errno.EACCES: "permission denied; check the owner and mode, or write somewhere else with -o",
    errno.EISDIR: "this is a folder where a file is needed; name a file",
    errno.ENOTDIR: "a part of this path is a file, not a folder; correct the path",
    errno.ENOENT: "no such file or folder; correct the path or create the folder",
}

app = typer.Typer(
    name="penstock",
    help="Plan, simulate and serve large language models on the GPUs you really have.",
    add_completion=False,
    no_args_is_help=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command("init")(init.init)
app.command("plan")(plan.plan)
app.command("simulate")(simulate.simulate)
app.command("serve")(serve.serve)
app.command("deploy")(deploy.deploy)
app.command("sweep")(sweep.sweep)
app.command("bench")(bench.bench)
app.command("profile")(profile.profile)
app.command("calibrate")(calibrate.calibrate)
app.command("compare")(compare.compare)
app.command("replay-ops")(replay_ops.replay_ops)
app.command("reproduce")(reproduce.reproduce)
app.command("export")(export.export)
app.command("trace")(trace.trace)
app.command("validate")(validate.validate)
app.command("schema")(schema.schema)
app.command("doctor")(doctor.doctor)
app.command("demo")(demo.demo)


def _version(show: bool) -> None:
    if show:
        print(f"penstock {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def main(
    ctx: typer.Context,
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    """Plan, simulate and serve large language models on the GPUs you really have."""
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())


def _one_line(message: str) -> None:
    print("penstock: " + " ".join(message.split()), file=sys.stderr)


def _usage_error(error: Exception) -> int | None:
    """Exit code of a wrong command line (the classes differ between releases of typer)."""
    format_message = getattr(error, "format_message", None)
    if format_message is None:
        return None
    context = getattr(error, "ctx", None)
    where = f"; see '{context.command_path} --help'" if context is not None else ""
    message = format_message().replace("Value error, ", "").rstrip(".")
    _one_line(f"{message}{where}")
    return int(getattr(error, "exit_code", 2))


def run(argv: list[str] | None = None) -> None:
    """Run one command line and leave the process with its exit code."""
    sys.exit(execute(argv))


def execute(argv: list[str] | None = None) -> int:
    """Run one command line; return the exit code."""
    try:
        result = app(args=argv, prog_name="penstock", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except PenstockError as error:
        _one_line(str(error))
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        _one_line("stopped")
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output is gone: say nothing, and keep the interpreter from
        # complaining when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        _one_line(f"{error.filename or 'output'}: {DISK_ERRORS[error.errno]}")
        return 2
    except Exception as error:
        code = _usage_error(error)
        if code is None:
            raise
        return code
