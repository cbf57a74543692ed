"""Pages: escaping, tables, files that are replaced and files that are not."""

import html
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from browser_helpers import Reader, browser, check_everywhere
from vitrail.errors import UserError
from vitrail.report.charts import Series, heat_map, line_chart
from vitrail.report.html import (
    Html,
    Section,
    captioned,
    check_page,
    escaped,
    facts,
    gallery,
    image,
    note,
    number,
    page,
    table,
    tag,
    write_page,
)

#: what a stranger may call a class or a file
HOSTILE = (
    "<script>alert(1)</script>",
    "</style><img src=x onerror=alert(2)>",
    "a\"b'c` onclick=alert(3) d='",
    "&lt;b&gt; &amp; &#60;",
    "photo‮gnp.exe",
    "猫 😀 ك",
    "]]> --> <!-- ",
    "x" * 400,
)


def hostile_page() -> str:
    links = heat_map(
        [[1, 2], [0, 3]], HOSTILE[0], rows=HOSTILE[:2], columns=HOSTILE[2:4], link=lambda i, j: f"cell-{i}-{j}"
    )
    cells = [tag("div", tag("h3", HOSTILE[0]), id=f"cell-{i}-{j}", class_="detail") for i in (0, 1) for j in (0, 1)]
    pictures = [captioned(image(Image.new("RGB", (300, 200), "red"), name), name) for name in HOSTILE]
    body = [
        Section(HOSTILE[0], [links, cells]),
        Section("Curves", line_chart([Series(name, [0, 1, 2], [3, None, 1]) for name in HOSTILE], HOSTILE[1])),
        Section("Table", table(["name", "value"], [[n, len(n)] for n in HOSTILE], caption=HOSTILE[2])),
        Section("Images", [gallery(pictures), note(*HOSTILE), facts([(HOSTILE[2], HOSTILE[0])])]),
    ]
    return page(HOSTILE[0], body)


class Elements(HTMLParser):
    def __init__(self):
        super().__init__()
        self.names, self.attributes, self.texts = [], [], []

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.texts.append(data)


@pytest.mark.parametrize("text", HOSTILE)
def test_text_is_text(text):
    written = escaped(text)
    assert not set("<>\"'") & set(written)
    shown = html.unescape(written)
    assert shown == text.replace("‮", "\\u202e")


def test_only_html_is_markup():
    assert tag("p", "<b>", Html("<b>x</b>"), 3, None, ["&", 1.5], id='"').markup == (
        '<p id="&quot;">&lt;b&gt;<b>x</b>3&amp;1.5</p>'
    )


@pytest.mark.parametrize(
    "attributes",
    [{"href": "https://a.b"}, {"src": "x.png"}, {"href": "javascript:x"}, {"onclick": "x"}, {"style": "x"}],
)
def test_nothing_leads_out_of_the_page(attributes):
    with pytest.raises(AssertionError):
        tag("a", "x", **attributes)


def test_hostile_names_add_no_elements():
    read, plain = Elements(), Elements()
    read.feed(hostile_page())
    plain.feed(page("a", []))
    assert read.names.count("script") == plain.names.count("script") == 1
    assert not [name for name, _ in read.attributes if name.startswith("on")]
    assert all(value.startswith(("#", "data:image/")) for name, value in read.attributes if name in ("src", "href"))
    assert "".join(read.texts).count("<script>alert(1)</script>") > 5


def test_a_page_is_the_same_each_time():
    assert hostile_page() == hostile_page()


def test_policy_allows_nothing_external():
    policy = html.unescape(re.search(r'Content-Security-Policy" content="([^"]*)"', hostile_page()).group(1))
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy
    assert "http" not in policy


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (1234567, 2, "1,234,567"),
        (0.5, 2, "0.50"),
        (-1234.567, 1, "−1,234.6"),
        (0.0004, 2, "4.0e−04"),
        (0.0, 2, "0.00"),
        (None, 2, "–"),
        (float("nan"), 2, "not a number"),
        (float("-inf"), 2, "−∞"),
    ],
)
def test_number(value, digits, text):
    assert number(value, digits) == text


def test_images_are_bounded():
    photo = Image.effect_noise((3000, 2000), 80).convert("RGB")
    assert 'width="160" height="107"' in image(photo, "").markup
    assert len(image(photo, "").markup) < 20_000
    assert 'class="tiny"' in image(Image.new("L", (8, 8)), "").markup


# ---- files ------------------------------------------------------------------------------------------------------


def test_a_page_replaces_only_an_unchanged_page(tmp_path):
    file = check_page(tmp_path / "a.html")
    write_page(file, page("one", []))
    write_page(check_page(file), page("two", []))
    assert "two" in file.read_text()
    file.write_text(file.read_text().replace("two", "three"))
    with pytest.raises(UserError, match="was changed since"):
        check_page(file)
    file.write_text("<html>mine</html>")
    with pytest.raises(UserError, match="not written by vitrail"):
        check_page(file)


def test_refused_outputs(tmp_path):
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "link.html").symlink_to(tmp_path / "nowhere")
    for name, reason in (
        ("a.txt", "must end in .html"),
        ("none/a.html", "there is no folder"),
        ("folder.html", "no regular file"),
        ("link.html", "no regular file"),
    ):
        with pytest.raises(UserError, match=reason):
            check_page(tmp_path / name)


# ---- in the browser ---------------------------------------------------------------------------------------------


def test_kit_in_the_browser(tmp_path):
    file = tmp_path / "page.html"
    write_page(file, hostile_page())
    with browser() as started:
        check_everywhere(started, file)
        reader = Reader(started, file)
        assert reader.page.title() == HOSTILE[0]
        cell = reader.page.locator("#cell-1-1")
        assert not cell.is_visible()
        reader.page.click("a[href='#cell-1-1']")
        assert cell.is_visible()
        # sorted by the column, in both directions
        first = "table.sortable tbody tr:first-child th"
        reader.page.click("table.sortable thead th:nth-child(2) button")
        assert reader.page.inner_text(first) == min(HOSTILE, key=len)
        reader.page.click("table.sortable thead th:nth-child(2) button")
        assert reader.page.inner_text(first).startswith("xxx")
        back = "getComputedStyle(document.body).backgroundColor"
        light = reader.page.evaluate(back)
        reader.page.click("#theme")
        assert reader.page.evaluate(back) != light
        assert reader.trouble == []
        without = Reader(started, file, "phone", script=False)
        without.page.click("a[href='#cell-1-1']")
        assert without.page.locator("#cell-1-1").is_visible()
        assert not without.page.locator("#theme").is_visible()


def test_unknown_values_are_sorted_last(tmp_path):
    file = tmp_path / "page.html"
    rows = [["a", 2.0], ["b", None], ["c", -1.0], ["d", 10.0]]
    write_page(file, page("t", [Section("s", table(["name", "value"], rows))]))
    with browser() as started:
        reader = Reader(started, file)
        for order in ("cadb", "dacb"):
            reader.page.click("table.sortable thead th:nth-child(2) button")
            assert "".join(reader.page.locator("table.sortable tbody th").all_inner_texts()) == order
        assert reader.trouble == []
