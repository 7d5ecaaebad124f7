"""Train the students of an experiment, building its data sets first where they are missing.

python ray_jobs/train.py experiment=quickstart
ray job submit --working-dir . -- python ray_jobs/train.py experiment=NAME root=/shared/runs data.root=/shared/data
"""

from pipeline.launch import launch

if __name__ == "__main__":
    launch(until="train")
