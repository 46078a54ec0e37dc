/* Correlations of every channel by itself, which are all that the long convolution and its gradients consist of:

       out[n, r, d] = Σ_i a[n, i, d] b[n, i + r + offset, d],    b outside its rows being 0.

   Rows of a may run backwards: they are a_row numbers apart, which is D or -D. All other rows are D apart.
   Where outputs are many, a task is one row of the batch and one vector's width of channels. Its columns are packed side
   by side, and tiles of outputs are summed in registers, a chunk of i at a time, so that what is read again is in the
   first-level cache. */

#ifndef REAL

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../subnormals.h"

#if defined(__AVX512F__)
#define VECTOR 64
#elif defined(__AVX__)
#define VECTOR 32
#else
#define VECTOR 16
#endif

enum {
    TILE = 8,    /* outputs that are summed at once, in registers */
    CHUNK = 256, /* rows of a that stay in the first-level cache */
    BLOCK = 256, /* channels of a task where outputs are few */
};

#define REAL float
#define NAME(name) name##_float
#include "long_conv.c"
#undef REAL
#undef NAME
#define REAL double
#define NAME(name) name##_double
#include "long_conv.c"

#else

enum { NAME(LANES) = VECTOR / sizeof(REAL) };
typedef REAL NAME(Lane) __attribute__((vector_size(VECTOR)));

static int64_t NAME(at_least)(int64_t x, int64_t y) { return x > y ? x : y; }
static int64_t NAME(at_most)(int64_t x, int64_t y) { return x < y ? x : y; }

/* `lanes` channels of `rows` rows, `apart` numbers apart, side by side; lanes beyond the last channel are 0. */
static void NAME(pack)(const REAL *from, int64_t rows, int64_t apart, int64_t lanes, NAME(Lane) * to) {
    if (lanes < NAME(LANES)) memset(to, 0, rows * VECTOR);
    for (int64_t i = 0; i < rows; i++) memcpy(to + i, from + i * apart, lanes * sizeof(REAL));
}

/* One tile of outputs over rows [from, to) of a, b being where row 0 of a meets it. */
static inline void NAME(tile)(const NAME(Lane) * restrict a, const NAME(Lane) * restrict b, int64_t from, int64_t to,
                              NAME(Lane) * restrict out) {
    NAME(Lane) sum[TILE];
    for (int q = 0; q < TILE; q++) sum[q] = out[q];
    for (int64_t i = from; i < to; i++)
        for (int q = 0; q < TILE; q++) sum[q] += a[i] * b[i + q];
    for (int q = 0; q < TILE; q++) out[q] = sum[q];
}

typedef struct { /* row 0 of a [I, D] is at a + n * a_batch, of b [J, D] at b + n * b_batch; out is [B, R, D] */
    const REAL *a, *b;
    REAL *out;
    int64_t a_batch, a_row, I, b_batch, J, R, B, D, offset;
} NAME(Sizes);

/* A few outputs: every number is used so seldom that it is read where it is, row after row. */
static void NAME(few)(const NAME(Sizes) * s) {
    const int64_t D = s->D, blocks = (D + BLOCK - 1) / BLOCK;
#pragma omp parallel for schedule(static) if (s->B * D * s->I * s->R > 65536)
    for (int64_t task = 0; task < s->B * blocks; task++) {
        const int64_t n = task / blocks, d = task % blocks * BLOCK, width = NAME(at_most)(D - d, BLOCK);
        for (int64_t r = 0; r < s->R; r++) {
            const int64_t met = r + s->offset, last = NAME(at_most)(s->I, s->J - met);
            REAL sum[BLOCK] = {0};
            for (int64_t i = NAME(at_least)(0, -met); i < last; i++) {
                const REAL *a = s->a + n * s->a_batch + i * s->a_row + d;
                const REAL *b = s->b + n * s->b_batch + (i + met) * D + d;
                for (int64_t c = 0; c < width; c++) sum[c] += a[c] * b[c];
            }
            memcpy(s->out + (n * s->R + r) * D + d, sum, width * sizeof(REAL));
        }
    }
}

/* Many outputs; returns 0 where memory ran out. */
static int NAME(many)(const NAME(Sizes) * s) {
    const int64_t I = s->I, J = s->J, R = s->R, D = s->D;
    const int64_t panels = (D + NAME(LANES) - 1) / NAME(LANES), tiled = (R + TILE - 1) / TILE * TILE;
    int whole = 1;
#pragma omp parallel for schedule(static) reduction(&& : whole) if (s->B * D * I * R > 65536)
    for (int64_t task = 0; task < s->B * panels; task++) {
        const int64_t n = task / panels, d = task % panels * NAME(LANES), lanes = NAME(at_most)(D - d, NAME(LANES));
        NAME(Lane) *a = aligned_alloc(VECTOR, (I + TILE + J + TILE + tiled) * VECTOR);
        if (!a) {
            whole = 0;
            continue;
        }
        const unsigned mode = flush_subnormals();
        NAME(Lane) *b = a + I + TILE, *sums = b + J + TILE; /* b has a tile of zeros before it and one behind */
        NAME(pack)(s->a + n * s->a_batch + d, I, s->a_row, lanes, a);
        NAME(pack)(s->b + n * s->b_batch + d, J, D, lanes, b);
        memset(b - TILE, 0, TILE * VECTOR);
        memset(b + J, 0, TILE * VECTOR);
        memset(sums, 0, tiled * VECTOR);
        for (int64_t first = 0; first < I; first += CHUNK)
            for (int64_t r = 0; r < tiled; r += TILE) {
                const int64_t met = r + s->offset; /* the row of b that row 0 of a meets for output r */
                const int64_t last = NAME(at_most)(NAME(at_most)(I, first + CHUNK), J - met);
                NAME(tile)(a, b + met, NAME(at_least)(first, 1 - TILE - met), last, sums + r);
            }
        REAL *out = s->out + n * R * D + d;
        for (int64_t r = 0; r < R; r++) memcpy(out + r * D, sums + r, lanes * sizeof(REAL));
        free(a);
        restore_subnormals(mode);
    }
    return whole;
}

int NAME(correlate)(const REAL *a, int64_t a_batch, int64_t a_row, int64_t I, const REAL *b, int64_t b_batch,
                    int64_t J, REAL *out, int64_t R, int64_t B, int64_t D, int64_t offset) {
    const NAME(Sizes) sizes = {a, b, out, a_batch, a_row, I, b_batch, J, R, B, D, offset};
    if (R >= TILE) return NAME(many)(&sizes);
    NAME(few)(&sizes);
    return 1;
}

#endif
