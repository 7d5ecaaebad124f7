"""Trace how students' scores grow with training rows and with the teacher's cost.

python ray_jobs/curves.py experiment=ambiguity_curves data.root=/data
ray job submit --working-dir . -- python ray_jobs/curves.py experiment=NAME 'curves.sizes=[100,1000]' \
    root=/shared/runs data.root=/shared/data
"""

from pipeline.launch import launch_curves

if __name__ == "__main__":
    launch_curves()
