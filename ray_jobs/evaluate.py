"""Judge the students and baselines of an experiment on its benchmarks, doing first what is missing.

python ray_jobs/evaluate.py experiment=quickstart
ray job submit --working-dir . -- python ray_jobs/evaluate.py experiment=NAME root=/shared/runs data.root=/shared/data
"""

from pipeline.launch import launch

if __name__ == "__main__":
    launch(until="evaluate")
