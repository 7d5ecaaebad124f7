"""Prediction: a classifier over many Parquet files."""
