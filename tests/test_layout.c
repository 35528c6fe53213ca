/* Groups of layers and bytes of records. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "engine/layout.h"

static void glm52(struct model_config *c)
{
	*c = (struct model_config){.n_layers = 78, .kv_lora = 512, .rope_dim = 64, .has_indexer = true, .index_dim = 128};
	for (int i = 0; i < 78; i++)
		c->layer_is_full[i] = i < 3 || (i >= 6 && (i - 2) % 4 == 0);
}

static void glm52_pairs_its_two_lone_layers_and_has_nineteen_groups_of_four(void **state)
{
	struct model_config c;
	struct layout *l;

	(void)state;
	glm52(&c);
	l = layout_new(&c, LATENTS_FP8);
	assert_int_equal(l->n_groups, 20);
	assert_int_equal(l->groups[0].n_layers, 2);
	assert_int_equal(l->groups[0].layers[0], 0);
	assert_int_equal(l->groups[0].layers[1], 1);
	for (int g = 1; g < 20; g++) {
		assert_int_equal(l->groups[g].n_layers, 4);
		for (int i = 0; i < 4; i++)
			assert_int_equal(l->groups[g].layers[i], 4 * g - 2 + i);
	}
	assert_int_equal(l->n_index_layers, 21);
	assert_int_equal(l->row_bytes, 656);
	assert_int_equal(layout_record_bytes(l, 1) * 64, 41 * 4096); /* a block of a group of four is 41 pages */
	assert_int_equal(l->index_key_bytes, 256);
	layout_free(l);
	l = layout_new(&c, LATENTS_BF16);
	assert_int_equal(l->row_bytes, 1152);
	layout_free(l);
	l = layout_new(&c, LATENTS_F32);
	assert_int_equal(l->row_bytes, 2304);
	assert_int_equal(l->index_key_bytes, 512);
	layout_free(l);
}

static void layers_that_are_all_full_go_in_pairs_an_odd_last_one_alone(void **state)
{
	struct model_config c = {.n_layers = 7, .kv_lora = 8, .rope_dim = 4, .has_indexer = true, .index_dim = 8};
	struct layout *l;

	(void)state;
	for (int i = 0; i < 7; i++)
		c.layer_is_full[i] = true;
	l = layout_new(&c, LATENTS_BF16);
	assert_int_equal(l->n_groups, 4);
	assert_int_equal(l->groups[2].layers[0], 4);
	assert_int_equal(l->groups[2].layers[1], 5);
	assert_int_equal(l->groups[3].n_layers, 1);
	assert_int_equal(l->groups[3].layers[0], 6);
	layout_free(l);
}

static void a_lone_layer_waits_for_the_next_lone_one_beyond_a_shared_group(void **state)
{
	/* full, full + shared, full: 0 and 3 are lone, 1 is shared by 2 */
	struct model_config c = {.n_layers = 4, .kv_lora = 8, .rope_dim = 4, .has_indexer = true, .index_dim = 8,
				 .layer_is_full = {true, true, false, true}};
	struct layout *l = layout_new(&c, LATENTS_BF16);

	(void)state;
	assert_int_equal(l->n_groups, 2);
	assert_int_equal(l->groups[0].layers[0], 0);
	assert_int_equal(l->groups[0].layers[1], 3);
	assert_int_equal(l->groups[1].layers[0], 1);
	assert_int_equal(l->groups[1].layers[1], 2);
	layout_free(l);
}

static void models_without_an_indexer_have_groups_of_four(void **state)
{
	struct model_config c = {.n_layers = 10, .kv_lora = 130, .rope_dim = 4};
	struct layout *l = layout_new(&c, LATENTS_FP8);

	(void)state;
	assert_int_equal(l->n_groups, 3);
	assert_int_equal(l->groups[1].layers[0], 4);
	assert_int_equal(l->groups[2].n_layers, 2);
	assert_int_equal(l->n_index_layers, 0);
	assert_int_equal(l->row_bytes, 130 + 2 * 4 + 2 * 4); /* 130 codes in two runs, 4 rope values */
	layout_free(l);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(glm52_pairs_its_two_lone_layers_and_has_nineteen_groups_of_four),
		cmocka_unit_test(layers_that_are_all_full_go_in_pairs_an_odd_last_one_alone),
		cmocka_unit_test(a_lone_layer_waits_for_the_next_lone_one_beyond_a_shared_group),
		cmocka_unit_test(models_without_an_indexer_have_groups_of_four),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
