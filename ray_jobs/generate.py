"""Build the data sets of an experiment: ask the teachers, parse, filter, describe.

python ray_jobs/generate.py experiment=quickstart
ray job submit --working-dir . -- python ray_jobs/generate.py experiment=NAME root=/shared/runs data.root=/shared/data
"""

from pipeline.launch import launch

if __name__ == "__main__":
    launch(until="generate")
