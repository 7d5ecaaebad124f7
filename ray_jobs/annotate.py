"""Write sheets on which people label answers as hallucinations or not, ask an LLM beside them, or read labels back.

python ray_jobs/annotate.py annotate=export output=/data/annotation \
    'arms={basic: {path: runs/steps/dataset/FINGERPRINT, model: phi3_mini, prompt: basic}, …}'
python ray_jobs/annotate.py annotate=judge exported=/data/annotation output=/data/labels teacher=gpt_4_1 root=/runs
python ray_jobs/annotate.py annotate=import exported=/data/annotation labels=[first.json,second.json] \
    comparison.path=runs/steps/comparison/FINGERPRINT output=/data/annotation/result
"""

from pipeline.launch import launch_annotation

if __name__ == "__main__":
    launch_annotation()
