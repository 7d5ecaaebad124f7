"""Index a corpus, in parallel and resumable: shards that are finished are kept.

python ray_jobs/index.py corpus=jsonl corpus.paths=[/data/news.jsonl] retriever=bm25
ray job submit --working-dir . -- python ray_jobs/index.py corpus=realnews_india retriever=hybrid root=/shared/runs \
    data.root=/shared/data
"""

from pipeline.launch import launch_index

if __name__ == "__main__":
    launch_index()
