"""Reading communities, whatever they are made of."""

from pipeline.sources.community import Communities, CommunitiesConfig
from pipeline.sources.community_posts import read_posts
from pipeline.sources.community_rules import apply_rules
from pipeline.sources.se_pqa_retrieval import read_retrieval_files


def read_communities(config: CommunitiesConfig, data_root: str | None) -> Communities:
    """Return what a configuration makes of its files.

    Raises:
        SourceError: Files are missing or broken, a site that `sites` names has no posts, or a split has no question.
    """
    posts = read_posts(config.posts, data_root)
    if config.retrieval_files is None:
        return apply_rules(config, posts)
    return read_retrieval_files(config, config.posts.root or data_root or ".", posts)
