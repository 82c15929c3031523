"""The Typer app. A command parses, calls the library, prints; only this package prints errors and exits."""
