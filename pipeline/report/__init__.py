"""What a comparison found, for readers: the table in the terminal, plots, and one self-contained HTML page."""
