"""Queries for the ambiguity task written by hand-made patterns: all that the offline teacher knows of it.

The `offline` teacher answers this task's requests with `write_intents`, so these rows feed the quickstart, the tests,
and the arm of every comparison that uses no language model. A specific query names the topic, one aspect of it and at
least one constraint (place, time, audience, amount); an ambiguous one leaves out what it refers to, where, when, which
kind, which aspect, or which sense of a word. The decision behind the odd-looking patterns: neither length,
question form, case nor the mere presence of a place or year should settle the label, so both labels come terse and
wordy, as keywords and as questions, and some ambiguous queries name a place, a year or an audience but no aspect.

Topics are plural, mass or made of several words, hence no pattern has an article before the topic or a verb after it.
"""

import random
import string
import textwrap
from typing import NamedTuple, TypedDict

from pipeline.identity import derive_seed


class Query(TypedDict):
    """A search query and what its author wants to know."""

    query: str
    information_need: str


class Intent(TypedDict):
    """One thing to want of a topic, asked clearly and asked unclearly."""

    intent: str
    specific: Query
    ambiguous: Query


class _Kind(NamedTuple):
    intent: str
    specific: dict[str, str]
    """Query pattern: the aspect it asks for."""
    ambiguous: dict[str, tuple[str, ...]]
    """What is missing: query patterns that lack it."""


MAX_TOPIC_CHARS = 48
"""Longer topics are cut at a word; so a query has at most 160 characters, an information need 240, an intent 80."""

_TOPICLESS_WEIGHT = 0.12
"""Against 1 for a pattern that names the topic: "How much does it cost?" is real, but the same for every topic."""

_CASUAL_SHARE = 0.35
"""Queries typed without capitals and final mark, of either label."""

_OPENER_SHARE = 0.15
"""Sentences that start with a phrase of no meaning, of either label."""

# fmt: off
_PLACES = (
    "Leeds", "Ohio", "Toronto", "Berlin", "Kerala", "New Zealand", "Lisbon", "Nairobi", "Texas", "Osaka", "Dublin",
    "Denver", "Melbourne", "Scotland", "Singapore", "Chicago", "Norway", "Cape Town", "Quebec", "Manila", "Boston",
    "Andalusia", "Warsaw", "Oregon", "Bristol", "Seoul", "Vermont", "Lyon", "Auckland", "Phoenix", "Tuscany", "Wales",
)
_PEOPLE = (
    "renters", "students", "retirees", "new parents", "people over 65", "teenagers", "night-shift workers",
    "wheelchair users", "freelancers", "left-handed people", "single parents", "small businesses", "homeowners",
    "people with asthma", "families with toddlers", "tourists", "seasonal workers", "vegetarians", "nurses",
)
_LIMITS = (
    "without a car", "on weekends only", "with a newborn at home", "in a studio apartment", "during a heat wave",
    "with a broken arm", "in the rainy season", "with no tools", "on a farm", "while traveling by train",
    "in a shared house", "after moving abroad", "with two dogs", "before a long vacation", "with poor eyesight",
)
_SPANS = ("two hours", "a weekend", "three weeks", "six months", "a year", "ten days", "one evening", "90 days")
_AMOUNTS = ("$25", "$60", "$120", "$300", "$850", "$2,000", "€40", "€150", "£75", "£400")
_MONTHS = ("January", "March", "April", "June", "August", "September", "November", "December")
_SPEAKERS = ("a friend", "my sister", "someone at work", "my neighbor", "my dad", "a video", "the guy next door")
_OPENERS = ("Quick question: ", "Please help: ", "Asking for a friend: ", "One more thing: ")
_TIMES_PAST = ("the other day", "last week", "a while ago", "yesterday", "this morning", "last year")

_CONSTRAINTS = (
    (("place", "where"), "in {place}"), (("place2",), "compared with {place2}"), (("when", "year"), "in {year}"),
    (("year2",), "compared with {year2}"), (("decade",), "in the {decade}s"), (("month",), "in {month}"),
    (("people", "who"), "for {people}"), (("limit",), "{limit}"), (("span",), "{span}"), (("amount",), "{amount}"),
)
"""Fields of a pattern: how the information need repeats them."""

_KINDS = (
    _Kind(
        "what to pay for {t}",
        {
            "What did a family of four pay for {t} {where} {when}?": "what a family of four paid",
            "{t} average price {place} {year}": "the average price",
            "Is {amount} a month enough for {t} {where}?": "whether a monthly budget is enough",
            "monthly cost {t} {place}": "the monthly cost",
            "Which extra fees do {people} pay for {t} {where}?": "the extra fees",
            "{t} under {amount} {place}": "offers below a price",
            "How much of {amount} would {t} {who} use up?": "the share of a budget",
        },
        {
            "which kind, where or when": (
                "How much do people usually pay for {t}?", "{t} price", "cheap {t}", "price list {t}",
                "What would be a sensible amount to spend on {t} these days?", "{t} fees",
                "{speaker} says I pay far too much for {t}, so what would be normal?",
            ),
            "what is meant": (
                "How much does it cost?", "Is it cheaper to take the bigger one?",
                "I was quoted three prices for {t} {past}, which one is fair?",
            ),
            "which sense of a word": ("{head} cost",),
        },
    ),
    _Kind(
        "how to handle {t}",
        {
            "How can {people} plan {t} {limit}?": "how to plan",
            "prepare for {t} in {span}": "how to prepare",
            "checklist for {t} {who}": "a checklist",
            "How do I keep a record of {t} in a spreadsheet over {span}?": "a spreadsheet to keep records",
            "What do I need to prepare for {t} {limit} {where}?": "what to prepare",
            "planning {t} {limit}": "how to plan",
            "How do I explain {t} to {people} in plain words?": "an explanation in plain words",
        },
        {
            "which part": (
                "how to deal with {t}", "What is the right way to go about {t}?", "help with {t}", "{t} how to",
                "Could you walk me through {t} and everything around that?", "{t} step by step",
                "I want to get {t} right this time, so what should I change?",
            ),
            "what is meant": (
                "How do I do that properly?", "What is the next step after the first one?",
                "{speaker} showed me a trick for {t} {past}, how did that go again?",
            ),
        },
    ),
    _Kind(
        "how the options for {t} compare",
        {
            "Are the options for {t} better in {place} or in {place2}?": "the better of two places",
            "{t} {place} vs {place2}": "two places side by side",
            "pros and cons of {t} {who}": "pros and cons",
            "Did {people} spend more on {t} in {year} or in {year2}?": "spending in two years",
            "online or in-person advice on {t} {where} {who}": "online against in-person advice",
            "What is the cheapest and the safest option for {t} {who} {where}?": "cheapest and safest option",
            "{t} prices {year} vs {year2}": "prices in two years",
        },
        {
            "which kinds or by what measure": (
                "best {t}", "Which kind of {t} is better?", "{t} comparison", "is there something better than {t}",
                "{t} or something else", "Of the two kinds of {t} people talk about, which one would you take?",
                "better {t}", "My neighbor and I disagree about {t}, so who is right?",
            ),
            "what is meant": ("Which one is better?", "What is the difference between the two?"),
        },
    ),
    _Kind(
        "what can go badly with {t}",
        {
            "Which risks of {t} should {people} know about?": "the risks",
            "scams with {t} {place} {year}": "reported scams",
            "Which warnings about {t} were published {where} {when}?": "published warnings",
            "What should {people} avoid with {t} {limit}?": "what to avoid",
            "{t} safety tips {who}": "safety tips",
            "Does home insurance cover damage from {t} {where}?": "insurance cover for damage",
            "{t} accidents {place} {year}": "reported accidents",
        },
        {
            "which risk or for whom": (
                "dangers of {t}", "should I worry about {t}", "{t} safety", "the bad side of {t}",
                "{speaker} heard something bad about {t} {past}, is that true?",
                "What can happen with {t} if I am not careful enough?", "{t} warning", "Are there risks with {t}?",
            ),
            "what is meant": ("Is that safe?", "Can it hurt somebody if I leave it like this?"),
        },
    ),
    _Kind(
        "the history of {t}",
        {
            "How did {t} change {where} between {year} and {year2}?": "changes between two years",
            "history of {t} in {place} before {decade}": "the early history",
            "Who made {t} popular {where} in the {decade}s?": "the people behind its popularity",
            "{t} {place} {decade}s": "a past decade",
            "What did newspapers {where} write about {t} in the {decade}s?": "old newspaper articles",
            "oldest photographs of {t} from {place}": "the oldest photographs",
            "When did {people} first hear of {t} {where}?": "the first mention",
        },
        {
            "which time or place": (
                "history of {t}", "the story behind {t}", "{t} back then", "old {t}", "what happened to {t}",
                "When did this whole thing with {t} begin, and why did nobody notice?", "{t} origin",
                "Did people care about {t} as much before?",
            ),
            "what is meant": ("What was it like before?", "When did they change it?"),
        },
    ),
    _Kind(
        "what to get for {t}",
        {
            "What should {people} ask before paying for {t} {where}?": "questions to ask before paying",
            "reviews of {t} by {people} {year}": "reviews by one group",
            "Who offers {t} {where} for less than {amount}?": "offers below a price",
            "{t} deals {place} {month}": "deals in one month",
            "What is worth buying for {t} with {amount} {limit}?": "what to buy on a budget",
            "shopping list {t} {limit}": "a shopping list",
            "top three brands for {t} {who}": "the top three brands",
        },
        {
            "which kind or for whom": (
                "good {t}", "{t} deals", "what do I need for {t}", "top {t}", "{t} reviews",
                "I need something for {t}, nothing fancy, so what would you take?",
                "Is the new kind of {t} worth the money?", "quality {t}",
                "A shop around here had nice things for {t} {past}, which shop was it?",
            ),
            "what is meant": ("Where do I get the good ones?", "Which one should I get?"),
        },
    ),
    _Kind(
        "what goes wrong with {t}",
        {
            "What did {people} complain about most with {t} {where} {when}?": "the most common complaints",
            "problems with {t} {limit}": "problems in one situation",
            "Who {where} handles complaints about {t} on Sundays?": "who handles complaints on Sundays",
            "How do I get my money back for {t} {where} after {span}?": "how to get a refund",
            "{t} refund {place} after {span}": "how to get a refund",
            "Which mistakes with {t} do {people} make within {span}?": "common mistakes",
            "{t} delays {place} {month} {year}": "delays",
        },
        {
            "which problem": (
                "{t} problem", "trouble with {t}", "{t} complaint", "mistakes with {t}",
                "Something is wrong with {t} and I have no idea what to do.", "issues with {t} again",
                "I tried everything with {t} and nothing helps, what now?", "Why is nobody happy with {t}?",
            ),
            "what is meant": ("Why does it keep happening?", "It stopped again, what should I check?"),
            "which sense of a word": ("{head} problems",),
        },
    ),
    _Kind(
        "the rules on {t}",
        {
            "Do {people} need a permit for {t} {where}?": "whether a permit is needed",
            "rules for {t} {place} {year}": "the rules of one year",
            "Which law on {t} came into force {where} {when}?": "a law that came into force",
            "Can {people} deduct {t} from their taxes {where}?": "tax deduction",
            "{t} age limit {place}": "the age limit",
            "Who is liable for damage from {t} {where}, the tenant or the owner?": "liability of tenant and owner",
            "fines around {t} {place}": "the fines",
        },
        {
            "which rule or where": (
                "rules for {t}", "{t} legal", "What does the law say about {t}?", "permit for {t}",
                "my rights with {t}", "{t} regulations here", "Do I have to tell anyone about {t} before I start?",
                "{speaker} says there is a new rule about {t} now, what is it?",
            ),
            "what is meant": ("Am I allowed to do this?", "Is it against the rules if they do it too?"),
        },
    ),
    _Kind(
        "where to go for {t}",
        {
            "Where can {people} go for {t} {where}?": "places for one group",
            "{t} near {place} train station": "places near the train station",
            "Which part of {place} is best for {t} {limit}?": "the best part of town",
            "{t} {place} wheelchair access": "places with wheelchair access",
            "Which towns within an hour of {place} are known for {t}?": "towns within an hour",
            "addresses for {t} {place} {who}": "addresses",
            "{t} {place} open Sunday": "places open on Sundays",
        },
        {
            "which place": (
                "where to go for {t}", "{t} near me", "Where is the best place for {t}?", "{t} around here",
                "Is there anything good for {t} in that area?", "places for {t}",
                "I am in town for a few days and looking for {t}, so where do I go?", "local {t}",
            ),
            "which aspect matters": ("{t} {place}", "anything about {t} in {place}"),
            "what is meant": ("Where is it?", "How far is it from there?"),
        },
    ),
    _Kind(
        "the right time for {t}",
        {
            "What is the best month for {t} {where} {who}?": "the best month",
            "{t} calendar {place} {year}": "a calendar",
            "When in {year} did interest in {t} peak {where}?": "the peak of interest",
            "How many hours a week do {people} spend on {t}?": "hours a week",
            "waiting time {t} {place} {month}": "the waiting time",
            "Can {people} fit {t} into {span}?": "whether a span is enough",
            "best weekday for {t} {place}": "the best weekday",
        },
        {
            "which date or season": (
                "best time for {t}", "when to start with {t}", "{t} this year", "{t} schedule", "how often {t}",
                "Is it too late for {t} now, or should I still try?", "next {t}",
                "{speaker} missed the date for {t} {past}, so when is the next one?",
            ),
            "which aspect matters": ("{t} {year}", "What was different about {t} {when}?"),
            "what is meant": ("How long does it take?", "When does it start, and do I have to be there early?"),
        },
    ),
    _Kind(
        "first steps with {t}",
        {
            "What should {people} learn first about {t} {limit}?": "what to learn first",
            "beginner classes on {t} {place}": "classes for beginners",
            "Is {span} enough to learn the basics of {t} {limit}?": "time needed for the basics",
            "{t} basics {who}": "the basics",
            "Which free beginner course on {t} starts {where} in {month}?": "a free course for beginners",
            "what to expect of {t} {who} after {span}": "what to expect at the start",
            "Which ten words about {t} should {people} know?": "ten words to know",
        },
        {
            "which aspect matters": (
                "{t}", "tell me about {t}", "{t} for beginners", "I am new to {t}, what do I need to know?",
                "Everyone around me is into {t} lately, so what am I missing?", "about {t}", "{t} {who}",
                "What can you say about {t}?", "introduction to {t}",
            ),
            "what is meant": ("Where do I begin?", "What is it all about?"),
            "which sense of a word": ("{head}", "What do people mean by {head}?"),
        },
    ),
    _Kind(
        "figures on {t}",
        {
            "How many households {where} spent money on {t} {when}?": "the number of households",
            "{t} statistics {place} {year}": "statistics of one year",
            "What share of {people} had an interest in {t} {when}?": "the share of a group",
            "Did spending on {t} rise or fall {where} between {year} and {year2}?": "the trend of spending",
            "survey {t} {people} {year}": "a survey",
            "market size {t} {place}": "the size of the market",
            "Which age group {where} spends most on {t}?": "the age group that spends most",
        },
        {
            "which figure, where or when": (
                "numbers on {t}", "{t} statistics", "Is the interest in {t} going up or down?", "{t} trend",
                "I read some numbers about {t} {past}, were they right?", "{t} average", "recent data on {t}",
                "How many people are there who care about {t}?",
            ),
            "what is meant": ("How many people do this?", "What percentage would be normal for somebody like me?"),
        },
    ),
    _Kind(
        "good sources on {t}",
        {
            "Which book on {t} do librarians {where} recommend {who}?": "a book",
            "podcasts about {t} {who}": "podcasts",
            "best-rated course on {t} {place} {year}": "the best-rated course",
            "Which video channel explains {t} {who} in under ten minutes?": "short videos",
            "free {t} guide PDF {place}": "a free guide as PDF",
            "Who gives free advice on {t} {where} on weekends?": "free advice on weekends",
            "magazine on {t} under {amount} a year": "a magazine within a budget",
        },
        {
            "what kind of source or for what": (
                "{t} ideas", "{t} tips", "{t} advice", "Can you recommend something about {t}?", "{t} information",
                "I am looking for that article on {t} that {speaker} mentioned {past}.", "expert on {t}",
                "I want to read more about {t}, so what is good?", "something like that show about {t}",
            ),
            "what is meant": ("What would you suggest?", "Do you have any more of those?"),
        },
    ),
)
# fmt: on

MAX_INTENTS = len(_KINDS)
"""One intent a kind: cost, how-to, comparison, safety, history, buying, problem, law, place, time, …"""


def write_intents(topic: str, n_intents: int, seed: int) -> list[Intent]:
    """Return `n_intents` different intents of a topic, each with a specific and an ambiguous query.

    The same arguments give the same queries. Within a topic all queries differ; another seed draws other intents,
    patterns and values.

    Raises:
        ValueError: More intents are asked for than there are kinds.
    """
    if not 1 <= n_intents <= MAX_INTENTS:
        raise ValueError(f"the offline rules know 1 to {MAX_INTENTS} intents a topic, {n_intents} were asked for")
    rng = random.Random(derive_seed("ambiguity_rules", topic, seed))
    return [_write_intent(kind, _shorten(topic), rng) for kind in rng.sample(_KINDS, n_intents)]


def _write_intent(kind: _Kind, topic: str, rng: random.Random) -> Intent:
    values = _draw_values(topic, rng)
    pattern, aspect = rng.choice(list(kind.specific.items()))
    named = {name for _, name, _, _ in string.Formatter().parse(pattern) if name}
    constraints = [text.format(**values) for names, text in _CONSTRAINTS if named.intersection(names)]
    specific = Query(
        query=_fill(pattern, values, rng),
        information_need=f"About {topic}: {', '.join([aspect, *constraints])}.",
    )

    vague = [(pattern, missing) for missing, patterns in kind.ambiguous.items() for pattern in patterns]
    weights = [1.0 if "{t}" in pattern or "{head}" in pattern else _TOPICLESS_WEIGHT for pattern, _ in vague]
    pattern, missing = rng.choices(vague, weights)[0]
    ambiguous = Query(
        query=_fill(pattern, _draw_values(topic, rng), rng),
        information_need=f"About {topic}: {kind.intent.format(t='it')}, but the query leaves open {missing}.",
    )
    return Intent(intent=kind.intent.format(t=topic), specific=specific, ambiguous=ambiguous)


def _shorten(topic: str) -> str:
    """Return the topic as it stands inside a sentence, at most `MAX_TOPIC_CHARS` long."""
    short = textwrap.shorten(topic, MAX_TOPIC_CHARS, placeholder="") or topic.strip()[:MAX_TOPIC_CHARS]
    is_plain_word = short.split(" ")[0][1:].islower()  # not "Wi-Fi", "DIY" or "3D printers"
    return short[:1].lower() + short[1:] if is_plain_word else short


def _draw_values(topic: str, rng: random.Random) -> dict[str, str]:
    place, place2 = rng.sample(_PLACES, 2)
    year, year2 = sorted(rng.sample(range(2012, 2026), 2))
    people = rng.choice(_PEOPLE)
    return {
        "t": topic,
        "head": topic.split(" ")[-1],
        "place": place,
        "where": f"in {place}",
        "place2": place2,
        "year": str(year),
        "when": f"in {year}",
        "year2": str(year2),
        "decade": str(rng.randrange(1920, 1990, 10)),
        "month": rng.choice(_MONTHS),
        "people": people,
        "who": f"for {people}",
        "limit": rng.choice(_LIMITS),
        "span": rng.choice(_SPANS),
        "amount": rng.choice(_AMOUNTS),
        "speaker": rng.choice(_SPEAKERS),
        "past": rng.choice(_TIMES_PAST),
    }


def _fill(pattern: str, values: dict[str, str], rng: random.Random) -> str:
    """Return a filled pattern as somebody would type it: keywords, a sentence, or a sentence without care."""
    query = pattern.format(**values)
    if query.endswith(("?", ".")):
        opener = rng.choice(_OPENERS) if rng.random() < _OPENER_SHARE else ""
        query = opener + query[0].upper() + query[1:]
    return query.lower().rstrip("?.") if rng.random() < _CASUAL_SHARE else query
