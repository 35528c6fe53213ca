#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "config/clock.h"
#include "config/mem.h"
#include "engine/tokenizer.h"
#include "ingest/html.h"

static char *text_of(const char *html)
{
	char *out, reason[SKIP_REASON_BYTES];
	size_t n;

	if (!html_to_text(html, strlen(html), 1 << 20, &out, &n, reason))
		fail_msg("%s", reason);
	assert_int_equal(strlen(out), n);
	return out;
}

static void assert_text(const char *html, const char *want)
{
	char *text = text_of(html);

	assert_string_equal(text, want);
	free(text);
}

static void blocks_begin_lines_and_spaces_are_one(void **state)
{
	(void)state;
	assert_text("<html><head><title>A  page</title></head><body><h1>One</h1><p>first\n  words<p>second <b>bold</b>, "
		    "<i>slanted</i></body></html>",
		    "A page\n\nOne\n\nfirst words\n\nsecond bold, slanted\n");
	assert_text("<div>a</div><div>b</div>c<section>d</section>", "a\nb\nc\nd\n");
	assert_text("one<br>two<br><br>four", "one\ntwo\n\nfour\n");
	assert_text("  a&nbsp;&nbsp;b \t c ", "a b c\n");
	assert_text("<ul><li>a<li>b</ul><ol><li>c</li></ol>", "- a\n- b\n\n- c\n");
	assert_text("<table><tr><th>name<th>size<tr><td>a.c<td>12</table>", "name | size\na.c | 12\n");
	assert_text("<p>before<pre>int a;\n\n\tint  b;\n</pre>after", "before\n\nint a;\n\n\tint  b;\n\n\nafter\n");
	assert_text("", "");
	assert_text("<p></p><div> </div>", "");
	assert_text("plain text", "plain text\n");
}

static void what_no_reader_sees_is_left_out(void **state)
{
	(void)state;
	assert_text("a<script>if (1 < 2) document.write('<p>x')</script><style>p { color: red }</style>"
		    "<!-- secret --><template><p>t</p></template><svg><text>drawn</text></svg><noscript>n</noscript>b",
		    "ab\n");
	assert_text("a<script>never closed", "a\n");
}

static void links_keep_their_text_and_addresses_of_the_web(void **state)
{
	(void)state;
	assert_text("see <a href=\"https://example.org/a?b=1&amp;c=2\">the manual</a>, <a href=\"#top\">top</a> and "
		    "<a href='javascript:alert(1)'>this</a>",
		    "see the manual (https://example.org/a?b=1&c=2), top and this\n");
	assert_text("<a href=\"https://example.org/\">https://example.org/</a>", "https://example.org/\n");
	assert_text("<a href=\"https://example.org/\"></a>x", "x\n");
	assert_text("<img src=x alt=\"a  cat\"> and <img src=y>", "a cat and\n");
}

static void entities_are_htmls_own_and_nothing_is_fetched(void **state)
{
	(void)state;
	assert_text("&lt;a&gt; &amp; &eacute; &#8364; &#x1F4DA; &copy;", "<a> & \xc3\xa9 \xe2\x82\xac \xf0\x9f\x93\x9a \xc2\xa9\n");
	assert_text("<!DOCTYPE html [<!ENTITY x SYSTEM \"file:///etc/passwd\">]><p>a&x;b", "]>\n\na&x;b\n");
	assert_text("<?php echo 1 ?><p>a", "a\n");
}

static void broken_pages_end(void **state)
{
	(void)state;
	free(text_of("<"));
	free(text_of("</"));
	free(text_of("<!--"));
	free(text_of("<p <p <p"));
	free(text_of("<a href=\"x"));
	free(text_of("&#99999999999; &#0; &#xd800;"));
	free(text_of("<table><td><table><td>"));
	free(text_of("</p></div></b>x"));
}

static char *repeat(const char *what, size_t n)
{
	struct bytes b = {0};

	for (size_t i = 0; i < n; i++)
		bytes_append(&b, what, strlen(what));
	bytes_append(&b, "", 1);
	return b.data;
}

static void hostile_pages_are_refused_or_read_in_time(void **state)
{
	static const char *const pieces[] = {"<b>", "<div>", "<x></y>", "</x>", "<p>", "<a href=x>", "&amp", "<!--",
					     "<table><tr><td>", "<script>", "<li>", "<b></i>", "<font><p>", "<![CDATA["};
	char *out, *html, reason[SKIP_REASON_BYTES];
	size_t n;

	(void)state;
	html = repeat("<b>", 3000);
	assert_int_equal(html_to_text(html, strlen(html), 1 << 20, &out, &n, reason), 0);
	assert_string_equal(reason, "not extracted: its elements nest deeper than 2000");
	free(html);

	html = repeat("word ", 300);
	assert_int_equal(html_to_text(html, strlen(html), 1000, &out, &n, reason), 0);
	assert_string_equal(reason, "too large");
	free(html);

	for (size_t i = 0; i < sizeof pieces / sizeof *pieces; i++) {
		int64_t began = clock_now_ms();

		html = repeat(pieces[i], (1 << 18) / strlen(pieces[i]));
		if (html_to_text(html, strlen(html), 1 << 20, &out, &n, reason))
			free(out);
		free(html);
		if (clock_now_ms() - began > 20000)
			fail_msg("a page of %s takes %d ms", pieces[i], (int)(clock_now_ms() - began));
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(blocks_begin_lines_and_spaces_are_one),
		cmocka_unit_test(what_no_reader_sees_is_left_out),
		cmocka_unit_test(links_keep_their_text_and_addresses_of_the_web),
		cmocka_unit_test(entities_are_htmls_own_and_nothing_is_fetched),
		cmocka_unit_test(broken_pages_end),
		cmocka_unit_test(hostile_pages_are_refused_or_read_in_time),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
