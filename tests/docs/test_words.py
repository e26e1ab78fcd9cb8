"""Prose in the field's terms: words of our own making must not come back."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = [
    ROOT / "README.md",
    # The changelog names what was.
    *(page for page in sorted((ROOT / "docs").glob("*.md")) if page.name != "changelog.md"),
    *sorted((ROOT / "augsubset").rglob("*.py")),
]
# Add a line for a word that should not be used, and what to write instead.
AVOIDED = {
    r"\b([Uu]nr|[Rr])esolved\b": "significant, no significant difference",
    r"\b[Tt]old (apart|from)\b": "differ significantly",
    r"\b[Ii]n force\b": "active",
    r"\bas old\b": "re-drawn equally often",
    r"\b[Ii]n small\b(?! (experiment|batch))": "in small experiments",
    r"\bseats?\b": "class quota",
    r"\bdealt\b": "assigned",
    r"to the bit\b": "bit-identical",
    r"\bwhom\b": "name it",
    r"\bmade no numbers\b": "not finite",
    r"waits? for ever": "timeout",
    r"\banybody\b": "any example",
    r"\b(are|is) theirs\b|\btheirs to\b": "say who decides",
    r"\bgo(es)? on from\b": "continue from",
    r"\b[Hh](eld|olds?) (it |them )?against\b": "compare with",
    r"\bbounds? from (below|above)\b": "lower bound, upper bound",
    r"\bis no DataLoader\b": "is not a DataLoader",
    r"\bwaits? for nobody\b": "does not wait for other ranks",
    r"\bin vain\b": "timed out",
    r"\bwithout a word\b": "silently",
    r"\bstands? for the (data|whole|set)\b": "represent",
    r"\bsomething else than\b": "something other than",
    r"\bWhose semantics\b": "Semantics",
}


def find_avoided(text: str) -> list[str]:
    text = re.sub(r"<!-- [\w ]+ -->.*?<!-- end -->", "", text, flags=re.DOTALL)
    words = " ".join(re.sub(r"[*`_]|\n\s*#", " ", text).split())
    return [
        f"{found.group()!r}: write {instead!r}"
        for pattern, instead in AVOIDED.items()
        for found in re.finditer(pattern, words)
    ]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_words_of_our_own_are_not_used(path):
    assert find_avoided(path.read_text()) == []


def test_a_word_is_found_across_lines_and_emphasis():
    text = "The two are *not told\napart*.\n<!-- table -->\nunresolved\n<!-- end -->\n"
    assert find_avoided(text) == ["'told apart': write 'differ significantly'"]
