/* Included once for each REAL. Within a chunk, with S the memory before it (row = key component),
   γ_t the decay from the chunk's start through t, and D_ts the decay after s through t (0 for s > t):

     e_t = v_t - γ_t Sᵀk_t - Σ_{s<t} D_ts (k_t·k_s) u_s        the error at k_t           u_t = β_t e_t
     o_t = γ_t Sᵀq_t + Σ_{s≤t} D_ts (q_t·k_s) u_s
     S'  = γ_n S + Σ_s D_ns k_s u_sᵀ */

typedef REAL NAME(vec) __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(REAL))));
#define VEC NAME(vec)
#define LANES ((int)(VECTOR_BYTES / sizeof(REAL)))
#define LOAD(p) (*(const VEC *)(p))
#define STORE(p, x) (*(VEC *)(p) = (x))

/* C[rows, vecs] = keep C + Σ_p A[i ai + p ap] B[p, :], held in registers. */
static inline __attribute__((always_inline)) void NAME(tile)(const REAL *A, int64_t ai, int64_t ap, const REAL *B,
                                                              int64_t ldb, REAL *C, int64_t ldc, int64_t inner,
                                                              REAL keep, const int rows, const int vecs) {
    VEC acc[16][2];
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
        for (int j = 0; j < vecs; j++)
            acc[i][j] = keep == 0 ? (VEC){0} : keep * LOAD(C + i * ldc + j * LANES);
    for (int64_t p = 0; p < inner; p++) {
        VEC b[2];
#pragma GCC unroll 2
        for (int j = 0; j < vecs; j++) b[j] = LOAD(B + p * ldb + j * LANES);
#pragma GCC unroll 16
        for (int i = 0; i < rows; i++) {
            const REAL a = A[i * ai + p * ap];
#pragma GCC unroll 2
            for (int j = 0; j < vecs; j++) acc[i][j] += a * b[j];
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
        for (int j = 0; j < vecs; j++) STORE(C + i * ldc + j * LANES, acc[i][j]);
}

/* C [m, n] = keep C + A B with A [m, inner] of strides (ai, ap), so that ai = 1 reads a transpose; n in vectors. */
static void NAME(multiply)(int64_t m, int64_t n, int64_t inner, const REAL *A, int64_t ai, int64_t ap, const REAL *B,
                           int64_t ldb, REAL *C, int64_t ldc, REAL keep) {
    int64_t j = 0;
    for (; j + 2 * LANES <= n; j += 2 * LANES) {
        int64_t i = 0;
        for (; i + TILE_ROWS <= m; i += TILE_ROWS)
            NAME(tile)(A + i * ai, ai, ap, B + j, ldb, C + i * ldc + j, ldc, inner, keep, TILE_ROWS, 2);
        for (; i < m; i++) NAME(tile)(A + i * ai, ai, ap, B + j, ldb, C + i * ldc + j, ldc, inner, keep, 1, 2);
    }
    for (; j < n; j += LANES) {
        int64_t i = 0;
        for (; i + 2 * TILE_ROWS <= m; i += 2 * TILE_ROWS)
            NAME(tile)(A + i * ai, ai, ap, B + j, ldb, C + i * ldc + j, ldc, inner, keep, 2 * TILE_ROWS, 1);
        for (; i < m; i++) NAME(tile)(A + i * ai, ai, ap, B + j, ldb, C + i * ldc + j, ldc, inner, keep, 1, 1);
    }
}

static void NAME(transpose)(int64_t rows, int64_t columns, const REAL *restrict from, REAL *restrict to) {
    for (int64_t j = 0; j < columns; j += 8)
        for (int64_t i = 0; i < rows; i += 8)
            for (int64_t y = 0; y < 8; y++)
                for (int64_t x = 0; x < 8; x++) to[(j + y) * rows + i + x] = from[(i + x) * columns + j + y];
}

static inline REAL NAME(dot)(const REAL *a, const REAL *b, int64_t n) {
    VEC sum = {0};
    for (int64_t j = 0; j < n; j += LANES) sum += LOAD(a + j) * LOAD(b + j);
    REAL total = 0;
    for (int j = 0; j < LANES; j++) total += sum[j];
    return total;
}

static inline void NAME(scale_rows)(int64_t rows, int64_t n, const REAL *by, REAL sign, const REAL *from, REAL *to) {
    for (int64_t t = 0; t < rows; t++) {
        const REAL factor = sign * by[t];
        for (int64_t j = 0; j < n; j += LANES) STORE(to + t * n + j, factor * LOAD(from + t * n + j));
    }
}

static inline REAL *NAME(at)(const View *view, int64_t b, int64_t t, int64_t h) {
    return (REAL *)view->data + b * view->b + t * view->t + h * view->h;
}

/* `rows` rows of `width` numbers, `stride` apart, into a zero-padded matrix of `ld` columns and back. */
static inline void NAME(gather)(const REAL *from, int64_t stride, int64_t rows, int64_t width, REAL *to, int64_t ld) {
    for (int64_t t = 0; t < rows; t++) {
        memcpy(to + t * ld, from + t * stride, width * sizeof(REAL));
        if (width < ld) memset(to + t * ld + width, 0, (ld - width) * sizeof(REAL));
    }
}

/* Asks for a chunk's rows before they are needed: heads lie far apart, and the processor does not guess that. */
static inline void NAME(expect)(const Shape *shape, const View *view, int64_t b, int64_t t0, int64_t h, int64_t first,
                                int64_t width) {
    if (t0 < 0 || t0 >= shape->time || !view->data) return;
    const int64_t n = shape->time - t0 < CHUNK ? shape->time - t0 : CHUNK;
    const REAL *row = NAME(at)(view, b, t0, h) + first;
    for (int64_t t = 0; t < n; t++, row += view->t)
        for (int64_t j = 0; j < width; j += 64 / (int64_t)sizeof(REAL)) __builtin_prefetch(row + j);
}

static inline void NAME(scatter)(const REAL *from, int64_t ld, int64_t rows, int64_t width, REAL *to, int64_t stride) {
    for (int64_t t = 0; t < rows; t++) memcpy(to + t * stride, from + t * ld, width * sizeof(REAL));
}

/* What depends on a chunk's queries, keys and gates alone. */
typedef struct {
    int64_t n;                                                      /* tokens in this chunk */
    REAL beta[CHUNK], from_start[CHUNK], to_end[CHUNK], through;    /* β_t, γ_t, D_nt, γ_n */
    REAL decay[CHUNK][CHUNK], read[CHUNK][CHUNK], solve[CHUNK][CHUNK]; /* D, D∘(q·k), D∘(k·k) below the diagonal */
} NAME(Gates);
#define GATES NAME(Gates)

/* Fills `g`, and qk [32, K] with the chunk's queries, then its keys. `kt` and `products` are scratch. */
static void NAME(prepare)(const Shape *shape, const View *q, const View *k, const View *beta, const View *log_decay,
                          int64_t b, int64_t t0, int64_t h, int64_t kp, GATES *g, REAL *qk, REAL *kt, REAL *products) {
    const int64_t n = shape->time - t0 < CHUNK ? shape->time - t0 : CHUNK;
    REAL *keys = qk + CHUNK * kp;
    g->n = n;
    if (n < CHUNK) memset(keys, 0, CHUNK * kp * sizeof(REAL));
    NAME(gather)(NAME(at)(q, b, t0, h / shape->group), q->t, n, shape->key, qk, kp);
    NAME(gather)(NAME(at)(k, b, t0, h / shape->group), k->t, n, shape->key, keys, kp);
    memset(g->decay, 0, sizeof g->decay);
    REAL through = 1;
    for (int64_t t = 0; t < n; t++) {
        const REAL alpha = log_decay->data ? EXP(*NAME(at)(log_decay, b, t0 + t, h)) : 1;
        through *= alpha;
        g->beta[t] = *NAME(at)(beta, b, t0 + t, h);
        g->from_start[t] = through;
        if (t)
            for (int s = 0; s < CHUNK; s++) g->decay[t][s] = alpha * g->decay[t - 1][s];
        g->decay[t][t] = 1;
    }
    g->through = through;
    memcpy(g->to_end, g->decay[n - 1], sizeof g->to_end);
    NAME(transpose)(CHUNK, kp, keys, kt);
    NAME(multiply)(n, CHUNK, kp, qk, kp, 1, kt, CHUNK, products, CHUNK, 0);
    if (shape->overwrite)
        NAME(multiply)(n, CHUNK, kp, keys, kp, 1, kt, CHUNK, products + CHUNK * CHUNK, CHUNK, 0);
    for (int64_t t = 0; t < n; t++)
        for (int s = 0; s < CHUNK; s++) {
            g->read[t][s] = g->decay[t][s] * products[t * CHUNK + s];
            g->solve[t][s] = s < t && shape->overwrite ? g->decay[t][s] * products[(CHUNK + t) * CHUNK + s] : 0;
        }
}

/* The block of value columns that a task works on. */
static inline void NAME(columns)(const Shape *shape, int64_t block, int64_t *first, int64_t *width) {
    const int64_t each = padded((shape->value + shape->blocks - 1) / shape->blocks);
    *first = block * each;
    *width = shape->value - *first < each ? shape->value - *first : each;
}

static REAL *NAME(scratch)(int64_t count) { return aligned_alloc(64, (count * sizeof(REAL) + 63) / 64 * 64); }

/* One head of one row, or a block of its value columns, through all of time. */
static int NAME(forward_head)(const Shape *shape, const View *q, const View *k, const View *v, const View *beta,
                              const View *log_decay, const View *state, const View *o, const View *final,
                              const View *error, const View *saved, int64_t b, int64_t h, int64_t block) {
    int64_t first, width;
    NAME(columns)(shape, block, &first, &width);
    if (width <= 0) return 0;
    const int64_t K = shape->key, kp = padded(K), vp = padded(width);
    REAL *S = NAME(scratch)(kp * vp + 5 * CHUNK * kp + 2 * CHUNK * CHUNK + 4 * CHUNK * vp);
    if (!S) return 1;
    REAL *qk = S + kp * vp, *scaled = qk + 2 * CHUNK * kp, *kt = scaled + 2 * CHUNK * kp;
    REAL *products = kt + CHUNK * kp, *out = products + 2 * CHUNK * CHUNK; /* out: o rows, then e rows */
    REAL *e = out + CHUNK * vp, *u = e + CHUNK * vp, *values = u + CHUNK * vp;
    GATES g;
    memset(S, 0, kp * vp * sizeof(REAL));
    if (state->data) NAME(gather)(NAME(at)(state, b, 0, h) + first, state->t, K, width, S, vp);
    for (int64_t t0 = 0; t0 < shape->time; t0 += CHUNK) {
        if (saved->data && t0 % (CHUNK * SEGMENT) == 0)
            NAME(scatter)(S, vp, K, width, NAME(at)(saved, b, t0 / (CHUNK * SEGMENT) * K, h) + first, saved->t);
        NAME(expect)(shape, q, b, t0 + CHUNK, h / shape->group, 0, K);
        NAME(expect)(shape, k, b, t0 + CHUNK, h / shape->group, 0, K);
        NAME(expect)(shape, v, b, t0 + CHUNK, h, first, width);
        NAME(prepare)(shape, q, k, beta, log_decay, b, t0, h, kp, &g, qk, kt, products);
        const int64_t n = g.n;
        NAME(scale_rows)(n, kp, g.from_start, 1, qk, scaled);
        NAME(multiply)(n, vp, kp, scaled, kp, 1, S, vp, out, vp, 0);
        NAME(gather)(NAME(at)(v, b, t0, h) + first, v->t, n, width, values, vp);
        if (shape->overwrite) {
            NAME(scale_rows)(n, kp, g.from_start, 1, qk + CHUNK * kp, scaled);
            NAME(multiply)(n, vp, kp, scaled, kp, 1, S, vp, e, vp, 0);
            for (int64_t j = 0; j < vp; j += LANES)
                for (int64_t t = 0; t < n; t++) {
                    VEC left = LOAD(values + t * vp + j) - LOAD(e + t * vp + j);
                    for (int64_t s = 0; s < t; s++) left -= g.solve[t][s] * LOAD(u + s * vp + j);
                    STORE(e + t * vp + j, left);
                    STORE(u + t * vp + j, g.beta[t] * left);
                }
            if (error->data) NAME(scatter)(e, vp, n, width, NAME(at)(error, b, t0, h) + first, error->t);
        } else {
            NAME(scale_rows)(n, vp, g.beta, 1, values, u);
        }
        NAME(multiply)(n, vp, n, &g.read[0][0], CHUNK, 1, u, vp, out, vp, 1);
        NAME(scatter)(out, vp, n, width, NAME(at)(o, b, t0, h) + first, o->t);
        NAME(scale_rows)(n, vp, g.to_end, 1, u, u);
        NAME(multiply)(kp, vp, n, qk + CHUNK * kp, 1, kp, u, vp, S, vp, g.through);
    }
    NAME(scatter)(S, vp, K, width, NAME(at)(final, b, 0, h) + first, final->t);
    free(S);
    return 0;
}

/* Returns 0, or 1 where there is no memory for scratch. */
int NAME(delta_rule_forward)(const Shape *shape, const View *q, const View *k, const View *v, const View *beta,
                             const View *log_decay, const View *state, const View *o, const View *final,
                             const View *error, const View *saved) {
    const int64_t tasks = shape->batch * shape->heads * shape->blocks;
    int failed = 0;
#pragma omp parallel for schedule(dynamic) reduction(| : failed) if (tasks > 1)
    for (int64_t task = 0; task < tasks; task++) {
        const unsigned before = flush_subnormals();
        const int64_t head = task / shape->blocks;
        failed |= NAME(forward_head)(shape, q, k, v, beta, log_decay, state, o, final, error, saved,
                                     head / shape->heads, head % shape->heads, task % shape->blocks);
        restore_subnormals(before);
    }
    return failed;
}

#include "delta_rule_backward.h"
#undef VEC
#undef LANES
#undef LOAD
#undef STORE
#undef GATES
