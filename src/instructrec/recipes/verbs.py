"""Verbs of the command line that stand here so that `cli.py` stays short: thin calls, nothing heavy is imported."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from ..errors import InputError

Flags = Sequence[tuple[str, str]]


def compare(
    items: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="a.yaml|ROWS|key=value", help="settings files, rows files, settings that hold for all runs"
        ),
    ] = None,
    test: Annotated[
        list[str] | None,
        typer.Option("--test", metavar="FILE", help="test rows, each file a suite; default: rows set aside by seed"),
    ] = None,
    vary: Annotated[
        list[str] | None,
        typer.Option("--vary", metavar="KEY=A,B", help="compare values of a setting; several: every combination"),
    ] = None,
    flags: Flags = (),
    command: str = "",
) -> None:
    """Tune and test several settings on the same rows and seeds; say which differences are real, what would decide."""
    from .compare import compare_items

    compare_items(items or [], test or [], vary or [], flags, command)


def models(
    action: Annotated[str, typer.Argument(metavar="list|fetch", help="list them, or fetch one")] = "list",
    name: Annotated[str, typer.Argument(metavar="NAME", help="which to fetch")] = "",
) -> None:
    """List the built-in models, or fetch one to work offline."""
    from .builtin import fetch_model, list_models

    if action == "fetch" and name:
        fetch_model(name)
    elif action == "list" and not name:
        list_models()
    else:
        raise InputError(f"models: {f'{action} {name}'.strip()}: not understood (want list or fetch NAME)")
