"""`allyouneed fetch`: data sets and models into the cache."""

from typing import Annotated

import typer

from allyouneed.cli.common import console, fail


def command(
    names: Annotated[list[str] | None, typer.Argument(metavar="ASSET…", help="Data sets and models.")] = None,
) -> None:
    """Fetch data sets and models into the cache; without a name, list those that there are."""
    from allyouneed.data import ASSETS, AssetError, is_present
    from allyouneed.data import fetch as fetch_asset

    if not names:
        for asset in ASSETS.values():
            console.print(f"{asset.name}: {asset.about} [dim]{'present' if is_present(asset) else 'not fetched'}[/dim]")
        return
    for name in names:
        if name not in ASSETS:
            fail(f'unknown asset "{name}"; there are {", ".join(ASSETS)}')
    for name in names:
        try:
            with console.status(name) as status:
                folder = fetch_asset(name, report=lambda text: status.update(text))
        except AssetError as error:
            fail(error, 1)
        console.print(f"{name}: {folder}", soft_wrap=True)
