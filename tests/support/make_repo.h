/*
 * Git repositories for tests, made by the library: nothing runs git, and nothing of the user's configuration counts.
 */
#ifndef QUIRE_TESTS_SUPPORT_MAKE_REPO_H
#define QUIRE_TESTS_SUPPORT_MAKE_REPO_H

#include <git2.h>

struct made_repo {
	const char *work;       /* the work tree; lent */
	git_repository *git;
	git_oid head;
	int n_commits;          /* a minute apart each, from 2001 on */
};

/* `home` stands for the user's; lent, and must be there. What fails ends the test. */
void made_repo_init(struct made_repo *m, const char *work, const char *home);
void made_repo_end(struct made_repo *m);

/* End the test when a call of the library failed. */
void made_repo_must(int rc);
/* Write a file and commit it. */
void made_repo_text(struct made_repo *m, const char *path, const char *text);
/* Commit what the index says, after the head and `merged` (may be NULL). Takes the index. */
void made_repo_commit(struct made_repo *m, git_index *index, const git_oid *merged);

#endif
