"""What other packages add: functions, backends, solvers, estimators and reports, by entry points.

A package declares them in its `pyproject.toml`:

    [project.entry-points."constrain.backends"]
    pdhg = "thirdparty.backend"

Listing reads the metadata of installed packages and imports none of them. A plug-in is imported when its name
is used for the first time; where that fails, the error names the package, the entry point and the reason.
"""

from __future__ import annotations

import difflib
import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from constrain.errors import RouteError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = ["GROUPS", "Plugin", "available", "find", "load"]

GROUPS: dict[str, str] = {
    "atoms": "functions of expressions: what `cn.op` returned",
    "backends": "methods that take a program as a whole: `support`, `build` and `solve`",
    "solvers": "methods that follow gradients: an object with `solve`",
    "estimators": "minibatch estimates of terms: a function of the averages of a batch",
    "reporters": "formats of `Solution.report`: a function of a solution",
}
"""The groups, without their prefix `constrain.`, and what their entry points refer to."""

_NEEDS = {"backends": ("support", "build", "solve")}
"""Attributes that the object of a group must have; those of other groups are called."""
_LOADED: dict[EntryPoint, Any] = {}


@dataclass(frozen=True)
class Plugin:
    """An entry point of an installed package; nothing is imported.

    Attributes:
        group: one of `GROUPS`.
        name: what a user writes, such as `solve(method=NAME)`.
        target: the module, or `module:attribute`, that is loaded on first use.
        package: the distribution that declares it.
        version: of that distribution.
        entry: the entry point of `importlib.metadata`.
    """

    group: str
    name: str
    target: str
    package: str
    version: str
    entry: EntryPoint

    def __str__(self) -> str:
        return f"{self.name} ({self.target}, from {self.package} {self.version})"


def available(group: str | None = None) -> list[Plugin]:
    """The plug-ins of installed packages, of one group or of all; ordered by group and name.

    Raises:
        RouteError: E201 for an unknown group.
    """
    if group is not None and group not in GROUPS:
        known = ", ".join(GROUPS)
        raise RouteError("E201", f"there is no group of plug-ins {group!r}", fix=f"one of {known}")
    metadata = importlib.import_module("importlib.metadata")  # costs more than the rest of the import
    found = {
        Plugin(name, entry.name, entry.value, *_package(entry), entry)
        for name in ((group,) if group is not None else GROUPS)
        for entry in metadata.entry_points(group=f"constrain.{name}")
    }
    order = list(GROUPS)
    return sorted(found, key=lambda p: (order.index(p.group), p.name, p.package))


def _package(entry: EntryPoint) -> tuple[str, str]:
    return ("unknown", "?") if entry.dist is None else (entry.dist.name, entry.dist.version)


def find(group: str, name: str) -> Any | None:
    """The object of the plug-in `name`, imported now; None when no package declares one.

    Raises:
        RouteError: E202 when two packages declare it, its import fails, or it is not what the group needs.
    """
    plugins = [p for p in available(group) if p.name == name]
    if not plugins:
        return None
    if len({p.target for p in plugins}) > 1:
        listed = " and ".join(f"{p.package} {p.version}" for p in plugins)
        raise RouteError(
            "E202",
            f"two packages declare the plug-in {name!r} of constrain.{group}: {listed}",
            fix=f"pip uninstall {plugins[0].package}, or {plugins[1].package}",
        )
    return _load(plugins[0])


def load(group: str, name: str) -> Any:
    """The object of the plug-in `name`, imported now.

    Raises:
        RouteError: E201 when no package declares one, E202 when it cannot be loaded.
    """
    found = find(group, name)
    if found is None:
        names = [p.name for p in available(group)]
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        known = f"installed are {', '.join(names)}" if names else "no package that is installed declares any"
        raise RouteError("E201", f"there is no constrain.{group} plug-in {name!r}{hint}", fix=known)
    return found


def _load(plugin: Plugin) -> Any:
    """The object of an entry point, checked; the same one every time."""
    if plugin.entry in _LOADED:
        return _LOADED[plugin.entry]
    try:
        found = plugin.entry.load()
    except Exception as error:
        raise RouteError(
            "E202",
            f"the plug-in {plugin} of constrain.{plugin.group} cannot be loaded: "
            f"{type(error).__name__}: {error}",
            fix=f"a repaired {plugin.package}, or pip uninstall {plugin.package}",
        ) from error
    needed = _NEEDS.get(plugin.group)
    missing = [n for n in needed if not hasattr(found, n)] if needed else [] if callable(found) else ["call"]
    if missing:
        what = f"a {type(found).__name__} that cannot be called" if not needed else f"without {missing[0]!r}"
        raise RouteError(
            "E202",
            f"the plug-in {plugin} of constrain.{plugin.group} is {what}",
            fix=f"an entry point that names {GROUPS[plugin.group]}",
        )
    _LOADED[plugin.entry] = found
    return found
