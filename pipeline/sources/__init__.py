"""What comes in from files: topics, labelled rows, benchmarks, corpora."""
