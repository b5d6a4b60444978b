"""The command line: `constrain explain | check | solve SPEC.py`, `report | diagnose DIR`, `plugins`.

A specification is an ordinary Python file that defines `problem`, and `holdout` if it likes. Options and exit
codes are in `--help`, which loads neither torch nor a solver.
"""

import ast
import contextlib
import importlib.util
import json
import sys
from collections.abc import Generator, Mapping
from enum import IntEnum
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Annotated, Any

import typer
from typer.main import get_command

import constrain
from constrain._lazy import attribute, diagnostics_report
from constrain.errors import ConstrainError
from constrain.language.data import Data, suggest
from constrain.language.problem import Problem
from constrain.plugins import GROUPS, available

__all__ = ["Exit", "app", "main"]

SPEC_MODULE = "constrain_spec"
"""`__name__` of a specification while it runs."""
SPEC_FILE = "spec.txt"
"""In the folder of a run, where its specification is."""


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
    checkpoint: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Store the run here every 30 seconds.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the checkpoint, if it exists.")
    ] = False,
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
        "checkpoint": checkpoint,
        "resume": resume or None,
    }
    options = {k: v for k, v in given.items() if v is not None} | _options(option or [])
    with _refusals(as_json):
        with _quiet(as_json):
            problem, holdout = _load(spec)
            solution = problem.solve(method, holdout=holdout, seed=seed, progress=not quiet, **options)
        if save is not None:
            folder = solution.save(save)
            (folder / SPEC_FILE).write_text(_place(spec) + "\n", encoding="utf-8")
            print(f"saved to {folder}", file=sys.stderr)
        print(solution.report(format="json" if as_json else "text"))
    raise typer.Exit(CODES[solution.status.value])


@app.command(epilog=EPILOG)
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="A folder that `solve --save` wrote.")],
    style: Annotated[str, typer.Option("--format", help="text, markdown, json or html.")] = "text",
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the HTML page to a file, and print nothing.")
    ] = None,
) -> None:
    """Prints the report of a stored solution, or writes it as a page."""
    with _refusals(as_json=style == "json"):
        solution = constrain.load(run)
        if html is None:
            print(solution.report(format=style))
        else:
            solution.report(html, format="html")
            print(f"written to {html}", file=sys.stderr)


@app.command(epilog=EPILOG)
def diagnose(
    run: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="A folder that `solve --save` wrote.")],
    *,
    spec: Annotated[
        str | None,
        typer.Option(metavar="SPEC.py[:NAME]", help="Its specification; left out, the one that was solved."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA", help="Judge on this sample too: SPEC.py:NAME, or columns in a .npz or .csv file."
        ),
    ] = None,
    order: Annotated[int, typer.Option(min=1, max=2, help="2: curvature and standard errors as well.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Computes the optimality conditions of a stored solution again, and judges it on other data."""
    with _refusals(as_json):
        with _quiet(as_json):
            file = run / SPEC_FILE
            if spec is None and not file.is_file():
                raise typer.BadParameter(f"{run} does not say what was solved", param_hint="--spec")
            problem, _ = _load(spec or file.read_text(encoding="utf-8").strip())
            solution = constrain.load(run, problem=problem)
            assert solution.live is not None  # it was loaded with its problem
            record = solution.live.kkt(solution.multipliers, solution.record.tolerance, order)
            judged = None if data is None else solution.evaluate(_sample(data))
        if as_json:
            print(diagnostics_report().json_of({"kkt": record, "evaluation": judged}))
        else:
            print(record if judged is None else f"{record}\n\n{judged}")


@app.command(epilog=EPILOG)
def plugins(as_json: JsonOption = False) -> None:
    """What installed packages add: functions, methods, estimators, reports. Imports none of them."""
    found = available()
    if as_json:
        keys = ("group", "name", "target", "package", "version")
        print(json.dumps([{key: getattr(plugin, key) for key in keys} for plugin in found]))
        return
    for group, what in GROUPS.items():
        own = [plugin for plugin in found if plugin.group == group]
        print(f"constrain.{group}: {what}" if own else f"constrain.{group}: none")
        width = max((len(plugin.name) for plugin in own), default=0)
        for plugin in own:
            print(f"  {plugin.name:<{width}}  {plugin.target}  {plugin.package} {plugin.version}")


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


def _place(spec: str) -> str:
    """A specification with its absolute path, for the folder of a run."""
    if Path(spec).is_file():
        return str(Path(spec).resolve())
    head, _, name = spec.rpartition(":")
    return f"{Path(head).resolve()}:{name}"


def _sample(source: str) -> Any:
    """A sample that a Python file defines, or out of a file of columns."""
    path = Path(source)
    if not path.is_file():
        head, _, name = source.rpartition(":")
        found = vars(_run(Path(head))).get(name) if Path(head).is_file() else None
        if not isinstance(found, (Data, Mapping)):
            raise typer.BadParameter(f"there is no sample {source}", param_hint="--data")
        return found  # pyright: ignore[reportUnknownVariableType]
    if path.suffix == ".npz":
        with attribute("numpy").load(path, allow_pickle=False) as columns:
            return Data(path.stem, **{name: columns[name] for name in columns.files})
    readers = {".csv": "read_csv", ".parquet": "read_parquet"}
    if path.suffix not in readers:
        raise typer.BadParameter(f"{path} is no .npz, .csv or .parquet file", param_hint="--data")
    return Data.from_frame(
        path.stem, getattr(attribute("constrain.solution.frames:frames")(), readers[path.suffix])(path)
    )


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
