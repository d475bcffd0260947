"""`instructrec models`: what is built in, and fetching it to work offline."""

from __future__ import annotations

from .. import console
from ..models import embedded


def list_models() -> None:
    """The built-in models as a table."""
    rows = [
        (
            model.name,
            model.title,
            model.licence,
            f"{model.bytes / 1e6:.0f} MB",
            "yes" if embedded.cached(key) else "no",
        )
        for key, model in embedded.MODELS.items()
    ]
    console.table(("name", "model", "licence", "download", "fetched"), rows)


def fetch_model(name: str) -> None:
    """Fetch one and say where it lies. Raises InputError for an unknown name, EnvironmentFault without a network."""
    console.say(str(embedded.fetch(name)))
