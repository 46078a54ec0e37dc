/* Included once for each REAL. The forward pass: with d_t = exp(w_t) and r_t = S_{t-1}ᵀ a_t,

     S_t = d_t S_{t-1} + b_t r_tᵀ + k_t v_tᵀ     o_t = S_tᵀ q_t     r_{t+1} = S_tᵀ a_{t+1}

   Tied, of a key κ and a strength β: a = d κ, b = -β κ, k = β κ, so that both writes are one, k_t u_tᵀ of u_t = v_t - r_t. */

typedef REAL NAME(vec) __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(REAL))));
#define VEC NAME(vec)
#define LANES ((int64_t)(VECTOR_BYTES / sizeof(REAL)))
#define LOAD(p) (*(const VEC *)(p))
#define STORE(p, x) (*(VEC *)(p) = (x))

static inline REAL *NAME(at)(const View *view, int64_t b, int64_t t, int64_t h) {
    return (REAL *)view->data + b * view->b + t * view->t + h * view->h;
}

/* `rows` rows of `width` numbers, `stride` apart, into a zero-padded matrix of `ld` columns and back. */
static void NAME(gather)(const REAL *from, int64_t stride, int64_t rows, int64_t width, REAL *to, int64_t ld) {
    for (int64_t t = 0; t < rows; t++) {
        memcpy(to + t * ld, from + t * stride, width * sizeof(REAL));
        memset(to + t * ld + width, 0, (ld - width) * sizeof(REAL));
    }
}

static void NAME(scatter)(const REAL *from, int64_t ld, int64_t rows, int64_t width, REAL *to, int64_t stride) {
    for (int64_t t = 0; t < rows; t++) memcpy(to + t * stride, from + t * ld, width * sizeof(REAL));
}

/* Asks for row t of tensors before it is read (or written over): heads lie far apart, and the processor does not guess
   that. Called while a token is worked on, so that memory and arithmetic overlap. */
static inline __attribute__((always_inline)) void NAME(expect)(const View *const *views, int count, const Shape *shape,
                                                                int64_t b, int64_t t, int64_t h, int64_t width) {
    if (t < 0 || t >= shape->time) return;
    for (int x = 0; x < count; x++)
        if (views[x]->data)
            for (int64_t j = 0; j < width; j += 64 / (int64_t)sizeof(REAL))
                __builtin_prefetch(NAME(at)(views[x], b, t, h) + j, 1);
}

/* Zeroed, so that the lanes beyond K and V are; NULL where there is no memory. */
static REAL *NAME(scratch)(int64_t count) {
    const size_t bytes = (count * sizeof(REAL) + 63) / 64 * 64;
    REAL *block = aligned_alloc(64, bytes);
    return block ? memset(block, 0, bytes) : NULL;
}

/* One token over `vecs` vectors of value columns of a memory S [K, ld]:

     S = d S + x rxᵀ + y ryᵀ     first = Sᵀ p     second = Sᵀ s

   without the term of x unless `two`, and without `second` unless `both`. */
static inline __attribute__((always_inline)) void NAME(columns)(
    int64_t K, const REAL *d, const REAL *x, const REAL *y, const REAL *p, const REAL *s, const REAL *rx, const REAL *ry,
    REAL *first, REAL *second, REAL *S, int64_t ld, const int vecs, const int two, const int both) {
    VEC from_x[WIDEST], from_y[WIDEST], read[WIDEST], recalled[WIDEST];
#pragma GCC unroll 4
    for (int j = 0; j < vecs; j++) {
        from_y[j] = LOAD(ry + j * LANES);
        if (two) from_x[j] = LOAD(rx + j * LANES);
        read[j] = recalled[j] = (VEC){0};
    }
    for (int64_t i = 0; i < K; i++) {
        REAL *row = S + i * ld;
        /* Read here, as the compiler must assume that the stores below change them. */
        const REAL fade = d[i], of_x = two ? x[i] : 0, of_y = y[i], to_first = p[i], to_second = both ? s[i] : 0;
#pragma GCC unroll 4
        for (int j = 0; j < vecs; j++) {
            VEC m = fade * LOAD(row + j * LANES) + of_y * from_y[j];
            if (two) m += of_x * from_x[j];
            STORE(row + j * LANES, m);
            read[j] += to_first * m;
            if (both) recalled[j] += to_second * m;
        }
    }
#pragma GCC unroll 4
    for (int j = 0; j < vecs; j++) {
        STORE(first + j * LANES, read[j]);
        if (both) STORE(second + j * LANES, recalled[j]);
    }
}

/* The same over all value columns, as wide as registers allow. */
static inline __attribute__((always_inline)) void NAME(token)(
    int64_t K, const REAL *d, const REAL *x, const REAL *y, const REAL *p, const REAL *s, const REAL *rx, const REAL *ry,
    REAL *first, REAL *second, REAL *S, int64_t ld, const int two, const int both) {
    int64_t j = 0;
    for (; j + WIDEST * LANES <= ld; j += WIDEST * LANES)
        NAME(columns)(K, d, x, y, p, s, rx + j, ry + j, first + j, second + j, S + j, ld, WIDEST, two, both);
    for (; j + 2 * LANES <= ld; j += 2 * LANES)
        NAME(columns)(K, d, x, y, p, s, rx + j, ry + j, first + j, second + j, S + j, ld, 2, two, both);
    for (; j < ld; j += LANES)
        NAME(columns)(K, d, x, y, p, s, rx + j, ry + j, first + j, second + j, S + j, ld, 1, two, both);
}

/* What a head's keys and gates are over a segment and the one token after it, rows of kp numbers. After the end of time
   nothing fades and nothing is recalled. */
typedef struct {
    REAL *q, *k, *a, *b, *d;
} NAME(Streams);
#define STREAMS NAME(Streams)
#define STREAM_ROWS ((SEGMENT + 1) * 5)

static STREAMS NAME(streams)(REAL *block, int64_t kp) {
    const int64_t size = (SEGMENT + 1) * kp;
    return (STREAMS){block, block + size, block + 2 * size, block + 3 * size, block + 4 * size};
}

static void NAME(prepare)(const Shape *shape, const View *q, const View *k, const View *a, const View *b,
                          const View *beta, const View *log_decay, int64_t batch, int64_t t0, int64_t h, int64_t kp,
                          STREAMS *to) {
    const int64_t n = tokens_from(shape, t0), K = shape->key, rows = t0 + n < shape->time ? n + 1 : n;
    NAME(gather)(NAME(at)(q, batch, t0, h), q->t, n, K, to->q, kp);
    NAME(gather)(NAME(at)(k, batch, t0, h), k->t, rows, K, to->k, kp);
    NAME(gather)(NAME(at)(log_decay, batch, t0, h), log_decay->t, rows, K, to->d, kp);
    for (int64_t i = 0; i < rows * kp; i++) to->d[i] = EXP(to->d[i]);
    if (shape->tied) {
        for (int64_t t = 0; t < rows; t++) {
            const REAL strength = *NAME(at)(beta, batch, t0 + t, h);
            for (int64_t i = t * kp; i < (t + 1) * kp; i++) {
                to->a[i] = to->d[i] * to->k[i];
                to->k[i] *= strength;
            }
        }
    } else {
        NAME(gather)(NAME(at)(a, batch, t0, h), a->t, rows, K, to->a, kp);
        NAME(gather)(NAME(at)(b, batch, t0, h), b->t, n, K, to->b, kp);
    }
    for (int64_t i = rows * kp; i < (n + 1) * kp; i++) {
        to->d[i] = 1;
        to->a[i] = 0;
    }
}

/* One head of one row through all of time. `recalls` [B, T, H, V] and `saved` [B, H, segments K, V] are what the backward
   pass asks for: r_t, or u_t where tied, and the memory before every segment. */
static int NAME(forward_head)(const Shape *shape, const View *q, const View *k, const View *v, const View *a,
                              const View *b, const View *beta, const View *log_decay, const View *state, const View *o,
                              const View *final, const View *recalls, const View *saved, int64_t row, int64_t h) {
    const int64_t K = shape->key, V = shape->value, kp = padded(K), vp = padded(V);
    REAL *block = NAME(scratch)(K * vp + STREAM_ROWS * kp + (3 * SEGMENT + 1) * vp);
    if (!block) return 1;
    REAL *S = block, *values = S + K * vp, *out = values + SEGMENT * vp, *r = out + SEGMENT * vp;
    STREAMS in = NAME(streams)(r + (SEGMENT + 1) * vp, kp);
    const View *const keys[] = {q, k, a, b, log_decay}, *const coming[] = {v}, *const results[] = {o, recalls};
    if (state->data) NAME(gather)(NAME(at)(state, row, 0, h), state->t, K, V, S, vp);
    for (int64_t t0 = 0; t0 < shape->time; t0 += SEGMENT) {
        const int64_t n = tokens_from(shape, t0);
        if (saved->data) NAME(scatter)(S, vp, K, V, NAME(at)(saved, row, t0 / SEGMENT * K, h), saved->t);
        NAME(prepare)(shape, q, k, a, b, beta, log_decay, row, t0, h, kp, &in);
        NAME(gather)(NAME(at)(v, row, t0, h), v->t, n, V, values, vp);
        if (t0 == 0)
            for (int64_t i = 0; i < K; i++)
                for (int64_t j = 0; j < vp; j++) r[j] += in.a[i] * S[i * vp + j];
        for (int64_t t = 0; t < n; t++) {
            const REAL *d = in.d + t * kp, *key = in.k + t * kp, *query = in.q + t * kp, *next = in.a + (t + 1) * kp;
            REAL *now = r + t * vp, *value = values + t * vp, *read = out + t * vp;
            NAME(expect)(keys, 5, shape, row, t0 + SEGMENT + t, h, K);
            NAME(expect)(coming, 1, shape, row, t0 + SEGMENT + t, h, V);
            NAME(expect)(results, 2, shape, row, t0 + t, h, V);
            if (shape->tied) {
                for (int64_t j = 0; j < vp; j++) value[j] -= now[j];
                NAME(token)(K, d, NULL, key, query, next, now, value, read, now + vp, S, vp, 0, 1);
            } else {
                NAME(token)(K, d, in.b + t * kp, key, query, next, now, value, read, now + vp, S, vp, 1, 1);
            }
        }
        NAME(scatter)(out, vp, n, V, NAME(at)(o, row, t0, h), o->t);
        if (recalls->data) NAME(scatter)(shape->tied ? values : r, vp, n, V, NAME(at)(recalls, row, t0, h), recalls->t);
        memcpy(r, r + n * vp, vp * sizeof(REAL));
    }
    NAME(scatter)(S, vp, K, V, NAME(at)(final, row, 0, h), final->t);
    free(block);
    return 0;
}

/* Returns 0, or 1 where there is no memory for scratch. */
int NAME(forward)(const Shape *shape, const View *q, const View *k, const View *v, const View *a, const View *b,
                  const View *beta, const View *log_decay, const View *state, const View *o, const View *final,
                  const View *recalls, const View *saved) {
    const int64_t tasks = shape->batch * shape->heads;
    int failed = 0;
#pragma omp parallel for schedule(dynamic) reduction(| : failed) if (tasks > 1)
    for (int64_t task = 0; task < tasks; task++) {
        const unsigned before = flush_subnormals();
        failed |= NAME(forward_head)(shape, q, k, v, a, b, beta, log_decay, state, o, final, recalls, saved,
                                     task / shape->heads, task % shape->heads);
        restore_subnormals(before);
    }
    return failed;
}
