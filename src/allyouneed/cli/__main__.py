"""`python -m allyouneed.cli`."""

from allyouneed.cli import main

if __name__ == "__main__":
    main()
