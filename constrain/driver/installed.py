"""Methods that other packages add: backends and solvers by entry points."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from constrain import plugins
from constrain.driver.routes import METHODS, Route
from constrain.errors import ConstrainError, ModelingError
from constrain.language.data import suggest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from constrain.lowering.classify import Facts
    from constrain.lowering.program import Program

__all__ = ["backend_options", "installed_backend", "installed_routes", "installed_solver"]


def installed_backend(method: Any) -> Any | None:
    """The backend that a package registered under a method's name; None for other methods.

    Raises:
        RouteError: E202 when it cannot be loaded.
    """
    if not isinstance(method, str) or method in METHODS:
        return None
    return plugins.find("backends", method)


def backend_options(package: Any) -> tuple[str, ...]:
    """Options of a backend: the keyword-only arguments of its `solve`, the limit of time aside."""
    found = inspect.signature(package.solve).parameters.values()
    return tuple(p.name for p in found if p.kind is p.KEYWORD_ONLY and p.name != "time_limit")


def installed_solver(method: Any, options: Mapping[str, Any], seed: int) -> Any | None:
    """A solver of the kind that a package registered under a method's name; None for other methods.

    Args:
        method: what `solve` was asked for.
        options: of the solve; those that are not None are handed over.
        seed: handed over where the solver has one.

    Raises:
        RouteError: E202 when it cannot be loaded.
        ModelingError: E141 for an option that it does not have.
    """
    if not isinstance(method, str) or method in METHODS:
        return None
    kind = plugins.find("solvers", method)
    if kind is None:
        return None
    given = {key: value for key, value in options.items() if value is not None}
    known = _options_of(kind)
    for name in given:
        if known is not None and name not in known:
            raise ModelingError(
                "E141",
                f"method {method!r} has no option {name!r}{suggest(name, known)}",
                fix=f"one of {', '.join(known)}" if known else f"solve({method!r}), without options",
            )
    return kind(**given, **({"seed": seed} if known and "seed" in known else {}))


def _options_of(function: Any) -> tuple[str, ...] | None:
    """Names of the keyword arguments of a function or class; None when it takes any."""
    found = inspect.signature(function).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in found):
        return None
    return tuple(p.name for p in found if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD))


def installed_routes(program: Program, facts: Facts) -> tuple[Route, ...]:
    """The answers of the methods that packages added.

    `method="auto"` never chooses them: what it does is not to depend on what else is installed. A plug-in
    that fails, fails its own route alone.
    """
    found = [_asked(plugin, program, facts) for plugin in plugins.available("backends")]
    found += [
        Route(plugin.name, True, f"a solver of {plugin.package} {plugin.version}; not asked before it runs")
        for plugin in plugins.available("solvers")
    ]
    return tuple(found)


def _asked(plugin: plugins.Plugin, program: Program, facts: Facts) -> Route:
    origin = f"{plugin.package} {plugin.version}"
    try:
        answer = plugins.load("backends", plugin.name).support(program, facts)
        return Route(plugin.name, bool(answer.ok), f"{answer.reason} ({origin})")
    except ConstrainError as error:
        return Route(plugin.name, False, str(error).splitlines()[0].removeprefix(f"[{error.code}] "))
    except Exception as error:
        return Route(plugin.name, False, f"{origin} failed: {type(error).__name__}: {error}")
