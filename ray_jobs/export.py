"""Export the students of an experiment as folders that stand by themselves, doing first what is missing.

python ray_jobs/export.py experiment=quickstart
ray job submit --working-dir . -- python ray_jobs/export.py experiment=NAME 'export=[ARM/STUDENT]' \
    root=/shared/runs data.root=/shared/data
"""

from pipeline.launch import launch

if __name__ == "__main__":
    launch(until="export")
