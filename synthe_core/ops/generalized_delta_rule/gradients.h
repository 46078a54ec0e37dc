/* Included once for each REAL, after walk.h. The backward pass: with G_t the gradient of S_t,

     G_t = d_{t+1} G_{t+1} + a_{t+1} dr_{t+1}ᵀ + q_t do_tᵀ     dv_t = G_tᵀ k_t     dr_t = G_tᵀ b_t
     dq_t = S_t do_t     da_t = S_{t-1} dr_t     dk_t = G_t v_t     db_t = G_t r_t     dw_t = d_t (G_t ∘ S_{t-1}) 1

   The first line is the forward pass backwards in time, by the same code. Given every dr of a segment, each
   entry of S and G is a recurrence of its own, and the second line is computed with K in the lanes, tile by tile:
   forwards in time for S, which stays in the first-level cache, then backwards for G. */

static void NAME(transpose)(int64_t rows, int64_t columns, const REAL *restrict from, int64_t ld, REAL *restrict to,
                            int64_t ldt) {
    for (int64_t j = 0; j < columns; j++)
        for (int64_t i = 0; i < rows; i++) to[j * ldt + i] = from[i * ld + j];
}

/* A segment of one head: rows of kp or vp numbers. v: the values, or u where tied. */
typedef struct {
    int64_t n, kp, vp;
    STREAMS in;
    const REAL *v, *r, *dout, *dr;
    REAL *dq, *dk, *da, *db, *dd;
    REAL *ST, *GT; /* [V, K]: S before the segment, and G after it, which becomes G at its first token */
} NAME(Segment);

/* Value columns j to j + DEEP, key channels i to i + LANES vecs. */
static inline __attribute__((always_inline)) void NAME(tile)(const NAME(Segment) *at, int64_t i, int64_t j,
                                                              const int vecs, const int tied) {
    const int64_t kp = at->kp, vp = at->vp, n = at->n;
    VEC path[SEGMENT][DEEP][2], m[DEEP][2];
#pragma GCC unroll 4
    for (int c = 0; c < DEEP; c++)
#pragma GCC unroll 2
        for (int x = 0; x < vecs; x++) m[c][x] = LOAD(at->ST + (j + c) * kp + i + x * LANES);
    for (int64_t t = 0; t < n; t++) {
        const REAL *value = at->v + t * vp + j, *recalled = at->r + t * vp + j;
        const REAL *dout = at->dout + t * vp + j, *dr = at->dr + t * vp + j;
#pragma GCC unroll 2
        for (int x = 0; x < vecs; x++) {
            const int64_t here = t * kp + i + x * LANES;
            const VEC d = LOAD(at->in.d + here), k = LOAD(at->in.k + here), b = LOAD(at->in.b + here);
            VEC dq = LOAD(at->dq + here), da = LOAD(at->da + here);
#pragma GCC unroll 4
            for (int c = 0; c < DEEP; c++) {
                path[t][c][x] = m[c][x];
                da += dr[c] * m[c][x];
                m[c][x] = d * m[c][x] + value[c] * k;
                if (!tied) m[c][x] += recalled[c] * b;
                dq += dout[c] * m[c][x];
            }
            STORE(at->dq + here, dq);
            STORE(at->da + here, da);
        }
    }
#pragma GCC unroll 4
    for (int c = 0; c < DEEP; c++)
#pragma GCC unroll 2
        for (int x = 0; x < vecs; x++) m[c][x] = LOAD(at->GT + (j + c) * kp + i + x * LANES);
    for (int64_t t = n - 1; t >= 0; t--) {
        const REAL *value = at->v + t * vp + j, *recalled = at->r + t * vp + j;
        const REAL *dout = at->dout + t * vp + j, *dr = at->dr + (t + 1) * vp + j;
#pragma GCC unroll 2
        for (int x = 0; x < vecs; x++) {
            const int64_t here = t * kp + i + x * LANES;
            const VEC d = LOAD(at->in.d + here + kp), a = LOAD(at->in.a + here + kp), q = LOAD(at->in.q + here);
            VEC dk = LOAD(at->dk + here), db = LOAD(at->db + here), dd = LOAD(at->dd + here);
#pragma GCC unroll 4
            for (int c = 0; c < DEEP; c++) {
                m[c][x] = d * m[c][x] + dr[c] * a + dout[c] * q;
                dk += value[c] * m[c][x];
                if (!tied) db += recalled[c] * m[c][x];
                dd += path[t][c][x] * m[c][x];
            }
            STORE(at->dk + here, dk);
            STORE(at->dd + here, dd);
            if (!tied) STORE(at->db + here, db);
        }
    }
#pragma GCC unroll 4
    for (int c = 0; c < DEEP; c++)
#pragma GCC unroll 2
        for (int x = 0; x < vecs; x++) STORE(at->GT + (j + c) * kp + i + x * LANES, m[c][x]);
}

static inline __attribute__((always_inline)) void NAME(tiles)(const NAME(Segment) *at, const int tied) {
    int64_t i = 0;
    for (; i + 2 * LANES <= at->kp; i += 2 * LANES)
        for (int64_t j = 0; j < at->vp; j += DEEP) NAME(tile)(at, i, j, 2, tied);
    for (; i < at->kp; i += LANES)
        for (int64_t j = 0; j < at->vp; j += DEEP) NAME(tile)(at, i, j, 1, tied);
}

static int NAME(backward_head)(const Shape *shape, const View *q, const View *k, const View *v, const View *a,
                               const View *b, const View *beta, const View *log_decay, const View *recalls,
                               const View *saved, const View *out_grad, const View *final_grad, const View *q_grad,
                               const View *k_grad, const View *v_grad, const View *a_grad, const View *b_grad,
                               const View *beta_grad, const View *decay_grad, const View *state_grad, int64_t row,
                               int64_t h) {
    const int64_t K = shape->key, V = shape->value, kp = padded(K), vp = padded(V), tied = shape->tied;
    const int64_t rows = SEGMENT * kp, columns = (SEGMENT + 1) * vp;
    REAL *block = NAME(scratch)(K * vp + 2 * kp * vp + STREAM_ROWS * kp + 5 * rows + 5 * columns);
    if (!block) return 1;
    REAL *G = block, *ST = G + K * vp, *GT = ST + kp * vp, *grads = GT + kp * vp;
    REAL *values = grads + 5 * rows, *r = values + columns, *dout = r + columns, *dr = dout + columns, *dv = dr + columns;
    NAME(Segment) at = {0, kp, vp, NAME(streams)(dv + columns, kp), values, r, dout, dr, grads, grads + rows,
                        grads + 2 * rows, grads + 3 * rows, grads + 4 * rows, ST, GT};
    const STREAMS in = at.in;
    const View *const keys[] = {q, k, a, b, log_decay}, *const coming[] = {v, recalls, out_grad};
    const View *const results[] = {q_grad, k_grad, a_grad, b_grad, decay_grad};
    if (final_grad->data) NAME(gather)(NAME(at)(final_grad, row, 0, h), final_grad->t, K, V, G, vp);
    NAME(transpose)(K, vp, G, vp, GT, kp);
    for (int64_t t0 = (shape->time - 1) / SEGMENT * SEGMENT; t0 >= 0; t0 -= SEGMENT) {
        const int64_t n = at.n = tokens_from(shape, t0);
        NAME(prepare)(shape, q, k, a, b, beta, log_decay, row, t0, h, kp, &at.in);
        NAME(gather)(NAME(at)(tied ? recalls : v, row, t0, h), tied ? recalls->t : v->t, n, V, values, vp);
        if (!tied) NAME(gather)(NAME(at)(recalls, row, t0, h), recalls->t, n, V, r, vp);
        NAME(gather)(NAME(at)(out_grad, row, t0, h), out_grad->t, n, V, dout, vp);
        memcpy(dr + n * vp, dr, vp * sizeof(REAL)); /* that of the token after the segment; 0 at the end of time */
        for (int64_t t = n - 1; t >= 0; t--) {
            const REAL *d = in.d + (t + 1) * kp, *recall = in.a + (t + 1) * kp, *query = in.q + t * kp;
            const REAL *key = in.k + t * kp;
            REAL *now = dr + t * vp;
            NAME(expect)(keys, 5, shape, row, t0 - SEGMENT + t, h, K);
            NAME(expect)(coming, 3, shape, row, t0 - SEGMENT + t, h, V);
            NAME(expect)(results, 5, shape, row, t0 + t, h, K);
            if (tied) {
                NAME(token)(K, d, recall, query, key, NULL, now + vp, dout + t * vp, dv + t * vp, now, G, vp, 1, 0);
                for (int64_t j = 0; j < vp; j++) now[j] = -dv[t * vp + j];
            } else {
                NAME(token)(K, d, recall, query, key, in.b + t * kp, now + vp, dout + t * vp, dv + t * vp, now, G, vp, 1,
                            1);
            }
        }
        NAME(scatter)(dv, vp, n, V, NAME(at)(v_grad, row, t0, h), v_grad->t);
        NAME(transpose)(K, V, NAME(at)(saved, row, t0 / SEGMENT * K, h), saved->t, ST, kp);
        memset(grads, 0, 5 * rows * sizeof(REAL));
        if (tied)
            NAME(tiles)(&at, 1);
        else
            NAME(tiles)(&at, 0);
        for (int64_t i = 0; i < n * kp; i++) at.dd[i] *= in.d[i];
        if (tied) {
            for (int64_t t = 0; t < n; t++) {
                const REAL *key = NAME(at)(k, row, t0 + t, h), strength = *NAME(at)(beta, row, t0 + t, h);
                REAL *dk = at.dk + t * kp, *dd = at.dd + t * kp, of_strength = 0;
                const REAL *da = at.da + t * kp, *d = in.d + t * kp, *recall = in.a + t * kp;
                for (int64_t i = 0; i < K; i++) {
                    of_strength += key[i] * dk[i];
                    dk[i] = strength * dk[i] + d[i] * da[i];
                    dd[i] += recall[i] * da[i];
                }
                *NAME(at)(beta_grad, row, t0 + t, h) = of_strength;
            }
        } else {
            NAME(scatter)(at.da, kp, n, K, NAME(at)(a_grad, row, t0, h), a_grad->t);
            NAME(scatter)(at.db, kp, n, K, NAME(at)(b_grad, row, t0, h), b_grad->t);
        }
        NAME(scatter)(at.dq, kp, n, K, NAME(at)(q_grad, row, t0, h), q_grad->t);
        NAME(scatter)(at.dk, kp, n, K, NAME(at)(k_grad, row, t0, h), k_grad->t);
        NAME(scatter)(at.dd, kp, n, K, NAME(at)(decay_grad, row, t0, h), decay_grad->t);
    }
    if (state_grad->data)
        for (int64_t i = 0; i < K; i++) {
            REAL *to = NAME(at)(state_grad, row, i, h);
            for (int64_t j = 0; j < V; j++) to[j] = in.d[i] * G[i * vp + j] + in.a[i] * dr[j];
        }
    free(block);
    return 0;
}

/* Returns 0, or 1 where there is no memory for scratch. */
int NAME(backward)(const Shape *shape, const View *q, const View *k, const View *v, const View *a, const View *b,
                   const View *beta, const View *log_decay, const View *recalls, const View *saved, const View *out_grad,
                   const View *final_grad, const View *q_grad, const View *k_grad, const View *v_grad,
                   const View *a_grad, const View *b_grad, const View *beta_grad, const View *decay_grad,
                   const View *state_grad) {
    const int64_t tasks = shape->batch * shape->heads;
    int failed = 0;
#pragma omp parallel for schedule(dynamic) reduction(| : failed) if (tasks > 1)
    for (int64_t task = 0; task < tasks; task++) {
        const unsigned before = flush_subnormals();
        failed |= NAME(backward_head)(shape, q, k, v, a, b, beta, log_decay, recalls, saved, out_grad, final_grad, q_grad,
                                      k_grad, v_grad, a_grad, b_grad, beta_grad, decay_grad, state_grad,
                                      task / shape->heads, task % shape->heads);
        restore_subnormals(before);
    }
    return failed;
}
