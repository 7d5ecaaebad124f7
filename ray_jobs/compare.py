"""Compare the arms of an experiment in tables, plots and a report, doing first what is missing.

python ray_jobs/compare.py experiment=quickstart
ray job submit --working-dir . -- python ray_jobs/compare.py experiment=NAME root=/shared/runs data.root=/shared/data
"""

from pipeline.launch import launch

if __name__ == "__main__":
    launch(until="compare")
