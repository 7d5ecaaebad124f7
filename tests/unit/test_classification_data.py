"""The rows and seeds of SynthesizRR's six tasks, each from a fixture in the form of its official files."""

from collections import Counter

import pytest

from pipeline.errors import SourceError
from pipeline.sources.data import LabelledConfig, SeedsConfig, read_examples, read_seeds
from pipeline.sources.labelled import RowsConfig, read_labelled
from tests.conftest import PROJECT
from tests.rows import compose_data, make_rows

FIXTURES = str(PROJECT / "tests" / "fixtures" / "classification")
CATEGORIES = {
    *("magazines", "camera_photo", "office_products", "kitchen", "cell_phones_service", "computer_video_games"),
    *("grocery_and_gourmet_food", "tools_hardware", "automotive", "music_album", "health_and_personal_care"),
    *("electronics", "outdoor_living", "video", "apparel", "toys_games", "sports_outdoors", "books", "software"),
    *("baby", "musical_and_instruments", "beauty", "jewelry_and_watches"),
}
SECTIONS = {
    *("sports", "life-style", "education", "entertainment", "business", "city", "environment", "tech", "elections"),
    "world",
}
LABELS = {
    "ag_news": {"World", "Sports", "Business", "Sci/Tech"},
    "hyperpartisan": {"true", "false"},
    "toi": SECTIONS,
    "amazon_polarity": {"positive", "negative"},
    "amazon_category": CATEGORIES,
    "amazon_humor": {"humorous", "non_humorous"},
}
N_ROWS = dict.fromkeys(LABELS, 20) | {"amazon_category": 24}
WHOLE = ("data.share=null", "data.limit=null", "data.per_class=null")
MDS = "<review>\n<asin>\nB1\n</asin>\n<review_text>\n<b> is fine\n\nhere\n</review_text>\n</review>\n"


@pytest.mark.parametrize("task", LABELS)
def test_the_gold_rows_of_a_task(task):
    config = compose_data(f"data={task}_train", *WHOLE)
    assert isinstance(config, LabelledConfig)
    assert config.origin == "human"
    rows = read_examples(config, FIXTURES)
    assert {row.label for row in rows} == set(config.labels.values()) == LABELS[task]
    assert len(rows) == len({row.row_id for row in rows}) == N_ROWS[task]
    assert all(row.text == " ".join(row.text.split("\n")) or task == "hyperpartisan" for row in rows)


@pytest.mark.parametrize("task", LABELS)
def test_the_seeds_of_a_task(task):
    config = compose_data(f"data={task}_seeds")
    assert isinstance(config, SeedsConfig)
    assert (config.per_class, config.seed) == (100 if len(LABELS[task]) == 2 else 50, 42)
    one = compose_data(f"data={task}_seeds", "data.per_class=1", "data.share=null")
    assert Counter(seed.label for seed in read_seeds(one, FIXTURES)) == dict.fromkeys(LABELS[task], 1)


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("ag_news", "Storm leaves island without power A cyclone tore roofs from houses on the island of Palemo and "
         "cut the power of 40,000 people, the government said."),
        ("ag_news", "Oil slips as stocks grow Crude fell by $1.20 a barrel on Wednesday after a report showed that "
         "stocks had grown for a third week."),
        ("amazon_polarity", "Keeps my tea hot I fill this flask at six and the tea still burns my tongue at noon. The "
         "lid closes with one hand."),
        ("toi", "Patna: Night buses to run on four more routes from June"),
        ("amazon_category", "Steady enough Holds my small camera steady on a rock, but not in wind."),
        ("amazon_humor", "Will the gnome water the roses if I ask nicely?"),
    ],
)  # fmt: skip
def test_texts_are_what_was_meant(task, expected):
    assert expected in [row.text for row in read_examples(compose_data(f"data={task}_train", *WHOLE), FIXTURES)]


@pytest.mark.parametrize(("path", "n"), [("ag_news/test.csv", 8), ("amazon_polarity/test.csv", 8)])
def test_the_test_files_have_the_form_of_the_training_files(path, n):
    config = compose_data(f"data={path.partition('/')[0]}_train", *WHOLE, f"data.path={path}")
    assert len(read_examples(config, FIXTURES)) == n


def test_two_folders_are_one_category_and_products_are_told():
    rows = read_examples(compose_data("data=amazon_category_train", *WHOLE), FIXTURES)
    assert Counter(row.label for row in rows)["grocery_and_gourmet_food"] == 2
    assert len({row.extras["asin"] for row in rows}) == 24


def read_mds(folder, content):
    path = folder / "books" / "all.review"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content.encode("latin-1"))
    columns = {"text": "review_text", "label": "category", "extras": {"asin": "asin"}}
    config = make_rows(RowsConfig, path=str(path), format="mds", columns=columns, labels={"books": "books"})
    return read_labelled(config, None)


def test_what_looks_like_a_tag_in_a_review_is_text(tmp_path):
    first, second = read_mds(tmp_path, MDS + MDS.replace("fine", "caf\xe9"))
    assert (first.text, first.extras) == ("<b> is fine\n\nhere", {"asin": "B1"})
    assert second.text.startswith("<b> is caf\xe9")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (MDS + MDS.replace("</review>", ""), "line 11: a review without </review>"),
        (MDS.replace("</asin>\n", ""), "line 1: a review without </asin>"),
        (MDS.replace("</review>", "") + MDS, "line 11: '<review>' stands outside of a review's fields"),
        (MDS.replace("B1\n</asin>\n", "</asin>\nB1\n"), "line 4: 'B1' stands outside"),
        (MDS + MDS.replace("asin>", "isbn>"), "line 11: no column 'asin'; found: category, isbn, review_text"),
        ("", "the file is empty"),
    ],
)
def test_a_review_that_is_broken_is_an_error_that_names_its_line(tmp_path, content, message):
    with pytest.raises(SourceError, match=rf"books/all\.review.*{message}"):
        read_mds(tmp_path, content)


@pytest.mark.parametrize(
    ("task", "line", "message"),
    [
        ("ag_news", '"5","Title","Text"', "line 2: class '5', expected 1, 2, 3 or 4"),
        ("ag_news", '"1","Title"', "line 2: 2 fields, expected 3"),
        ("amazon_polarity", '"1","Title","Te"xt"', "line 2: broken CSV"),
        ("amazon_polarity", '"3","Title","Text"', "line 2: unknown label '3'; the known ones are '1', '2'"),
    ],
)
def test_a_broken_line_is_an_error_that_names_file_and_line(tmp_path, task, line, message):
    (tmp_path / "x.csv").write_text(f'"1","Title","Text"\n{line}\n')
    config = compose_data(f"data={task}_train", f"data.path={tmp_path}/x.csv", *WHOLE)
    with pytest.raises(SourceError, match=rf"x\.csv, {message}"):
        read_examples(config, None)


@pytest.mark.data
def test_the_sample_of_ag_news_is_read_without_what_repeats_test_items(data_root):
    rows = read_examples(compose_data("data=ag_news_5k"), data_root)
    assert len(rows) == 5000 - 76
    assert {row.label for row in rows} == LABELS["ag_news"]
    seeds = read_seeds(compose_data("data=ag_news_5k_seeds"), data_root)
    assert Counter(seed.label for seed in seeds) == dict.fromkeys(LABELS["ag_news"], 50)
    assert {seed.seed_id for seed in seeds} <= {row.row_id for row in rows}
    test = read_examples(compose_data("data=ag_news_train", "data.path=ag_news/test.csv"), data_root)
    assert Counter(row.label for row in test) == dict.fromkeys(LABELS["ag_news"], 1900)


@pytest.mark.data
@pytest.mark.parametrize(("name", "n_seeds"), [("polarity", 100), ("category", 50)])
def test_products_of_gold_corpus_and_test_are_others(data_root, name, n_seeds):
    def read(low, high):
        bounds = f"data.share={{column: asin, low: {low}, high: {high}, seed: 42}}"
        return read_examples(compose_data(f"data=amazon_mds4_{name}", bounds), data_root)

    parts = [read(0, 0.25), read(0.25, 0.75), read(0.75, 1)]
    assert sum(map(len, parts)) == 8000
    products = [{row.extras["asin"] for row in part} for part in parts]
    assert len(set.union(*products)) == sum(map(len, products))
    assert read_examples(compose_data(f"data=amazon_mds4_{name}"), data_root) == parts[0]
    seeds = read_seeds(compose_data(f"data=amazon_mds4_{name}_seeds"), data_root)
    assert set(Counter(seed.label for seed in seeds).values()) == {n_seeds}
    assert {seed.seed_id for seed in seeds} <= {row.row_id for row in parts[0]}
