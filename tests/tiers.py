"""Tests that `make test` leaves to the other tiers, in addition to those with a marker.

Keys are names of test functions, so that a test may move to another file; tests/test_tiers.py
reports a renamed one. Values are the parameters that `make test` keeps: parts of a test's id,
separated by "-"; empty where it keeps none.
"""

# One network of each kind; the others differ only in depth or width.
KINDS = (
    *("vgg11", "vgg16_bn", "googlenet", "googlenet_bn", "inception_v3"),
    *("resnet18", "resnet50", "resnet50d", "resnet50_gn", "resnext50_32x4d", "resnetv2_50"),
    *("cifar_resnet20", "cifar_plain20", "cifar_preact164", "cifar_wrn28_10"),
    *("nf_resnet50", "fixup_resnet50", "cifar_fixup20", "cifar_skipinit20", "cifar_rezero20"),
)

# Long exact numerics: more than about three seconds of CPU time a test.
NUMERICS: dict[str, tuple[str, ...]] = {
    # models
    "test_params_and_macs_are_the_exact_integers": KINDS,
    "test_stages_have_the_shapes_of_their_tables": KINDS,
    "test_logits_are_float32_under_every_policy": KINDS,
    "test_logits_are_equal_with_and_without_jit": ("cifar_plain20",),
    "test_scanned_blocks_compute_what_unrolled_ones_do": ("resnet",),
    "test_a_float64_network_has_no_float32_inside": ("cifar_fixup20",),
    "test_other_layouts_are_refused_at_initialisation": ("cifar_resnet20", "vgg11"),
    "test_nf_signals_follow_the_mean_field_prediction": (),
    "test_depths_20_and_110_begin_as_one_function": ("fixup",),
    "test_gradients_at_step_0_and_after": ("fixup",),
    "test_scanned_jitted_and_bfloat16_twins": ("fixup",),
    "test_the_imagenet_stem_takes_any_size": ("fixup",),
    "test_blocks_of_pixels_on_a_gpu": ("size2",),
    "test_both_ways_are_one_function": ("2",),
    "test_what_reads_a_network_sees_the_convolutions_that_are_written": (),
    "test_windows_of_more_pixels_than_a_byte_numbers": (),
    # analysis
    "test_centres_are_where_gradients_are_symmetric": (),
    "test_known_networks": ("resnet18", "resnet50", "cifar_resnet20", "vgg16"),
    "test_what_init_draws": ("cifar_plain20",),
    "test_products": ("float64",),
    "test_float32_networks_under_x64": (),
    "test_kernels_and_linearised_networks": ("float64",),
    "test_directions_of_general_kernels": (),
    "test_trace_density_and_gradient_mass": ("float64",),
    "test_gradients_of_examples": ("float64",),
    "test_eigenvalues": ("float64",),
    "test_attention_has_a_filter_for_each_head_and_feature": (),
    "test_layers_by_name_of_oddly_named_parameters": (),
    "test_scalars_among_the_inputs_belong_to_all_examples": (),
    "test_random_streams_of_any_name_in_every_instrument": ("hvp", "ntk", "shattering"),
    "test_products_eigenvalues_and_trace_are_those_of_the_full_matrix": ("Mlp",),
    "test_wigners_semicircle": (),
    "test_a_loop_over_the_examples": ("frozen statistics", "no norm"),
    "test_noise_alone_has_no_signal": ("5",),
    "test_the_jackknife_is_the_spread_over_repetitions": (),
    "test_each_loss_by_its_own_gradient": ("0.3",),
    "test_white_noise_stays_in_its_band": (),
    "test_each_residual_block_of_ours_shows_its_sum": ("resnet20",),
    "test_the_rows_of_our_networks_add_up_to_the_whole": (),
    "test_drift_falls_with_width": (),
    "test_the_kernel_approaches_that_of_infinite_width_as_one_over_the_root": (),
    "test_the_linearisation_becomes_exact_with_width": (),
    "test_a_wide_random_network_does_what_the_theory_says": (),
    "test_layers_of_known_networks": ("vgg11", "googlenet"),
    "test_random_weights_have_that_width_in_the_square": (),
    "test_the_field_grows_as_the_root_and_the_theoretical_one_in_proportion": (),
    "test_plain_networks_halve_it_with_every_layer": (),
    "test_residual_networks_follow_a_power_law": (),
    "test_the_rows_of_foreign_modules_add_up_to_the_whole": (),
    "test_resnet20_written_both_ways": ("trace",),
    "test_logits_and_statistics_are_equal": (),
    "test_both_directions_of_an_lstm": (),
    "test_scanned_layers_have_masks_of_their_own": (),
    "test_layers_under_an_axis_of_batch_norm_are_seen": (),
    "test_a_sampled_fisher_matrix_has_the_exact_one_as_its_mean": (),
    "test_what_a_call_needs_does_not_depend_on_earlier_calls": (),
    "test_labels_are_sampled_under_the_masks_of_their_gradients": (),
    "test_what_a_refusal_advises": ("graph",),
    "test_examples_print_what_their_page_shows": (*("networks", "ntk", "cost"),),
    # training
    "test_each_layer_once_forward_and_twice_backward_in_its_precision": (
        "resnet18",
        "cifar_resnet20",
    ),
    "test_no_sum_is_added_up_in_16_bits": ("vgg16", "cifar_skipinit20"),
    "test_as_many_operations_an_image_as_the_table_says": (),
    "test_on_a_gpu_every_layer_is_a_convolution_and_no_map_is_transposed_scattered_or_dilated": (),
    "test_batch_norm_has_the_statistics_of_each_part": (),
    "test_rematerialisation_changes_no_number": (),
    "test_averages_are_exponential_and_are_what_is_evaluated": (),
    "test_bfloat16_keeps_float32_where_it_matters": (),
    "test_a_step_of_each_recipe_has_the_shapes_of_its_state": ("vgg16",),
    "test_recipes_have_no_warning": ("vgg16",),
    "test_studies_have_no_warning": ("degradation", "small_filters"),
    "test_image_sizes_follow_the_step_with_a_program_each": (),
    "test_sets_of_one_size_are_resized_on_the_device_by_the_step": (),
    "test_parts_of_a_batch_add_up_to_the_whole": (),
    "test_the_classifier_is_the_last_layer_of_the_network_and_of_its_heads": KINDS,
    "test_frozen_parameters_and_their_averages_are_bitwise_what_they_were": ("sgd", "muon"),
    # studies
    "test_naive_modules_of_half_the_width_cost_the_same": ("digits",),
    # properties: each generated example compiles
    "test_convolutions": (),
    "test_loops_of_constants": (),
    "test_matrix_products": (),
    "test_nested_scans": (),
    "test_numbers_of_any_module": (),
    "test_all_arrays_of_floats_among_outputs_are_seen_and_nothing_else_changes": (),
    "test_no_two_outputs_of_a_layer_have_one_label": (),
    "test_the_gradient_of_a_probe_is_that_of_an_addition": (),
    # evaluation
    "test_another_precision_of_a_run_with_stochastic_depth": (),
    "test_crops_against_slow_code": ("1", "10"),
    "test_images_of_several_shapes_in_one_array_are_as_if_alone": ("vgg11_lrn",),
    # export
    "test_each_kind_of_network_is_read_again_bitwise": ("cifar_fixup20",),
    "test_public_weights_have_the_preprocessing_and_accuracy_of_their_source": (),
}

# Processes, and runs in them.
SYSTEM: dict[str, tuple[str, ...]] = {
    "test_paths_may_be_text": (),
    "test_an_arm_alone_gives_the_same_numbers": (),
    "test_the_quick_preset_gives_no_verdicts": (),
    "test_pilots_select_the_rates_of_the_judged_study": (),
    "test_runs_of_another_directory_are_reused": (),
    "test_a_study_that_was_stopped_is_resumed_by_the_same_command": (),
    "test_a_part_of_the_images_is_what_is_trained_and_evaluated": (),
    "test_a_seed_that_diverges_is_a_result_and_guesses": (),
    "test_as_a_process_it_exits_with_2_and_one_line": ("command0",),
    "test_a_program_runs_in_jax_alone": (),
    "test_an_own_network_is_written_under_its_own_paths": ("Linen",),
}

# Fixtures that compile or run a training, or evaluate a network of 1000 classes.
RUN_FIXTURES = frozenset({"programs", "whole", "run", "imagenet"})
# The tests with such a fixture that `make test` keeps: one training, its log, and one resume.
RUNS_IN_MAKE_TEST: dict[str, tuple[str, ...]] = {
    "test_a_run_directory_tells_what_happened": (),
    "test_the_same_command_again_says_that_it_is_done": (),
    "test_another_configuration_is_refused_and_nothing_changes": (),
    "test_interrupted_at_any_step_it_ends_in_the_same_bits": ("4",),
}


def tier_of(function: str, parameters: str, fixtures: frozenset[str]) -> str | None:
    """Marker of a test by these tables; None for `make test`.

    parameters: the part of its id in brackets.
    """
    parts = set(parameters.split("-"))
    if function in NUMERICS and parts.isdisjoint(NUMERICS[function]):
        return "numerics"
    if function in SYSTEM and parts.isdisjoint(SYSTEM[function]):
        return "system"
    if fixtures & RUN_FIXTURES:
        kept = RUNS_IN_MAKE_TEST.get(function)
        if kept is None or (kept and parts.isdisjoint(kept)):
            return "system"
    return None
