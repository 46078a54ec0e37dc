// y = W x of float32 rows, W in float32, bfloat16 or float16: each number is WIDTH partial sums over the columns, added in
// one order. A row's result does not depend on the rows or outputs beside it; that of a W in 16 bits is that of the same
// numbers in float32.
#pragma once

#include "../bfloat16.h"
#include "../half.h"
#include "../lanes.h"

enum { FLOAT32, BFLOAT16, FLOAT16 };  // how W is stored

#ifdef __AVX512F__
enum { WIDTH = 16, TILE_OUTPUTS = 6 };  // 24 sums of 32 registers
typedef __m512 wide;
static inline wide wide_zero(void) { return _mm512_setzero_ps(); }
static inline wide wide_load(const float *x) { return _mm512_loadu_ps(x); }
static inline wide wide_rest(const float *x, int64_t count) { return _mm512_maskz_loadu_ps((__mmask16)((1 << count) - 1), x); }
static inline wide wide_fma(wide a, wide b, wide c) { return _mm512_fmadd_ps(a, b, c); }
static inline wide wide_fill(float x) { return _mm512_set1_ps(x); }
static inline wide widened(__m256i v) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16)); }
static inline wide wide_load_bfloat16(const bfloat16 *x) { return widened(_mm256_loadu_si256((const __m256i *)x)); }
static inline wide wide_load_float16(const float16 *x) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)x)); }
static inline void wide_store(float *y, wide v) { _mm512_storeu_ps(y, v); }
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
static inline wide wide_fill(float x) { return fill(x); }
#ifdef VECTOR
static inline wide wide_load_bfloat16(const bfloat16 *x) {
    __m256i v = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)x));
    return _mm256_castsi256_ps(_mm256_slli_epi32(v, 16));
}
#else
static inline wide wide_load_bfloat16(const bfloat16 *x) { EACH(from_bfloat16(x[l])); }
#endif
static inline wide wide_load_float16(const float16 *x) { return halves(x); }
static inline void wide_store(float *y, wide v) { store(y, v); }
static inline lanes folded(wide v) { return v; }
#define WIDE_IN_REGISTER(v) IN_REGISTER(v)
#endif

static inline wide wide_rest_bfloat16(const bfloat16 *x, int64_t count) {
    bfloat16 part[WIDTH] = {0};
    memcpy(part, x, (size_t)count * sizeof(bfloat16));
    return wide_load_bfloat16(part);
}
static inline wide wide_rest_float16(const float16 *x, int64_t count) {
    float16 part[WIDTH] = {0};
    memcpy(part, x, (size_t)count * sizeof(float16));
    return wide_load_float16(part);
}

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
#define ADD_PRODUCTS(R, C, LOAD, LOAD_WEIGHT)                                                                          \
    {                                                                                                                  \
        wide row[R];                                                                                                   \
        for (int r = 0; r < R; r++) row[r] = LOAD(x + r * columns + i);                                                \
        for (int c = 0; c < C; c++) {                                                                                  \
            wide v = LOAD_WEIGHT(w + c * apart + i);                                                                   \
            WIDE_IN_REGISTER(v);                                                                                       \
            for (int r = 0; r < R; r++) sum[r][c] = wide_fma(v, row[r], sum[r][c]);                                    \
        }                                                                                                              \
    }
#define REST(at) wide_rest(at, columns - i)
#define REST_BFLOAT16(at) wide_rest_bfloat16(at, columns - i)
#define REST_FLOAT16(at) wide_rest_float16(at, columns - i)
#define FLOAT_TILE(name, KIND, R, C, LOAD_WEIGHT, REST_WEIGHT)                                                         \
    static void name(const KIND *w, int64_t apart, const float *x, int64_t columns, float *y, int64_t stride) {        \
        wide sum[R][C];                                                                                                \
        int64_t i = 0;                                                                                                 \
        for (int r = 0; r < R; r++)                                                                                    \
            for (int c = 0; c < C; c++) sum[r][c] = wide_zero();                                                       \
        for (; i + WIDTH <= columns; i += WIDTH) ADD_PRODUCTS(R, C, wide_load, LOAD_WEIGHT)                            \
        if (i < columns) ADD_PRODUCTS(R, C, REST, REST_WEIGHT)                                                         \
        for (int n = 0; n < R * C; n += 4) {                                                                           \
            wide four[4];                                                                                              \
            float part[4];                                                                                             \
            for (int j = 0; j < 4; j++) four[j] = n + j < R * C ? sum[(n + j) % R][(n + j) / R] : wide_zero();         \
            totals(four, part);                                                                                        \
            for (int j = 0; j < 4 && n + j < R * C; j++) y[(n + j) % R * stride + (n + j) / R] = part[j];              \
        }                                                                                                              \
    }

enum { FLOAT_OUTPUTS = 96 };  // outputs that all rows read before the next ones

// W [outputs, columns], its rows `apart` numbers apart, x [rows, columns]; a row of y is `stride` long.
#define PRODUCT(KIND, LOAD_WEIGHT, REST_WEIGHT)                                                                        \
    FLOAT_TILE(KIND##_4_many, KIND, 4, TILE_OUTPUTS, LOAD_WEIGHT, REST_WEIGHT)                                         \
    FLOAT_TILE(KIND##_4_1, KIND, 4, 1, LOAD_WEIGHT, REST_WEIGHT)                                                       \
    FLOAT_TILE(KIND##_1_8, KIND, 1, 8, LOAD_WEIGHT, REST_WEIGHT)                                                       \
    FLOAT_TILE(KIND##_1_1, KIND, 1, 1, LOAD_WEIGHT, REST_WEIGHT)                                                       \
    static inline void KIND##_product(const KIND *w, int64_t apart, const float *x, int64_t rows, int64_t columns,     \
                                      int64_t outputs, float *y, int64_t stride) {                                     \
        int64_t spans = (outputs + FLOAT_OUTPUTS - 1) / FLOAT_OUTPUTS;                                                 \
        _Pragma("omp parallel for schedule(static) if (spans > 1)")                                                    \
        for (int64_t s = 0; s < spans; s++) {                                                                          \
            int64_t first = s * FLOAT_OUTPUTS, last = first + FLOAT_OUTPUTS, r = 0;                                    \
            last = last < outputs ? last : outputs;                                                                    \
            for (; r + 4 <= rows; r += 4) {                                                                            \
                const float *own = x + r * columns;                                                                    \
                int64_t o = first;                                                                                     \
                for (; o + TILE_OUTPUTS <= last; o += TILE_OUTPUTS)                                                    \
                    KIND##_4_many(w + o * apart, apart, own, columns, y + r * stride + o, stride); \
                for (; o < last; o++) KIND##_4_1(w + o * apart, apart, own, columns, y + r * stride + o, stride); \
            }                                                                                                          \
            for (; r < rows; r++) {                                                                                    \
                const float *own = x + r * columns;                                                                    \
                int64_t o = first;                                                                                     \
                for (; o + 8 <= last; o += 8) KIND##_1_8(w + o * apart, apart, own, columns, y + r * stride + o, stride); \
                for (; o < last; o++) KIND##_1_1(w + o * apart, apart, own, columns, y + r * stride + o, stride); \
            }                                                                                                          \
        }                                                                                                              \
    }
PRODUCT(float, wide_load, REST)
PRODUCT(bfloat16, wide_load_bfloat16, REST_BFLOAT16)
PRODUCT(float16, wide_load_float16, REST_FLOAT16)

static inline void stored_product(const void *w, int64_t kind, int64_t apart, const float *x, int64_t rows,
                                  int64_t columns, int64_t outputs, float *y, int64_t stride) {
    if (kind == FLOAT32) float_product(w, apart, x, rows, columns, outputs, y, stride);
    else if (kind == BFLOAT16) bfloat16_product(w, apart, x, rows, columns, outputs, y, stride);
    else float16_product(w, apart, x, rows, columns, outputs, y, stride);
}
