/*
 * The quotations of an answer: what it says the corpus has, and whether and where the corpus has it. By text alone: that a
 * quotation is verified says that these words stand there, not that they answer the question.
 *
 * What is a quotation:
 *
 *   lines   whole lines of the answer that are lines of the corpus, white space around them aside. Of several in a row
 *           the longest run that stands in a row somewhere is one quotation. It needs QUOTE_CONTENT letters or digits (a byte
 *           of any other alphabet is one), so that `}` is no evidence; a line that is all of the answer, like `n = 12`, needs no
 *           more than QUOTE_SPAN_CONTENT if it stands in QUOTE_RARE lines at most. In a fenced block (``` or ~~~) the lines that
 *           stand nowhere are quotations too, as many in a row as there are; elsewhere they are the answer's own words.
 *   span    what stands within one line between backticks, "double quotes" or their typographic form, outside of
 *           the above, with QUOTE_SPAN_CONTENT letters or digits. It stands where a line contains it, though
 *           not in the middle of a word. One of fewer than QUOTE_LONG bytes that stands in more than QUOTE_RARE lines
 *           (`true`, `int`) says nothing, and is left out.
 *   place   PATH:LINE, PATH:FIRST-LAST, PATH#LLINE, PATH#LFIRST-LLAST. PATH is that of a document, or the end of it that only one
 *           has; a path that none has is taken for one if some document's name ends as it does (".c"). A path alone is nothing.
 *
 * A place belongs to the nearest quotation on its line, or else to the block of lines below or above it. Then both are one
 * citation:
 *
 *   verified    the text stands in those lines, or overlaps them; without a place beside it: it stands somewhere;
 *               a place alone: the document has such lines
 *   moved       it stands elsewhere than the answer says; where, is told
 *   unverified  it stands nowhere; a place alone: there is no such document, or no such line
 *
 * The last line of an answer that was cut at its length is a quotation when QUOTE_LONG bytes of it begin a line.
 *
 * Work is bounded, whatever the answer and the corpus: QUOTE_ANSWER_BYTES, QUOTE_MOST quotations and places, and QUOTE_WORK bytes
 * looked at. Beyond that, the rest of the answer is not checked, and `checked` says from where.
 */
#ifndef QUIRE_DAEMON_QUOTE_H
#define QUIRE_DAEMON_QUOTE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/lines.h"

enum {
	QUOTE_CONTENT = 8,
	QUOTE_SPAN_CONTENT = 4,
	QUOTE_LONG = 16,
	QUOTE_RARE = 8,
	QUOTE_PLACES = 4,             /* that are named of a quotation; all are counted */
	QUOTE_MOST = 256,
	QUOTE_ANSWER_BYTES = 1 << 20,
	QUOTE_WORK = 1 << 28,         /* some 60 spans in 4 MB of text */
};

enum quote_kind {
	QUOTE_LINES,
	QUOTE_SPAN,
	QUOTE_PLACE,
	N_QUOTE_KINDS
};

enum quote_status {
	QUOTE_VERIFIED,
	QUOTE_MOVED,
	QUOTE_UNVERIFIED,
	N_QUOTE_STATUSES
};

const char *quote_kind_name(enum quote_kind kind);
const char *quote_status_name(enum quote_status status);

struct quote_place {
	int32_t document, first, last; /* lines from 1 */
};

struct quote {
	enum quote_kind kind;
	enum quote_status status;
	bool is_cut;                   /* by the end of the answer */
	size_t begin, end;             /* bytes of the answer: the text, white space around it aside, or of a place its words */
	int64_t n_places;              /* where the text stands; 0: nowhere */
	struct quote_place places[QUOTE_PLACES]; /* the claimed one, or the nearest to it, then the first others */
	bool is_claimed;               /* the answer says where: */
	struct {
		size_t begin, end;     /* of the path, in the answer */
		int32_t document;      /* -1: there is none */
		int32_t first, last;
	} claim;
};

struct quotes {
	struct quote *list;            /* as they come in the answer */
	size_t n;
	size_t checked;                /* bytes of the answer that were looked at: all, but for an excess */
};

/* is_cut: the answer's last line may lack its end. */
void quotes_find(struct quotes *out, const struct lines *l, const char *answer, size_t bytes, bool is_cut);
void quotes_clear(struct quotes *q);

#endif
