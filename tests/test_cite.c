#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <sodium.h>
#include <stdlib.h>
#include <string.h>

#include "config/log.h"
#include "daemon/cite.h"
#include "ingest/document.h"

enum { N_SOURCES = 3 };

static const char *const sources[N_SOURCES][2] = {
	{"a.c", "int retry_limit(void);\nint retry_limit_set(int n);\n"},
	{"odd\033.txt", "an escape in its name\nint retry_limit(void);"},
	{"empty", ""},
};

/* A snapshot as an ingest makes it, with its tokens. */
struct fixture {
	struct tokenizer *t;
	struct ids ids;
	struct cache_document documents[N_SOURCES];
	struct cache_snapshot s;
	struct lines *lines;
};

static int set_up(void **state)
{
	struct fixture *f = calloc(1, sizeof *f);
	struct err err;

	log_set_level(LOG_LEVEL_ERROR);
	assert_int_equal(tokenizer_open(&f->t, "tests/golden/glm52/tokenizer.json", &err), 0);
	for (int i = 0; i < N_SOURCES; i++) {
		const char *path = sources[i][0], *text = sources[i][1];
		struct cache_document *d = &f->documents[i];
		struct bytes rendered = {0};

		d->path = path;
		d->first_token = (int64_t)f->ids.n;
		crypto_generichash(d->content_hash, sizeof d->content_hash, (const unsigned char *)text, strlen(text), NULL, 0);
		document_render(&rendered, path, text, strlen(text));
		assert_int_equal(tokenizer_encode(f->t, &f->ids, rendered.data, rendered.n, 0, &err), 0);
		d->n_tokens = (int64_t)f->ids.n - d->first_token;
		bytes_free(&rendered);
	}
	f->s = (struct cache_snapshot){.id = 7, .corpus = "house", .revision = "0123456789012345678901234567890123456789",
				       .n_tokens = (int64_t)f->ids.n, .ids = f->ids.id, .n_documents = N_SOURCES,
				       .documents = f->documents};
	*state = f;
	return 0;
}

static int tear_down(void **state)
{
	struct fixture *f = *state;

	lines_free(f->lines);
	ids_free(&f->ids);
	tokenizer_close(f->t);
	free(f);
	log_set_level(LOG_LEVEL_INFO);
	return 0;
}

static char *cited(struct fixture *f, const char *text, size_t from, const char *finish)
{
	const struct bytes answer = {(char *)text, strlen(text), strlen(text)};

	return cite_answer(finish, &answer, from, &f->lines, f->t, &f->s);
}

#define HEAD "{\"finish_reason\":\"stop\",\"snapshot\":7,\"commit\":\"0123456789012345678901234567890123456789\",\"citations\":["

static void check(struct fixture *f, const char *answer, size_t from, const char *expected)
{
	char *done = cited(f, answer, from, "stop");

	assert_string_equal(done, expected);
	free(done);
}

static void the_last_event_says_where_each_quotation_stands(void **state)
{
	check(*state, "int retry_limit(void);\n", 0,
	      HEAD "{\"kind\":\"lines\",\"status\":\"verified\",\"begin\":0,\"end\":22,\"text\":\"int retry_limit(void);\",\"places\":2,"
	      "\"path\":\"a.c\",\"first\":1,\"last\":1,\"others\":[{\"path\":\"\\\"odd\\\\033.txt\\\"\",\"first\":2,\"last\":2}]}]}");
	check(*state, "`retry_limit_set` is at a.c:9;\n`no_such` nowhere", 0,
	      HEAD "{\"kind\":\"span\",\"status\":\"moved\",\"begin\":1,\"end\":16,\"text\":\"retry_limit_set\",\"places\":1,"
	      "\"path\":\"a.c\",\"first\":2,\"last\":2,\"claimed\":{\"path\":\"a.c\",\"first\":9,\"last\":9}},"
	      "{\"kind\":\"span\",\"status\":\"unverified\",\"begin\":32,\"end\":39,\"text\":\"no_such\",\"places\":0}]}");
	check(*state, "not found", 0, HEAD "]}");
	check(*state, "", 0, HEAD "]}");
}

static void reasoning_is_not_checked_and_counts_in_the_bytes(void **state)
{
	check(*state, "`no_such`?</think>`no_other`", 18,
	      HEAD "{\"kind\":\"span\",\"status\":\"unverified\",\"begin\":19,\"end\":27,\"text\":\"no_other\",\"places\":0}]}");
	check(*state, "`no_such`?", 10, HEAD "]}");
}

static void a_long_quotation_is_shown_by_its_beginning_whole_characters_of_it(void **state)
{
	char answer[401] = "`x", *done;
	const char *text;

	for (int i = 0; i < 150; i++)
		strcat(answer, "\xc3\xa9");
	strcat(answer, "`");
	done = cited(*state, answer, 0, "stop");
	text = strstr(done, "\"text\":\"");
	assert_non_null(text);
	assert_int_equal(strcspn(text + 8, "\""), CITE_TEXT_BYTES - 1);
	assert_non_null(strstr(done, "\"begin\":1,\"end\":302,"));
	free(done);
}

static void an_answer_that_was_cut_says_so_and_too_much_is_said_too(void **state)
{
	char *done = cited(*state, "int retry_limit_s", 0, "length"), *many = calloc(300, 16);

	assert_non_null(strstr(done, "\"status\":\"verified\",\"cut\":true,\"begin\":0,\"end\":17,"));
	assert_null(strstr(done, "unchecked_from"));
	free(done);
	for (int i = 0; i < 300; i++)
		sprintf(many + strlen(many), "`name_%03d`\n", i);
	done = cited(*state, many, 0, "stop");
	assert_non_null(strstr(done, "\"unchecked_from\":2816}"));
	free(done);
	free(many);
}

/* Another tokenizer, or damage: the answer stays, and says why nothing is cited. */
static void text_that_cannot_be_had_is_an_error_in_the_event(void **state)
{
	struct fixture *f = *state;
	char *done;

	f->documents[1].content_hash[0] ^= 1;
	done = cited(f, "int retry_limit(void);", 0, "stop");
	assert_non_null(strstr(done, "\"citations\":[],\"citations_error\":\"odd\\\\x1b.txt: this model's tokenizer"));
	free(done);
	f->documents[1].content_hash[0] ^= 1;
	f->documents[1].n_tokens += 1000;
	done = cited(f, "int retry_limit(void);", 0, "stop");
	assert_non_null(strstr(done, "\"citations_error\":\"odd\\\\x1b.txt is said to be in tokens"));
	free(done);
	assert_null(f->lines);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(the_last_event_says_where_each_quotation_stands, set_up, tear_down),
		cmocka_unit_test_setup_teardown(reasoning_is_not_checked_and_counts_in_the_bytes, set_up, tear_down),
		cmocka_unit_test_setup_teardown(a_long_quotation_is_shown_by_its_beginning_whole_characters_of_it, set_up, tear_down),
		cmocka_unit_test_setup_teardown(an_answer_that_was_cut_says_so_and_too_much_is_said_too, set_up, tear_down),
		cmocka_unit_test_setup_teardown(text_that_cannot_be_had_is_an_error_in_the_event, set_up, tear_down),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
