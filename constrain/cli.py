"""The command line: `constrain explain | check | solve SPEC.py` and `constrain report RUN_DIR`.

A specification is an ordinary Python file that defines `problem`, and `holdout` if it likes. Options and exit
codes are in `--help`, which loads neither torch nor a solver.
"""

import ast
import contextlib
import importlib.util
import json
import sys
from collections.abc import Generator
from enum import IntEnum
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Annotated, Any

import typer
from typer.main import get_command

import constrain
from constrain.errors import ConstrainError
from constrain.language.data import suggest
from constrain.language.problem import Problem

__all__ = ["Exit", "app", "main"]

SPEC_MODULE = "constrain_spec"
"""`__name__` of a specification while it runs."""


class Exit(IntEnum):
    """Exit codes. 1 is Python's own, for an exception that a specification raised."""

    SOLVED = 0
    USAGE = 2
    REFUSED = 3
    FEASIBLE = 4
    INFEASIBLE = 5
    LIMIT = 6
    DIVERGED = 7


CODES: dict[str, Exit] = {
    "optimal": Exit.SOLVED,
    "stationary": Exit.SOLVED,
    "feasible": Exit.FEASIBLE,
    "infeasible": Exit.INFEASIBLE,
    "likely_infeasible": Exit.INFEASIBLE,
    "limit": Exit.LIMIT,
    "diverged": Exit.DIVERGED,
}
"""Exit code per status of a solution."""

EPILOG = """\b
Exit codes:
  0  solved: optimal or stationary (explain, check and report: done)
  1  the specification raised an exception
  2  wrong use of the command line
  3  the problem was refused, or check found errors; the message says why
  4  feasible, but not stationary
  5  infeasible, or likely infeasible
  6  a limit was reached before the constraints held
  7  diverged
"""

app = typer.Typer(
    name="constrain",
    help="Constrained learning problems: what they are, their solutions, their reports.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

SpecArgument = Annotated[
    str, typer.Argument(metavar="SPEC.py[:NAME]", help="A Python file that defines `problem`, or NAME.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on standard output, nothing else.")]


# ---------------------------------------------------------------------------------------- commands
@app.command(epilog=EPILOG)
def explain(spec: SpecArgument, as_json: JsonOption = False) -> None:
    """What each term is and why, which methods can take the problem, and why the others cannot."""
    with _refusals(as_json):
        with _quiet(as_json):
            explanation = _load(spec)[0].explain()
        print(json.dumps(explanation.to_dict(), allow_nan=False) if as_json else explanation)


@app.command(epilog=EPILOG)
def check(
    spec: SpecArgument,
    *,
    batch: Annotated[int | None, typer.Option(min=1, help="Rows of the planned minibatch.")] = None,
    as_json: JsonOption = False,
) -> None:
    """What goes wrong, or may mislead, before anything is solved: conflicts, small groups, noise."""
    with _refusals(as_json):
        with _quiet(as_json):
            found = _load(spec)[0].check(batch=batch)
        print(json.dumps(found.to_dict(), allow_nan=False) if as_json else found)
    if any(finding.severity == "error" for finding in found.findings):
        raise typer.Exit(Exit.REFUSED)


@app.command(epilog=EPILOG)
def solve(  # noqa: PLR0913  # one parameter per option
    spec: SpecArgument,
    *,
    method: Annotated[str, typer.Option(help="auto, cvxpy, newton, augmented, lagrangian, cooper.")] = "auto",
    batch: Annotated[int | None, typer.Option(min=1, help="Rows per minibatch.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the data.")] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    time_limit: Annotated[float | None, typer.Option(help="In seconds.")] = None,
    tolerance: Annotated[float | None, typer.Option(help="Of the judgment of the result.")] = None,
    device: Annotated[str | None, typer.Option(help="Where to run, such as cuda.")] = None,
    save: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder to store the solution in.")] = None,
    as_json: JsonOption = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", "-o", metavar="KEY=VALUE", help="An option of the method; repeatable."),
    ] = None,
) -> None:
    """Solves the problem and prints its solution. The progress bar goes to standard error."""
    given = {
        "batch": batch,
        "epochs": epochs,
        "time_limit": time_limit,
        "tolerance": tolerance,
        "device": device,
    }
    options = {k: v for k, v in given.items() if v is not None} | _options(option or [])
    with _refusals(as_json):
        with _quiet(as_json):
            problem, holdout = _load(spec)
            solution = problem.solve(method, holdout=holdout, seed=seed, progress=not quiet, **options)
        if save is not None:
            print(f"saved to {solution.save(save)}", file=sys.stderr)
        print(solution.report(format="json" if as_json else "text"))
    raise typer.Exit(CODES[solution.status.value])


@app.command(epilog=EPILOG)
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="A folder that `solve --save` wrote.")],
    style: Annotated[str, typer.Option("--format", help="text, markdown or json.")] = "text",
) -> None:
    """Prints the report of a stored solution."""
    with _refusals(as_json=style == "json"):
        print(constrain.load(run).report(format=style))


@app.callback(invoke_without_command=True)
def version(
    show: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", is_eager=True)
    ] = False,
) -> None:
    """Constrained learning problems: what they are, their solutions, their reports."""
    if show:
        print(constrain.__version__)
        raise typer.Exit


# --------------------------------------------------------------------------------------- specification
def _load(spec: str) -> tuple[Problem, Any]:
    """The problem of a specification, and its hold-out data or None."""
    path, name = Path(spec), "problem"
    if not path.is_file():
        head, _, tail = spec.rpartition(":")
        if tail.isidentifier():
            path, name = Path(head), tail
    if not path.is_file():
        raise typer.BadParameter(f"there is no file {path}", param_hint="SPEC.py")
    found = vars(_run(path))
    problem = found.get(name)
    if not isinstance(problem, Problem):
        others = [key for key, value in found.items() if isinstance(value, Problem)]
        what = "defines no" if problem is None else f"has a {type(problem).__name__} and not a problem as"
        hint = f"; write {path}:{others[0]}" if others else suggest(name, found)
        raise typer.BadParameter(f"{path} {what} {name!r}{hint}", param_hint="SPEC.py")
    return problem, found.get("holdout")


def _run(path: Path) -> ModuleType:
    """Runs a specification as a module; as for a script, imports are found in its own folder first."""
    sys.path.insert(0, str(path.resolve().parent))
    found = importlib.util.spec_from_file_location(SPEC_MODULE, path)
    if found is None or found.loader is None:
        raise typer.BadParameter(f"{path} is not a Python file", param_hint="SPEC.py")
    module = importlib.util.module_from_spec(found)
    sys.modules[SPEC_MODULE] = module
    found.loader.exec_module(module)
    return module


def _options(pairs: list[str]) -> dict[str, Any]:
    """`lr=0.01` to a number, `scheme=simultaneous` to a string."""
    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.isidentifier():
            raise typer.BadParameter(f"{pair!r} is not KEY=VALUE", param_hint="-o")
        try:
            found[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            found[key] = text
    return found


# --------------------------------------------------------------------------------------------- output
@contextlib.contextmanager
def _quiet(as_json: bool) -> Generator[None]:
    """With `--json`, what a specification prints goes to standard error."""
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def _refusals(as_json: bool) -> Generator[None]:
    """This package's own errors as text on standard error, without a traceback."""
    try:
        yield
    except ConstrainError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        if as_json:
            print(json.dumps({"error": {"code": error.code, "message": str(error)}}))
        raise typer.Exit(Exit.REFUSED) from None


def _show(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """The traceback of an uncaught exception, from the specification's first line on."""
    inner = traceback
    while inner is not None and inner.tb_frame.f_globals.get("__name__") != SPEC_MODULE:
        inner = inner.tb_next
    if inner is None and not isinstance(error, SyntaxError):  # a syntax error names its line by itself
        inner = traceback
    sys.__excepthook__(kind, error.with_traceback(inner), inner)


def main() -> None:
    """Entry point of `constrain` and of `python -m constrain`."""
    sys.excepthook = _show
    # the command itself, since `app()` puts its own exception hook in the place of this one
    get_command(app)()
