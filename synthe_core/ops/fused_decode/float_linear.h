// y = W x of float32 rows: each number is WIDTH partial sums over the columns, added in one order.
// A row's result does not depend on the rows or outputs beside it.
#pragma once

#include "../lanes.h"

#ifdef __AVX512F__
enum { WIDTH = 16, TILE_OUTPUTS = 6 };  // 24 sums of 32 registers
typedef __m512 wide;
static inline wide wide_zero(void) { return _mm512_setzero_ps(); }
static inline wide wide_load(const float *x) { return _mm512_loadu_ps(x); }
static inline wide wide_rest(const float *x, int64_t count) { return _mm512_maskz_loadu_ps((__mmask16)((1 << count) - 1), x); }
static inline wide wide_fma(wide a, wide b, wide c) { return _mm512_fmadd_ps(a, b, c); }
static inline lanes folded(wide v) {
    return plus(_mm512_castps512_ps256(v), _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(v), 1)));
}
#define WIDE_IN_REGISTER(v) __asm__("" : "+v"(v))
#else
enum { WIDTH = LANES, TILE_OUTPUTS = 3 };
typedef lanes wide;
static inline wide wide_zero(void) { return fill(0); }
static inline wide wide_load(const float *x) { return eight(x); }
static inline wide wide_rest(const float *x, int64_t count) { return rest_of(x, count); }
static inline wide wide_fma(wide a, wide b, wide c) { return fma8(a, b, c); }
static inline lanes folded(wide v) { return v; }
#define WIDE_IN_REGISTER(v) IN_REGISTER(v)
#endif

#ifdef VECTOR
static inline __m128 four_sums(wide v) {
    lanes eight_sums = folded(v);
    return _mm_add_ps(_mm256_castps256_ps128(eight_sums), _mm256_extractf128_ps(eight_sums, 1));
}
static inline __m128 two_of_two(__m128 a, __m128 b) { return _mm_add_ps(_mm_movelh_ps(a, b), _mm_movehl_ps(b, a)); }
// The totals of four sums, added up as `total` does.
static inline void totals(const wide *v, float *y) {
    __m128 a = two_of_two(four_sums(v[0]), four_sums(v[1])), b = two_of_two(four_sums(v[2]), four_sums(v[3]));
    _mm_storeu_ps(y, _mm_add_ps(_mm_shuffle_ps(a, b, 0x88), _mm_shuffle_ps(a, b, 0xdd)));
}
#else
static inline void totals(const wide *v, float *y) {
    for (int i = 0; i < 4; i++) y[i] = total(v[i]);
}
#endif

// R rows of x times C of W, from column i on.
#define ADD_PRODUCTS(R, C, LOAD)                                                                                       \
    {                                                                                                                  \
        wide row[R];                                                                                                   \
        for (int r = 0; r < R; r++) row[r] = LOAD(x + r * columns + i);                                                \
        for (int c = 0; c < C; c++) {                                                                                  \
            wide v = LOAD(w + c * columns + i);                                                                        \
            WIDE_IN_REGISTER(v);                                                                                       \
            for (int r = 0; r < R; r++) sum[r][c] = wide_fma(v, row[r], sum[r][c]);                                    \
        }                                                                                                              \
    }
#define REST(at) wide_rest(at, columns - i)
#define FLOAT_TILE(name, R, C)                                                                                         \
    static void name(const float *w, const float *x, int64_t columns, float *y, int64_t stride) {                      \
        wide sum[R][C];                                                                                                \
        int64_t i = 0;                                                                                                 \
        for (int r = 0; r < R; r++)                                                                                    \
            for (int c = 0; c < C; c++) sum[r][c] = wide_zero();                                                       \
        for (; i + WIDTH <= columns; i += WIDTH) ADD_PRODUCTS(R, C, wide_load)                                         \
        if (i < columns) ADD_PRODUCTS(R, C, REST)                                                                      \
        for (int n = 0; n < R * C; n += 4) {                                                                           \
            wide four[4];                                                                                              \
            float part[4];                                                                                             \
            for (int j = 0; j < 4; j++) four[j] = n + j < R * C ? sum[(n + j) % R][(n + j) / R] : wide_zero();         \
            totals(four, part);                                                                                        \
            for (int j = 0; j < 4 && n + j < R * C; j++) y[(n + j) % R * stride + (n + j) / R] = part[j];              \
        }                                                                                                              \
    }
FLOAT_TILE(tile_4_many, 4, TILE_OUTPUTS)
FLOAT_TILE(tile_4_1, 4, 1)
FLOAT_TILE(tile_1_8, 1, 8)
FLOAT_TILE(tile_1_1, 1, 1)

enum { FLOAT_OUTPUTS = 96 };  // outputs that all rows read before the next ones

// W [outputs, columns], x [rows, columns]; a row of y is `stride` long.
static inline void float_product(const float *w, const float *x, int64_t rows, int64_t columns, int64_t outputs,
                                 float *y, int64_t stride) {
    int64_t spans = (outputs + FLOAT_OUTPUTS - 1) / FLOAT_OUTPUTS;
#pragma omp parallel for schedule(static) if (spans > 1)
    for (int64_t s = 0; s < spans; s++) {
        int64_t first = s * FLOAT_OUTPUTS, last = first + FLOAT_OUTPUTS < outputs ? first + FLOAT_OUTPUTS : outputs, r = 0;
        for (; r + 4 <= rows; r += 4) {
            int64_t o = first;
            for (; o + TILE_OUTPUTS <= last; o += TILE_OUTPUTS)
                tile_4_many(w + o * columns, x + r * columns, columns, y + r * stride + o, stride);
            for (; o < last; o++) tile_4_1(w + o * columns, x + r * columns, columns, y + r * stride + o, stride);
        }
        for (; r < rows; r++) {
            int64_t o = first;
            for (; o + 8 <= last; o += 8) tile_1_8(w + o * columns, x + r * columns, columns, y + r * stride + o, stride);
            for (; o < last; o++) tile_1_1(w + o * columns, x + r * columns, columns, y + r * stride + o, stride);
        }
    }
}
