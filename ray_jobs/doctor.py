"""Say what is wrong with this set-up for an experiment, and what mends it; nothing is run. Exit code 1: a fault.

python ray_jobs/doctor.py experiment=quickstart
python ray_jobs/doctor.py experiment=NAME scale=cluster tracking=server root=s3://BUCKET/raystill output=findings.json
"""

from pipeline.launch import launch_doctor

if __name__ == "__main__":
    launch_doctor()
