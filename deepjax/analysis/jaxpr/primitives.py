"""JAX's primitives, grouped by what the analysis of a jaxpr needs to know."""


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


ELEMENTWISE = _names("""
    abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e
    bitcast_convert_type cbrt ceil clamp clz complex conj convert_element_type copy copy_p cos
    cosh digamma div eq eq_to erf erf_inv erfc exp exp2 expm1 floor ge gt igamma igammac imag
    integer_pow is_finite le le_to lgamma log log1p log2 logistic lt lt_to max mesh_cast min mul
    mulhi name ne neg nextafter not one_minus_square or polygamma population_count pow pvary
    real reduce_precision rem reshard round rsqrt select_n sharding_constraint shift_left
    shift_right_arithmetic shift_right_logical sign sin sinh sqrt square stop_gradient sub tan
    tanh xor zeta
""")
CALLS = _names("""
    call checkpoint closed_call composite core_call custom_jvp_call custom_vjp_call
    custom_vjp_call_jaxpr custom_vmap_call jit pjit remat remat2
""")
"""Each runs one inner jaxpr once, on its own inputs."""
REDUCTIONS = _names("""
    argmax argmin reduce reduce_and reduce_max reduce_min reduce_or reduce_prod reduce_sum
    reduce_xor squeeze
""")
WINDOWS = _names("reduce_window reduce_window_max reduce_window_min reduce_window_sum")
_REST = _names("""
    approx_top_k bitcast broadcast_in_dim broadcast_to concatenate device_put dimension_size
    dynamic_slice dynamic_update_slice empty empty2 gather iota layout_constraint
    optimization_barrier pad reshape rev roll scatter scatter-add scatter-max scatter-min
    scatter-mul scatter-sub select_and_gather_add select_and_scatter select_and_scatter_add
    slice sort split stack tile top_k transpose unstack zeros_like

    cumlogsumexp cummax cummin cumprod cumsum igamma_grad_a random_gamma reciprocal
    regularized_incomplete_beta stochastic_round

    iota_2x32_shape philox2x32 philox4x32 random_bits random_clone random_fold_in random_seed
    random_split random_unwrap random_wrap rng_bit_generator rng_uniform threefry2x32
    threefry4x32

    all_gather all_gather_invariant all_gather_reduced all_to_all axis_index pbroadcast
    platform_index pmax pmin ppermute preduced psum psum_invariant ragged_all_to_all
    reduce_scatter unreduced_psum unreduced_reduce_scatter

    addupdate empty_ref free_ref freeze get get_global masked_load masked_swap multiple_of
    new_ref num_programs program_id swap

    add_dependency after_all check create_token debug_callback debug_print inspect_sharding
    lu_pivots_to_permutation reduced_vary_cast shape_assertion shard_alike tie
    vary_unreduced_cast with_memory_space_constraint xla_metadata_value
""")
WITHOUT_PRODUCTS = ELEMENTWISE | REDUCTIONS | WINDOWS | _REST
"""Primitives without convolutions or matrix products."""
