"""Listings as servers write them, by hand: what is an entry, what is none, and what no page may do."""

from __future__ import annotations

import json
import logging
import random
import time
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pyfusekit.fs.httpfs import listing
from pyfusekit.fs.httpfs.listing.base import page_of
from pyfusekit.fs.httpfs.listing.fields import any_ns, http_ns, iso_ns, row_fields
from pyfusekit.fs.httpfs.listing.html import DRIVERS
from pyfusekit.fs.httpfs.listing.tags import Links
from pyfusekit.fs.httpfs.values import Entry, Listing

URL = "http://host/dir/"
SECOND = 1_000_000_000
NOON = 1_795_435_200 * SECOND
"""2026-11-23 12:00:00 UTC."""


def found(
    body: str | bytes,
    content_type: str = "text/html",
    url: str = URL,
    *,
    external: bool = False,
    lines: list[str] | None = None,
) -> Listing | None:
    """Return what the body is; what is left out goes to *lines*, and without them nothing may be."""
    told: list[str] = []
    data = body.encode("utf-8", "surrogateescape") if isinstance(body, str) else body
    answer = listing.parse(url, content_type, data, external=external, skipped=(told if lines is None else lines).append)
    assert told == []
    return answer


def entries(*arguments: Any, **more: Any) -> dict[str, Entry]:
    answer = found(*arguments, **more)
    assert answer is not None
    names = [entry.name for entry in answer.entries]
    assert len(set(names)) == len(names)
    return {entry.name: entry for entry in answer.entries}


def urls(*hrefs: str, url: str = URL, external: bool = False, lines: list[str] | None = None) -> dict[str, str]:
    """Return the names and URLs of a page of these links."""
    page = "".join(f'<a href="{href}">text</a>' for href in (*hrefs, "probe"))
    answer = entries(page, url=url, external=external, lines=lines)
    answer.pop("probe")
    return {name: entry.url for name, entry in answer.items()}


# What is an entry


def test_a_relative_link_is_an_entry() -> None:
    assert urls("a", "./b", "c/", "%64", "e%20f") == {
        "a": "http://host/dir/a",
        "b": "http://host/dir/b",
        "c": "http://host/dir/c/",
        "d": "http://host/dir/%64",
        "e f": "http://host/dir/e%20f",
    }


@pytest.mark.parametrize(
    "href",
    ["/dir/a", "//host/dir/a", "http://host/dir/a", "HTTP://HOST:80/dir/a", "../dir/a", "x/../a", "/%64ir/a", "a#part", " a\n"],
)
def test_other_ways_to_the_same_place_are_the_same_entry(href: str) -> None:
    assert urls(href) == {"a": "http://host/dir/a"}


@pytest.mark.parametrize(
    "href",
    [
        *(
            "",
            "#top",
            "?C=N;O=D",
            "?sort=name&amp;order=asc",
            "./?C=M",
            "/dir/?C=S;O=A",
            ".",
            "./",
            "/dir/",
            "/dir",
            "..",
            "../",
            "/",
        ),
        *(
            "/other/a",
            "/dirt/a",
            "../a",
            "javascript:go()",
            "mailto:me@host",
            "data:,x",
            "ftp://host/dir/a",
            "http:a",
            "//",
            "http://[x/",
        ),
        *("https://host/dir/a", "http://host:81/dir/a", "http://other/dir/a", "//other/dir/a", "http://host.other/dir/a"),
    ],
)
def test_what_leads_elsewhere_is_no_entry(href: str) -> None:
    assert urls(href) == {}


def test_another_port_is_another_origin_and_the_same_port_is_not() -> None:
    assert urls("http://host:8080/dir/a", url="http://host:8080/dir/") == {"a": "http://host:8080/dir/a"}
    assert urls("//[::1]:80/dir/a", "//[::1]:81/dir/b", url="http://[::1]/dir/") == {"a": "http://[::1]/dir/a"}


def test_links_to_other_hosts_are_entries_when_asked_for() -> None:
    assert urls("http://other/x/a.iso", "https://other/", "//third/y/", external=True) == {
        "a.iso": "http://other/x/a.iso",
        "y": "http://third/y/",
    }


def test_credentials_in_a_link_are_not_kept() -> None:
    assert urls("http://user:word@host/dir/a") == {"a": "http://host/dir/a"}


def test_a_query_stays_in_the_url_and_is_not_in_the_name() -> None:
    assert urls("a?sig=x%26y&amp;v=1") == {"a": "http://host/dir/a?sig=x%26y&v=1"}


def test_a_link_that_leads_deeper_says_that_there_is_a_directory() -> None:
    assert urls("a/b/c", "d/e", "/dir/f/g/") == {
        "a": "http://host/dir/a/",
        "d": "http://host/dir/d/",
        "f": "http://host/dir/f/",
    }
    assert urls("a/b/c", "a") == {"a": "http://host/dir/a"}


def test_a_name_that_comes_twice_is_one_entry() -> None:
    assert urls("a", "a/") == {"a": "http://host/dir/a/"}
    assert urls("a/", "a") == {"a": "http://host/dir/a/"}
    assert urls("b?v=1", "b", "b?v=2") == {"b": "http://host/dir/b"}
    assert urls("%63", "c") == {"c": "http://host/dir/%63"}
    (entry,) = entries('<a href="x"><img></a> <a href="x">x</a> 23-Nov-2026 12:00 17').values()
    assert (entry.size, entry.mtime_ns) == (17, NOON)


def test_base_is_what_links_are_relative_to() -> None:
    assert set(entries('<base href="/dir/"><a href="a">', url="http://host/dir/")) == {"a"}
    assert found('<base href="/elsewhere/"><a href="a">', url="http://host/dir/") is None
    assert set(entries('<base href="/"><a href="dir/a"><a href="a">')) == {"a"}


def test_bytes_that_are_no_utf_8_survive_in_names() -> None:
    assert urls("%FF%fe", "caf%E9", "\udce9") == {
        "\udcff\udcfe": "http://host/dir/%FF%fe",
        "caf\udce9": "http://host/dir/caf%E9",
        "\udce9": "http://host/dir/%E9",
    }


def test_what_is_not_encoded_is() -> None:
    assert urls("a b", "é", "100%", "%zz", "a|b") == {
        "a b": "http://host/dir/a%20b",
        "é": "http://host/dir/%C3%A9",
        "100%": "http://host/dir/100%25",
        "%zz": "http://host/dir/%25zz",
        "a|b": "http://host/dir/a%7Cb",
    }


def test_a_page_in_another_charset_is_read_in_it() -> None:
    page = '<a href="é">x</a>'
    for charset in ("iso-8859-1", "utf-8", "UTF-8", '"windows-1252"', "utf-16", "nonsense", "zip", "utf-7"):
        codec = charset.strip('"') if charset not in ("nonsense", "zip", "utf-7") else "utf-8"
        answer = found(page.encode(codec), f"text/html; charset={charset}")
        assert answer is not None
        assert answer.entries == [Entry("é", "http://host/dir/%C3%A9", False)], charset


@pytest.mark.parametrize(
    ("href", "why"),
    [
        ("a%2Fb", "slash"),
        ("%2f", "slash"),
        ("a%00", "NUL"),
        ("%2e%2E", "no name"),
        ("%2E", "no name"),
        ("//host/dir//a", "no name"),
        ("x" * 256, "255 bytes"),
        ("%C3%A9" * 128, "255 bytes"),
    ],
)
def test_what_cannot_be_a_name_is_left_out_with_a_line(href: str, why: str) -> None:
    lines: list[str] = []
    assert urls(href, lines=lines) == {}
    (line,) = lines
    assert why in line
    assert line.isprintable()
    assert len(line) < 200


def test_names_may_be_anything_else() -> None:
    names = {"x" * 255: "x" * 255, "new\nline": "new%0Aline", "a%2Fb": "a%252Fb", "...": "...", "..x": "..x", "\\": "%5C"}
    assert set(urls(*names.values())) == set(names)


def test_a_page_of_bad_names_is_a_few_lines(caplog: pytest.LogCaptureFixture) -> None:
    page = '<a href="good">' + "".join(f'<a href="{number}%2Fx">' for number in range(10_000))
    with caplog.at_level(logging.WARNING, "pyfusekit.httpfs"):
        answer = listing.parse(URL, "text/html", page.encode())
    assert answer is not None
    assert [entry.name for entry in answer.entries] == ["good"]
    assert len(caplog.messages) == 9
    assert "9992 more" in caplog.messages[-1]


# Rows


@pytest.mark.parametrize(
    ("tail", "fields"),
    [
        ("   23-Nov-2026 12:00      1234\r\n", (NOON, 1234, True)),
        ("   23-Nov-2026 12:00      -\r\n", (NOON, None, False)),
        ("  2026-11-23 12:00  1.2K  some text", (NOON, 1228, False)),
        ("  2026-11-23 12:00   17   ", (NOON, 17, True)),
        ("/ 2026-Nov-23 12:00:00 - \xa0 Directory", (NOON, None, False)),
        ("2026-Nov-23 12:00:00 117.7M application/zip", (NOON, 123417395, False)),
        ("2026-11-23 12:00 5 MB", (NOON, 5 << 20, False)),
        ("2026-11-23 12:00 1.5 GiB", (NOON, 3 << 29, False)),
        ("1.2K", (None, 1228, False)),
        ("2026-02-30 12:00 5", (None, None, False)),
        ("2026-11-23 99:99 5", ((NOON // SECOND - 43200 + 99 * 3660) * SECOND, 5, True)),
        ("99999999999999999999", (None, None, False)),
        ("9999999999999999999E", (None, None, False)),
        ("2026-11-23 12:00 1.5", (NOON, None, False)),
        ("a file of 12 bytes", (None, None, False)),
        ("", (None, None, False)),
        ("/", (None, None, False)),
        ("²-¹-³ ¹²:³⁴ ²", (None, None, False)),
    ],
)
def test_what_stands_behind_a_link_is_read(tail: str, fields: tuple[int | None, int | None, bool]) -> None:
    assert row_fields(tail) == fields


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("2026-11-23T12:00:00Z", NOON),
        ("2026-11-23T13:00:00+01:00", NOON),
        ("2026-11-23T12:00:00.123456789Z", NOON + 123456789),
        ("2026-11-23 12:00:00", NOON),
        (" 2026-11-23T12:00:00Z ", NOON),
        ("Mon, 23 Nov 2026 12:00:00 GMT", NOON),
        ("Mon, 23 Nov 2026 13:00:00 +0100", NOON),
        (NOON // SECOND, NOON),
        (NOON // 1_000_000, NOON),
        (NOON / SECOND + 0.5, NOON + SECOND // 2),
        ("9999-12-31T23:59:59Z", None),
        ("1900-01-01T00:00:00Z", None),
        ("2026-13-45T99:99:99Z", None),
        ("yesterday", None),
        ("", None),
        (True, None),
        (float("nan"), None),
        (float("inf"), None),
        (10**400, None),
        (-1, None),
        ([], None),
    ],
)
def test_times_are_read(value: object, expected: int | None) -> None:
    assert any_ns(value) == expected


@given(st.text(alphabet="0123456789-:TZ.+ GMTNovKMB,²é\udcff", max_size=40))
def test_no_text_breaks_the_reading_of_times_and_sizes(text: str) -> None:
    for time_ns in (iso_ns(text), http_ns(text), row_fields(text)[0], row_fields(text)[1]):
        assert time_ns is None or 0 <= time_ns < 1 << 63


# HTML


def test_nginx_names_are_in_the_links() -> None:
    page = (
        "<html>\r\n<head><title>Index of /dir/</title></head>\r\n<body>\r\n<h1>Index of /dir/</h1><hr><pre>"
        '<a href="../">../</a>\r\n'
        '<a href="a-name-that-is-very-long-and-goes-on-and-on-and-on.iso">a-name-that-is-very-long-and-goes-on-..&gt;</a> '
        "23-Nov-2026 12:00           123456789\r\n"
        '<a href="sub/">sub/</a>                 23-Nov-2026 12:00                   -\r\n</pre><hr></body>\r\n</html>\r\n'
    )
    answer = found(page)
    assert answer == Listing(
        [
            Entry(
                "a-name-that-is-very-long-and-goes-on-and-on-and-on.iso",
                "http://host/dir/a-name-that-is-very-long-and-goes-on-and-on-and-on.iso",
                False,
                123456789,
                True,
                NOON,
            ),
            Entry("sub", "http://host/dir/sub/", True, None, False, NOON),
        ],
        "",
        "nginx",
    )


def test_apache_descriptions_are_not_sizes() -> None:
    page = (
        '<!DOCTYPE HTML PUBLIC "-//W3C//DTD HTML 3.2 Final//EN">\n<html>\n <head>\n  <title>Index of /dir</title>\n </head>\n'
        ' <body>\n<h1>Index of /dir</h1>\n<pre><img src="/icons/blank.gif" alt="Icon "> <a href="?C=N;O=D">Name</a> '
        '<a href="?C=M;O=A">Last modified</a> <a href="?C=S;O=A">Size</a> <a href="?C=D;O=A">Description</a><hr>'
        '<img src="/icons/back.gif" alt="[PARENTDIR]"> <a href="/">Parent Directory</a>                             -   \n'
        '<img src="/icons/compressed.gif" alt="[   ]"> <a href="a.gz">a.gz</a>   2026-11-23 12:00  512   12 monkeys\n'
        '<img src="/icons/unknown.gif" alt="[   ]"> <a href="b">b</a>   2026-11-23 12:00  1.0M  \n<hr></pre>\n'
        "<address>Apache/2.4.71 (Debian) Server at host Port 80</address>\n</body></html>\n"
    )
    answer = found(page)
    assert answer is not None
    assert answer.driver == "apache"
    assert answer.entries == [
        Entry("a.gz", "http://host/dir/a.gz", False, 512, True, NOON),
        Entry("b", "http://host/dir/b", False, 1 << 20, False, NOON),
    ]


def test_newer_caddy_tells_exact_sizes_in_attributes() -> None:
    row = (
        '<tr class="file"><td></td><td><a href="./a%20b"><svg><use href="#f"></use></svg> <span class="n">a b</span></a></td>'
        '<td class="size" data-size="1234"><div class="sizebar"><div class="sizebar-text">1.2 KiB</div></div></td>'
        '<td class="timestamp hideable"><time datetime="2026-11-23T12:00:00Z">11/23/2026 12:00:00 PM +00:00</time></td></tr>'
    )
    page = f'<!DOCTYPE html><html><body onload="initPage()"><svg id="folder-shortcut"></svg><table>{row}</table></body></html>'
    answer = found(page)
    assert answer is not None
    assert answer.driver == "caddy"
    assert answer.entries == [Entry("a b", "http://host/dir/a%20b", False, 1234, True, NOON)]


def test_any_page_that_links_below_itself_is_a_listing_at_the_url_of_a_directory() -> None:
    page = '<html><p>Our files: <a href=one.zip>one</a> 5 files, <A HREF=\'two.zip\' title="x>y">two</A><!-- <a href="no"> -->'
    answer = found(page)
    assert answer is not None
    assert answer.driver == "links"
    # Digits behind a link in a page of unknown make are a hint at most.
    assert [(entry.name, entry.exact) for entry in answer.entries] == [("one.zip", False), ("two.zip", False)]
    assert found(page, url="http://host/dir/page") is None
    assert found("<html><p>Welcome. <a href='http://other/'>x</a>") is None


def test_scripts_and_comments_have_no_links() -> None:
    hidden = '<a href="hidden">x</a>'
    for before, after in (("<script>", "</script>"), ("<!--", "-->"), ("<style>", "</style>"), ("<?php ", ">"), ("<!x ", ">")):
        assert "hidden" not in entries(f'{before}{hidden}{after}<a href="seen">y</a>'.replace('"hidden">x', '"hidden"')), before


TAGS = st.sampled_from(
    [
        *(
            '<a href="x">',
            '<a href="y&amp;z/">',
            "<a href='q'>",
            "<a href=r>",
            "<a>",
            "</a>",
            '<A HREF="u">',
            '<a href="1" href="2">',
        ),
        *(
            "<td>",
            "</td>",
            "<tr>",
            "</tr>",
            "<br/>",
            "<hr>",
            '<img src="a>b" alt="[   ]">',
            '<td data-order="12">',
            "<td data-order=13>",
        ),
        *(
            '<time datetime="2026-11-23T12:00:00Z">',
            "</time>",
            '<base href="/dir/">',
            "<!-- ",
            " -->",
            "<script>",
            "</script>",
            "<title>",
        ),
        *(
            "</title>",
            "<",
            ">",
            '"',
            "'",
            "&lt;",
            "&",
            "<3",
            "< a>",
            "</ a>",
            "<a",
            "<!",
            "<?x>",
            "\n",
            " 23-Nov-2026 12:00 ",
            " 1234 ",
        ),
        *(
            "text",
            '<a title="t" href="v w" class=c>',
            '<a href="t"class="c">',
            '<a href = "s">',
            '<td class="s">',
            "<div x>",
            "é",
        ),
    ]
)


def told(body: str, *, plain: bool) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    links = Links(
        lambda href, tail, size, time: rows.append((href, " ".join(tail.replace("&lt;", "<").split())[:20], size, time)),
        lambda href: rows.append((href,)),
        plain=plain,
    )
    rows.append((str(links.read(page_of(URL, "text/html", body.encode()))),))
    return rows


@settings(max_examples=300, deadline=None)
@given(st.lists(TAGS, max_size=25).map("".join))
@example('<a><a<a href="x">')
@example("<a title='\"' href=\"z\" class='\"'>")
def test_reading_plain_tags_apart_makes_no_difference(body: str) -> None:
    assert told(body, plain=True) == told(body, plain=False)


# JSON


@pytest.mark.parametrize("wrap", [lambda rows: rows, lambda rows: {"files": rows}, lambda rows: {"path": "/", "entries": rows}])
def test_json_lists_are_listings(wrap: Any) -> None:
    rows = [
        "a",
        "b c",
        "d/",
        "e%41",
        "http://host/dir/f%20g",
        {"name": "h", "size": 3, "modified": "2026-11-23T12:00:00Z"},
        {"path": "i"},
    ]
    answer = entries(json.dumps(wrap(rows)), "application/json")
    assert {name: entry.url.removeprefix(URL) for name, entry in answer.items()} == {
        "a": "a",
        "b c": "b%20c",
        "d": "d/",
        "e%41": "e%2541",
        "f g": "f%20g",
        "h": "h",
        "i": "i",
    }
    assert answer["d"].is_dir
    assert answer["h"][3:6] == (3, True, NOON)


def test_json_hashes_are_kept_when_they_are_some() -> None:
    rows = [
        {"name": "a", "sha256": "AB" * 32, "md5": "nonsense", "url": "https://host/dir/a"},
        {"name": "b", "sha1": 5, "type": "dir"},
    ]
    lines: list[str] = []
    answer = entries(json.dumps(rows), "application/json", url="https://host/dir/", lines=lines)
    assert answer["a"].hashes == (("sha256", "ab" * 32),)
    assert answer["b"].is_dir


@pytest.mark.parametrize(
    "body",
    ["{}", "[1, 2]", '[{"x": 1}]', "5", '"text"', "", "[", '{"files": 1}', "[" * 100_000, "[" + "9" * 5000 + "]", "\udcff"],
)
def test_other_json_is_no_listing(body: str) -> None:
    assert found(body, "application/json", lines=[]) is None


def test_json_that_is_a_file_is_no_listing() -> None:
    assert found('["a"]', "application/json", url="http://host/dir/data") is None
    assert set(entries('["a"]', "application/json", url="http://host/dir/index.json")) == {"a"}


def test_json_names_cannot_leave_the_directory() -> None:
    names = ["../up", "/etc/passwd", "a/b", "..", ".", "", "nul\0", "\ud800", "x" * 300]
    lines: list[str] = []
    assert entries(json.dumps([*names, "good"]), "application/json", lines=lines).keys() == {"good"}
    assert len(lines) == 9
    rows = [{"name": name, "url": "http://host/dir/x"} for name in names if name] + [{"name": "far", "url": "http://other/x"}]
    assert entries(json.dumps([*rows, "good"]), "application/json", lines=lines).keys() == {"good"}


# XML

LAUGHS = (
    '<?xml version="1.0"?><!DOCTYPE l [<!ENTITY a "ha">'
    + "".join(f'<!ENTITY a{n} "{f"&a{n - 1 if n else str()};" * 10}">' for n in range(12))
    + "]>"
)


@pytest.mark.parametrize("root", ["list", "multistatus", "ListBucketResult", "metalink"])
@pytest.mark.parametrize("content_type", ["text/xml", "application/xml", "application/metalink4+xml"])
def test_a_billion_laughs_are_refused_at_once(root: str, content_type: str) -> None:
    start = time.process_time()
    assert found(f"{LAUGHS}<{root}><file>&a11;</file></{root}>", content_type) is None
    assert found(f"<!DOCTYPE {root}><{root}><file>x</file></{root}>", content_type) is None
    assert time.process_time() - start < 1


def test_nginx_xml_survives_what_xml_cannot_have() -> None:
    page = (
        b'<?xml version="1.0"?>\r\n<list>\r\n<file mtime="2026-11-23T12:00:00Z" size="5">a&amp;\x01\xff</file>\r\n'
        b"<directory>d</directory></list>"
    )
    assert entries(page, "text/xml") == {
        "a&\x01\udcff": Entry("a&\x01\udcff", "http://host/dir/a%26%01%FF", False, 5, True, NOON),
        "d": Entry("d", "http://host/dir/d/", True),
    }


@pytest.mark.parametrize(
    "body",
    [
        "<list>",
        "<list><file>a</list>",
        "<list>" + "<x>" * 100,
        "<rss></rss>",
        "",
        "<",
        '<?xml version="1.0" encoding="x"?><list/>',
    ],
)
def test_other_xml_is_no_listing(body: str) -> None:
    assert found(body, "text/xml") is None


S3 = '<?xml version="1.0" encoding="UTF-8"?>\n<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>b</Name>'


def key(name: str, size: int = 7) -> str:
    return (
        f"<Contents><Key>{name}</Key><LastModified>2026-11-23T12:00:00.000Z</LastModified><ETag>&quot;e&quot;</ETag>"
        f"<Size>{size}</Size><Owner><ID>x</ID></Owner></Contents>"
    )


def test_a_bucket_is_asked_again_by_directories() -> None:
    page = f"{S3}<Prefix></Prefix><IsTruncated>true</IsTruncated>{key('a/b/c')}</ListBucketResult>"
    answer = found(page, "application/xml", "http://host/bucket/")
    assert answer == Listing([], "http://host/bucket/?list-type=2&delimiter=/&encoding-type=url&prefix=", "s3")
    answer = found(page.replace("<Prefix>", "<Prefix>x y/"), "application/xml", "http://host/bucket?prefix=x+y/")
    assert answer is not None
    assert answer.next_url == "http://host/bucket/?list-type=2&delimiter=/&encoding-type=url&prefix=x%20y/"


def test_s3_pages_are_read_to_the_last() -> None:
    url = "http://host/bucket/?list-type=2&delimiter=/&encoding-type=url&prefix=d/"
    page = (
        f"{S3}<Prefix>d/</Prefix><Delimiter>/</Delimiter><EncodingType>url</EncodingType><IsTruncated>true</IsTruncated>"
        f"<NextContinuationToken>t+/=&amp;</NextContinuationToken>{key('d/')}{key('d/a+b%2Bc')}{key('d/%FF', 8)}"
        "<CommonPrefixes><Prefix>d/sub+dir/</Prefix></CommonPrefixes></ListBucketResult>"
    )
    answer = found(page, "application/xml", url)
    assert answer is not None
    assert answer.entries == [
        Entry("a b+c", "http://host/bucket/d/a%20b%2Bc", False, 7, True, NOON, '"e"'),
        Entry("\udcff", "http://host/bucket/d/%FF", False, 8, True, NOON, '"e"'),
        Entry("sub dir", "http://host/bucket/?list-type=2&delimiter=/&encoding-type=url&prefix=d/sub%20dir/", True),
    ]
    token = "continuation-token=t%2B/%3D%26"
    assert answer.next_url == f"http://host/bucket/?list-type=2&delimiter=/&encoding-type=url&{token}&prefix=d/"
    last = page.replace("<IsTruncated>true", "<IsTruncated>false")
    answer = found(last, "application/xml", answer.next_url)
    assert answer is not None
    assert (len(answer.entries), answer.next_url) == (3, "")


@pytest.mark.parametrize(
    ("query", "extra", "following"),
    [
        ("?delimiter=/", "<NextMarker>b/</NextMarker>", "?delimiter=/&marker=b/"),
        ("?delimiter=/", "", "?delimiter=/&marker=b/"),
        ("?list-type=2&delimiter=/", "", "?list-type=2&delimiter=/&start-after=b/"),
        ("?delimiter=/&marker=a&max-keys=2", "", "?delimiter=/&max-keys=2&marker=b/"),
    ],
)
def test_s3_pages_of_the_first_version_go_on_at_a_marker(query: str, extra: str, following: str) -> None:
    page = (
        f"{S3}<Prefix/><Delimiter>/</Delimiter><IsTruncated>true</IsTruncated>{extra}{key('a')}"
        "<CommonPrefixes><Prefix>b/</Prefix></CommonPrefixes></ListBucketResult>"
    )
    answer = found(page, "text/xml", f"http://host/{query}")
    assert answer is not None
    assert answer.next_url == f"http://host/{following}"


def test_an_s3_page_that_goes_round_in_a_circle_is_no_listing() -> None:
    page = f"{S3}<Delimiter>/</Delimiter><IsTruncated>true</IsTruncated>{key('a')}</ListBucketResult>"
    lines: list[str] = []
    assert found(page, "text/xml", "http://host/?delimiter=/&marker=a", lines=lines) is None
    assert len(lines) == 1


def test_webdav_answers_are_read_in_any_spelling() -> None:
    page = """<?xml version="1.0"?>
    <multistatus xmlns="DAV:" xmlns:x="urn:x">
    <response><href>/dir</href><propstat><prop><resourcetype><collection/></resourcetype></prop>
    <status>HTTP/1.1 200 OK</status></propstat></response>
    <response><href>http://inside:8080/dir/a%20b</href><propstat><prop><getcontentlength> 12 </getcontentlength>
      <getlastmodified>Mon, 23 Nov 2026 12:00:00 GMT</getlastmodified><getetag>W/"v"</getetag>
      <getcontenttype>text/x</getcontenttype>
      <x:getcontentlength>99</x:getcontentlength><resourcetype/></prop><status>HTTP/1.1 200 OK</status></propstat>
      <propstat><prop><getcontentlength>77</getcontentlength></prop><status>HTTP/1.1 404 Not Found</status></propstat>
    </response>
    <response><href>/dir/sub</href><propstat>
      <prop><resourcetype><collection/></resourcetype><getcontentlength>4096</getcontentlength></prop>
      <status>HTTP/1.1 200 OK</status></propstat></response>
    <response><href>relative</href><propstat><prop/><status>HTTP/1.1 200 OK</status></propstat></response>
    <response><href>/dir/gone</href><status>HTTP/1.1 404 Not Found</status></response>
    <response><href>/elsewhere</href></response></multistatus>"""
    for url in (URL, "http://host/dir"):
        answer = found(page, "application/xml; charset=utf-8", url)
        assert answer is not None
        assert answer.driver == "webdav"
        # A relative href is against RFC 4918; where the URL has no slash it has another meaning, or none.
        assert [entry for entry in answer.entries if entry.name != "relative"] == [
            Entry("a b", "http://host/dir/a%20b", False, 12, True, NOON, 'W/"v"', "text/x"),
            Entry("sub", "http://host/dir/sub/", True),
        ]


def test_an_empty_webdav_answer_is_no_listing() -> None:
    assert found('<multistatus xmlns="DAV:"/>', "text/xml") is None


METALINK = f"""<?xml version="1.0" encoding="UTF-8"?>
<metalink xmlns="urn:ietf:params:xml:ns:metalink"><file name="a.iso"><size>1234</size>
<hash type="sha-256">{"AB" * 32}</hash><hash type="md5">{"cd" * 16}</hash><hash type="odd">zz</hash>
<pieces length="10" type="sha-256"><hash>{"00" * 32}</hash></pieces>
<url priority="2" location="de">https://second/a.iso</url><url>ftp://third/a.iso</url><url>https://last/x?y=1</url>
<url priority="1">http://first/a.iso</url><metaurl mediatype="torrent">http://other/t</metaurl></file>
<file name="../evil"><url>http://host/dir/evil</url></file>
<file name="far"><url>http://far/x</url></file><file name="near"><url>http://far/y</url><url>http://host/dir/near</url></file></metalink>"""


def test_metalinks_have_mirrors_and_hashes() -> None:
    lines: list[str] = []
    answer = entries(METALINK, "application/metalink4+xml", url="http://host/x.meta4", lines=lines)
    hashes = (("sha256", "ab" * 32), ("md5", "cd" * 16))
    mirrors = ("https://second/a.iso", "https://last/x?y=1")
    assert answer == {
        "a.iso": Entry("a.iso", "http://first/a.iso", False, 1234, True, mirrors=mirrors, hashes=hashes),
        "near": Entry("near", "http://host/dir/near", False),
    }
    assert len(lines) == 2
    answer = entries(METALINK, "application/metalink4+xml", external=True, lines=lines)
    assert (answer["far"].url, answer["near"].mirrors) == ("http://far/x", ("http://host/dir/near",))


def test_metalinks_of_version_3_prefer_the_other_way_round() -> None:
    page = (
        '<metalink version="3.0" xmlns="http://www.metalinker.org/"><files><file name="b"><size>5</size><verification>'
        f'<hash type="sha256">{"12" * 32}</hash><pieces length="1" type="sha1"><hash piece="0">{"34" * 20}</hash></pieces>'
        '</verification><resources><url type="http" preference="10">http://low/b</url><url type="http" preference="90">http://high/b</url></resources>'
        "</file></files></metalink>"
    )
    (entry,) = entries(page, "application/metalink+xml").values()
    assert entry == Entry("b", "http://high/b", False, 5, True, mirrors=("http://low/b",), hashes=(("sha256", "12" * 32),))


# Text


def test_a_list_of_urls_is_a_listing_anywhere() -> None:
    text = "# ours\r\nhttp://host/dir/a%20b\r\nhttp://host/dir/c?d\n\nhttp://other/e\n"
    answer = entries(text, "text/plain; charset=utf-8", url="http://host/dir/list.txt")
    assert {name: entry.url for name, entry in answer.items()} == {"a b": "http://host/dir/a%20b", "c": "http://host/dir/c?d"}
    assert set(entries(text, "text/plain", external=True)) == {"a b", "c", "e"}


def test_a_list_of_names_is_one_at_the_url_of_a_directory() -> None:
    assert set(entries("a%20b\nsub/\n./c\n", "text/plain")) == {"a b", "sub", "c"}
    assert found("a\nb\n", "text/plain", "http://host/dir/file") is None
    assert set(entries("a\nb\n", "text/uri-list", url="http://host/dir/file")) == {"a", "b"}


@pytest.mark.parametrize("text", ["Welcome to this server.\n", "", "\n\n", "a\tb", "a\x00b", "#only\n", "http://other/x\n"])
def test_other_text_is_no_listing(text: str) -> None:
    assert found(text, "text/plain") is None


# What comes from the network

TYPES = [
    "text/html",
    "application/json",
    "text/xml",
    "application/xml; charset=utf-8",
    "text/plain",
    "",
    "application/octet-stream",
]
TYPES += [
    "text/html; charset=shift_jis",
    "text/html; charset=utf-16",
    "application/xhtml+xml",
    ";;;=;charset",
    "text/html; charset=gb18030",
]
SEEDS = [
    b"<html><head><title>Index of /</title></head><body><h1>Index of /</h1><hr><pre><a href='x'>x</a> 23-Nov-2026 12:00 5",
    b'[{"name":"a","type":"file","mtime":"Mon, 23 Nov 2026 12:00:00 GMT","size":5}]',
    METALINK.encode(),
    S3.encode() + b"<Delimiter>/</Delimiter><Contents><Key>a</Key></Contents></ListBucketResult>",
    b'<?xml version="1.0"?><D:multistatus xmlns:D="DAV:"><D:response><D:href>/dir/a</D:href></D:response></D:multistatus>',
    b"<list><file mtime='2026-11-23T12:00:00Z' size='5'>a</file></list>",
    b"http://host/dir/a\nb\n",
    b'<!-- <![CDATA[ <script> <a href="&#x110000;&#99999999999;">',
]


def sane(answer: Listing | None) -> None:
    """See that whatever came, what is shown can be shown."""
    for entry in answer.entries if answer else ():
        encoded = entry.name.encode("utf-8", "surrogateescape")
        assert 0 < len(encoded) <= 255
        assert entry.name not in (".", "..")
        assert not {"/", "\0"} & set(entry.name)
        assert entry.url.startswith(("http://", "https://"))
        assert entry.url.isascii()
        assert not {" ", "#", "\n"} & set(entry.url)
        assert entry.size is None or 0 <= entry.size < 1 << 63
        assert entry.mtime_ns is None or 0 <= entry.mtime_ns < 1 << 63


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300), st.sampled_from(TYPES), st.booleans())
def test_random_bytes_do_no_harm(body: bytes, content_type: str, external: bool) -> None:
    sane(listing.parse(URL, content_type, body, external=external, skipped=lambda line: None))


@pytest.mark.parametrize("seed", range(len(SEEDS)))
def test_damaged_pages_do_no_harm(seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(300):
        body = bytearray(SEEDS[seed])
        for _ in range(chance.randrange(1, 6)):
            at = chance.randrange(len(body) + 1)
            body[at : at + chance.randrange(3)] = chance.choice(
                [b"", b"<", b'"', b"&", b"\xff", b"\0", b">", b"9" * 30, b"]", b"\xed\xa0\x80"]
            )
            body = body or bytearray(b"x")
        for content_type in TYPES[:6]:
            sane(listing.parse(URL, content_type, bytes(body), skipped=lambda line: None))


@pytest.mark.parametrize("url", ["", "file:///etc/passwd", "http:///x", "http://[", "http://host:99999/", "ftp://host/", "x"])
def test_a_url_that_is_none_has_no_listing(url: str) -> None:
    assert listing.parse(url, "text/html", b'<a href="x">') is None


SIZE = 400_000
BOMBS = {
    "open tags": b"<a " * (SIZE // 3),
    "open quotes": b"<a href='\"" * (SIZE // 10),
    "comments": b"<!--" * (SIZE // 4),
    "sections": b"<![CDATA[" * (SIZE // 9),
    "scripts": b"<script>" * (SIZE // 8),
    "less-than": b"<" * SIZE,
    "one long tag": b'<a href="x" ' + b'a="b" ' * (SIZE // 6) + b">",
    "one long link": b'<a href="' + b"../" * (SIZE // 3) + b'">',
    "cells": b'<a href="x">x</a>' + b"<td>" * (SIZE // 4),
    "different tags": b"".join(b"<x%d>" % number for number in range(SIZE // 8)),
    "deep links": b"".join(b'<a href="%d/b/c/d">' % number for number in range(SIZE // 20)),
    "references": b'<a href="' + b"&#" * (SIZE // 2) + b'">',
    "digits": b'<a href="&#' + b"9" * SIZE + b';">',
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_no_page_takes_more_than_its_size(bomb: str) -> None:
    start = time.process_time()
    sane(listing.parse(URL, "text/html", b'<a href="first">first</a>' + BOMBS[bomb], skipped=lambda line: None))
    # A tenth is usual; what grows with the square takes minutes.
    assert time.process_time() - start < 5


def test_a_comment_that_never_ends_is_given_up() -> None:
    lines: list[str] = []
    assert found('<a href="a">' + "<!--" + "x" * 3_000_000, lines=lines) is None
    assert len(lines) == 1
    assert set(entries('<a href="a">' + f"<!--{'x' * 500_000}-->" * 4 + '<a href="b">')) == {"a", "b"}


def test_a_million_links_are_read() -> None:
    page = b"<html><body>" + b"".join(b'<a href="f%d">f</a>\n' % number for number in range(1_000_000))
    answer = listing.parse(URL, "text/html", page)
    assert answer is not None
    assert len(answer.entries) == 1_000_000


def test_a_hundred_thousand_files_are_read_in_time() -> None:
    start = time.process_time()
    page = "".join(
        f'<tr><td valign="top"><img src="/icons/text.gif" alt="[TXT]"></td><td><a href="f{n}.txt">f{n}.txt</a></td>'
        f'<td align="right">2026-11-23 {n % 24:02}:{n % 60:02}  </td><td align="right">1.2K</td><td>&nbsp;</td></tr>\n'
        for n in range(100_000)
    )
    assert len(entries(f"<title>Index of /</title><h1>Index of /</h1><a href='?C=N;O=D'>x</a>{page}")) == 100_000
    # 0.9 s on the machine this was made on, html.parser alone takes 5; this is a guard, not a measure.
    assert time.process_time() - start < 15


def test_the_marks_of_servers_do_not_overlap() -> None:
    assert [driver.name for driver in DRIVERS][-1] == "links"
    assert all(driver.marks for driver in DRIVERS[:-1])
