"""Command-line programs tl-advise and tl-auto; only this package prints or exits."""
