/* Included by delta_rule.h. Gradients of a chunk, with S the memory before it and dS' the gradient of that after it:

     dû_s = Σ_{t≥s} D_ts (q_t·k_s) do_t + D_ns dS'ᵀk_s          what u_s feels from outputs and the memory
     du_s = dû_s - Σ_{t>s} D_ts (k_t·k_s) de_t,  de_s = β_s du_s = dv_s,  dβ_s = du_s·e_s
     dq_t = γ_t S do_t + Σ_{s≤t} D_ts (do_t·u_s) k_s
     dk_s = -γ_s S de_s + Σ_{t≥s} D_ts (do_t·u_s) q_t - Σ_{r≠s} D (de·u) k_r + D_ns dS' u_s
     dS   = γ_n dS' + Σ_t γ_t (q_t do_tᵀ - k_t de_tᵀ)

   Where the errors are an output too, de_s has their own gradient besides: de_s = β_s du_s + dē_s.
   The gradient of log_decay at r is what passes through r: from the memory before to that after, into it and out of it,
   and between tokens of the chunk,

     <dS', S'> - Σ_{s≥r} y_s + Σ_{t≥r} x_t + Σ_{t≥r>s} (D_ts (q_t·k_s) (do_t·u_s) - D_ts (k_t·k_s) (de_t·u_s))
     x_t = γ_t (q_tᵀ S do_t - k_tᵀ S de_t),   y_s = D_ns k_sᵀ dS' u_s

   without the terms of a token with itself, which would cancel. <dS', S'> = <dS, S> of the chunk after it, which follows
   by the same sums and is computed afresh at every saved memory, so that rounding does not travel. Memories between two
   saved ones are computed again, transposed. */

/* What passes through each token between the others of its chunk; `weights` holds do·u, then de·u. */
static inline void NAME(passing)(const GATES *g, const REAL *weights, int64_t overwrite, double *through) {
    for (int64_t t = 0; t < g->n; t++) {
        double sum = 0;
        through[t] = 0;
        for (int64_t r = 1; r <= t; r++) {
            const int64_t s = r - 1;
            sum += weights[t * CHUNK + s] * g->read[t][s];
            if (overwrite) sum -= weights[(CHUNK + t) * CHUNK + s] * g->solve[t][s];
            through[r] += sum;
        }
    }
}

static int NAME(backward_head)(const Shape *shape, const View *q, const View *k, const View *v, const View *beta,
                               const View *log_decay, const View *error, const View *saved, const View *final,
                               const View *out_grad, const View *final_grad, const View *q_grad, const View *k_grad,
                               const View *v_grad, const View *beta_grad, const View *decay_grad,
                               const View *state_grad, const View *error_grad, int64_t b, int64_t h, int64_t block) {
    int64_t first, width;
    NAME(columns)(shape, block, &first, &width);
    if (width <= 0) return 0;
    const int64_t K = shape->key, kp = padded(K), vp = padded(width), square = CHUNK * CHUNK, size = kp * vp;
    const int64_t part = block * shape->batch * shape->time * shape->heads; /* this block's copy of shared gradients */
    REAL *dS = NAME(scratch)((SEGMENT + 2) * size + (2 * SEGMENT + 5) * CHUNK * kp +
                              (SEGMENT + 9) * CHUNK * vp + 6 * square);
    GATES *gates = malloc(SEGMENT * sizeof(GATES));
    if (!dS || !gates) {
        free(dS);
        free(gates);
        return 1;
    }
    REAL *flat = dS + size, *ST = flat + size; /* ST: the memories before each chunk of a segment */
    REAL *queries = ST + SEGMENT * size, *grads = queries + SEGMENT * 2 * CHUNK * kp; /* with the keys behind them */
    REAL *kt = grads + 2 * CHUNK * kp, *scaled = kt + CHUNK * kp, *felt = scaled + CHUNK * kp;
    REAL *errors = felt + CHUNK * kp, *u = errors + SEGMENT * CHUNK * vp;
    REAL *du = u + CHUNK * vp;
    REAL *outer = du + CHUNK * vp, *outers = outer + 2 * CHUNK * vp; /* [do; de], and scaled by [γ; -γ] */
    REAL *products = outers + 2 * CHUNK * vp, *weights = products + 2 * square, *mix = weights + 2 * square;
    REAL *ut = mix + 2 * square, *own = ut + CHUNK * vp; /* own: dē */
    const View *written = shape->overwrite ? error : v;
    const int64_t stacked = shape->overwrite ? 2 * CHUNK : CHUNK;
    memset(dS, 0, size * sizeof(REAL));
    if (final_grad->data)
        NAME(gather)(NAME(at)(final_grad, b, 0, h) + first, final_grad->t, K, width, dS, vp);
    memset(flat, 0, size * sizeof(REAL));
    NAME(gather)(NAME(at)(final, b, 0, h) + first, final->t, K, width, flat, vp);
    double along = NAME(dot)(dS, flat, size);
    const int64_t chunks = (shape->time + CHUNK - 1) / CHUNK;
    for (int64_t segment = (chunks - 1) / SEGMENT; segment >= 0; segment--) {
        const int64_t left = chunks - segment * SEGMENT, count = left < SEGMENT ? left : SEGMENT;
        NAME(gather)(NAME(at)(saved, b, segment * K, h) + first, saved->t, K, width, flat, vp);
        NAME(transpose)(kp, vp, flat, ST);
        for (int64_t c = 0; c < count; c++) {
            const int64_t t0 = (segment * SEGMENT + c) * CHUNK;
            REAL *qk = queries + c * 2 * CHUNK * kp, *e = errors + c * CHUNK * vp;
            NAME(prepare)(shape, q, k, beta, log_decay, b, t0, h, kp, &gates[c], qk, kt, products);
            NAME(gather)(NAME(at)(written, b, t0, h) + first, written->t, gates[c].n, width, e, vp);
            if (c + 1 == count) break;
            for (int t = 0; t < CHUNK; t++) weights[t] = gates[c].beta[t] * gates[c].to_end[t];
            NAME(scale_rows)(CHUNK, vp, weights, 1, e, u);
            memcpy(ST + (c + 1) * size, ST + c * size, size * sizeof(REAL));
            NAME(multiply)(vp, kp, CHUNK, u, 1, vp, qk + CHUNK * kp, kp, ST + (c + 1) * size, kp, gates[c].through);
        }
        for (int64_t c = count - 1; c >= 0; c--) {
            const int64_t t0 = (segment * SEGMENT + c) * CHUNK;
            const GATES *g = &gates[c];
            const int64_t n = g->n;
            REAL *qk = queries + c * 2 * CHUNK * kp, *e = errors + c * CHUNK * vp;
            const REAL *keys = qk + CHUNK * kp;
            NAME(expect)(shape, out_grad, b, t0 - CHUNK, h, first, width);
            NAME(expect)(shape, q, b, t0 - SEGMENT * CHUNK, h / shape->group, 0, K);
            NAME(expect)(shape, k, b, t0 - SEGMENT * CHUNK, h / shape->group, 0, K);
            NAME(expect)(shape, written, b, t0 - SEGMENT * CHUNK, h, first, width);
            if (n < CHUNK) { /* rows past the end take part in the stacked products below */
                memset(qk + n * kp, 0, (CHUNK - n) * kp * sizeof(REAL));
                memset(outers, 0, 2 * CHUNK * vp * sizeof(REAL));
                memset(outer, 0, 2 * CHUNK * vp * sizeof(REAL));
                memset(u, 0, CHUNK * vp * sizeof(REAL));
            }
            NAME(gather)(NAME(at)(out_grad, b, t0, h) + first, out_grad->t, n, width, outer, vp);
            NAME(scale_rows)(n, vp, g->beta, 1, e, u);

            NAME(multiply)(n, vp, n, &g->read[0][0], 1, CHUNK, outer, vp, du, vp, 0);
            NAME(scale_rows)(n, kp, g->to_end, 1, keys, scaled);
            NAME(multiply)(n, vp, kp, scaled, kp, 1, dS, vp, du, vp, 1);
            REAL *de = outer + CHUNK * vp;
            if (error_grad->data)
                NAME(gather)(NAME(at)(error_grad, b, t0, h) + first, error_grad->t, n, width, own, vp);
            for (int64_t j = 0; j < vp; j += LANES)
                for (int64_t s = n - 1; s >= 0; s--) {
                    VEC left_over = LOAD(du + s * vp + j);
                    if (shape->overwrite)
                        for (int64_t t = s + 1; t < n; t++) left_over -= g->solve[t][s] * LOAD(de + t * vp + j);
                    STORE(du + s * vp + j, left_over);
                    VEC felt_error = g->beta[s] * left_over;
                    if (error_grad->data) felt_error += LOAD(own + s * vp + j);
                    STORE(de + s * vp + j, felt_error);
                }
            NAME(scale_rows)(n, vp, g->from_start, 1, outer, outers);
            NAME(scale_rows)(n, vp, g->from_start, -1, de, outers + CHUNK * vp);

            NAME(transpose)(CHUNK, vp, u, ut);
            NAME(multiply)(stacked, CHUNK, vp, outer, vp, 1, ut, CHUNK, weights, CHUNK, 0);
            double passing[CHUNK], change[CHUNK]; /* change: x_t - y_t */
            if (decay_grad->data) NAME(passing)(g, weights, shape->overwrite, passing);
            for (int t = 0; t < n; t++)
                for (int s = 0; s < CHUNK; s++) {
                    weights[t * CHUNK + s] *= g->decay[t][s];
                    if (shape->overwrite) weights[square + t * CHUNK + s] *= s < t ? g->decay[t][s] : 0;
                }
            for (int s = 0; s < n; s++) /* mix [16, 32]: what dk takes of queries and of keys */
                for (int t = 0; t < n; t++) {
                    mix[s * 2 * CHUNK + t] = weights[t * CHUNK + s];
                    if (shape->overwrite)
                        mix[s * 2 * CHUNK + CHUNK + t] = -weights[square + t * CHUNK + s] - weights[square + s * CHUNK + t];
                }

            NAME(multiply)(stacked, kp, vp, outers, vp, 1, ST + c * size, kp, grads, kp, 0);
            REAL *dk = grads + CHUNK * kp;
            for (int64_t t = 0; t < n && decay_grad->data; t++) {
                change[t] = NAME(dot)(qk + t * kp, grads + t * kp, kp);
                if (shape->overwrite) change[t] += NAME(dot)(keys + t * kp, dk + t * kp, kp);
            }
            NAME(multiply)(n, kp, n, weights, CHUNK, 1, keys, kp, grads, kp, 1);
            NAME(multiply)(kp, CHUNK, vp, dS, vp, 1, ut, CHUNK, kt, CHUNK, 0); /* dS' u, a column a token */
            NAME(transpose)(kp, CHUNK, kt, felt);
            for (int64_t t = 0; t < n && decay_grad->data; t++)
                change[t] -= g->to_end[t] * NAME(dot)(keys + t * kp, felt + t * kp, kp);
            if (!shape->overwrite) memset(dk, 0, CHUNK * kp * sizeof(REAL));
            for (int64_t t = 0; t < n; t++)
                for (int64_t j = 0; j < kp; j += LANES)
                    STORE(dk + t * kp + j, LOAD(dk + t * kp + j) + g->to_end[t] * LOAD(felt + t * kp + j));
            NAME(multiply)(n, kp, n, mix, 2 * CHUNK, 1, qk, kp, dk, kp, 1);
            if (shape->overwrite) NAME(multiply)(n, kp, n, mix + CHUNK, 2 * CHUNK, 1, keys, kp, dk, kp, 1);
            NAME(multiply)(kp, vp, stacked, qk, 1, kp, outers, vp, dS, vp, g->through);

            NAME(scatter)(grads, kp, n, K, NAME(at)(q_grad, b, t0, h) + part * K, q_grad->t);
            NAME(scatter)(dk, kp, n, K, NAME(at)(k_grad, b, t0, h) + part * K, k_grad->t);
            NAME(scatter)(de, vp, n, width, NAME(at)(v_grad, b, t0, h) + first, v_grad->t);
            for (int64_t t = 0; t < n; t++)
                NAME(at)(beta_grad, b, t0 + t, h)[part] = NAME(dot)(du + t * vp, e + t * vp, vp);
            for (int64_t t = n - 1; t >= 0 && decay_grad->data; t--) {
                along += change[t];
                NAME(at)(decay_grad, b, t0 + t, h)[part] = along + passing[t];
            }
        }
        along = NAME(dot)(dS, flat, size);
    }
    if (state_grad->data)
        NAME(scatter)(dS, vp, K, width, NAME(at)(state_grad, b, 0, h) + first, state_grad->t);
    free(gates);
    free(dS);
    return 0;
}

/* Returns 0, or 1 where there is no memory for scratch. Gradients of q, k, beta and log_decay are [blocks, ...]; those
   of q and k have a part for each value head. */
int NAME(delta_rule_backward)(const Shape *shape, const View *q, const View *k, const View *v, const View *beta,
                              const View *log_decay, const View *error, const View *saved, const View *final,
                              const View *out_grad, const View *final_grad, const View *q_grad, const View *k_grad,
                              const View *v_grad, const View *beta_grad, const View *decay_grad,
                              const View *state_grad, const View *error_grad) {
    const int64_t tasks = shape->batch * shape->heads * shape->blocks;
    int failed = 0;
#pragma omp parallel for schedule(dynamic) reduction(| : failed) if (tasks > 1)
    for (int64_t task = 0; task < tasks; task++) {
        const unsigned before = flush_subnormals();
        const int64_t head = task / shape->blocks;
        failed |= NAME(backward_head)(shape, q, k, v, beta, log_decay, error, saved, final, out_grad, final_grad,
                                      q_grad, k_grad, v_grad, beta_grad, decay_grad, state_grad, error_grad,
                                      head / shape->heads, head % shape->heads, task % shape->blocks);
        restore_subnormals(before);
    }
    return failed;
}
