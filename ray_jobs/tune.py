"""Search a student's settings, and which rows it learns from, with Ray Tune.

python ray_jobs/tune.py data=wiser_llama31_8b data.root=/data search=classifier search.trials=12
ray job submit --working-dir . -- python ray_jobs/tune.py experiment=NAME search.arm=ARM search.student=STUDENT \
    root=/shared/runs data.root=/shared/data scale=cluster
"""

from pipeline.launch import launch_search

if __name__ == "__main__":
    launch_search()
