"""`python -m dorakit` and the console script."""

from dorakit.cli.app import main

if __name__ == "__main__":
    main()
