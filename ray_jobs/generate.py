"""Build the data sets of an experiment: ask the teachers, parse, filter, describe. Or say what that will take.

python ray_jobs/generate.py experiment=quickstart
python ray_jobs/generate.py experiment=NAME plan=true   # asks 20 requests, projects tokens, time and money
ray job submit --working-dir . -- python ray_jobs/generate.py experiment=NAME root=/shared/runs data.root=/shared/data
"""

from pipeline.launch import launch_generation

if __name__ == "__main__":
    launch_generation()
