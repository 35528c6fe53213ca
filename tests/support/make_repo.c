#include "tests/support/make_repo.h"

#include <stdio.h>
#include <stdlib.h>

#include "tests/support/temp_dir.h"

void made_repo_must(int rc)
{
	if (rc >= 0)
		return;
	fprintf(stderr, "libgit2: %s\n", git_error_last() ? git_error_last()->message : "?");
	abort();
}

void made_repo_init(struct made_repo *m, const char *work, const char *home)
{
	static const int levels[] = {GIT_CONFIG_LEVEL_GLOBAL, GIT_CONFIG_LEVEL_XDG, GIT_CONFIG_LEVEL_SYSTEM};

	git_libgit2_init();
	*m = (struct made_repo){.work = work};
	setenv("HOME", home, 1);
	unsetenv("XDG_CONFIG_HOME");
	for (int i = 0; i < 3; i++)
		made_repo_must(git_libgit2_opts(GIT_OPT_SET_SEARCH_PATH, levels[i], home));
	made_repo_must(git_repository_init(&m->git, work, 0));
}

void made_repo_end(struct made_repo *m)
{
	git_repository_free(m->git);
	git_libgit2_shutdown();
}

void made_repo_commit(struct made_repo *m, git_index *index, const git_oid *merged)
{
	git_oid tree_id;
	git_tree *tree;
	git_signature *who;
	git_commit *parents[2] = {NULL, NULL};
	size_t n = 0;

	made_repo_must(git_index_write_tree(&tree_id, index));
	made_repo_must(git_tree_lookup(&tree, m->git, &tree_id));
	made_repo_must(git_signature_new(&who, "Ada", "ada@example.org", 1000000000 + m->n_commits * 60, 0));
	if (m->n_commits)
		made_repo_must(git_commit_lookup(&parents[n++], m->git, &m->head));
	if (merged)
		made_repo_must(git_commit_lookup(&parents[n++], m->git, merged));
	made_repo_must(git_commit_create(&m->head, m->git, "HEAD", who, who, NULL, "x", tree, n,
					 (const git_commit **)parents));
	m->n_commits++;
	git_commit_free(parents[0]);
	git_commit_free(parents[1]);
	git_signature_free(who);
	git_tree_free(tree);
	made_repo_must(git_index_write(index));
	git_index_free(index);
}

void made_repo_text(struct made_repo *m, const char *path, const char *text)
{
	git_index *index;

	free(temp_text(m->work, path, text));
	made_repo_must(git_repository_index(&index, m->git));
	made_repo_must(git_index_add_bypath(index, path));
	made_repo_commit(m, index, NULL);
}
