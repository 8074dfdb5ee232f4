"""Fetch what tests read: `make test` runs this first.

About 250 MB, once; what is in the cache already costs nothing. With ALLYOUNEED_OFFLINE=1 nothing is fetched. What
cannot be had is named, and the tests that read it are skipped, with that reason; all others run.
"""

import os
import sys
import time

from allyouneed.data import ASSETS, AssetError, fetch, is_present

# Qwen2.5-Coder, 469 MB, is tested where it has been fetched.
READ = (
    "gpt2-vocabulary",
    "brown",
    "mnist",
    "fashion-mnist",
    "all-minilm-l6-v2",
    "smollm2-135m-instruct",
    "bigbench",
)


def main() -> None:
    """Fetch each, and say what is done."""
    if os.environ.get("ALLYOUNEED_OFFLINE", "0") not in ("", "0"):
        missing = [name for name in READ if not is_present(name)]
        if missing:
            print(f"ALLYOUNEED_OFFLINE is set: tests that read {', '.join(missing)} are skipped")
        return
    for place, name in enumerate(READ, start=1):
        if is_present(name):
            continue
        print(f"fetching {place} of {len(READ)}: {name}: {ASSETS[name].about}", flush=True)
        began = time.monotonic()
        try:
            fetch(name)
        except AssetError as error:
            print(f"{name} cannot be had, and the tests that read it are skipped: {error}", file=sys.stderr)
        else:
            print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
