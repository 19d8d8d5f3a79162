"""Reports of an advice or a run: terminal, HTML page, Markdown, model card and JSON."""
