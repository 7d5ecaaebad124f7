"""Run an experiment from its seeds to its comparison.

python ray_jobs/run.py experiment=quickstart
ray job submit --working-dir . -- python ray_jobs/run.py experiment=NAME root=/shared/runs data.root=/shared/data
"""

from pipeline.launch import launch

if __name__ == "__main__":
    launch(until="compare")
