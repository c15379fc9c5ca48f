"""Tests that text stays text in Markdown, as a CommonMark parser reads it."""

import pytest
from markdown_it import MarkdownIt

from vlcp_ray.exports.markdown import code, fenced, text

HOSTILE = (
    "a\n# heading",
    "# heading",
    "<script>alert(1)</script>",
    "a <b onclick='x'> & c",
    "![x](http://h/i.png) [l](http://h)",
    "**bold** _it_ ~~s~~ `c`",
    "snake_case __init__ _a_b_",
    "- item",
    "1. item",
    "===",
    "---",
    "> quote",
    "a | b",
    "```\n\n# heading\n",
    "</details>",
    "a\u2028# heading\r# x",
    "back\\slash",
    "``` ` ```` x",
    "`",
    "&lt;b&gt; &amp;",
)


@pytest.mark.parametrize("value", HOSTILE)
def test_text_is_one_paragraph_with_the_same_words(value: str) -> None:
    tokens = MarkdownIt("commonmark").parse(text(value))
    assert [token.type for token in tokens] == ["paragraph_open", "inline", "paragraph_close"]
    (inline,) = [token.children or [] for token in tokens if token.type == "inline"]
    assert {token.type for token in inline} <= {"text", "text_special"}
    assert "".join(token.content for token in inline) == " ".join(value.split())


@pytest.mark.parametrize("unseen", ["\u202e", "\u061c", "\u200b", "\ufeff", "\x1b", "\u2028"])
def test_text_and_code_have_no_unseen_characters(unseen: str) -> None:
    assert text(f"a{unseen}b") == "a b"
    assert code(f"a{unseen}b") == "`a b`"


@pytest.mark.parametrize("value", HOSTILE)
def test_code_is_one_span_with_the_same_words(value: str) -> None:
    (inline,) = [t.children or [] for t in MarkdownIt("commonmark").parse(f"x {code(value)} y") if t.type == "inline"]
    (span,) = [token for token in inline if token.type == "code_inline"]
    assert [token.type for token in inline] == ["text", "code_inline", "text"]
    assert span.content.strip() == " ".join(value.split())


@pytest.mark.parametrize("value", [*HOSTILE, "a\n```\n# b\n`````\nc"])
def test_fenced_block_ends_after_its_content(value: str) -> None:
    tokens = MarkdownIt("commonmark").parse(f"{fenced(value, 'json')}\n\nafter")
    assert [token.type for token in tokens] == ["fence", "paragraph_open", "inline", "paragraph_close"]
    assert tokens[0].content.strip("\n").replace("\r", "\n") == value.strip("\n").replace("\r", "\n")
